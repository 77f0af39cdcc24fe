"""Two hundred pages are fetched, ten at a time, and none of them twice.

    python examples/fan_out.py

Press Ctrl-C while it runs, or ``kill -9`` it, and start it again: it goes on with what is left.
Each page is a step of its own below the step ``fetch``; `Step.map` runs a function for each of
them. One page fails twice before it can be had, as pages do, and is tried again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import asteps
from asteps import Event, Retry, Step
from asteps.stores.sqlite import SQLiteStore

DB = Path("fan_out.db")
RUN_ID = "count-words"
PAGES = [f"page-{n:03}" for n in range(1, 201)]
AT_A_TIME = 10


# --- the steps ------------------------------------------------------------------------------------


async def count_words(s: Step, pages: list[str]) -> int:
    # The items are the names of their steps. The results come in the order of the items, whichever
    # of them was first. Those that are done already are not run: they give what they gave before.
    counts = await s.map(
        "fetch",
        fetch,
        pages,
        limit=AT_A_TIME,
        retry=Retry(attempts=5, delay=0.2, on=ConnectionError),  # holds for each page
    )
    return sum(counts)


async def fetch(s: Step, page: str) -> int:
    await asyncio.sleep(0.1)  # stands in for the network
    if page == "page-042" and s.attempt < 3:  # attempts are counted in the store, too
        raise ConnectionError("the server hung up")
    return 100 + int(page.removeprefix("page-"))


# --- the run --------------------------------------------------------------------------------------


async def main() -> None:
    async with SQLiteStore(DB) as store:
        before = done_pages(await asteps.load_state(store, RUN_ID))
        say(f"{len(PAGES)} pages, {AT_A_TIME} at a time. What is done is kept in {DB}.")
        if before:
            say(f"  skipped  {before} pages, which are done already")
        if before < len(PAGES):
            say(f"Press Ctrl-C, or kill -9 {os.getpid()}, whenever you like; then start it again.")
        progress = Progress(before)
        words = await asteps.run(
            count_words,
            PAGES,
            store=store,
            id=RUN_ID,
            recover=True,  # whoever starts a failed run again wants what failed to be tried again
            observers=[progress],
        )
    say(f"{len(PAGES)} pages hold {words} words.")
    say(f"{progress.done - before} were fetched now, {before} before; {progress.again} retries.")


def done_pages(state: asteps.State | None) -> int:
    """How many pages a run has done; its tree can be asked at any time."""
    if state is None or not state.has("fetch"):
        return 0
    return sum(page.done for page in state.get("fetch").states or ())


# --- what one sees --------------------------------------------------------------------------------


class Progress:
    """An observer: told of each thing that happens, once it is in the store."""

    def __init__(self, done: int) -> None:
        self.done = done
        self.again = 0

    def __call__(self, event: Event) -> None:
        """Count, and say something now and then."""
        match event:
            case asteps.StepDone(path=path) if path.startswith("fetch/"):
                self.done += 1
                if self.done % 20 == 0:
                    say(f"  done     {self.done} of {len(PAGES)}")
            case asteps.StepRetrying(path=path, failure=failure):
                self.again += 1
                say(f"  again    {path}: {failure.message}")
            case _:
                pass


def say(text: str) -> None:
    print(text, flush=True)  # at once, for whoever kills this process wants to have seen it


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asteps.BusyError as busy:
        say(f"Another process is at it: {busy}.")
        sys.exit(1)
    except asteps.StepError as error:
        say(f"Failed: {error}. Start it again to try again what failed, and go on.")
        sys.exit(1)
    except KeyboardInterrupt:
        say("Stopped. Everything that was done is kept: start it again to go on.")
        sys.exit(130)
