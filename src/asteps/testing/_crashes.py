"""One flow, a crash at every save: what does it come to, and what happens twice?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar, TypeVarTuple, Unpack, overload

import msgspec

from .._options import Keywords
from .._policy import Duration, duration
from .._state import State, seconds
from .._step import Step
from ..errors import AstepsError, UsageError
from ._clock import MockClock
from ._faulty import Crash, FaultyStore, Save
from ._trial import WEEK, Ending, Stage, Subject, cut, different, say_step

__all__ = ["CrashReport", "crash_everywhere"]

T = TypeVar("T")
W = TypeVar("W")
Ts = TypeVarTuple("Ts")

Counts: TypeAlias = Mapping[Hashable, int]
_Fault: TypeAlias = Literal["crash before", "crash after"]

_FAULTS: tuple[_Fault, _Fault] = ("crash before", "crash after")
_TICK = 0.001  # seconds that a save takes where it matters what came before it and what after
_UNSURE = _TICK / 10  # seconds by which times in a tree may be off
_AT_MOST_ONCE = b'"once":true'
_decode = msgspec.json.Decoder(State).decode


class CrashReport(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What became of a flow that crashed at every save.

    Attributes:
        result: What it returned, undisturbed and after each crash.
        saves: How many saves it makes undisturbed.
        trials: How many crashes there were.
        repeated: After how many of the crashes an effect took place once more than undisturbed.
        interrupted: Steps that failed because a crash left it unknown what had become of them
            (``at_most_once=True``, ``max_crashes=``), and after how many of the crashes. What
            the flow came to then is not compared with anything.
    """

    result: T
    saves: int
    trials: int
    repeated: dict[Hashable, int]
    interrupted: dict[str, int]


@overload
async def crash_everywhere(
    flow: Callable[[Step, *Ts], Awaitable[T]],
    /,
    *args: *Ts,
    within: Duration = ...,
    **keywords: Unpack[Keywords],
) -> CrashReport[T]: ...
@overload
async def crash_everywhere(
    flow: Callable[[Step, W, *Ts], Awaitable[T]],
    /,
    *args: *Ts,
    world: Callable[[MockClock], W],
    effects: Callable[[W], Mapping[Any, int]] | None = None,
    may_repeat: Collection[Hashable] = (),
    within: Duration = ...,
    **keywords: Unpack[Keywords],
) -> CrashReport[T]: ...
async def crash_everywhere(  # type: ignore[misc]  # mypy does not match *args: Any with *args: *Ts
    flow: Callable[..., Awaitable[Any]],
    /,
    *args: Any,
    world: Callable[[MockClock], Any] | None = None,
    effects: Callable[[Any], Mapping[Any, int]] | None = None,
    may_repeat: Collection[Hashable] = (),
    within: Duration = WEEK,
    **keywords: Unpack[Keywords],
) -> CrashReport[Any]:
    """Let a flow crash right before and right after each of its saves; assert that it recovers.

    ::

        report = await crash_everywhere(
            move_to_vpc, "vm-42", world=Cloud, effects=lambda cloud: cloud.made
        )
        assert report.repeated.keys() <= {"snapshot"}

    First the flow runs undisturbed. Then, for each save, it runs on a fresh world and store until
    it crashes there, and another process (another client of the store) runs it to its end. All is
    on a `MemoryStore`, under a `MockClock`, and the tokens are always the same.

    Asserted is, for each crash:

    - the outcome and the tree are as they are undisturbed (see `both_ways` for what of it);
    - no effect is lost;
    - no effect takes place more than once more than undisturbed;
    - no effect takes place again when its step had ended in the store, nor, if it is that of a
      body with steps below it, when one of these had ended later. This is what an effect between
      the steps does: it belongs in a step of its own;
    - no effect of an ``at_most_once`` step takes place again.

    A crash is `FaultyStore`'s: the store fails, and the bodies that run are cancelled. Unlike in
    a process that dies, their ``finally`` runs: it should have no effects.

    Args:
        flow: The root: an async function of its Step, the world if there is one, and ``args``.
        *args: Passed on each time: the flow should not change them.
        world: Makes what the flow acts on, such as a pretended cloud, from the trial's
            `MockClock`. What it returns is the flow's first argument after the Step.
        effects: How often each effect has taken place, from the world. Give each its own key:
            ``("mail", vm)``, not ``"mail"`` for those of all steps.
        may_repeat: Keys of effects that do no harm when they take place again, whenever it is.
        within: Seconds (or a ``timedelta``) of the clock in which the flow must end each time.
        **keywords: Those of the drivers, but for ``store``, ``id``, ``state``, ``clock``,
            ``max_wait`` and ``recover``.

    Returns:
        What happened; see `CrashReport`.

    Raises:
        AssertionError: After a crash something is not as it should be; the message says what.
        StepError: The flow fails, undisturbed and after each crash alike.
        UsageError: The library was used wrongly, already undisturbed.
    """
    subject = Subject("crash_everywhere", flow, args, world, effects, keywords)
    hunt = _Hunt(subject, may_repeat, duration(within, "crash_everywhere(within=…)"))
    await hunt.prepare()
    number, crashed = 0, True
    while crashed or number < hunt.saves:  # concurrent steps may share more saves, or fewer
        number += 1
        crashed = False
        for fault in _FAULTS:
            crashed = await hunt.crash(number, fault) or crashed
    if hunt.expected.error is not None:
        raise hunt.expected.error
    return CrashReport(
        result=hunt.expected.value,
        saves=hunt.saves,
        trials=hunt.trials,
        repeated=dict(hunt.repeated),
        interrupted=dict(hunt.interrupted),
    )


class _Hunt:
    """All trials of one flow.

    Attributes:
        expected: What the flow comes to undisturbed.
        saves: How many saves that takes.
        trials: How many crashes there were.
        repeated: How many of them made an effect take place again.
        interrupted: How many of them made a step fail for it.
    """

    expected: Ending
    saves: int

    def __init__(self, subject: Subject, may_repeat: Collection[Hashable], within: float) -> None:
        self._subject = subject
        self._within = within
        self._may_repeat = may_repeat
        self._owners: dict[Hashable, set[str]] = {}
        self._at_most_once: set[str] = set()
        self.trials = 0
        self.repeated: Counter[Hashable] = Counter()
        self.interrupted: Counter[str] = Counter()

    async def prepare(self) -> None:
        """Run the flow undisturbed; where effects count, once more to see whose they are."""
        stage = await self._subject.stage()
        async with FaultyStore(stage.storage.client()) as store:
            ending = await stage.run(store, self._within)
        self.expected = msgspec.structs.replace(ending, effects=_counts(ending.effects))
        self.saves = store.saves
        if self._subject.counts:
            await self._attribute(await self._subject.stage())

    async def _attribute(self, stage: Stage) -> None:
        """Find out whose the effects are, in a run in which each save takes its time.

        A step may have had an effect if it was running, and no step below it ended later.
        """
        since = stage.clock.now()
        counts: Counts = {}
        moments: dict[Hashable, list[tuple[float, float]]] = {}

        def look() -> None:
            nonlocal since, counts
            now = stage.clock.now()
            before, counts = counts, _counts(stage.effects())
            for effect, times in counts.items():
                if times > before.get(effect, 0):
                    moments.setdefault(effect, []).append((since - _UNSURE, now + _UNSURE))
            stage.clock.advance(_TICK)
            since = stage.clock.now()

        def at_each_save(save: Save) -> None:
            look()
            for path, record in save.changes.items():
                if record and _AT_MOST_ONCE in record and _runs_at_most_once(record):
                    self._at_most_once.add(path)

        async with FaultyStore(stage.storage.client(), at_each_save) as store:
            ending = await stage.run(store, self._within)
        look()
        spans = _spans(ending.state)
        self._owners = {
            effect: {
                path
                for path, (began, ended, below) in spans.items()
                if any(began <= until and ended >= since > below for since, until in intervals)
            }
            for effect, intervals in moments.items()
        }

    async def crash(self, number: int, fault: _Fault) -> bool:
        """One trial.

        Returns:
            Whether the flow made so many saves that it crashed.
        """
        stage = await self._subject.stage()
        store = FaultyStore(stage.storage.client(), {number: fault})
        ending = await _until_crash(stage, store, self._within)
        where, ended = "undisturbed for the second time", set[str]()
        if store.crashed:
            self.trials += 1
            ended = _ended(await stage.state())
            where = f"after a crash right {fault.split()[1]} save {number}"
            where += f" ({_say_records(store.log[number - 1])})"
            ending = await self._resume(stage, where)
        assert ending is not None  # noqa: S101 - `_until_crash` says so
        lines = [*self._check_effects(ending, ended)]
        if unknown := _unknown(ending.state) - _unknown(self.expected.state):
            self.interrupted.update(unknown)
        else:
            plain = msgspec.structs.replace(ending, effects=self.expected.effects)
            if text := different(self.expected, plain, "undisturbed", "then"):
                lines.append(f"the flow does not come to the same:{text}")
        if lines:
            raise AssertionError(f"{where}: " + "\n".join(lines))
        return store.crashed

    async def _resume(self, stage: Stage, where: str) -> Ending:
        try:
            async with stage.client() as store:
                return await stage.run(store, self._within)
        except AstepsError as exc:
            raise AssertionError(f"{where}: {type(exc).__name__}: {exc}") from exc
        except AssertionError as exc:
            raise AssertionError(f"{where}: {exc}") from exc

    def _check_effects(self, ending: Ending, ended: set[str]) -> list[str]:
        """What is wrong with the effects, given which steps had ended when the crash came."""
        if not self._subject.counts:
            return []
        lines = []
        usual, found = self.expected.effects, _counts(ending.effects)
        cut_off = _unknown(ending.state) - _unknown(self.expected.state)
        for effect in dict.fromkeys([*usual, *found]):
            times, before = found.get(effect, 0), usual.get(effect, 0)
            what = f"effect {cut(repr(effect))}"
            if times < before and not cut_off:
                lines.append(f"{what} was lost: {before} undisturbed, {times} in all")
            if times <= before:
                continue
            self.repeated[effect] += 1
            if effect in self._may_repeat:
                continue
            owners = self._owners.get(effect, set())
            if times > before + 1:
                lines.append(
                    f"{what} took place too often: {before} undisturbed, {times} in all; a crash "
                    "repeats a step once at most, so give each effect its own step, and its own "
                    "key if there are several"
                )
            elif owners <= ended | self._at_most_once:
                lines.append(
                    f"{what} took place again ({before} undisturbed, {times} in all), "
                    f"although {self._say_owners(owners)}"
                )
        return lines

    def _say_owners(self, owners: set[str]) -> str:
        if once := owners & self._at_most_once:
            return f"{_say_steps(once)} runs at most once"
        return (
            f"{_say_steps(owners) or 'what came after it'} had ended: unless it is in that step, "
            "put it into a step of its own (s.do, s.call)"
        )


def _say_steps(paths: Collection[str]) -> str:
    return ", ".join(map(say_step, sorted(paths)[:3]))


async def _until_crash(stage: Stage, store: FaultyStore, within: float) -> Ending | None:
    """Run the flow until its process dies; what it came to if it does not."""
    try:
        async with store:
            return await stage.run(store, within)
    except (Crash, AstepsError):
        if not store.crashed:
            raise
    except BaseExceptionGroup as group:
        if not store.crashed or group.split((Crash, AstepsError))[1] is not None:
            raise
    return None


def _spans(state: State) -> dict[str, tuple[float, float, float]]:
    """When each step began, when it ended, and when the last step below it did."""
    spans: dict[str, tuple[float, float, float]] = {}
    below: dict[str, float] = {}
    for path, node in reversed([*state.walk()]):
        first = None if node.detail is None else node.detail.first_at
        end = seconds(node.done_at) or float("inf")
        began = seconds(first or node.started_at) or end
        last = below.get(path, 0.0)
        spans[path] = (began, end, last)
        if path:
            parent = path.rpartition("/")[0]
            below[parent] = max(below.get(parent, 0.0), end, last)
    return spans


def _counts(effects: object) -> Counts:
    if effects is None:
        return {}
    if not isinstance(effects, Mapping):
        raise UsageError(
            "crash_everywhere(effects=…) gives a mapping from each effect to how often it took "
            f"place, not {type(effects).__name__}"
        )
    return dict(effects)


def _ended(state: State) -> set[str]:
    return {path for path, node in state.walk() if node.done or node.failed}


def _unknown(state: State) -> set[str]:
    """Steps that failed because nobody knows what became of them."""
    return {
        path
        for path, node in state.walk()
        if node.failure is not None and node.failure.kind in ("interrupted", "crashed")
    }


def _say_records(save: Save) -> str:
    return f"of {_say_steps([path for path in save.changes if path]) or say_step('')}"


def _runs_at_most_once(record: bytes) -> bool:
    own = _decode(record).detail
    return own is not None and own.once
