"""One flow, two ways of waiting: do they come to the same?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from .._options import Keywords
from .._outcome import Pending
from .._policy import Duration, duration
from .._step import Step
from ..errors import AstepsError
from ._clock import MockClock
from ._trial import WEEK, Ending, Stage, Subject, cut, different, say_step

__all__ = ["both_ways"]

T = TypeVar("T")
W = TypeVar("W")
Ts = TypeVarTuple("Ts")

_ADVICE = (
    "In place only the step that waits is called again; between passes everything is entered "
    "again. What must outlive a wait belongs in an info or a result, not in a variable; what must "
    "happen once belongs in a step; what bounds a step is its timeout=, not a cancel scope around "
    "it"
)


@overload
async def both_ways(
    flow: Callable[[Step, *Ts], Awaitable[T]],
    /,
    *args: *Ts,
    within: Duration = ...,
    **keywords: Unpack[Keywords],
) -> T: ...
@overload
async def both_ways(
    flow: Callable[[Step, W, *Ts], Awaitable[T]],
    /,
    *args: *Ts,
    world: Callable[[MockClock], W],
    effects: Callable[[W], object] | None = None,
    within: Duration = ...,
    **keywords: Unpack[Keywords],
) -> T: ...
async def both_ways(  # type: ignore[misc]  # mypy does not match *args: Any with *args: *Ts
    flow: Callable[..., Awaitable[Any]],
    /,
    *args: Any,
    world: Callable[[MockClock], Any] | None = None,
    effects: Callable[[Any], object] | None = None,
    within: Duration = WEEK,
    **keywords: Unpack[Keywords],
) -> Any:
    """Run a flow in place and by passes, and assert that it comes to the same.

    ::

        report = await both_ways(move_to_vpc, "vm-42", world=Cloud, effects=Cloud.calls)

    *In place* is `asteps.run`. *By passes* is `asteps.reconcile` again and again, each pass in a
    process of its own, as far as the flow can tell: it knows nothing but what is in the store.
    Both are on a `MemoryStore` and under a `MockClock`, which is moved to the time of the next
    pass. The tokens are the same both ways.

    Compared are the outcome, and of each step that ended its name, whether it is done or failed,
    its result, ``errs`` and info; not times, attempts or interruptions, and nothing of steps that
    were left interrupted (in a group that had ``enough``, say). Of what `Step.poll` writes down
    the task ID is compared.

    A cancel scope around a waiting step means something else in place and by passes. Those of
    anyio and trio are found; ``asyncio.timeout`` is not.

    Args:
        flow: The root: an async function of its Step, the world if there is one, and ``args``.
        *args: Passed on both ways: the flow should not change them.
        world: Makes what the flow acts on, such as a pretended cloud, from the `MockClock` of the
            way; called before each way. What it returns is the flow's first argument after the
            Step.
        effects: What of the world must look the same after both ways, from the world: a
            ``Counter`` of what was made, say.
        within: Seconds (or a ``timedelta``) of the clock in which the flow must end in place.
        **keywords: Those of the drivers, but for ``store``, ``id``, ``state``, ``clock``,
            ``max_wait`` and ``recover``.

    Returns:
        What the flow returned.

    Raises:
        AssertionError: Something differs; the message says what, in place and by passes.
        StepError: The flow failed, both ways alike.
        UsageError: The library was used wrongly, already in place.
    """
    subject = Subject("both_ways", flow, args, world, effects, keywords)
    stage = await subject.stage()
    expected = await _in_place(stage, duration(within, "both_ways(within=…)"))
    # Steps that wait beside one another may be due in other passes, but not in ten times as many.
    waits = len(stage.clock.slept)
    found = await _by_passes(await subject.stage(), waits, patience=10 * (waits + 10))
    if lines := different(expected, found, "in place", "by passes"):
        raise AssertionError(f"the flow does not come to the same both ways:{lines}\n{_ADVICE}")
    if expected.error is not None:
        raise expected.error
    return expected.value


async def _in_place(stage: Stage, within: float) -> Ending:
    async with stage.client() as store:
        ending = await stage.run(store, within)
    if (seconds := stage.bounds.cut_off) is not None:
        raise AssertionError(
            f"a cancel scope of the flow (anyio.fail_after, anyio.move_on_after) is around a step "
            f"that waits for {seconds:g} s: in place it would end that wait, while by passes it "
            f"bounds each pass alone\n{_ADVICE}"
        )
    return ending


async def _by_passes(stage: Stage, waits: int, *, patience: int) -> Ending:
    passes = 0
    while True:
        passes += 1
        try:
            async with stage.client() as store:
                outcome = await stage.reconcile(store)
        except AstepsError as exc:
            raise AssertionError(
                f"in place the flow comes to its end, but pass {passes} raised "
                f"{type(exc).__name__}: {exc}\n{_ADVICE}"
            ) from exc
        if not isinstance(outcome, Pending):
            return outcome
        if passes == patience:
            raise AssertionError(
                f"in place the flow comes to its end after {waits} waits, but after {passes} "
                f"passes {say_step(outcome.path)} still waits ({cut(outcome.why)})\n{_ADVICE}"
            )
        stage.clock.advance(outcome.after)
