"""Waiting for the world: the bodies of ``poll`` and ``sleep``, each one node however long it waits.

Both are bodies like any other: they are called again until they come to something, and what they
must not forget in between is in the step's info.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw

from ._body import call_plain, not_called
from ._pass import NotYet
from ._payload import Spec, TooLargeError, function_name
from ._policy import LONGEST, Retry
from ._state import ABSENT, moment, seconds
from .errors import UsageError

__all__ = ["NOTHING", "Poll", "Sleep"]

_SHORTEST = 0.001  # seconds between two checks, where chance would have none

NOTHING = Spec(is_async=True, exact=False, type=None, decode=msgspec.json.Decoder(None).decode)
"""Of a body that returns nothing."""


class _Polling(msgspec.Struct, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """The info of a polling step: what is polled, and how that has gone so far.

    Attributes:
        task_id: What ``start`` returned, as JSON.
        polls: How many checks have come back with an answer.
        first: When the first of them did.
        last: When the last of them did.
        next: When the next one is due; absent once the task has finished.
    """

    task_id: Raw
    polls: int = 0
    first: datetime | None = None
    last: datetime | None = None
    next: datetime | None = None


class _Sleeping(msgspec.Struct, forbid_unknown_fields=True):
    """The info of a sleeping step.

    Attributes:
        until: When it ends.
    """

    until: datetime


_encode = msgspec.json.Encoder().encode
_polling = msgspec.json.Decoder(_Polling).decode
_sleeping = msgspec.json.Decoder(_Sleeping).decode


class Poll:
    """Start a task once, then check on it until it has finished.

    Args:
        start: Starts it, and returns its ID.
        check: Given the ID; returns ``None`` while the task runs, then its result.
        every: Seconds between two checks, or a policy that says how they grow.
        start_spec: Of ``start``.
        check_spec: Of ``check``.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        check: Callable[[Any], Any],
        every: float | Retry,
        *,
        start_spec: Spec,
        check_spec: Spec,
    ) -> None:
        self._start = start
        self._check = check
        self._every = every
        self._start_spec = start_spec
        self._check_spec = check_spec

    async def __call__(self, step: Any) -> Any:
        """Check once; the first time, start the task before that."""
        run, where = step._run, f"the task ID of step {step.path!r}"
        known: _Polling | None = _read(step, _polling)
        if known is None:

            async def keep(value: Any) -> None:
                step._write_info(_encode(_Polling(self._encode(step, value, where))))

            started = await self._call(step, self._start, (), self._start_spec, keep)
            await keep(started)
            await run.saved(urgent=True)
            known = _polling(step._node.info)
        task_id = run.payloads.decode_result(known.task_id, self._start_spec, where)

        try:
            value = await self._call(step, self._check, (task_id,), self._check_spec, _forget)
        except NotYet as not_yet:  # check itself said when to come back
            self._note(step, known, not_yet.after)
            raise
        if value is not None:
            self._note(step, known, None)
            return value
        after = self._delay(known.polls + 1)
        self._note(step, known, after)
        raise step.pending(after, f"task {task_id!r:.200} has not finished")

    def _note(self, step: Any, known: _Polling, after: float | None) -> None:
        """Write down that the task was checked, and when that is due again."""
        now = step._run.now()
        known.polls += 1
        known.last = moment(now)
        known.first = known.first or known.last
        known.next = None if after is None else moment(now + after)
        step._write_info(_encode(known))

    def _delay(self, polls: int) -> float:
        if not isinstance(self._every, Retry):
            return self._every
        pause = self._every.delay_after(polls, int.from_bytes(os.urandom(4)) / 0xFFFFFFFF)
        return min(max(pause, _SHORTEST), LONGEST)

    def _encode(self, step: Any, value: object, where: str) -> Raw:
        if value is None:
            raise UsageError(
                f"poll {step.path!r}: start returned None; it returns what check is given to ask "
                "about the task, such as its ID (is a return missing?)"
            )
        try:
            data, _ = step._run.payloads.result(value, self._start_spec, where)
        except TooLargeError as exc:
            raise step.fail(f"{where}: {exc}") from exc
        return Raw(data)

    async def _call(
        self, step: Any, fn: Callable[..., Any], args: tuple[Any, ...], spec: Spec, keep: Any
    ) -> Any:
        step._mark = object()
        try:
            return await call_plain(
                fn,
                args,
                is_async=spec.is_async,
                run=step._run,
                parent=step._parent,
                path=step.path,
                mark=step._mark,
                keep=keep,
            )
        except TypeError as exc:
            if not not_called(fn, exc):
                raise
            what = "check is called with the task ID" if args else "start is called with nothing"
            raise UsageError(
                f"step {step.path!r}: {function_name(fn)} cannot be called ({exc}): {what}; "
                "use functools.partial for more"
            ) from exc


class Sleep:
    """Wait for this many seconds; when that ends is fixed when the step first starts."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __call__(self, step: Any) -> None:
        """Return if the time has come."""
        run = step._run
        known: _Sleeping | None = _read(step, _sleeping)
        if known is None:
            if not self._seconds:
                return
            known = _Sleeping(moment(run.now() + self._seconds))
            await step.save_info(known)
        left = (seconds(known.until) or 0) - run.now()
        if left > 0:  # more than was asked for, where the clock has been set back
            step.pending(min(left, LONGEST), f"asleep until {known.until:%Y-%m-%d %H:%M:%S} UTC")


def _read(step: Any, decode: Callable[[Any], Any]) -> Any:
    raw = step._node.info
    if raw is ABSENT:
        return None
    try:
        return decode(raw)
    except msgspec.MsgspecError as exc:
        raise UsageError(
            f"the info of step {step.path!r} was not written by this kind of step ({exc}): give "
            "changed code a new name, or reset the step"
        ) from exc


async def _forget(value: Any) -> None:
    """Nobody will know what a check found whose step was cancelled: it is made again."""
