"""The live view: a run's tree on the terminal, drawn while a script works at it.

::

    from asteps.cli.live import live

    async with live() as observer:
        await asteps.run(move_to_vpc, "vm-42", store=store, id="move-vm-42", observers=[observer])

In the midst of an event loop say ``async with``: plain ``with`` waits a moment at its end.

Needs the extra ``cli``.
"""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager, suppress
from queue import SimpleQueue
from typing import Self, TextIO

from anyio import CancelScope, to_thread

from .._events import (
    BodyCall,
    Event,
    PassEnded,
    StepDone,
    StepFailed,
    StepPending,
    StepRetrying,
)
from ..reports._words import duration_text, time_text
from ._model import Model
from ._output import Line, console_for, is_screen, rich_text, write_lines
from ._rich import Live, Text
from ._tree import Branch, fit, has_marks, lines_of, marks_for

__all__ = ["LiveView", "live"]

_PER_SECOND = 8  # drawings
_NO_END = 1_000_000  # lines


def live(*, file: TextIO | None = None, lines: bool = False) -> LiveView:
    """Draw the steps of runs on a terminal while they work, and leave the last drawing there.

    Where there is no terminal nothing is written, unless ``lines`` asks for it. Long lists of steps
    are folded: what has failed, works or waits is named, the rest is counted. A thread of its own
    draws, eight times a second: the event loop waits for nothing, and no run can come to harm.

    What was done before, and is only replayed, is not seen: nobody works at it.

    Args:
        file: What to draw on; the standard error output by default, so that the standard output
            stays the script's own.
        lines: Without a terminal, write one line for each step that ends, fails or waits.
    """
    return LiveView(file or sys.stderr, lines=lines)


class LiveView:
    """A drawing of runs: what ``with`` or ``async with`` gives goes into ``observers=[…]``.

    One view may observe any number of runs, one after another or at once.
    """

    def __init__(self, file: TextIO, *, lines: bool) -> None:
        self._file = file
        self._log: _Log | None = None
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._model: Model | None = None
        if is_screen(file):
            self._console = console_for(file)
            self._marks = marks_for(getattr(file, "encoding", None))
            ascii_only = not has_marks(getattr(file, "encoding", None))
            self._model = Model(ascii_only=ascii_only)
        elif lines:
            self._log = _Log(file)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    async def __aenter__(self) -> Self:
        await to_thread.run_sync(self._start)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with CancelScope(shield=True):
            await to_thread.run_sync(self._stop)

    def __call__(self, event: Event, /) -> None:
        """An event of a run."""
        if self._model is not None:
            self._model.tell(event)
        elif self._log is not None:
            self._log.tell(event)

    def around(self, call: BodyCall, /) -> AbstractContextManager[object]:
        """A body is called, and is shown as working from now on."""
        return _Call(self._model, call)

    def _start(self) -> None:
        if self._log is not None:
            self._log.start()
        if self._model is not None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                get_renderable=self._draw,
                # What the script prints goes above the drawing, if it is on the same terminal.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
            self._thread = threading.Thread(
                target=self._redraw, args=(self._live,), name="asteps-live", daemon=True
            )
            self._thread.start()

    def _stop(self) -> None:
        if self._log is not None:
            self._log.stop()
        drawing, self._live = self._live, None
        if drawing is not None and self._thread is not None:
            self._stopping.set()
            self._thread.join()
            with suppress(Exception):  # nobody sees it any more, which harms no run
                drawing.stop()

    def _redraw(self, drawing: Live) -> None:
        """In a thread of its own."""
        with suppress(Exception):  # likewise
            while not self._stopping.wait(1 / _PER_SECOND):
                drawing.refresh()

    def _draw(self) -> Text:
        goes_on = self._live is not None
        height = self._console.height - 1 if goes_on else _NO_END
        made: list[Branch] = [] if self._model is None else self._model.branches()
        made = [fit(branch, max(height // len(made), 1)) for branch in made]
        text = rich_text(lines_of(made, self._marks)[-height:])
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class _Call:
    """Surrounds one call of a body."""

    __slots__ = ("_call", "_model")

    def __init__(self, model: Model | None, call: BodyCall) -> None:
        self._model = model
        self._call = call

    def __enter__(self) -> None:
        if self._model is not None:
            self._model.called(self._call)

    def __exit__(self, *exc: object) -> None:
        if self._model is not None:
            self._model.left(self._call)


class _Log:
    """One line for each step that comes to something, written by a thread of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._queue: SimpleQueue[Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="asteps-live", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def tell(self, event: Event) -> None:
        self._queue.put(event)

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            if (line := _line(event)) is not None:
                with suppress(Exception):  # likewise
                    write_lines([line], file=self._file)


def _line(event: Event) -> Line | None:
    match event:
        case StepDone():
            status, said = "done", ""
        case StepFailed():
            status, said = "failed", event.failure.message
        case StepRetrying():
            wait = (event.wake_at - event.at).total_seconds()
            status, said = "retrying", f"again in {duration_text(wait)}: {event.failure.message}"
        case StepPending():
            wait = (event.wake_at - event.at).total_seconds()
            status, said = "pending", f"again in {duration_text(wait)}"
            said = f"{said}: {event.why}" if event.why else said
        case PassEnded():
            status, said = event.status, "the pass is over"
        case _:
            return None
    where = f"{event.run_id}: " if event.run_id else ""
    text = f"{where}{event.path or 'the run'}" + (f", {said}" if said else "")
    return [(time_text(event.at, event.at.timestamp()), ""), (f"  {status:<11}  ", ""), (text, "")]
