"""Plans, as type checkers see them: this file is checked, never run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, assert_type

import asteps
from asteps import Plan, Progress, Retry, State, Step, Task
from asteps.testing import both_ways


async def image(s: Step, vm: str) -> int:
    return len(vm)


async def networks(s: Step, *args: Any) -> list[str]:
    return []


async def loose(s: Step, vm: str) -> Any:
    return vm


async def plain(vm: str) -> str:
    return vm


def sync(s: Step, vm: str) -> str:
    return vm


plan = Plan("MoveToVPC", limit=8)
a = plan.task("image", image, timeout=timedelta(hours=1), retry=Retry(attempts=3))
b = plan.task("networks", networks, after=[a], inputs=1)
c = plan.task("loose", loose, after=[], returns=str)
d = plan.task("loosest", loose, returns=list[int] | None)
flight = plan.task("inFlight", after=[a, b], limit=2)
e = flight.task("image", image)
other = Plan("other")
f = plan.task("other", other)


def declared() -> None:
    assert_type(a, Task[int])
    assert_type(b, Task[list[str]])
    assert_type(c, Task[str])
    assert_type(d, Task[Any])
    assert_type(flight, Task[Any])
    assert_type(e, Task[int])
    assert_type(f, Task[Any])
    assert_type(e.path, str)
    assert_type(e.after, tuple[Task[Any], ...])


async def body(s: Step) -> None:
    assert_type(s.result_of(a), int)
    assert_type(s.result_of(b), list[str])
    assert_type(s.result_of(c), str)
    assert_type(s.result_of(e), int)
    assert_type(s.result_of(flight), Any)
    assert_type(await s.do("plan", plan, "vm"), Any)
    assert_type(await s.do("plan", plan, "vm", returns=int), int)


async def runs(state: State) -> None:
    assert_type(await asteps.run(plan, "vm"), Any)
    assert_type(
        await asteps.reconcile(plan, "vm"), asteps.Done[Any] | asteps.Failed | asteps.Pending
    )
    assert_type(await both_ways(plan, "vm"), Any)
    assert_type(plan.progress(state), Progress)
    assert_type(plan.draw(), str)
    assert_type(plan.mermaid(state), str)


async def wrong(s: Step) -> None:
    plan.task("a", plain)  # type: ignore[arg-type]
    plan.task("a", sync)  # type: ignore[arg-type]
    plan.task("a", image, after=a)  # type: ignore[call-overload]
    plan.task("a", image, limit=3)  # type: ignore[call-overload]
    plan.task("a", retries=3)  # type: ignore[call-overload]
    plan.task(image)  # type: ignore[call-overload]
    s.result_of(image)  # type: ignore[arg-type]
