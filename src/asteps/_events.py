"""What observers are told: frozen values, given after the save that holds what they say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

import msgspec

from .errors import Failure

__all__ = [
    "Event",
    "InfoSaved",
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
"""Called in the saver's task, in the order of the events of each step. What it raises is logged
once and never touches the run. It must not block: slow work belongs in a queue of its own."""
