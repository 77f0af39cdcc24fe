"""What a pass comes to."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec

from ._state import State
from .errors import StepError

__all__ = ["Done", "Failed", "Outcome", "Pending"]

T = TypeVar("T")


class Done(msgspec.Struct, Generic[T], frozen=True):
    """The run returned.

    Attributes:
        value: What the root function returned.
        state: The tree.
        vanished: Recorded steps that the code no longer has, of parents that were entered and
            finished in this pass.
    """

    value: T
    state: State
    vanished: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True):
    """The run failed, and stays failed until it is recovered.

    Attributes:
        error: The root's failure.
        state: The tree.
        vanished: As in `Done`.
    """

    error: StepError
    state: State
    vanished: tuple[str, ...] = ()


class Pending(msgspec.Struct, frozen=True):
    """The run waits: call `reconcile` again.

    Attributes:
        after: Seconds until then; above 0.
        path: The step that is due first.
        why: What it waits for.
        state: The tree.
        vanished: As in `Done`.
    """

    after: float
    path: str
    why: str
    state: State
    vanished: tuple[str, ...] = ()


Outcome: TypeAlias = Done[T] | Failed | Pending
