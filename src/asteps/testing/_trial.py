"""What the tools for flows have in common: a flow on a stage of its own, and what it came to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

import anyio
import msgspec

from .._codec import encode_record
from .._operators import load_state
from .._options import Keywords
from .._outcome import Done, Failed, Pending
from .._payload import function_name, unwrap
from .._run import reconcile, run
from .._state import ABSENT, FORMAT, RunRecord, State
from .._step import Step
from .._store import Store, Summary
from ..errors import StepError, UsageError
from ..stores.memory import MemoryStore
from ._clock import MockClock

__all__ = ["WEEK", "Ending", "Stage", "Subject", "cut", "different", "say_step"]

WEEK = timedelta(days=7)
_ID = "flow"
_NONCE = 32 * "0"
_NOT_FOR_FLOWS = ("store", "id", "state", "clock", "max_wait", "recover")
_POLLING = {"taskId", "polls", "first", "last", "next"}  # how long it took is no difference
_SLEEPING = {"until"}
_MOST = 10  # differences that a message tells
_LONGEST = 200  # characters of a value in a message


class Came(msgspec.Struct, frozen=True):
    """What a step came to, as far as two runs of one flow agree on it."""

    status: Literal["done", "failed"]
    result: object
    errs: list[str] | None
    info: object


class Ending(msgspec.Struct, frozen=True):
    """What a flow came to.

    Attributes:
        value: What it returned.
        error: How it failed, if it did.
        state: The stored tree.
        effects: What ``effects=`` made of the world.
    """

    value: Any
    error: StepError | None
    state: State
    effects: Any

    def steps(self) -> dict[str, Came]:
        """Every step that came to something; what was interrupted may be absent from a tree."""
        return {
            path: Came(
                "done" if node.done else "failed",
                _plain(node.result),
                node.errs,
                _without_times(_plain(node.info)),
            )
            for path, node in self.state.walk()
            if node.done or node.failed
        }


class Subject:
    """A flow that is tried: how it is called, and what each trial gets afresh.

    Args:
        tool: Who tries it, for messages.
        flow: The root function.
        args: Its arguments, after the Step and the world.
        world: Makes the world of a trial from its clock.
        effects: What of the world is to be compared.
        keywords: Of the drivers.

    Raises:
        UsageError: The flow cannot be called so, or a keyword is not for it.
    """

    def __init__(
        self,
        tool: str,
        flow: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        world: Callable[[MockClock], Any] | None,
        effects: Callable[[Any], object] | None,
        keywords: Keywords,
    ) -> None:
        if odd := [name for name in _NOT_FOR_FLOWS if name in keywords]:
            raise UsageError(f"{tool}() has a store and a clock of its own: leave out {odd[0]}=")
        if effects is not None and world is None:
            raise UsageError(f"{tool}(effects=…) looks at a world: pass world= too")
        self._tool = tool
        self._flow = flow
        self._args = args
        self._world = world
        self._effects = effects
        name = function_name(flow)
        keywords.setdefault("name", _ID if "<lambda>" in name else name)
        self._keywords = keywords
        self._check_call()

    def _check_call(self) -> None:
        given = [None] if self._world is None else [None, None]
        try:
            inspect.signature(self._flow).bind(*given, *self._args)
        except TypeError as exc:
            first = "a Step" if self._world is None else "a Step, the world"
            raise UsageError(
                f"{self._tool}(): {function_name(self._flow)} cannot be called with {first} and "
                f"{len(self._args)} arguments ({exc})"
            ) from None
        except ValueError:  # it has no signature to look at
            pass

    @property
    def counts(self) -> bool:
        """Whether effects are looked at."""
        return self._effects is not None

    async def stage(self) -> Stage:
        """A world, a clock and a store for one trial."""
        clock = MockClock()
        world = None if self._world is None else self._world(clock)
        args = self._args if self._world is None else (world, *self._args)
        body = _bound(self._flow, args)
        stage = Stage(clock, body, self._keywords.copy(), self._effects, world)
        await stage.prepare()
        return stage


class Stage:
    """Where one trial happens.

    Attributes:
        clock: Its time.
        storage: Holds the run; of several processes, each has a client of its own.
        bounds: The clock as the engine sees it.
    """

    def __init__(
        self,
        clock: MockClock,
        body: Callable[[Step], Awaitable[Any]],
        keywords: Keywords,
        effects: Callable[[Any], object] | None,
        world: object,
    ) -> None:
        self.clock = clock
        self.storage = MemoryStore()
        self.bounds = _Bounds(clock)
        self._body = body
        self._keywords = keywords
        keywords["id"] = _ID
        keywords["clock"] = self.bounds
        self._effects = effects
        self._world = world

    async def prepare(self) -> None:
        """Create the run with a nonce that is always the same, so that the tokens are."""
        name, now = str(self._keywords.get("name")), self.clock.now()
        root = State(name, run=RunRecord(FORMAT, nonce=_NONCE))
        await self.storage.save(
            _ID,
            {"": encode_record(root)},
            expected=None,
            epoch=0,
            write_id="made for a trial",
            summary=Summary(name, "proceeding", 0, None, now, now),
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[MemoryStore]:
        """The store, as another process opens it."""
        async with self.storage.client() as store:
            yield store

    async def run(self, store: Store, within: float) -> Ending:
        """Run the flow to its end, waiting in place.

        Raises:
            AssertionError: It did not come to its end within this many seconds of its clock.
        """
        keywords = self._keywords.copy()
        keywords["store"] = store
        value, error = None, None
        with self.clock.move_on_after(within) as limit:
            try:
                value = await run(self._body, **keywords)
            except StepError as exc:
                error = exc
        if not limit.cancelled_caught:
            return await self._ending(value, error)
        waits = [
            f"{say_step(path)} waits ({cut(node.detail.why)})"
            for path, node in (await self.state()).walk()
            if node.detail is not None and node.detail.wake_at is not None
        ]
        raise AssertionError(
            f"the flow did not end within {timedelta(seconds=within)} of its clock (pass within= "
            f"if it may take longer): {'; '.join(waits[:3]) or 'no step waits'}"
        )

    async def reconcile(self, store: Store) -> Ending | Pending:
        """Run one pass of the flow."""
        keywords = self._keywords.copy()
        keywords["store"] = store
        match await reconcile(self._body, **keywords):
            case Done(value):
                return await self._ending(value, None)
            case Failed(error):
                return await self._ending(None, error)
            case pending:
                return pending

    def effects(self) -> Any:
        """What is to be seen of the world now."""
        return None if self._effects is None else self._effects(self._world)

    async def state(self) -> State:
        """The tree as it is stored now."""
        async with self.client() as store:
            state = await load_state(store, _ID)
        assert state is not None  # noqa: S101 - `prepare` has made it
        return state

    async def _ending(self, value: object, error: StepError | None) -> Ending:
        return Ending(value, error, await self.state(), self.effects())


class _Bounds:
    """The clock of a trial, which notices waits that a cancel scope of the flow would end.

    Such a scope goes by the event loop's time, which hardly passes in a trial.

    Attributes:
        cut_off: Seconds of the first such wait.
    """

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self._outer = anyio.current_effective_deadline()  # of the test's own
        self._since: dict[float, float] = {}
        self.cut_off: float | None = None

    def now(self) -> float:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float, /) -> None:
        if self.cut_off is None:
            deadline = anyio.current_effective_deadline()
            if deadline < self._outer:
                now = self._clock.now()
                waited = now - self._since.setdefault(deadline, now)  # a deadline tells a scope
                if waited + seconds > deadline - anyio.current_time():
                    self.cut_off = seconds
        await self._clock.sleep(seconds)

    def move_on_after(self, seconds: float, /) -> AbstractContextManager[anyio.CancelScope]:
        return self._clock.move_on_after(seconds)


def _bound(
    flow: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> Callable[[Step], Awaitable[Any]]:
    """The flow with its arguments: a world changes, and must not count as another argument."""

    @functools.wraps(unwrap(flow))
    async def body(step: Step) -> Any:
        return await flow(step, *args)

    return body


# --- what differs ---------------------------------------------------------------------------------


def different(first: Ending, second: Ending, here: str, there: str) -> str:
    """In what two endings differ, as lines of a message; empty if in nothing.

    Args:
        first: How it should be.
        second: How it is.
        here: When the first came about, as in "3 ``here``, 5 ``there``".
        there: When the second did.
    """
    lines = [*_outcomes(first, second, here, there), *_effects(first, second, here, there)]
    steps, others = first.steps(), second.steps()
    for path in dict.fromkeys([*steps, *others]):
        step, other = steps.get(path), others.get(path)
        if path and step != other:
            lines.append(f"{say_step(path)}: {_in_what(step, other, here, there)}")
    if len(lines) > _MOST:
        lines[_MOST:] = [f"… and {len(lines) - _MOST} differences more"]
    return "".join(f"\n  {line}" for line in lines)


def _outcomes(first: Ending, second: Ending, here: str, there: str) -> Iterator[str]:
    how, other = _say_outcome(first), _say_outcome(second)
    if how != other:
        yield f"the flow {cut(how)} {here}, {cut(other)} {there}"


def _say_outcome(ending: Ending) -> str:
    if ending.error is not None:
        return f"failed ({ending.error})"
    return f"returned {_plain(ending.state.result)!r}"


def _effects(first: Ending, second: Ending, here: str, there: str) -> Iterator[str]:
    seen, others = first.effects, second.effects
    if isinstance(seen, Mapping) and isinstance(others, Mapping):
        for key in dict.fromkeys([*seen, *others]):
            if (found := seen.get(key, 0)) != (other := others.get(key, 0)):
                yield f"effect {_say(key)}: {_say(found)} {here}, {_say(other)} {there}"
    elif seen != others:
        yield f"the effects: {_say(seen)} {here}, {_say(others)} {there}"


def _in_what(step: Came | None, other: Came | None, here: str, there: str) -> str:
    if step is None or other is None:
        known, when, not_when = (step, here, there) if other is None else (other, there, here)
        return f"{known.status if known else ''} {when}, came to nothing {not_when}"
    if step.status != other.status:
        errs = f" ({cut('; '.join(step.errs or other.errs or ()))})"
        return f"{step.status} {here}, {other.status} {there}{errs}"
    for what in ("result", "errs", "info"):
        found, expected = getattr(other, what), getattr(step, what)
        if found != expected:
            return f"its {what} is {_say(expected)} {here}, {_say(found)} {there}"
    raise AssertionError("unreachable")


def _say(value: object) -> str:
    return cut(repr(value))


def say_step(path: str) -> str:
    """A step, in a message."""
    return f"step {cut(path)!r}" if path else "the flow itself"


def cut(text: str) -> str:
    """A text, not longer than a message can bear."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _plain(payload: msgspec.Raw | bytes) -> Any:
    return None if payload is ABSENT else msgspec.json.decode(payload)


def _without_times(info: Any) -> Any:
    """Of what `Step.poll` and `Step.sleep` write down only what does not tell the time."""
    if isinstance(info, dict):
        if "taskId" in info and info.keys() <= _POLLING:
            return {"taskId": info["taskId"]}
        if info.keys() == _SLEEPING:
            return {}
    return info
