"""The steps of a run on a web page: which are on show, and how the others are summed up."""

from __future__ import annotations

import msgspec

from ._lines import KIND_WORDS, Scale, line, plotted
from ._records import KINDS, Record, Recorder
from ._rows import STATUSES
from ._timeline import Row, Timeline
from ._words import duration_text, plain

__all__ = ["Sheet"]

MANY = 20  # children; of more, only those that stand out are on show at first
STAND_OUT = 8
WHOLE = 500  # steps; a run of more is written out in part
ON_SHOW = 240  # steps of such a run that are written out
MOST_LAZY = 1_500_000  # bytes of the JSON of the others
BUCKETS = 160  # of the picture of how many steps were under way at a time
_ROOM_FOR_NOW = 0.04  # of the run's time, behind the line that says "now"
_USUAL = 5


class _Lazy(msgspec.Struct, frozen=True):
    """Steps below one that the page writes out on demand."""

    path: str
    steps: list[Record]


class Sheet:
    """All steps of a run on one scale of time.

    Attributes:
        line: The run.
        scale: The scale of time.
        index: The place of each row in the timeline, by its ``id``.
        left_out: How many steps the page does not hold at all.
    """

    def __init__(self, line: Timeline) -> None:
        self.line = line
        span = max(line.last, line.until) - line.start
        if line.end is None and line.until >= line.now:
            span *= 1 + _ROOM_FOR_NOW
        self.scale = Scale(line.start, max(span, 1e-6))
        self.index = {id(row): place for place, row in enumerate(line.rows)}
        self.left_out = 0
        self._recorder = Recorder(line.start, self.index)
        self._lazy_left = MOST_LAZY
        self._lazy: dict[str, _Lazy] = {}
        self._shown = None if len(line.rows) <= WHOLE else self._choose()

    def html(self) -> str:
        """The lines that are on show."""
        return f'<ul class="steps">{self._step(self.line.root)}</ul>'

    def json(self) -> bytes:
        """The other lines, and what the script needs to know of the run; without ``<``."""
        made = {
            "start": self.scale.start,
            "span": self.scale.span,
            "statuses": STATUSES,
            "kinds": KINDS,
            "words": KIND_WORDS,
            "lazy": self._lazy,
        }
        return msgspec.json.encode(made).replace(b"<", b"\\u003c")

    # -- choosing --

    def _choose(self) -> set[int]:
        """Which steps of a large run are on show: what stands out, then the upper levels."""
        rows = self.line.rows
        parents = {id(child): row for row in rows for child in row.children}
        shown: set[int] = set()

        def add(row: Row) -> None:
            at: Row | None = row
            while at is not None and id(at) not in shown:
                shown.add(id(at))
                at = parents.get(id(at))

        odd = [row for row in rows if _oddness(row) < _USUAL]
        odd.sort(key=_oddness)
        for row in odd[: ON_SHOW // 4]:
            add(row)
        for row in self.line.savings()[: ON_SHOW // 6]:
            add(row)
        level = [self.line.root]
        while level and len(shown) < ON_SHOW:
            for row in level:
                if len(shown) < ON_SHOW:
                    add(row)
            level = [c for row in level for c in row.children if len(row.children) <= MANY]
        return shown

    def _part(self, children: list[Row]) -> tuple[list[Row], list[Row]]:
        """The children that are on show, and the others."""
        shown = self._shown
        on_show = children if shown is None else [c for c in children if id(c) in shown]
        if len(children) > MANY:
            best = sorted(on_show, key=lambda c: (_oddness(c), -c.saving, -c.span))[:STAND_OUT]
            kept = {id(c) for c in best}
            on_show = [c for c in on_show if id(c) in kept]
        if len(on_show) == len(children):
            return on_show, []
        kept = {id(c) for c in on_show}
        return on_show, [c for c in children if id(c) not in kept]

    # -- the lines --

    def _step(self, row: Row) -> str:
        record = self._recorder.record(row, deep=False)
        on_show, others = self._part(row.children)
        kids = "".join(map(self._step, on_show))
        if others:
            kids += self._rest(row, others, "others" if on_show else "steps")
        return line(record, row.path, kids, self.scale)

    def _rest(self, parent: Row, others: list[Row], what: str) -> str:
        """The children that do not stand out: summed up, and written out on demand."""
        below, attributes = "", ""
        if self._shown is None:
            below = "".join(map(self._step, others))
        else:
            kept = self._take_lazily(others)
            place = str(self.index[id(parent)])
            self._lazy[place] = _Lazy(plain(parent.path), kept)
            attributes = f' data-lazy="{place}" data-n="{len(kept)}"'
            below = '<li class="note off">The page writes these out only with JavaScript.</li>'
            if gone := len(others) - len(kept):
                below += (
                    f'<li class="note">{gone:,} of them are not in this page: '
                    "it would become too large.</li>"
                )
        return (
            f'<li class="rest d{min(parent.depth + 1, 14)}"><details{attributes}>'
            f'<summary class="row"><span class="name"><span class="t">{len(others):,} {what}</span>'
            f'<span class="sub">{_in_short(others)}</span></span><span class="took"></span>'
            f"{plotted(self._crowd(others))}</summary><ul>{below}</ul></details></li>"
        )

    def _take_lazily(self, others: list[Row]) -> list[Record]:
        kept: list[Record] = []
        for row in others:
            if self._lazy_left <= 0:
                self.left_out += 1 + _below(row)
                continue
            record = self._recorder.record(row, deep=True)
            self._lazy_left -= len(msgspec.json.encode(record))
            kept.append(record)
        return kept

    def _crowd(self, rows: list[Row]) -> str:
        """How many of these were under way at a time."""
        counts = [0.0] * BUCKETS
        for row in rows:
            if row.start is not None:
                first, last = (
                    self.scale.share(at - self.scale.start) * BUCKETS / 100
                    for at in (row.start, row.until)
                )
                _spread(counts, first, last)
        most = max(counts)
        if not most:
            return ""
        points = "".join(f"L{place},{20 - 17 * n / most:.1f}h1" for place, n in enumerate(counts))
        return (
            f'<svg viewBox="0 0 {BUCKETS} 22" preserveAspectRatio="none">'
            f'<path class="crowd" d="M0,20{points}V20z"/></svg>'
        )


def _in_short(rows: list[Row]) -> str:
    """What is said of steps that are not on show."""
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    found = [(status, count) for status, count in counts.items() if count]
    said = found[0][0] if len(found) == 1 else ", ".join(f"{n:,} {status}" for status, n in found)
    spans = sorted(row.span for row in rows if row.start is not None)
    if spans:
        median, longest = duration_text(spans[len(spans) // 2]), duration_text(spans[-1])
        said += f", {median} each" if median == longest else f", median {median}, most {longest}"
    return said


def _oddness(row: Row) -> int:
    """What one looks for first."""
    if row.status == "failed":
        return 0
    if row.status in ("interrupted", "retrying"):
        return 1
    if row.status in ("proceeding", "pending", "reopened"):
        return 2
    if row.wasted or row.attempt > 1:
        return 3
    return _USUAL if row.status == "done" else 6


def _below(row: Row) -> int:
    return sum(1 + _below(child) for child in row.children)


def _spread(counts: list[float], first: float, last: float) -> None:
    """Add a step to the buckets that it spans, by its share of each."""
    a, b = int(first), min(int(last), BUCKETS - 1)
    a = min(a, BUCKETS - 1)
    if a == b:
        counts[a] += last - first
        return
    counts[a] += a + 1 - first
    for place in range(a + 1, b):
        counts[place] += 1
    counts[b] += last - b
