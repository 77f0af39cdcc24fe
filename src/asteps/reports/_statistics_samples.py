"""Durations of very many executions in little memory, and what they say: percentiles, trends.

Up to `MOST_EXACT` values are all kept, and percentiles are exact. Beyond that they are counted in
buckets, each by 1 % wider than the one before, so that the middle of a bucket is off by less than
`ERROR` of any value in it; count, mean and maximum stay exact. For trends a sample is kept then, of
runs that are drawn by a hash of their number.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import ceil, exp, fsum, log, sqrt

from ._statistics_summary import Spread, Trend

__all__ = ["ERROR", "MOST_EXACT", "Samples", "rank"]

MOST_EXACT = 131_072
ERROR = 0.005

_WIDTH = log((1 + ERROR) / (1 - ERROR))  # of a bucket, as a logarithm
_NOTHING = 1e-9  # seconds; what takes less took no time
_FEW = 20  # values, below which a part of them is too small for a trend
_SURE = 2.576  # standard deviations: 99 %


def rank(share: float, count: int) -> int:
    """The place, from 0, of a percentile among so many values in order (nearest rank)."""
    return max(ceil(share * count - 1e-9) - 1, 0)


class Samples:
    """Values, each of one run.

    Attributes:
        values: Those that are kept; in order of arrival. Add here, and to `owners`.
        owners: The number of the run that each is of.
    """

    __slots__ = ("_buckets", "_counted", "_mask", "_most", "_settled", "_total", "owners", "values")

    def __init__(self) -> None:
        self.values = array("d")
        self.owners = array("I")
        self._buckets: dict[int, int] | None = None
        self._counted = 0  # values in the buckets
        self._settled = 0  # how many of the values that are kept are in the buckets, too
        self._total = 0.0  # of those in the buckets
        self._most = 0.0
        self._mask = 0

    def __len__(self) -> int:
        return self._counted + len(self.values) - self._settled

    def compact(self) -> None:
        """Count values in buckets, if there are too many to keep."""
        if len(self) > MOST_EXACT and len(self.values) > self._settled:
            self._count()

    def _count(self) -> None:
        fresh = self.values[self._settled :]
        buckets = self._buckets = self._buckets or {}
        for value in fresh:
            bucket = ceil(log(value) / _WIDTH) if value > _NOTHING else _ZERO
            buckets[bucket] = buckets.get(bucket, 0) + 1
        self._counted += len(fresh)
        self._total += fsum(fresh)
        self._most = max(self._most, *fresh)
        self._keep(self._settled, self._mask)
        while len(self.values) > MOST_EXACT // 2:
            self._mask = self._mask * 2 + 1
            self._keep(0, (self._mask + 1) >> 1)
        self._settled = len(self.values)

    def _keep(self, first: int, bits: int) -> None:
        """Drop the values, from this one on, of runs whose hash has one of the bits."""
        owners = self.owners
        kept = [i for i in range(first, len(owners)) if not _hash(owners[i]) & bits]
        values = self.values
        self.values = values[:first] + array("d", [values[i] for i in kept])
        self.owners = owners[:first] + array("I", [owners[i] for i in kept])

    def absorb(self, other: Samples, offset: int) -> None:
        """Take over the values of another, whose runs have numbers that much lower."""
        if other._buckets is not None or self._buckets is not None:
            for each in (self, other):
                if len(each.values) > each._settled:
                    each._count()
        if other._mask > self._mask:
            self._keep(0, other._mask)
        values, owners = other.values, other.owners
        if self._mask > other._mask:
            chosen = [i for i, run in enumerate(owners) if not _hash(run) & self._mask]
            values = array("d", [values[i] for i in chosen])
            owners = array("I", [owners[i] for i in chosen])
        self._mask = max(self._mask, other._mask)
        self.values.extend(values)
        self.owners.extend(array("I", [run + offset for run in owners]) if offset else owners)
        if other._buckets is not None or self._buckets is not None:
            mine = self._buckets = self._buckets or {}
            for bucket, count in (other._buckets or {}).items():
                mine[bucket] = mine.get(bucket, 0) + count
            self._counted += other._counted
            self._total += other._total
            self._most = max(self._most, other._most)
            self._settled = len(self.values)

    def spread(self, *, zeros: int = 0) -> Spread:
        """What the values say.

        Args:
            zeros: How many there are beside them that are 0.
        """
        self.compact()
        count = len(self) + zeros
        if not count:
            return Spread()
        if self._buckets is None:
            found = sorted(self.values)
            at = [rank(share, count) - zeros for share in (0.5, 0.95, 0.99)]
            points = [found[place] if place >= 0 else 0.0 for place in at]
            most = found[-1] if found else 0.0
            p50, p95, p99 = points
            return Spread(count, fsum(found) / count, p50, p95, p99, most)
        if len(self.values) > self._settled:
            self._count()
        p50, p95, p99 = (self._point(rank(share, count) - zeros) for share in (0.5, 0.95, 0.99))
        return Spread(count, self._total / count, p50, p95, p99, self._most, ERROR)

    def _point(self, place: int) -> float:
        """The value at a place of the order, as near as the buckets tell."""
        passed = 0
        for bucket, count in sorted((self._buckets or {}).items()):
            passed += count
            if place < passed:
                if bucket == _ZERO or place < 0:
                    return 0.0
                return min(exp(bucket * _WIDTH) * (1 - ERROR), self._most)
        return self._most

    def trend(self, starts: Sequence[float], since: float) -> Trend | None:
        """How the values of runs that began since then differ from those before."""
        before: list[float] = []
        recent: list[float] = []
        for value, run in zip(self.values, self.owners, strict=True):
            (recent if starts[run] >= since else before).append(value)
        if len(before) < _FEW or len(recent) < _FEW:
            return None
        before.sort()
        recent.sort()
        was, now = before[rank(0.5, len(before))], recent[rank(0.5, len(recent))]
        if was <= _NOTHING:
            return None
        (low, high), (least, most) = _likely(before), _likely(recent)
        return Trend(was, now, now / was - 1, significant=most < low or high < least)


_ZERO = -(10**9)  # the bucket of what took no time


def _hash(number: int) -> int:
    return (number * 2_654_435_761 & 0xFFFF_FFFF) >> 8


def _likely(values: Sequence[float]) -> tuple[float, float]:
    """The 99 % confidence interval of the median of values in order."""
    count = len(values)
    middle, wide = count / 2, _SURE * sqrt(count) / 2
    return values[max(int(middle - wide), 0)], values[min(ceil(middle + wide), count - 1)]
