"""A reconciler: databases are brought to what their specs say, in passes, and the specs change.

    python examples/reconcile_loop.py

A work queue holds the names of those that are due. A pass over one of them does what it can, says
when to come again, and makes room for the next one; nothing stands still meanwhile. So works a
Kubernetes operator, a cron job, or a consumer of a queue. Kill it and start it again: what was
made is not made again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from simulated_cloud import Cloud, ThrottledError

import asteps
from asteps import Event, Retry, Step
from asteps.stores.sqlite import SQLiteStore

DB = Path("reconcile_loop.db")
SPECS = DB.with_suffix(".specs.json")
BUSY_CLOUD = Retry(attempts=10, delay=0.2, max_delay=2, on=ThrottledError)


@dataclass
class Spec:
    """What somebody wants."""

    name: str
    size: int  # of the disk, in GB
    version: int  # of the server


# --- the steps ------------------------------------------------------------------------------------


async def bring_up(s: Step, cloud: Cloud, spec: Spec) -> str:
    async def check(disk: str) -> str | None:
        return disk if await cloud.disk_is_ready(disk) else None  # None: not yet

    # inputs= says what a step depends on. If that has changed, the step is forgotten and run again,
    # with another token; and so is whatever depends on its result.
    token = s.token_for("disk", inputs=spec.size)
    start = partial(cloud.start_disk, spec.name, spec.size, token=token)
    disk = await s.poll("disk", start, check, every=0.2, inputs=spec.size, retry=BUSY_CLOUD)
    return await s.do("server", start_server, cloud, spec, disk, inputs=[disk, spec.version])


async def start_server(s: Step, cloud: Cloud, spec: Spec, disk: str) -> str:
    return await cloud.create("server", f"{spec.name}-v{spec.version}-on-{disk}", token=s.token)


# --- the loop -------------------------------------------------------------------------------------


async def work(store: SQLiteStore, cloud: Cloud, specs: dict[str, Spec], names: list[str]) -> None:
    """Reconcile these until nothing is left to do."""
    due = dict.fromkeys(names, 0.0)
    while due:
        name = min(due, key=due.__getitem__)
        await asyncio.sleep(due.pop(name) - time.monotonic())
        outcome = await asteps.reconcile(
            bring_up,
            cloud,
            specs[name],
            store=store,
            id=name,
            inputs=specs[name],  # another spec: a finished run is entered again
            observers=[say_what_happens],
        )
        match outcome:
            case asteps.Done(value=server):
                say(f"  is there {name}: {server}")
            case asteps.Failed(error=error):  # until its spec is another one
                say(f"  FAILED   {name}: {error.failure.message}")
            case asteps.Pending(after=after, path=path, why=why):
                say(f"  waits    {name}/{path}: {why}")
                due[name] = time.monotonic() + after


async def main() -> None:
    async with SQLiteStore(DB) as store:
        cloud = Cloud(DB.with_suffix(".cloud.json"), pace=0.2)
        say(f"Databases are brought to what {SPECS} says. What is done is kept in {DB}.")
        say(f"Press Ctrl-C, or kill -9 {os.getpid()}, whenever you like; then start it again.")
        specs = read_specs() or write_specs(
            [Spec("shop", 10, 1), Spec("blog", 5, 1), Spec("wiki", 5, 1), Spec("mail", 0, 1)]
        )
        await say_what_is_done(store, specs)
        await work(store, cloud, specs, list(specs))

        if specs["mail"].size == 0:  # what people would do meanwhile
            say("Now shop is to have 20 GB, blog version 2, and mail a size that can be had.")
            changed = [
                replace(specs["shop"], size=20),
                replace(specs["blog"], version=2),
                replace(specs["mail"], size=5),
            ]
            specs = write_specs([*changed, specs["wiki"]])
            await work(store, cloud, specs, [spec.name for spec in changed])
        say(f"{len(specs)} databases are as they should be.")


# --- the specs: in an operator, the objects of the cluster ----------------------------------------


def read_specs() -> dict[str, Spec]:
    known = json.loads(SPECS.read_text()) if SPECS.exists() else []
    return {spec["name"]: Spec(**spec) for spec in known}


def write_specs(specs: Iterable[Spec]) -> dict[str, Spec]:
    new = SPECS.with_suffix(".new")
    new.write_text(json.dumps([asdict(spec) for spec in specs], indent=1))
    new.replace(SPECS)  # so the file is always whole
    return read_specs()


# --- what one sees --------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)  # at once, for whoever kills this process wants to have seen it


def say_what_happens(event: Event) -> None:
    """An observer: told of each thing that happens, once it is in the store."""
    match event:
        case asteps.StepDone(run_id=name, path=path) if path:
            say(f"  done     {name}/{path}")
        case _:
            pass


async def say_what_is_done(store: SQLiteStore, names: Iterable[str]) -> None:
    for name in names:
        state = await asteps.load_state(store, name)
        for path, step in () if state is None else state.walk():
            if path and step.done:
                say(f"  skipped  {name}/{path}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asteps.BusyError as busy:
        say(f"Another process is at it: {busy}.")
        sys.exit(1)
    except KeyboardInterrupt:
        say("Stopped. Everything that was done is kept: start it again to go on.")
        sys.exit(130)
