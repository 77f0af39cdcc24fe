"""A map on SQLite in a process of its own, for `bench_concurrency`: prints what it cost, as JSON.

Usage: python concurrency_work.py FILE ITEMS [INDEX OF THE ITEM IN WHICH TO DIE]
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import time
from typing import Any

import asteps
from asteps.stores.sqlite import SQLiteStore


async def fan_out(s: asteps.Step, items: int, deadly: int) -> int:
    """The root."""

    async def item(s: asteps.Step, index: int) -> dict[str, Any]:
        if index == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"id": "i-0123456789abcdef0", "ip": "10.20.30.40", "size": 8}

    return len(await s.map("items", item, range(items), limit=100))


async def main(file: str, items: int, deadly: int) -> None:
    """Run it, and print what it took."""
    async with SQLiteStore(file) as store:
        began = time.perf_counter()
        outcome = await asteps.reconcile(fan_out, items, deadly, store=store, id="fan-out")
        seconds = time.perf_counter() - began
    match outcome:
        case asteps.Done(value=found):
            assert found == items
        case _:
            raise AssertionError(outcome)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "us": seconds / items * 1e6, "peak MB": peak}))


if __name__ == "__main__":
    deadly = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), deadly))
