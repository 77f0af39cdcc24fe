"""What an operator does next, and with which object.

Pure: what the cluster says of an object, and what a pass over it came to, go in with the time; what
is due comes out. One object is never in two passes at once, and one that changed during its pass
is due again right after it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

__all__ = ["Queue", "Sighting", "backoff"]

_NEVER = float("inf")


def backoff(failures: int, chance: float, *, first: float = 1.0, most: float = 60.0) -> float:
    """Seconds until the next try: they double from ``first`` to ``most``, and are spread.

    Args:
        failures: How often in succession it has failed, from 1.
        chance: A random number from 0 to 1; of the time, half is left to it.
        first: Seconds after the first failure.
        most: Seconds that it never exceeds.
    """
    return float(min(most, first * 2.0 ** min(failures - 1, 30))) * (0.5 + chance / 2)


class Sighting(NamedTuple):
    """What matters of an object as the cluster tells of it: where it differs, a pass is due.

    Attributes:
        uid: Which object it is; another one may follow under the same name.
        generation: Of its spec.
        deleting: Whether somebody has asked for its end.
    """

    uid: str
    generation: int
    deleting: bool


class _Known(msgspec.Struct):
    """An object that is there."""

    seen: Sighting
    obj: dict[str, Any]
    due: float = _NEVER
    failures: int = 0
    running: bool = False
    again: bool = False  # it changed while a pass ran
    gone: bool = False  # it went while a pass ran
    ended: bool = False  # the last pass left nothing to do


class Queue:
    """The objects that there are, and when each is due."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._heap: list[tuple[float, str]] = []  # every due time that was ever set; some are stale

    def __len__(self) -> int:
        return len(self._known)

    def see(
        self,
        key: str,
        seen: Sighting,
        obj: dict[str, Any],
        now: float,
        *,
        unfinished: bool = False,
    ) -> bool:
        """An object is there, or has changed.

        What a pass writes comes back as a change too: only another spec, somebody's wish to delete
        it, or another object of that name make a pass due before its time. So does a run that had
        ended and has not any more: an operator put it right.

        Args:
            key: The object's name.
            seen: What matters of it.
            obj: All of it; passes are given the latest.
            now: The time.
            unfinished: Whether its status tells of a run that has not ended.

        Returns:
            Whether a pass is due now.
        """
        known = self._known.get(key)
        if known is None:
            self._known[key] = _Known(seen, obj)
            self._put(key, now)
            return True
        known.obj = obj
        stirred = unfinished and known.ended and not known.running
        if known.seen == seen and not stirred and not known.gone:
            return False
        known.seen, known.gone, known.failures = seen, False, 0
        known.ended = False
        if known.running:
            known.again = True
            return False
        self._put(key, now)
        return True

    def lose(self, key: str) -> None:
        """An object is not there any more."""
        known = self._known.get(key)
        if known is None:
            return
        if known.running:
            known.gone = True
        else:
            del self._known[key]

    def keep_only(self, keys: Iterable[str]) -> None:
        """These are all that there are."""
        kept = set(keys)
        for key in [key for key in self._known if key not in kept]:
            self.lose(key)

    def take(self, now: float) -> tuple[str, dict[str, Any]] | None:
        """The object that is due for the longest time, for a pass; `settle` it afterwards."""
        if self.next_due() > now:
            return None
        _, key = heapq.heappop(self._heap)
        known = self._known[key]
        known.running, known.again, known.due = True, False, _NEVER
        return key, known.obj

    def next_due(self) -> float:
        """When the next one is due that is in no pass; infinity if none is."""
        while self._heap:
            due, key = self._heap[0]
            known = self._known.get(key)
            if known is not None and known.due == due and not known.running:
                return due
            heapq.heappop(self._heap)
        return _NEVER

    def _put(self, key: str, due: float) -> None:
        self._known[key].due = due
        if due < _NEVER:
            heapq.heappush(self._heap, (due, key))

    def failed(self, key: str) -> int:
        """A pass did not come to an outcome; how often in succession, this one included."""
        known = self._known[key]
        known.failures += 1
        return known.failures

    def settle(self, key: str, now: float, after: float | None, *, failed: bool = False) -> None:
        """A pass is over.

        Args:
            key: The object.
            now: The time.
            after: Seconds until the next one; ``None`` where only a change calls for one.
            failed: Whether the pass came to no outcome.
        """
        known = self._known[key]
        known.running = False
        if known.gone:
            del self._known[key]
            return
        if not failed:
            known.failures = 0
        if known.again:
            known.again = False
            self._put(key, now)
            return
        self._put(key, _NEVER if after is None else now + after)
        known.ended = after is None
