"""The event loop as the hot path needs it: one-shot wake-ups that cost a tenth of ``anyio.Event``.

The only module that tells asyncio from trio. Each save wakes three tasks, and what that costs is
most of what a step in a group commit costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol

import anyio
from anyio.lowlevel import current_token

__all__ = [
    "Loop",
    "Wakeup",
    "current_loop",
    "is_cancellation",
    "know_cancellation",
    "watch_this_task",
]


class Wakeup(Protocol):
    """What one task waits for, once; cancelling the wait harms nobody else."""

    def done(self) -> bool:
        """Whether it has been set, or the wait was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Let the waiting task go on; once, and not after a cancellation."""
        ...

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait."""
        ...


class Loop(Protocol):
    """A running event loop."""

    def wakeup(self) -> Wakeup:
        """Something to wait for."""
        ...

    def is_running(self) -> bool:
        """Whether the caller runs in this loop."""
        ...

    def call_soon(self, fn: Callable[[], object], /) -> None:
        """Call a function in the loop's next turn; from within the loop."""
        ...

    def call_soon_threadsafe(self, fn: Callable[..., object], /, *args: object) -> None:
        """Call a function in this loop, from any thread, without waiting for it.

        Raises:
            RuntimeError: The loop has ended.
        """
        ...


class _AsyncioLoop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.wakeup: Callable[[], Wakeup] = loop.create_future

    def call_soon(self, fn: Callable[[], object], /) -> None:
        self._loop.call_soon(fn)

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def call_soon_threadsafe(self, fn: Callable[..., object], /, *args: object) -> None:
        self._loop.call_soon_threadsafe(fn, *args)


class _TrioWakeup:
    def __init__(self) -> None:
        self._event = anyio.Event()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: None, /) -> None:  # noqa: ARG002 - as asyncio's futures have it
        self._event.set()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()


class _TrioLoop:
    wakeup = _TrioWakeup

    def __init__(self, token: Any) -> None:
        self._token = token

    def call_soon(self, fn: Callable[[], object], /) -> None:
        self._token.run_sync_soon(fn)

    def is_running(self) -> bool:
        try:
            return current_token().native_token is self._token
        except RuntimeError:
            return False

    def call_soon_threadsafe(self, fn: Callable[..., object], /, *args: object) -> None:
        self._token.run_sync_soon(fn, *args)


def current_loop() -> Loop:
    """The loop that the caller runs in."""
    token: Any = current_token().native_token
    return _AsyncioLoop(token) if hasattr(token, "call_soon_threadsafe") else _TrioLoop(token)


def is_cancellation(exc: BaseException) -> bool:
    """Whether this is the cancellation of the task that runs.

    On asyncio a body that awaits a cancelled task or future gets ``CancelledError`` too, although
    nobody asked it to stop: that is a failure of the body like any other. ``Task.cancelling``
    tells them apart, for native cancellation and for anyio's scopes, which cancel through it. But
    it counts down again where anyio's task groups are nested; so an exception that was found to be
    a cancellation is one for good.
    """
    if not isinstance(exc, anyio.get_cancelled_exc_class()):
        return False
    if not isinstance(exc, asyncio.CancelledError):
        return True
    task = asyncio.current_task()
    found = task is None or task.cancelling() > 0 or _KNOWN in vars(exc)
    if found:
        know_cancellation(exc)
    return found


def watch_this_task() -> Callable[[], bool]:
    """Tells, at any time and from any task, whether the task that runs now is being cancelled.

    On trio always not: there the exception itself tells.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return (lambda: False) if task is None else (lambda: task.cancelling() > 0)


def know_cancellation(exc: BaseException) -> None:
    """Have `is_cancellation` find this exception to be one from now on, if it is of that type."""
    if isinstance(exc, asyncio.CancelledError):
        vars(exc)[_KNOWN] = True


_KNOWN = "asteps knows that this is a cancellation"
