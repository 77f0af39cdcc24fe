"""Plain ``logging`` that knows where it is: run, path and attempt in every record.

Three lines::

    from asteps.integrations.logs import StepContext, StepFilter

    handler.addFilter(StepFilter())  # on the handler, so that records of all loggers pass it
    await asteps.run(fn, store=store, id="vm-42", observers=[StepContext()])

From then on each record that is made inside a step, by whatever library, has ``run_id``, ``path``
and ``attempt``, for ``logging.Formatter("%(run_id)s %(path)s %(message)s")`` or a formatter that
writes JSON. `EventLog` is another thing: it writes a line for each event of a run.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TypeAlias

from .._events import (
    BodyCall,
    Event,
    InfoSaved,
    PassEnded,
    PassStarted,
    StepDone,
    StepFailed,
    StepPending,
    StepRetrying,
    StepStarted,
)

__all__ = ["EventLog", "StepContext", "StepFilter"]

_MAX_TEXT = 500  # characters of what a failure or a wait says

_call: ContextVar[BodyCall | None] = ContextVar("asteps_logged_call", default=None)
"""The innermost call of a body that the running code is part of."""


class StepContext:
    """An observer that lets `StepFilter` know which step the running code is part of.

    Concurrent steps do not mix, and what a body starts belongs to it: its tasks, the functions
    that `Step.call` runs in worker threads, and threads by ``anyio.to_thread`` and
    ``asyncio.to_thread``. Not so a bare ``threading.Thread``, which starts with no context.
    """

    def around(self, call: BodyCall, /) -> AbstractContextManager[object]:
        """Let the records of this call be known as its own."""
        return _Inside(call)


class _Inside:
    """While the body runs."""

    __slots__ = ("_call", "_token")

    def __init__(self, call: BodyCall) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._token: Token[BodyCall | None] = _call.set(self._call)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _call.reset(self._token)


class StepFilter(logging.Filter):
    """Gives every record ``run_id``, ``path`` and ``attempt``; it holds none back.

    Put it on handlers: a logger's own filters do not see the records of the loggers below it.
    With a ``QueueHandler``, put it there, as the listener's thread knows nothing of steps.

    Outside a step, and without `StepContext`, they are ``""``, ``""`` and 0; the path of the root's
    own body is ``""``, too. A record that has a ``run_id`` already, by ``extra=``, keeps what it
    has: so the library's own records tell which run they are about.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Fill in what the record does not have."""
        has = record.__dict__
        call = None if "run_id" in has else _call.get()
        if call is None:
            known: _Fields = {"run_id": "", "path": "", "attempt": 0}
        else:
            known = {"run_id": call.run_id or "", "path": call.path, "attempt": call.attempt}
        for name, value in known.items():
            has.setdefault(name, value)
        return True


_Fields: TypeAlias = dict[str, str | int]


class EventLog:
    """An observer that logs each event of a run as one line.

    A step that is done or pending, and a pass that ended, is ``INFO``; one that is retried is a
    ``WARNING`` and one that failed an ``ERROR``, whether or not somebody handles that; starts and
    infos are ``DEBUG``. Every record has ``run_id`` and ``path``, and ``attempt`` where the event
    has one. Characters that would break a line or steer a terminal are escaped.

    As events are told in the event loop, a handler that blocks holds up the run: give the logger a
    ``QueueHandler`` where it writes to a network.

    Args:
        logger: Where to; the logger ``asteps.events`` by default.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("asteps.events")

    def __call__(self, event: Event, /) -> None:
        """Log it."""
        level = _LEVELS.get(type(event), logging.DEBUG)
        if self._logger.isEnabledFor(level):
            extra: _Fields = {"run_id": event.run_id or "", "path": event.path}
            if isinstance(event, StepStarted | StepRetrying | StepFailed):
                extra["attempt"] = event.attempt
            self._logger.log(level, "%s: %s", _who(event), _line(_says(event)), extra=extra)


_LEVELS: dict[type[Event], int] = {
    PassEnded: logging.INFO,
    StepDone: logging.INFO,
    StepPending: logging.INFO,
    StepRetrying: logging.WARNING,
    StepFailed: logging.ERROR,
}


def _who(event: Event) -> str:
    run = "run" if event.run_id is None else f"run {_line(event.run_id)!r}"
    return f"{run}, step {_line(event.path)!r}" if event.path else run


def _says(event: Event) -> str:
    match event:
        case PassStarted(epoch=epoch):
            return f"a pass began, epoch {epoch}"
        case PassEnded(status=status):
            return f"the pass ended, {status}"
        case StepStarted(attempt=attempt, interruptions=0):
            return f"began, attempt {attempt}"
        case StepStarted(attempt=attempt, interruptions=interruptions):
            return f"began, attempt {attempt}, interrupted {interruptions} times before"
        case StepDone():
            return "done"
        case StepFailed(attempt=attempt, failure=failure):
            return f"failed at attempt {attempt}: {failure.message}"
        case StepRetrying(attempt=attempt, failure=failure, wake_at=wake_at):
            when = f"{wake_at:%Y-%m-%d %H:%M:%S} UTC"
            return f"attempt {attempt} failed, the next is due at {when}: {failure.message}"
        case StepPending(wake_at=wake_at, why=why):
            when = f"pending until {wake_at:%Y-%m-%d %H:%M:%S} UTC"
            return f"{when}: {why}" if why else when
        case InfoSaved():
            return "saved its info"
        case _:
            return type(event).__name__


def _line(text: str) -> str:
    """At most so many characters in one line that does nothing to a terminal."""
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
