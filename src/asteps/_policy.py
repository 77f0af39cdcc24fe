"""Retry policies: frozen values and the arithmetic of delays. Pure: randomness is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias, TypedDict

import msgspec

from .errors import StepError, UsageError

__all__ = ["LONGEST", "Duration", "PollOptions", "Retry", "StepOptions", "duration"]

Duration: TypeAlias = float | timedelta
"""Seconds, or a ``timedelta``."""

LONGEST = 366 * 86_400.0  # a year: beyond it a number of seconds is a mistake


def duration(value: Duration, what: str, *, zero: bool = False) -> float:
    """Turn a public duration into float seconds.

    Args:
        value: Seconds, or a ``timedelta``.
        what: What to call it in the error.
        zero: Whether 0 is allowed.

    Raises:
        UsageError: It is not a number, not finite, negative, zero, or longer than a year.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UsageError(f"{what} is seconds or a timedelta, not {type(value).__name__}")
    least_ok = seconds >= 0 if zero else seconds > 0
    if not (least_ok and seconds <= LONGEST):  # also refuses NaN
        least = "from 0" if zero else "above 0"
        raise UsageError(f"{what} is {value!r}; it must be {least} and at most a year of seconds")
    return float(seconds)


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """When a failed step is tried again.

    The delay before attempt ``n + 1`` is ``min(max_delay, delay * factor ** (n - 1))`` seconds,
    changed at random by up to ``jitter`` of itself either way.

    Args:
        attempts: How many attempts there are in all, the first included; at least 1.
        delay: Seconds before the second attempt; 0 tries again at once.
        factor: What each further delay is multiplied by; at least 1.
        max_delay: Seconds that no delay exceeds (before jitter).
        jitter: The share of a delay that chance may add or take, from 0 to 1.
        on: Which exceptions are tried again: a type, a tuple of types, or a predicate. A child's
            `StepError` is also matched by the types that it records (`StepError.is_a`).

    Raises:
        UsageError: A value is out of its range.
    """

    attempts: int = 3
    delay: Duration = 1.0
    factor: float = 2.0
    max_delay: Duration = 60.0
    jitter: float = 0.1
    on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = (
        Exception
    )

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise UsageError(f"Retry(attempts={self.attempts!r}): a whole number is needed")
        if self.attempts < 1:
            raise UsageError(f"Retry(attempts={self.attempts}): at least 1 is needed")
        duration(self.delay, "Retry(delay=…)", zero=True)
        duration(self.max_delay, "Retry(max_delay=…)", zero=True)
        if not (_is_number(self.factor) and math.isfinite(self.factor) and self.factor >= 1):
            raise UsageError(f"Retry(factor={self.factor!r}): a number from 1 is needed")
        if not (_is_number(self.jitter) and 0 <= self.jitter <= 1):
            raise UsageError(f"Retry(jitter={self.jitter!r}): a share from 0 to 1 is needed")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(
            issubclass(k, BaseException) if isinstance(k, type) else callable(k) for k in kinds
        ) or (isinstance(self.on, tuple) and not all(isinstance(k, type) for k in kinds)):
            raise UsageError("Retry(on=…): an exception type, a tuple of them or a predicate")

    def delay_after(self, attempt: int, chance: float) -> float:
        """Seconds to wait after a failed attempt.

        Args:
            attempt: The attempt that failed, from 1.
            chance: A random number from 0 to 1.
        """
        first = duration(self.delay, "delay", zero=True)
        longest = duration(self.max_delay, "max_delay", zero=True)
        if not first:
            return 0.0
        try:
            plain = min(longest, first * self.factor ** (attempt - 1))
        except OverflowError:
            plain = longest
        return plain * (1 + self.jitter * (2 * chance - 1))

    def covers(self, error: BaseException) -> bool:
        """Whether this exception is one to try again after."""
        on = self.on
        if not isinstance(on, type | tuple):
            return bool(on(error))
        if isinstance(error, on):
            return True
        kinds = on if isinstance(on, tuple) else (on,)
        return isinstance(error, StepError) and any(error.is_a(kind) for kind in kinds)


class PollOptions(TypedDict, total=False):
    """The keywords of `Step.poll`, with the meaning that they have in `StepOptions`."""

    retry: Retry | None
    timeout: Duration | None
    inputs: object


class StepOptions(TypedDict, total=False):
    """The keywords of `Step.do` and `Step.call`.

    Attributes:
        retry: When to try again after a failure; without it, never.
        timeout: Seconds (or a ``timedelta``) for one attempt, from its recorded start, waits
            included; a step over its time fails with ``TimeoutError``.
        at_most_once: The start is durable before the body runs; if the step is ever found
            interrupted it fails instead of running again. Needs a store.
        inputs: What the step depends on. When it differs from what was recorded, the step is
            reset and runs again, whatever it had come to.
        returns: The result's type, where ``fn`` has no return annotation; not part of this
            dictionary, because it decides the type of the call.
    """

    retry: Retry | None
    timeout: Duration | None
    at_most_once: bool
    inputs: object


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
