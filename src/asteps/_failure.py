"""From an exception to what is recorded of it, and from the record to the `StepError`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

from ._paths import join, split
from ._state import State, causes_of
from .errors import Failure, FailureKind, StepError, type_names

__all__ = ["describe", "error_of", "find_causes", "is_final", "reached", "say"]

_MAX_MESSAGE = 4_000  # characters
_MAX_TRACEBACK = 8_000
_MAX_FRAMES = 20
_MAX_LINKS = 1_000  # exceptions that are looked at
_HERE = os.path.dirname(__file__)  # noqa: PTH120 - pathlib costs more than all of this module


def describe(
    exc: BaseException, path: str, *, kind: FailureKind = "raised", final: bool = False
) -> Failure:
    """What is recorded when this exception leaves the body of the step at ``path``."""
    message = say(exc)
    if isinstance(exc, StepError):
        # s.fail() of this very step says it all
        message = exc.failure.message if exc.path == path else _part(exc)
    elif isinstance(exc, BaseExceptionGroup):
        message = "; ".join([str(exc.message), *(_part(e) for e in exc.exceptions[:10])])
    return Failure(
        message=_clean(message, _MAX_MESSAGE),
        types=type_names(type(exc)),
        traceback=_clean("".join(_trace(exc)), _MAX_TRACEBACK),
        kind=kind,
        final=final or is_final(exc, path),
        causes=tuple(find_causes(exc, path)),
    )


def say(exc: BaseException) -> str:
    """What an exception says, or its type's name."""
    try:
        text = str(exc)
    except Exception:  # a broken __str__ must not hide the failure
        text = ""
    return text or type(exc).__name__


def _part(exc: BaseException) -> str:
    """What one of several causes says, in the words of its parent."""
    if isinstance(exc, StepError):
        return f"{split(exc.path)[-1] if exc.path else 'a run'}: {exc.failure.message}"
    return say(exc)


def _clean(text: str, limit: int) -> str:
    """Bounded, and without what JSON cannot hold."""
    if len(text) > limit:
        text = text[: limit // 2] + "\n…\n" + text[-limit // 2 :]
    return text.encode("utf-8", "backslashreplace").decode()


def _trace(exc: BaseException) -> Iterator[str]:
    """The frames of the user's code, and of what the exception came from; no locals."""
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen and len(seen) < 4:
        seen.add(id(current))
        frames = [
            f
            for f in traceback.extract_tb(current.__traceback__)
            if not f.filename.startswith(_HERE)
        ]
        yield from traceback.format_list(frames[-_MAX_FRAMES:])
        yield f"{type(current).__qualname__}: {say(current)}\n"
        if isinstance(current, StepError):
            return  # the step's own node tells the rest
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
        if current is not None:
            yield "which came from:\n"


def reached(exc: BaseException, code: object) -> bool:
    """Whether an exception came out of this function's own code, or out of what that called."""
    return any(frame.f_code is code for frame, _ in traceback.walk_tb(exc.__traceback__))


def find_causes(exc: BaseException, path: str) -> dict[str, None]:
    """Names of the children of this step whose failures an exception carries, in order."""
    parts = split(path)
    paths = [split(error.path) for error, _ in _step_errors(exc, path)]
    return {p[len(parts)]: None for p in paths if len(p) > len(parts) and p[: len(parts)] == parts}


def is_final(exc: BaseException, path: str) -> bool:
    """Whether no step may try again after this, because one said so for good.

    What a sibling came to, whose failure was being handled when this was raised, is its own affair.
    """
    parts = split(path)
    return any(
        error.failure.final or any(is_final(below, error.path) for below in error.errors)
        for error, meant in _step_errors(exc, path)
        if meant or split(error.path)[: len(parts)] == parts
    )


def _step_errors(exc: BaseException, path: str) -> Iterator[tuple[StepError, bool]]:
    """The `StepError`s that an exception carries, and whether it was raised from them on purpose.

    Looks into groups and along ``__cause__`` and ``__context__`` (also where ``from None`` hides
    it: recovering only the parent would be futile), but not behind a child's `StepError`: what that
    child's handler had dealt with before is history.
    """
    stack: list[tuple[BaseException | None, bool]] = [(exc, True)]
    seen: set[int] = set()
    while stack and len(seen) < _MAX_LINKS:
        current, meant = stack.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, StepError):
            yield current, meant
            if current.path != path:  # not s.fail() of this very step
                continue
        if isinstance(current, BaseExceptionGroup):
            stack.extend((each, meant) for each in reversed(current.exceptions))
        cause = current.__cause__
        stack.append((current.__context__, False) if cause is None else (cause, meant))


def error_of(node: State, path: str) -> StepError:
    """What a failed step raises, the same on every pass."""
    failure = node.failure or Failure(message="; ".join(node.errs or ["failed"]))
    errors = []
    for name in causes_of(node):
        child = node.child(name)
        if child is not None and child.failed:
            errors.append(error_of(child, join(path, name)))
    return StepError(path, failure, tuple(errors))
