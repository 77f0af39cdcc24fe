"""What observers get: events, told after the save that holds them; and calls, to surround.

An *event* says what is durable. A *call* is what happens right now, in the task that does it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from .errors import Failure

__all__ = [
    "Around",
    "BodyCall",
    "Ended",
    "Event",
    "InfoSaved",
    "Kind",
    "Observer",
    "PassEnded",
    "PassStarted",
    "StepDone",
    "StepFailed",
    "StepPending",
    "StepRetrying",
    "StepStarted",
]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What all events have.

    Attributes:
        run_id: The run; ``None`` for one that is in no store.
        path: The step, ``""`` for the root.
        at: When it happened, by the run's clock.
    """

    run_id: str | None
    path: str
    at: datetime


class PassStarted(Event, frozen=True, kw_only=True):
    """A pass is about to run its first body.

    Attributes:
        epoch: The epoch under which it runs; 0 without a store.
    """

    epoch: int


class StepStarted(Event, frozen=True, kw_only=True):
    """A step's body began. Told together with the step's next event unless starts are saved.

    Attributes:
        attempt: From 1.
        interruptions: How often the step was found interrupted before.
    """

    attempt: int
    interruptions: int


class StepDone(Event, frozen=True, kw_only=True):
    """A step returned."""


class StepFailed(Event, frozen=True, kw_only=True):
    """A step failed and stays failed.

    Attributes:
        attempt: The attempt that failed.
        failure: What was recorded.
    """

    attempt: int
    failure: Failure


class StepRetrying(Event, frozen=True, kw_only=True):
    """An attempt failed; another one is due.

    Attributes:
        attempt: The attempt that failed.
        failure: What was recorded.
        wake_at: When the next attempt is due.
    """

    attempt: int
    failure: Failure
    wake_at: datetime


class StepPending(Event, frozen=True, kw_only=True):
    """A step is not finished yet.

    Attributes:
        wake_at: When it is called again.
        why: What it waits for, in the step's words.
    """

    wake_at: datetime
    why: str


class InfoSaved(Event, frozen=True, kw_only=True):
    """A step wrote down how far it has come."""


class PassEnded(Event, frozen=True, kw_only=True):
    """A pass is over.

    Attributes:
        status: What the run has come to.
    """

    status: str


Observer: TypeAlias = Callable[[Event], object]
"""Called in the event loop, between the steps, in the order of the events of each step. What it
raises is logged once and never touches the run. It must not block: slow work belongs in a queue of
its own. It may also be an `Around`."""


# --- around the calls of bodies -----------------------------------------------------------------

Kind: TypeAlias = Literal["pass", "do", "call", "poll", "sleep", "group", "map"]
"""What is called: the root's body, once for the whole pass, or a step of this kind."""

Ended: TypeAlias = Literal["done", "failed", "retrying", "pending", "interrupted"]
"""What a call came to. ``retrying``: it failed, and another attempt is due. ``pending``: it is to
be called again, in this pass or the next, because it said so or a step below it did.
``interrupted``: it was cut off, by a cancellation, by what stopped the pass, or by the group that
had no need of it any more."""


class BodyCall(msgspec.Struct, kw_only=True, eq=False):
    """One call of a body, while it lasts.

    A step that is retried or checks again is called more than once; one that is replayed is not
    called. A group or map is one call from its first child to its last, and a pass is one from
    its first step to its last. A step that fails before its body is called (``crashed``, or
    ``timeout`` before it began) is a call that is over at once.

    Attributes:
        run_id: The run; ``None`` for one that is in no store.
        run_name: What the root function is known by.
        epoch: The epoch under which the pass runs; 0 without a store.
        kind: What is called.
        path: The step, ``""`` for the root.
        pattern: The path with ``*`` for each item of a map: the same for all items.
        attempt: From 1.
        interruptions: How often the step was found interrupted before.
        ended: What the call came to; ``None`` while it lasts.
        error: The exception with which it failed or was interrupted. Never one of the signals by
            which the engine ends a pass.
        carried: Of a pass, what an observer wants the run's later passes to be shown, in whatever
            process: a few short texts. What is put there on entering is in the store before the
            first body runs.
    """

    run_id: str | None
    run_name: str
    epoch: int
    kind: Kind
    path: str
    pattern: str
    attempt: int
    interruptions: int
    carried: dict[str, str]
    _part_of: BodyCall | None = None  # none of a pass
    ended: Ended | None = None
    error: BaseException | None = None
    _entered: list[tuple[int, AbstractContextManager[object]]] = []

    @property
    def whole(self) -> BodyCall:
        """The pass that the call is part of; a pass is its own."""
        return self._part_of or self

    def __repr__(self) -> str:
        what = f"of step {self.path!r}" if self.path else f"of {self.run_name!r}"
        return f"<BodyCall {what}, {self.kind}, {self.ended or 'running'}>"


@runtime_checkable
class Around(Protocol):
    """An observer that surrounds the calls of bodies, in the tasks that make them.

    What it sets on entering, such as a context variable, is seen by the body, by the tasks and
    threads that the body starts, and by the steps below it; it is undone on leaving, which
    happens in the same task. So a tracer makes its span the current one.

    It is given in ``observers=[…]`` like any other, and may be called with events as well. What it
    raises is logged once and never touches the run. It sees what happens, not what is durable: an
    outcome is saved after the call has been left.
    """

    def around(self, call: BodyCall, /) -> AbstractContextManager[object]:
        """Give what is entered right before the body is called, and left when it has ended.

        It must not block. It is left with no exception, whatever the body raised, so there is
        none to swallow: ``call.ended`` and ``call.error`` say by then what has become of it.
        """
        ...
