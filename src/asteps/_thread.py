"""Plain functions in worker threads, which are never abandoned."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread

from ._loop import Loop, Wakeup, current_loop
from ._pass import Signal, raised_in

__all__ = ["in_thread"]


async def in_thread(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    mark: object,
    keep: Callable[[Any], Awaitable[None]],
) -> Any:
    """Call a plain function in a worker thread, and wait for its end whatever happens.

    Args:
        fn: The function.
        args: Its arguments.
        mark: By which a signal of `pending` that is raised in it is known.
        keep: Given what the function returned after the wait for it was cancelled.
    """
    loop = current_loop()
    call = _ThreadCall(fn, args, mark, loop)
    try:
        await anyio.to_thread.run_sync(call.run)
    except anyio.get_cancelled_exc_class():
        # Only asyncio's own task.cancel() comes through here before the function has returned.
        call.withdraw()
        while not call.ended:
            call.waiting = loop.wakeup()
            with anyio.CancelScope(shield=True), suppress(anyio.get_cancelled_exc_class()):
                await call.waiting
        if inspect.iscoroutine(call.value):
            call.value.close()
        elif call.returned:
            with suppress(Exception, Signal):  # the cancellation goes on whatever comes of it
                await keep(call.value)
        raise
    return call.value


class _ThreadCall:
    """A plain function's call in a worker thread.

    Attributes:
        ended: The function has returned or raised.
        returned: It has returned ``value``.
        waiting: What to set in the event loop when it ends.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], mark: object, loop: Loop
    ) -> None:
        self._fn = fn
        self._args = args
        self._mark = mark
        self._loop = loop
        self._lock = threading.Lock()
        self._begun = False
        self.ended = False
        self.returned = False
        self.value: Any = None
        self.waiting: Wakeup | None = None

    def run(self) -> None:
        """Call it, in the thread; `pending` knows whose it is."""
        with self._lock:
            if self.ended:
                return
            self._begun = True
        raised_in.set(self._mark)
        try:
            self.value = self._fn(*self._args)
            self.returned = True
        finally:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._end)

    def withdraw(self) -> None:
        """Do not call it any more, if it has not been called yet."""
        with self._lock:
            self.ended = self.ended or not self._begun

    def _end(self) -> None:
        self.ended = True
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)
