"""Bodies: what the engine knows of an execution, how it calls one, and what an exception means."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

import anyio

from ._events import Ended
from ._failure import reached
from ._pass import Abort, NotYet, Pass, Signal, Wake, where
from ._paths import join
from ._payload import Spec, function_name, unwrap
from ._slot import Slot
from ._state import State
from ._thread import in_thread
from .errors import StepError, UsageError

__all__ = [
    "NOT_RUNNING",
    "OUT_OF_TIME",
    "OWN",
    "Execution",
    "Running",
    "as_coroutine",
    "call_plain",
    "check_at_large",
    "ending",
    "essence",
    "leaves",
    "not_called",
    "pattern_of",
    "swallowed",
]

OUT_OF_TIME = "the pass has used up its time"  # why a step waits that may not begin in this one
OWN = 1 << 20  # what a child in its parent's own task adds to the count of active ones; others 1


class Running(Protocol):
    """A coroutine, as far as it tells whether the code that runs right now is within it."""

    @property
    def cr_running(self) -> bool: ...


class _NotRunning:
    cr_running = False


NOT_RUNNING: Running = _NotRunning()


class Execution(Protocol):
    """One execution of a body (a `Step`), as the work on its children and its own sees it."""

    _run: Pass
    _node: State
    _parent: Any
    _active: int
    _parked: int
    _still: anyio.Event | None
    _changed: anyio.Event | None
    _watched: bool
    _open: bool
    _late: int
    _cancelled: bool
    _mark: object
    _crew: Any
    _weight: int
    _slot: Slot | None
    _ended: Signal | None
    _over: bool
    _left: bool
    _ended_here: bool
    _wakes: dict[Any, Wake] | None
    _body: Running
    _own_pattern: str | None
    name: str

    @property
    def path(self) -> str: ...
    def _shift(self, active: int, resting: int = 0) -> None: ...
    def _announce(self) -> None: ...
    def _take_back(self, node: State) -> None: ...
    def _is_at_work(self) -> bool: ...
    async def _leave(self) -> None: ...
    async def _close(self) -> None: ...
    def _finished(self) -> None: ...
    def _replay(self, node: State, spec: Spec) -> Any: ...


async def as_coroutine(awaitable: Awaitable[Any], fn: Callable[..., Any]) -> Any:
    """Await what a function that is no coroutine function returned."""
    if not inspect.isawaitable(awaitable):
        raise Abort(
            UsageError(
                f"{function_name(fn)} takes a step, so it must be async (or return an awaitable); "
                "run a plain function with call(name, fn, *args)"
            )
        )
    return await awaitable


async def call_plain(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    is_async: bool,
    run: Pass,
    parent: Execution | None,
    path: str,
    mark: object,
    keep: Callable[[Any], Awaitable[None]],
) -> Any:
    """Call a function that takes no step: on the loop, or in a thread if it is not async.

    Args:
        fn: The function.
        args: Its arguments.
        is_async: Whether calling it makes a coroutine.
        run: The pass.
        parent: The execution of the parent's body.
        path: The step's.
        mark: See `in_thread`.
        keep: See `in_thread`.
    """
    if is_async:
        value = await fn(*args)
    else:
        value = await in_thread(fn, args, mark, keep)
        if inspect.isawaitable(value):
            value = await value
    if run.at_large:
        check_at_large(run, parent, path, mark)
    return value


def not_called(fn: Callable[..., Any], exc: BaseException) -> bool:
    """Whether an exception says that a function cannot be called with what it was given."""
    code = getattr(unwrap(fn), "__code__", None)
    return type(exc) is TypeError and code is not None and not reached(exc, code)


def swallowed(path: str) -> UsageError:
    """A body went on after a signal."""
    return UsageError(
        f"the body of {path or 'the run'!r} swallowed the signal that ends a pass: do not catch "
        "BaseException (nor suppress it, nor return in finally, nor gather with "
        "return_exceptions=True) around a step; catch StepError. The outcome is not recorded"
    )


def check_at_large(run: Pass, parent: Execution | None, path: str, mark: object = None) -> None:
    """A body has ended: did a signal of `pending` that was raised in it get lost?

    A signal is known by the task or thread that raised it. That may have been one of the body's
    own making: where nothing runs beside this body, it can have been no other's.

    Raises:
        Abort: It did.
    """
    here, alone = where(), _is_alone(parent)
    for signal, raised_in in list(run.at_large.items()):
        if alone or raised_in == here or (mark is not None and raised_in is mark):
            run.at_large.clear()
            raise run.abort(swallowed(path)) from signal


def _is_alone(step: Any) -> bool:
    while step is not None:
        if step._active // OWN + step._active % OWN + step._parked > 1:
            return False
        step = step._parent
    return True


def essence(exc: BaseException) -> BaseException:
    """What an exception group of tasks comes to.

    What is no outcome (``KeyboardInterrupt`` and the like) wins over errors, errors over signals.
    """
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    signals, rest = exc.split(Signal)
    if rest is not None:
        others = rest.split(Exception)[1]
        if others is not None:
            return _first(others)
        return rest if signals is not None else exc
    if signals is None:
        return exc
    waits = [s for s in leaves(signals) if isinstance(s, NotYet)]
    if waits:
        return min(waits, key=lambda s: s.after)
    return _first(signals.split(Abort)[0] or signals)


def ending(exc: BaseException | None) -> tuple[Ended, BaseException | None]:
    """What observers see of how a pass or a group was left."""
    exc = None if exc is None else essence(exc)
    if exc is None:
        return "done", None
    if isinstance(exc, Abort):
        return "interrupted", exc.error
    if isinstance(exc, Signal):
        return "pending", None
    return ("failed" if isinstance(exc, StepError) else "interrupted"), exc


def pattern_of(parent: Execution, name: str, path: str) -> str:
    """The path of a step with ``*`` for each item of a map."""
    if parent._parent is None:
        return path
    above, crew = _pattern(parent), parent._crew
    if crew is not None and crew.of_items:
        return join(above, "*")
    return path if above == parent.path else join(above, name)


def _pattern(step: Execution) -> str:
    if step._own_pattern is None:
        step._own_pattern = pattern_of(step._parent, step.name, step.path)
    return step._own_pattern


def leaves(group: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group of groups; or the one that it is."""
    if isinstance(group, BaseExceptionGroup):
        for exc in group.exceptions:
            yield from leaves(exc)
    else:
        yield group


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
