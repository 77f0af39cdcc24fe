"""The line of a step on a web page: its name, its numbers, its bar, and what else is known of it.

The page's script draws the lines that the page was not written with (``stepNode`` in `_script`); a
test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import msgspec

from .._state import moment
from ._records import KINDS, More, Problem, Record
from ._timeline import Kind, RowStatus
from ._words import duration_text, plain

__all__ = ["BODY", "KIND_WORDS", "Scale", "data", "icon", "key", "line", "plotted", "text", "when"]

KIND_WORDS: dict[Kind, str] = {
    "work": "work",
    "failed": "work of an attempt that failed",
    "lost": "work that was cut off",
    "wait": "waiting",
    "backoff": "before the next attempt",
    "idle": "nobody at work on it",
    "folded": "summed up",
}
BODY = frozenset({"work", "failed", "lost"})  # kinds that are the time of a call of the body

_DEEPEST = 14  # levels that are indented; those below stand under one another
_LEAST = 0.0005  # seconds: of a shorter time a line says nothing, and the details all
_SHAPES: dict[Kind, tuple[int, int]] = {  # top and height: kinds differ in shape, too
    "work": (4, 11),
    "failed": (4, 11),
    "lost": (4, 11),
    "wait": (7, 5),
    "backoff": (8, 3),
    "idle": (8, 2),
    "folded": (4, 11),
}
_LABELS = ("own time", "worked", "waited", "backed off", "failed work", "lost work", "idle")

# --- words ----------------------------------------------------------------------------------------


def text(value: str) -> str:
    """Text of anybody's for HTML, shown as what it is."""
    return escape(plain(value))


def icon(status: RowStatus) -> str:
    """The symbol of a status; its word follows, or is hidden beside it."""
    name = status.replace(" ", "-")
    return f'<svg class="ic i-{name}" aria-hidden="true"><use href="#i-{name}"/></svg>'


def data(took: float) -> str:
    """A duration: for readers, and in full for machines."""
    value = f"{took:.6f}".rstrip("0").rstrip(".")
    return f'<data value="{value}">{duration_text(took)}</data>'


def when(at: float) -> str:
    """A time, in UTC; the page's script can make it local."""
    shown = f"{moment(at):%Y-%m-%d %H:%M:%S.%f}"[:-3]
    return f'<time datetime="{shown.replace(" ", "T")}Z">{shown} UTC</time>'


# --- bars -----------------------------------------------------------------------------------------


class Scale(msgspec.Struct, frozen=True):
    """The scale of time.

    Attributes:
        start: When it begins.
        span: How many seconds it shows.
    """

    start: float
    span: float

    def share(self, offset: float) -> float:
        """How far from its beginning so many seconds are, in per cent."""
        return min(max(offset / self.span, 0.0), 1.0) * 100

    def percent(self, offset: float) -> str:
        """The same, as an attribute."""
        return f"{self.share(offset):.4f}%"

    def rect(self, name: str, start: float, end: float, shape: tuple[int, int]) -> str:
        """A bar."""
        x = self.share(start)
        width = max(self.share(end) - x, 0.0)
        y, height = shape
        return f'<rect class="{name}" x="{x:.4f}%" y="{y}" width="{width:.4f}%" height="{height}"/>'


def plotted(marks: str) -> str:
    """What is drawn on the scale; the inner picture is the one that zooms."""
    if not marks:
        return '<span class="plot"></span>'
    return (
        '<span class="plot"><svg class="bar" aria-hidden="true"><svg class="z" x="0%" '
        f'width="100%">{marks}</svg></svg></span>'
    )


def key(kind: Kind) -> str:
    """A bar of this kind for a legend."""
    y, height = _SHAPES[kind]
    return f'<rect class="b {kind}" x="1" y="{y}" width="26" height="{height}"/>'


def _marks(record: Record, scale: Scale, *, parent: bool) -> str:
    start, until = record.start, record.until
    if start is None:
        return ""
    parts: list[tuple[Kind, float, float]] = [("work", start, until)]
    if record.stretches is not None:
        parts = [(KINDS[s[0]], s[1], s[2]) for s in record.stretches]
    made = ""
    for kind, begin, end in parts:
        if parent and kind in BODY:  # most of it is the time of the steps below, and not lost
            made += scale.rect("b span", begin, end, (4, 4))
        else:
            made += scale.rect(f"b {kind}", begin, end, _SHAPES[kind])
    if parent:
        for kind, _, end in parts:
            if kind in ("failed", "lost"):
                made += (
                    f'<rect class="cap {kind}" x="{scale.percent(end)}" y="2" width="3" '
                    'height="13" transform="translate(-3)"/>'
                )
        made += (
            f'<rect class="end" x="{scale.percent(start)}" y="4" width="2" height="11"/>'
            f'<rect class="end" x="{scale.percent(until)}" y="4" width="2" height="11" '
            'transform="translate(-2)"/>'
        )
    if not record.ended and record.word == "proceeding":
        made += (
            f'<svg x="{scale.percent(until)}" width="1" height="22" overflow="visible">'
            '<path class="on" d="M-1 3l7 6.5-7 6.5z"/></svg>'
        )
    return made + "".join(scale.rect("crit", a, b, (18, 3)) for a, b in record.parts)


# --- the line -------------------------------------------------------------------------------------


def line(record: Record, path: str, kids: str, scale: Scale) -> str:
    """A step's line with the lines of the steps below it."""
    index, status, name = record.index, record.word, escape(record.name)
    fold = ""
    if kids:
        fold = (
            f'<button class="fold" type="button" aria-expanded="true" tabindex="-1" '
            f'aria-controls="k{index}" aria-label="Steps of {name}"></button>'
        )
        kids = f'<ul id="k{index}">{kids}</ul>'
    names = f"step d{min(record.depth, _DEEPEST)} s-{status.replace(' ', '-')}"
    if record.critical:
        names += " crit"
    took = "" if record.start is None else data(record.took)
    return (
        f'<li class="{names}" id="s{index}">{fold}<details><summary class="row">'
        f'<span class="name">{icon(status)}<span class="vh">{status}: </span>'
        f'<span class="t">{name}</span>{_badges(record)}</span>'
        f'<span class="took">{took}</span>{plotted(_marks(record, scale, parent=bool(kids)))}'
        f'{_cells(record)}</summary><div class="more">{_facts(record, path, scale)}'
        f"{_history(record)}{_blocks(record.more or More())}</div></details>{kids}</li>"
    )


def _badges(record: Record) -> str:
    made = ""
    if record.word != "done":
        made += f'<span class="badge">{record.word}</span>'
    if record.attempt > 1:
        made += f'<span class="badge tries">attempt {record.attempt}</span>'
    return made


def _cells(record: Record) -> str:
    own, _, waited, backed_off, failed, lost, _, calls = record.sums
    values = (
        ("own", own),
        ("waited", waited + backed_off),
        ("wasted", failed + lost),
        ("saves", record.saving),
    )
    attempts = f'<span class="num" data-l="attempts">{record.attempt if calls else ""}</span>'
    return attempts + "".join(
        f'<span class="num" data-l="{label}">{data(value) if value >= _LEAST else ""}</span>'
        for label, value in values
    )


# --- what is to know ------------------------------------------------------------------------------


def _facts(record: Record, path: str, scale: Scale) -> str:
    more, sums = record.more or More(), record.sums
    facts: list[tuple[str, str]] = [
        ("path", f"<code>{text(path) or '(the run)'}</code>"),
        ("status", record.word),
    ]
    if record.start is not None:
        facts.append(("began", when(scale.start + record.start)))
        if record.ended:
            facts.append(("ended", when(scale.start + record.until)))
        facts.append(("took" if record.ended else "so far", data(record.took)))
    if "due" in more:
        facts.append(("due again", when(scale.start + more["due"])))
    if "why" in more:
        facts.append(("waits for", escape(more["why"])))
    facts += [(label, data(value)) for label, value in zip(_LABELS, sums, strict=False) if value]
    if on_path := sum(end - start for start, end in record.parts):
        facts.append(("on the critical path", data(on_path)))
    if record.saving:
        facts.append(("shortens the run by", data(record.saving)))
    if record.attempt > 1:
        facts.append(("attempt", str(record.attempt)))
    if sums[-1] > 1:
        facts.append(("calls of its body", f"{sums[-1]:,}"))
    if "stops" in more:
        facts.append(("interrupted", f"{more['stops']} times"))
    rows = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    return f'<dl class="facts">{rows}</dl>'


def _history(record: Record) -> str:
    """The stretches of a step that did not just work."""
    stretches = record.stretches or []
    if len(stretches) < 2:
        return ""
    rows = ""
    for code, start, end, calls, _ in stretches:
        kind = KINDS[code]
        word = KIND_WORDS[kind] + (f", calls in between: {calls}" if calls else "")
        rows += (
            f'<tr><td><svg class="key" aria-hidden="true">{key(kind)}</svg>{word}</td>'
            f'<td class="n">+{data(start)}</td><td class="n">{data(max(end - start, 0))}</td></tr>'
        )
    return (
        '<table class="history"><thead><tr><th>what it went through</th><th class="n">from</th>'
        f'<th class="n">took</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _blocks(more: More) -> str:
    """Error, info and result."""
    made = _problem(more["error"]) if "error" in more else ""
    if "info" in more:
        made += f'<h4>info</h4><pre tabindex="0">{escape(more["info"])}</pre>'
    if "result" in more:
        made += f'<h4>result</h4><pre tabindex="0">{escape(more["result"])}</pre>'
    return made


def _problem(error: Problem) -> str:
    kind = f"{error['kind']}: " if "kind" in error else ""
    made = f'<h4>error</h4><p class="message">{escape(kind + error["message"])}</p>'
    if "type" in error:
        made += f'<p class="type">{escape(error["type"])}</p>'
    if "causes" in error:
        made += f'<p class="causes">caused by {_links(error["causes"])}</p>'
    if "trace" in error:
        made += f'<pre tabindex="0">{escape(error["trace"])}</pre>'
    return made


def _links(steps: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f'<a href="#s{index}">{escape(name)}</a>' for index, name in steps)
