"""Every exception that asteps raises.

::

    AstepsError
    ├── StepError                    a step failed: the only one a step's body sees
    ├── UsageError (ValueError)      misuse; the tree is as it was before
    │   ├── DuplicateStepError       two steps of one name under one parent
    │   └── RunMismatchError         the id belongs to another function or other arguments
    ├── StoreError                   a store could not do what was asked
    │   ├── ConflictError            not written: somebody else's save came first
    │   ├── StoreUnavailableError    not written: try again
    │   ├── UncertainWriteError      perhaps written: repeat the identical save
    │   ├── StoreRefusedError        not written, and trying again will not help
    │   ├── StateFormatError         what is stored is corrupt, foreign or newer
    │   ├── BusyError                somebody else holds the run
    │   └── StoreClosedError         the store has been closed
    └── MissingDependencyError (ImportError)   an extra is not installed

Messages are built from typed attributes, so every error survives ``pickle`` and ``copy``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "AstepsError",
    "BusyError",
    "ConflictError",
    "DuplicateStepError",
    "Failure",
    "MissingDependencyError",
    "RunMismatchError",
    "StateFormatError",
    "StepError",
    "StoreClosedError",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "UncertainWriteError",
    "UsageError",
]

_FOREIGN_TEXT = 256  # characters of text from outside that a message repeats


FailureKind: TypeAlias = Literal["raised", "timeout", "interrupted", "crashed", "too large"]


def _cut(text: str) -> str:
    return text if len(text) <= _FOREIGN_TEXT else text[:_FOREIGN_TEXT] + "…"


def type_name(cls: type) -> str:
    """The name under which a type is recorded in ``Failure.types``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def type_names(cls: type) -> tuple[str, ...]:
    """The names of a type and its bases, as ``Failure.types`` has them."""
    return tuple(type_name(c) for c in cls.__mro__ if c is not object)


class Failure(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", forbid_unknown_fields=True
):
    """What made a step fail, as it is recorded in the tree.

    Attributes:
        message: What the exception said.
        types: Qualified names of the exception's type and its bases, most derived first.
        traceback: Frames and lines of the failing body, bounded; never local variables.
        kind: Why the engine gave up: the body ``raised``, the attempt took longer than its
            ``timeout``, an ``at_most_once`` step was found ``interrupted``, a step ``crashed``
            too often, or its result was ``too large``.
        final: Neither the step nor an ancestor tries again by itself.
        causes: Names of the children whose failures brought this one about.
    """

    message: str
    types: tuple[str, ...] = ()
    traceback: str = ""
    kind: FailureKind = "raised"
    final: bool = False
    causes: tuple[str, ...] = ()


class AstepsError(Exception):
    """Base of everything that asteps raises on purpose."""


class StepError(AstepsError):
    """A step failed.

    It is the same on the pass in which the step failed and on every later one; only the first has
    the original exception as ``__cause__``, so decide by `is_a`, never by ``__cause__``.

    Attributes:
        path: The failed step, ``""`` for the root.
        failure: What was recorded.
        errors: The failures of the children that caused this one.
    """

    def __init__(self, path: str, failure: Failure, errors: tuple[StepError, ...] = (), /) -> None:
        super().__init__(path, failure, errors)
        self.path = path
        self.failure = failure
        self.errors = errors

    @property
    def origin(self) -> str:
        """Path of the deepest step at which the failure began."""
        return self.errors[0].origin if self.errors else self.path

    def is_a(self, kind: type[BaseException] | str) -> bool:
        """Whether the recorded exception was of this type, on any pass.

        Args:
            kind: A type, or its qualified name (``"mycloud.errors.Throttled"``).
        """
        name = kind if isinstance(kind, str) else type_name(kind)
        return name in self.failure.types or any(e.is_a(name) for e in self.errors)

    def __str__(self) -> str:
        where = f"step {self.path!r}" if self.path else "the run"
        return f"{where} failed: {_cut(self.failure.message)}"


class UsageError(AstepsError, ValueError):
    """The library was used wrongly. Nothing was recorded: corrected code goes on."""


class DuplicateStepError(UsageError):
    """Two steps under one parent were given the same name in one execution of its body.

    Attributes:
        path: The step.
        plan: The plan in which two tasks were declared with it; ``None`` where steps were run.
    """

    def __init__(self, path: str, plan: str | None = None, /) -> None:
        super().__init__(path, plan)
        self.path = path
        self.plan = plan

    def __str__(self) -> str:
        if self.plan is not None:
            return (
                f"plan {_cut(self.plan)!r} has a task {self.path!r} already; names are unique "
                "among siblings: give this one another name"
            )
        return (
            f"step {self.path!r} was already used in this execution of its parent's body; "
            "names are unique among siblings: give this one another name"
        )


class RunMismatchError(UsageError):
    """The id belongs to a run of another function or with other arguments."""

    def __init__(
        self, id: str, what: Literal["function", "arguments"], recorded: str, given: str, /
    ) -> None:
        super().__init__(id, what, recorded, given)
        self.id = id
        self.what = what
        self.recorded = recorded
        self.given = given

    def __str__(self) -> str:
        if self.what == "function":
            return (
                f"run {self.id!r} was begun by {_cut(self.recorded)!r}, not by "
                f"{_cut(self.given)!r}; use another id, or pass name={_cut(self.recorded)!r} "
                "if the function was only renamed"
            )
        return (
            f"run {self.id!r} was begun with other arguments (digest {self.recorded}, now "
            f"{self.given}); use another id, or reconcile(), whose arguments may change"
        )


class StoreError(AstepsError):
    """A store could not do what it was asked; subclasses say whether anything was written."""


class ConflictError(StoreError):
    """Not written: the stored revision is not the one that was expected."""

    def __init__(self, id: str, expected: str | None, found: str | None, /) -> None:
        super().__init__(id, expected, found)
        self.id = id
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        def say(revision: str | None) -> str:
            return "no run" if revision is None else f"revision {revision}"

        return (
            f"run {self.id!r} was changed by someone else: expected {say(self.expected)}, found "
            f"{say(self.found)}; nothing was written: load it again and retry"
        )


class StoreUnavailableError(StoreError):
    """Not written; the store may answer later."""


class UncertainWriteError(StoreError):
    """The write may or may not have landed; only repeating the identical save can tell."""


class StoreRefusedError(StoreError):
    """Not written, and trying again will not help: too large, full, read-only, forbidden."""


class StateFormatError(StoreError):
    """What is stored is corrupt, foreign or of a newer format. It was left as it is."""


class StoreClosedError(StoreError):
    """The store has been closed, or was never open in this event loop."""


class BusyError(StoreError):
    """Somebody else holds the run.

    Attributes:
        id: The run.
        owner: Who holds it, as that holder named itself.
        until: When the holder's lease ends unless it is renewed, ``None`` where it lasts as long
            as the holding process.
    """

    def __init__(self, id: str, owner: str, until: datetime | None = None, /) -> None:
        super().__init__(id, owner, until)
        self.id = id
        self.owner = owner
        self.until = until

    def __str__(self) -> str:
        term = "for as long as it lives" if self.until is None else f"until {self.until}"
        return (
            f"run {self.id!r} is held by {_cut(self.owner)!r} {term}; wait for it to end, or stop "
            "that process"
        )


class MissingDependencyError(AstepsError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, /) -> None:
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f"{self.package!r} is not installed: pip install 'asteps[{self.extra}]'"
