"""Make an image of a machine, and copy it to another region, with the waiters of AWS.

    pip install boto3 'moto[server]'
    python examples/cloud_image.py

Press Ctrl-C while it runs, or ``kill -9`` it, and start it again: no image is made twice, and what
was waited for is waited on. The AWS is a pretended one (moto) in a process of its own; all else
would be the same with the real one. Read it from the top.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pretended_aws

import asteps
from asteps import Event, Retry, Step
from asteps.integrations.aws import wait_until
from asteps.stores.sqlite import SQLiteStore

RUN_ID = "image-of-web"
HERE, THERE = "us-east-1", "eu-west-1"

# The waiter's own delay is 15 seconds; this AWS is faster. Leave `every=` out with a real one.
OFTEN = Retry(delay=0.2, factor=1.5, max_delay=1)

# --- the steps ------------------------------------------------------------------------------------
#
# `ec2` and `far` are plain boto3 clients. Functions that call them know nothing of steps; they are
# run in worker threads.


async def copy_machine(s: Step, ec2: Any, far: Any) -> str:
    base = await s.call("base", register, ec2)
    machine = await wait_until(
        s,
        "machine",
        ec2,
        "instance_running",
        start=partial(launch, ec2, base, s.token_for("machine")),
        params=lambda instance: {"InstanceIds": [instance]},
        every=OFTEN,
    )
    # What `start` returns, the image's ID, is on the disk before the first check. Killed after
    # that, the next process checks on this very image.
    image = await wait_until(
        s,
        "image",
        ec2,
        "image_available",
        start=partial(create_image, ec2, machine, s.token_for("image")),
        params=lambda image: {"ImageIds": [image]},
        every=OFTEN,
    )
    return await wait_until(
        s,
        "copy",
        far,
        "image_available",
        start=partial(copy_image, far, image, s.token_for("copy")),
        params=lambda image: {"ImageIds": [image]},
        every=OFTEN,
    )


def register(ec2: Any) -> str:
    image: str = ec2.register_image(Name="base")["ImageId"]  # a real AWS has some already
    return image


def launch(ec2: Any, base: str, token: str) -> str:
    made = ec2.run_instances(ImageId=base, MinCount=1, MaxCount=1, ClientToken=token)
    instance: str = made["Instances"][0]["InstanceId"]
    return instance


def create_image(ec2: Any, machine: str, token: str) -> str:
    # CreateImage takes no ClientToken. Killed after it and before the ID was on the disk, this runs
    # again, with the same token: in the name of the image, it tells whether there is one already.
    name = f"web-{token}"
    found = ec2.describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"]
    made = found[0] if found else ec2.create_image(InstanceId=machine, Name=name)
    image: str = made["ImageId"]
    return image


def copy_image(far: Any, image: str, token: str) -> str:
    made = far.copy_image(Name="web", SourceImageId=image, SourceRegion=HERE, ClientToken=token)
    copied: str = made["ImageId"]
    return copied


# --- the run --------------------------------------------------------------------------------------


async def main(db: Path, *, reset: bool) -> None:
    aws = db.with_suffix(".aws")  # tells where the pretended AWS listens
    async with SQLiteStore(db) as store:
        if reset:
            await asteps.delete_run(store, RUN_ID)
            pretended_aws.stop(aws)
        known = await asteps.load_state(store, RUN_ID)
        say_hello(known, db)
        if known is None or not known.done:
            url = await asyncio.to_thread(pretended_aws.find, aws)
            if url is None and known is not None:
                say("But the pretended AWS has ended, and what it had is gone. Use --reset.")
                sys.exit(1)
            if url is None:
                url = await asyncio.to_thread(pretended_aws.start, aws)
            await asteps.run(
                copy_machine,
                await asyncio.to_thread(pretended_aws.client, url, HERE),
                await asyncio.to_thread(pretended_aws.client, url, THERE),
                store=store,
                id=RUN_ID,
                name="CopyMachine",
                recover=True,
                observers=[say_what_happens],
            )
            pretended_aws.stop(aws)
        say_goodbye(await asteps.load_state(store, RUN_ID))


# --- what one sees --------------------------------------------------------------------------------


def say(text: str = "") -> None:
    print(text, flush=True)


def say_hello(state: asteps.State | None, db: Path) -> None:
    say(f"CopyMachine: an image of a machine, and a copy of it in {THERE}. Kept in {db}.")
    if state is not None and state.done:
        say("It is finished: nothing is run again. Start over with --reset.")
        return
    if state is not None:
        say("It was begun before, and goes on from there.")
        for path, node in state.walk():
            if node.done:
                say(f"  skipped  {path}")
            elif task := polling(node).get("taskId"):
                say(f"  goes on  {path}: {task} was started before")
    say(f"Press Ctrl-C, or kill -9 {os.getpid()}, whenever you like; then start it again.")
    say()


def say_what_happens(event: Event) -> None:
    match event:
        case asteps.StepDone(path=path) if path:
            say(f"  done     {path}")
        case asteps.StepPending(path=path, why=why):
            say(f"  waits    {path}: {why}")
        case asteps.StepFailed(path=path, failure=failure):
            say(f"  FAILED   {path or 'the run'}: {failure.message}")
        case _:
            pass


def say_goodbye(state: asteps.State | None) -> None:
    assert state is not None
    say()
    for path, node in state.walk():
        assert node.started_at is not None
        assert node.done_at is not None
        took = (node.done_at - node.started_at).total_seconds()
        line = f"  {('    ' if path else '') + node.name:<16} done {took:6.2f} s"
        if known := polling(node):
            line += f"   {known['taskId']}, checks: {known['polls']}"
        say(line)


def polling(node: asteps.State) -> dict[str, Any]:
    """What a step that polls has written down: the task's ID, how many checks there were."""
    return node.info_as(dict[str, Any]) if bytes(node.info) else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make an image of a machine, and copy it.")
    parser.add_argument(
        "--db",
        type=Path,
        default=Path("cloud_image.db"),
        metavar="PATH",
        help="the SQLite file of the run (%(default)s)",
    )
    parser.add_argument("--reset", action="store_true", help="forget everything and start over")
    given = parser.parse_args()
    try:
        asyncio.run(main(given.db, reset=given.reset))
    except asteps.BusyError as busy:
        say(f"Another process is at it: {busy}.")
        sys.exit(1)
    except asteps.StepError as error:
        say(f"\nFailed at {error.origin}. Start it again to try that again, and go on.")
        sys.exit(1)
    except KeyboardInterrupt:
        say("\nStopped. Everything that was done is kept: start it again to go on.")
        sys.exit(130)
