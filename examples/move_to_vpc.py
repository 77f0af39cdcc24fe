"""Move a virtual machine into a VPC, step by step, and survive whatever happens meanwhile.

    python examples/move_to_vpc.py

Press Ctrl-C while it runs, or ``kill -9`` it, and start it again: what is done is not done again.
Read it from the top: first the steps, plain async functions, then the one call that runs them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from simulated_cloud import Cloud, ThrottledError

import asteps
from asteps import Event, Retry, Step
from asteps.stores.sqlite import SQLiteStore

RUN_ID = "move-web-to-vpc"
INSTANCES = ["vm-1", "vm-2", "vm-3"]

# Only what may well work the next time is tried again; a bug should fail at once.
BUSY_CLOUD = Retry(attempts=10, delay=0.3, max_delay=2, on=(ThrottledError, TimeoutError))


@dataclass
class Report:
    """What the move came to. A step's result can be whatever goes through JSON and back."""

    vpc: str
    payer: str
    instances: list[str]
    interfaces: list[str]


# --- the steps ------------------------------------------------------------------------------------
#
# Returning means done, raising means failed, s.pending() means not yet. The code between two steps
# runs on every start; a step that is done gives back what it returned then.


async def move_to_vpc(s: Step, cloud: Cloud, instances: list[str]) -> Report:
    vpc = await s.do("initialize", initialize, cloud)
    payer = await s.do("preFlight", pre_flight, cloud)
    moved, interfaces = await s.do("inFlight", in_flight, cloud, vpc, instances)
    return Report(vpc, payer, moved, interfaces)


async def initialize(s: Step, cloud: Cloud) -> str:
    vpc = await s.do("initialize CVM", create, cloud, "vpc", "web")
    await s.do("initialize ENIs", create, cloud, "eni", "gateway", retry=BUSY_CLOUD)
    return vpc


async def create(s: Step, cloud: Cloud, kind: str, name: str) -> str:
    # Killed after the cloud has made it and before we could write that down, this step runs again.
    # Its token is the same then, so the cloud gives us what it has made, and not a second one.
    return await cloud.create(kind, name, token=s.token)


async def pre_flight(s: Step, cloud: Cloud) -> str:
    # A function that knows nothing of steps is run by call(). This one hangs at first: its time is
    # limited, and it is tried again.
    payer = await s.call("chkAccount", cloud.check_account, timeout=0.8, retry=BUSY_CLOUD)
    await s.do("chkNetwork", check_network, cloud)
    return payer


async def check_network(s: Step, cloud: Cloud) -> None:
    # The addresses that do not answer yet are kept in the step's info, which outlives the process:
    # one that has answered is not asked again.
    dead = s.info_as(list[str])
    if dead is None:
        dead = await cloud.addresses()
    still_dead = [address for address in dead if not await cloud.answers(address)]
    await s.save_info(still_dead)
    if still_dead:
        s.pending(after=0.5, why=f"no answer yet from {', '.join(still_dead)}")


async def in_flight(
    s: Step, cloud: Cloud, vpc: str, instances: list[str]
) -> tuple[list[str], list[str]]:
    # Steps are known by their names, not by their order: they may run at the same time.
    moved, interfaces = await asyncio.gather(
        s.do("migrateInstances", migrate_instances, cloud, vpc, instances),
        s.do("cloneENIs", clone_enis, cloud, instances),
    )
    return moved, interfaces


async def migrate_instances(s: Step, cloud: Cloud, vpc: str, instances: list[str]) -> list[str]:
    return [await s.do(vm, migrate, cloud, vm, vpc, retry=BUSY_CLOUD) for vm in instances]


async def migrate(s: Step, cloud: Cloud, vm: str, vpc: str) -> str:
    return await cloud.migrate(vm, vpc, token=s.token)


async def clone_enis(s: Step, cloud: Cloud, instances: list[str]) -> list[str]:
    return [
        await s.do(f"ENI of {vm}", create, cloud, "eni", vm, retry=BUSY_CLOUD) for vm in instances
    ]


# --- the run --------------------------------------------------------------------------------------


async def main(db: Path, *, fast: bool, reset: bool) -> None:
    memory = db.with_suffix(".cloud.json")
    async with SQLiteStore(db) as store:
        if reset:
            await asteps.delete_run(store, RUN_ID)
            memory.unlink(missing_ok=True)
        say_hello(await asteps.load_state(store, RUN_ID), db)
        report = await asteps.run(
            move_to_vpc,
            Cloud(memory, pace=0.1 if fast else 1.0),
            INSTANCES,
            store=store,
            id=RUN_ID,
            name="MoveToVPC",
            recover=True,  # whoever starts a failed move again wants what failed to be tried again
            observers=[say_what_happens],
        )
        say_goodbye(await asteps.load_state(store, RUN_ID), report)


# --- what one sees --------------------------------------------------------------------------------


def say(text: str = "") -> None:
    print(text, flush=True)  # at once, for whoever kills this process wants to have seen it


def say_hello(state: asteps.State | None, db: Path) -> None:
    say(f"MoveToVPC: {', '.join(INSTANCES)} move into a VPC. What is done is kept in {db}.")
    if state is not None and state.done:
        say("It is finished: nothing is run again. Start over with --reset.")
        return
    if state is not None:
        say(f"It {'failed' if state.failed else 'was begun'} before, and goes on from there.")
        for path, node in state.walk():
            if node.done:
                say(f"  skipped  {path}")
    say(f"Press Ctrl-C, or kill -9 {os.getpid()}, whenever you like; then start it again.")
    say()


def say_what_happens(event: Event) -> None:
    """An observer: told of each thing that happens, once it is in the store."""
    match event:
        case asteps.StepDone(path=path) if path:
            say(f"  done     {path}")
        case asteps.StepRetrying(path=path, failure=failure):
            say(f"  again    {path}: {failure.message}")
        case asteps.StepPending(path=path, why=why):
            say(f"  waits    {path}: {why}")
        case asteps.StepFailed(path=path, failure=failure):
            say(f"  FAILED   {path or 'the run'}: {failure.message}")
        case _:
            pass


def say_goodbye(state: asteps.State | None, report: Report) -> None:
    assert state is not None
    tree = list(state.walk())
    names = ["    " * (path.count("/") + 1 if path else 0) + node.name for path, node in tree]
    width = max(map(len, names))
    say()
    for name, (_, node) in zip(names, tree, strict=True):
        assert node.started_at is not None
        assert node.done_at is not None
        took = (node.done_at - node.started_at).total_seconds()
        tries = f"   at attempt {node.attempt}" if node.attempt > 1 else ""
        say(f"  {name:<{width}}   {'failed' if node.failed else 'done'} {took:7.2f} s{tries}")
    say()
    say(f"{len(report.instances)} instances are in {report.vpc}, and {report.payer} pays.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Move a virtual machine into a VPC.")
    parser.add_argument(
        "--db",
        type=Path,
        default=Path("move_to_vpc.db"),
        metavar="PATH",
        help="the SQLite file of the run (%(default)s); the cloud's stands beside it",
    )
    parser.add_argument("--reset", action="store_true", help="forget everything and start over")
    parser.add_argument("--fast", action="store_true", help="with a cloud ten times as fast")
    given = parser.parse_args()
    try:
        asyncio.run(main(given.db, fast=given.fast, reset=given.reset))
    except asteps.BusyError as busy:
        say(f"Another process is at it: {busy}.")
        sys.exit(1)
    except asteps.StepError as error:
        say(f"\nFailed at {error.origin}. Start it again to try that again, and go on.")
        sys.exit(1)
    except KeyboardInterrupt:
        say("\nStopped. Everything that was done is kept: start it again to go on.")
        sys.exit(130)
