"""``asteps watch``: a run's tree, drawn again and again until the run ends."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, NoReturn, Protocol, Self

import anyio

from .._store import Store
from ..reports import Row, RowStatus, Timeline
from ..reports._outlook import message_of, progress_text
from ..reports._words import duration_text, time_text
from ._arguments import RunId, StoreUrl, run_at
from ._exits import Exits, Stop
from ._output import Line, console_for, is_screen, rich_text, write_lines
from ._phrases import parse_duration
from ._show import drawn_of, head_of
from ._stores import Found, find_run, in_store
from ._tree import branch_of, fit, lines_of, marks_for
from ._typer import Context, Option

__all__ = ["watch"]

_SHARE = 5  # a look that takes long is repeated after so many times as long
_MOST = 20  # siblings that are drawn
_NO_END = 1_000_000  # lines


def watch(
    context: Context,
    id: RunId,
    *,
    every: Annotated[
        str, Option("--every", "-e", metavar="TIME", help="How often to look: 500ms, 2s.")
    ] = "1s",
    timeout: Annotated[
        str | None,
        Option("--timeout", "-t", metavar="TIME", help="When to give up (exit code 7): 90s, 2h."),
    ] = None,
    store: StoreUrl = None,
) -> int:
    """Watch a run until it ends. The exit code is 0 if it is done, and 1 if it has failed."""
    pause = max(parse_duration(every, "--every").total_seconds(), 0.1)
    until = None if timeout is None else parse_duration(timeout, "--timeout").total_seconds()
    picture: _Picture = _Screen() if is_screen(sys.stdout) else _Log()

    url, id = run_at(context, store, id)

    async def look(opened: Store) -> int:
        with anyio.move_on_after(until):
            return await _follow(opened, id, pause, picture)
        return Exits.UNFINISHED

    with _leaving_in_order(), picture:
        return in_store(url, look)


@contextmanager
def _leaving_in_order() -> Generator[None]:
    """A SIGTERM ends the process as it would, but the terminal has its cursor again."""

    def leave(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def _follow(store: Store, id: str, pause: float, picture: _Picture) -> int:
    whole = False
    while True:
        began = time.monotonic()
        try:
            found = await find_run(store, id, whole=whole)
        except Stop as exc:
            if whole and exc.code is Exits.NOT_FOUND:
                raise Stop(Exits.NOT_FOUND, f"run {id!r} was removed") from exc
            raise
        id, whole = found.id, True
        drawn = drawn_of(found)
        picture.show(found, drawn)
        if drawn.end is not None:
            return Exits.FAILED if drawn.status == "failed" else Exits.DONE
        await anyio.sleep(max(pause, _SHARE * (time.monotonic() - began)))


class _Picture(Protocol):
    """What is drawn of a run that is watched."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def show(self, found: Found, drawn: Timeline) -> None:
        """Draw what it has come to by now."""
        ...


class _Screen:
    """The tree on a terminal, always in the same place; the last one stays."""

    def __init__(self) -> None:
        from rich.live import Live  # noqa: PLC0415 - only where a terminal is written to

        self._console = console_for(sys.stdout)
        self._marks = marks_for(sys.stdout.encoding)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def show(self, found: Found, drawn: Timeline) -> None:
        """Draw the tree, as much of it as the terminal has lines for while it goes on."""
        head = head_of(found, drawn)
        height = self._console.height if drawn.end is None else _NO_END
        branch = fit(branch_of(drawn, most=_MOST), height - len(head) - 1)
        lines: list[Line] = [*head, [], *lines_of(branch.children, self._marks)]
        if branch.hidden:
            lines.append([(branch.hidden, "dim")])
        text = rich_text(lines)
        text.no_wrap, text.overflow = True, "ellipsis"
        self._live.update(text, refresh=True)


class _Log:
    """One line for each change, for pipes and files."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[RowStatus, int]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def show(self, found: Found, drawn: Timeline) -> None:
        """Say what has changed since the last look; at the first one, how far the run is."""
        now: dict[str, tuple[RowStatus, int]] = {
            row.path: (row.status, row.attempt) for row in drawn.rows
        }
        seen, self._seen = self._seen, now
        if seen is None:
            text = f"run {found.id}, {progress_text(drawn) or 'no step has begun'}"
            write_lines([_entry(drawn.status, text, drawn.now)])
            if drawn.end is None:
                return
        rows = drawn.rows if seen is not None else drawn.rows[:1]
        for row in reversed(rows):  # children before the parents that they end
            if row.status != "not begun" and (seen is None or seen.get(row.path) != now[row.path]):
                write_lines([_entry(row.status, _said(row), drawn.now)])


def _entry(status: RowStatus, text: str, now: float) -> Line:
    return [(time_text(now, now), "dim"), (f"  {status:<11}  ", status), (text, "")]


def _said(row: Row) -> str:
    """What a line says of a step."""
    parts = [row.path or "the run"]
    if row.status in ("done", "failed"):
        parts.append(duration_text(row.span))
    if row.status in ("failed", "retrying"):
        parts.append(message_of(row))
    return ", ".join(parts)
