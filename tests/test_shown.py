"""To be watched changes nothing: random programs come to the same with observers and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import Node, programs
from test_state_machine import How, World, astray, cancelled, crashing, undisturbed

from asteps import BodyCall, Event, State, StepDone, StepFailed, load_state

# --- who watches ----------------------------------------------------------------------------------


class Around:
    """Sees that what is entered is left, and the innermost first.

    Attributes:
        open: Calls that have not been left, by path.
        ends: What the calls came to, with their paths.
    """

    def __init__(self) -> None:
        self.open: dict[str, BodyCall] = {}
        self.ends: Counter[tuple[str, str | None]] = Counter()
        self.complaints: list[str] = []

    @contextmanager
    def around(self, call: BodyCall) -> Iterator[None]:
        above = call.path.rpartition("/")[0]
        if call.path in self.open or (call.path and above not in self.open):
            self.complaints.append(f"{call} is entered within {self.open}")
        self.open[call.path] = call
        yield
        del self.open[call.path]
        left = any(path.startswith(f"{call.path}/") for path in self.open if call.path)
        if left and call.ended != "interrupted":  # gather does not wait for what it cancels
            self.complaints.append(f"{call} is left before {self.open}")
        self.ends[call.path, call.ended] += 1


class Listener:
    """Is told of events.

    Attributes:
        told: What was told of each step, in order.
    """

    def __init__(self) -> None:
        self.told: dict[str, list[type[Event]]] = {}

    def __call__(self, event: Event) -> None:
        self.told.setdefault(event.path, []).append(type(event))

    def count(self, kind: type[Event]) -> Counter[str]:
        """How many events of this kind each step had."""
        return Counter({path: n for path, all_ in self.told.items() if (n := all_.count(kind))})


class Broken:
    """Raises whatever it is asked."""

    def __call__(self, event: Event) -> None:
        raise RuntimeError

    def around(self, call: BodyCall) -> AbstractContextManager[object]:
        raise RuntimeError


# --- what comes of a run --------------------------------------------------------------------------


async def recorded(world: World) -> dict[str, Any]:
    """What the store says in the end, but for what is random."""
    state = await load_state(world.storage.client(), "r")
    return {} if state is None else {path: _facts(node) for path, node in state.walk()}


def _facts(node: State) -> tuple[Any, ...]:
    own = (node.attempt, node.interruptions, node.phases, node.earlier, node.of_items)
    failure = None if node.failure is None else node.failure.message
    return (node.done, failure, node.started_at, node.done_at, node.wake_at, *own)


def lived(program: Node, hows: list[tuple[How, int]], *observers: Any) -> list[Any]:
    """What comes of a run that is driven like this: of each pass, and what is in the store."""
    world = World(program, folds=False)
    world.observers = list(observers)
    came: list[Any] = []
    for how, seconds in hows:
        outcome = world.process(how)
        came.append((*outcome[:2], dict(world.runs), world.store.saves))
        if outcome[0] in ("done", "failed"):
            break
        world.clock.advance(seconds)
    assert not world.complaints
    return [came, anyio.run(recorded, world)]


pauses = st.sampled_from((1, 3, 5, 20))
orderly = st.builds(  # on asyncio, where the same happens in the same order
    How,
    driver=st.sampled_from(("reconcile", "reconcile", "run")),
    max_wait=st.sampled_from((0, 0, 4, 30)),
    save=st.sampled_from(("step", "step", "pass")),
)
SLOW = list(HealthCheck)


@settings(suppress_health_check=SLOW)
@given(program=programs(), hows=st.lists(st.tuples(orderly, pauses), min_size=1, max_size=4))
def test_a_watched_run_comes_to_the_same(program: Node, hows: list[tuple[How, int]]) -> None:
    """Results, errors, times, phases, the order of bodies, and the number of saves are the same."""
    plain = lived(program, hows)
    around, listener = Around(), Listener()
    assert lived(program, hows, listener) == plain
    assert lived(program, hows, around) == plain
    assert lived(program, hows, Broken(), Broken()) == plain
    assert (around.open, around.complaints) == ({}, [])
    groups = {path for path, _ in around.ends if path not in listener.told}
    ends = {key: n for key, n in around.ends.items() if key[0] and key[0] not in groups}
    for ended, kind in (("done", StepDone), ("failed", StepFailed)):
        told = {path: n for path, n in listener.count(kind).items() if path}
        shown = {path: n for (path, how), n in ends.items() if how == ended}
        assert {path: n for path, n in told.items() if path in shown} == shown


@settings(suppress_health_check=SLOW)
@given(
    program=programs(),
    hows=st.lists(st.tuples(undisturbed | crashing | astray | cancelled, pauses), max_size=4),
)
def test_whatever_happens_what_is_entered_is_left(
    program: Node, hows: list[tuple[How, int]]
) -> None:
    """Processes die, saves go astray, drivers are cancelled: no call is left open by a driver."""
    around, listener = Around(), Listener()
    lived(program, hows, around, listener)
    assert (around.open, around.complaints) == ({}, [])
