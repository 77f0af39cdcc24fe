"""A run as one web page: what came of it, its steps on a scale of time, what took long."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Unpack

from .._state import END, State, causes_of, seconds
from ._axis import tick_text, ticks
from ._lines import BODY, KIND_WORDS, data, icon, key, text, when
from ._look import Look, looked_at
from ._outlook import (
    Part,
    advised,
    critical_parts,
    failed_at,
    headline,
    message_of,
    origins,
    trace_of,
    wait_text,
    waits,
    wake_of,
    wasteful,
)
from ._page import document
from ._records import KINDS
from ._timeline import Row, Timeline
from ._waterfall import Sheet
from ._words import duration_text, lines_of, share_text

__all__ = ["html_report"]

_MOST_PARTS = 15  # lines of a table
_MOST_PATH = 100
_MOST_ERRORS = 20
_MOST_WAITS = 20
_TICKS = 8
_WORTH = 0.01  # of the run's time: what is less is not worth a line


def html_report(run: State | Timeline, /, *, store: str = "STORE", **look: Unpack[Look]) -> str:
    """A run as one self-contained web page.

    It holds the steps on a scale of time with all that the tree tells of them, the critical path
    and what could be saved, failures with tracebacks, what is waited for, and wasted work. It
    loads nothing and runs only its own script, without which everything can be read as well.
    Names, messages, infos and results show as what they are, and cannot become markup.

    Infos, results and tracebacks are cut at 20,000 characters each, and in all at what keeps the
    page at a few megabytes. Of a run of more than 500 steps the page first shows those that stand
    out; the others are shown on demand, as far as they have room, and the page says how many have
    not.

    Args:
        run: The root of the run's tree, or a timeline of it.
        store: How the commands that the report suggests name the store.
        look: See `timeline`; without meaning for one that is given.
    """
    line = looked_at(run, look)
    sheet = Sheet(line)
    steps = _steps(sheet)  # first: what stands out there has the first claim on the page's room
    sections = [
        ("failures", "Failures", _failures(sheet), len(origins(line))),
        ("waits", "Waiting", _waiting(sheet), len(waits(line))),
        ("steps", "Steps", steps, None),
        ("critical", "Critical path", _critical(sheet), None),
        ("wasted", "Wasted work", _wasted(sheet), None),
        ("notes", "Notes", _notes(line), len(line.notes)),
        ("about", "About the numbers", _ABOUT, None),
    ]
    kept = [section for section in sections if section[2]]
    links = "".join(
        f'<a href="#{name}">{title}{f" <b>{count}</b>" if count else ""}</a>'
        for name, title, _, count in kept
    )
    body = "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{title}</h2>'
        f"{content}</section>"
        for name, title, content, _ in kept
    )
    title = text(line.run_id or line.name)
    return document(
        f"{title}: {line.status}",
        f'<a class="skip" href="#steps">Skip to the steps</a><div class="top">'
        f'<nav aria-label="Sections">{links}</nav>{_TOOLS}</div>'
        f"<main>{_head(sheet, store)}{body}</main>"
        f"<footer>Drawn by asteps as of {when(line.now)}.</footer>",
        sheet.json(),
    )


_TOOLS = (
    '<div class="tools only-js"><button type="button" data-do="zone">Times: UTC</button>'
    '<button type="button" data-do="theme">Theme: auto</button></div>'
)


def _link(sheet: Sheet, row: Row, words: str = "") -> str:
    """A link to a step's line."""
    shown = escape(words) or text(row.path) or "the run"
    return f'<a href="#s{sheet.index[id(row)]}">{shown}</a>'


# --- the head -------------------------------------------------------------------------------------


def _head(sheet: Sheet, store: str) -> str:
    line = sheet.line
    status = line.status.replace(" ", "-")
    said = headline(line)
    rest = escape(said.removeprefix(line.status))
    facts = [f"run <code>{text(line.run_id)}</code>"] if line.run_id else []
    record = None if line.root.node is None else line.root.node.run
    if record is not None and record.function and record.function != line.name:
        facts.append(f"function <code>{text(record.function)}</code>")
    return (
        f'<header class="head"><h1>{icon(line.status)}{text(line.name)}</h1>'
        f'<p class="id">{", ".join(facts) or "a run without an id"}</p>'
        f'<p class="verdict"><b class="w-{status}">{line.status.capitalize()}</b>{rest}</p>'
        f"{''.join(_reasons(sheet, store))}{_tiles(sheet)}</header>"
    )


def _reasons(sheet: Sheet, store: str) -> Iterator[str]:
    """What failed or is waited for first, and what can be done."""
    line = sheet.line
    if failed := origins(line):
        more = f", and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        verb = "It failed at" if line.status == "failed" else "Failed:"
        said = escape(message_of(failed[0])[:400])
        yield f'<p class="why">{verb} {_link(sheet, failed[0])}: {said}{more}</p>'
    if waiting := waits(line):
        more = f", and {len(waiting) - 1:,} more" if len(waiting) > 1 else ""
        said = escape(wait_text(waiting[0], line.now))
        yield f'<p class="why">It waits for {_link(sheet, waiting[0])}: {said}{more}</p>'
    for advice in advised(line, store):
        command = f": <code>{text(advice.command)}</code>" if advice.command else ""
        yield f'<p class="why">To do: {text(advice.text)}{command}</p>'


def _tiles(sheet: Sheet) -> str:
    line = sheet.line
    begun = line.root.start is not None
    tiles = [("began", when(line.start) if begun else "not begun")]
    if line.end is not None:
        tiles.append(("ended", when(line.end)))
    elif begun:
        tiles.append(("seen until", when(line.until)))
    tiles.append(("took" if line.end is not None else "so far", data(line.span)))
    if line.total:
        share = 100 * line.done / line.total
        tiles.append(
            (
                "steps done",
                f"{line.done:,} of {line.total:,}"
                '<svg class="gauge" aria-hidden="true"><rect width="100%" height="5" rx="2"/>'
                f'<rect class="full" width="{share:.2f}%" height="5" rx="2"/></svg>',
            )
        )
    wasted = line.wasted
    tiles.append(
        (
            "wasted work",
            data(wasted) + ("<small>nothing was done in vain</small>" if not wasted else ""),
        )
    )
    saving = next(iter(line.savings()), None)
    if saving is not None and saving.saving > _WORTH * line.span:
        own = " in its own code" if saving.children else ""
        tiles.append(
            (
                "largest saving",
                f"{data(saving.saving)}<small>if {_link(sheet, saving)} took no time{own}</small>",
            )
        )
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in tiles)
    return f'<dl class="tiles">{cells}</dl>'


# --- the steps ------------------------------------------------------------------------------------


def _steps(sheet: Sheet) -> str:
    line = sheet.line
    lines, labels = "", ""
    moments, step = ticks(sheet.scale.span, _TICKS)
    for at in moments:
        x = 100 * at / sheet.scale.span
        lines += f'<line x1="{x:.4f}%" x2="{x:.4f}%" y1="0" y2="100%"/>'
        if x <= 93:
            labels += f'<text x="{x:.4f}%" y="13" dx="4">{tick_text(at, step)}</text>'
    if line.end is None and line.until >= line.now and line.root.start is not None:
        x = 100 * (line.now - line.start) / sheet.scale.span
        lines += (
            f'<line class="nowline" data-at="{line.now - line.start:.6f}" x1="{x:.4f}%" '
            f'x2="{x:.4f}%" y1="0" y2="100%"/>'
        )
    heads = "".join(
        f'<span class="num">{label}</span>'
        for label in ("attempts", "own", "waited", "wasted", "saves")
    )
    lines_of_steps = sheet.html()
    gone = ""
    if sheet.left_out:
        gone = (
            f'<p class="soft">The run has {len(line.rows):,} steps; {sheet.left_out:,} of them '
            "are not in this page, which would become too large.</p>"
        )
    return (
        f'{gone}<div id="sheet">{_CONTROLS}<div class="grid">'
        f'<div class="colheads" aria-hidden="true"><span class="name d0">step</span>'
        f'<span class="took">took</span><span class="axisbox plot">'
        f'<svg id="axis">{labels}</svg></span>{heads}</div>'
        f'<div id="rulerbox" aria-hidden="true"><svg id="ruler">{lines}</svg></div>'
        f"{lines_of_steps}</div>{_legend(sheet)}</div>"
    )


_CONTROLS = """<div class="bar-of-tools">\
<fieldset class="views"><legend class="vh">What the lines show</legend>\
<label><input type="radio" name="view" id="v-bars" checked>timeline</label>\
<label><input type="radio" name="view" id="v-numbers">numbers</label></fieldset>\
<span class="search only-js"><input type="search" id="find" placeholder="Find a step or a status" \
aria-label="Find a step or a status" autocomplete="off" spellcheck="false">\
<ul id="results" hidden></ul></span>\
<span class="group only-js"><button type="button" data-do="unfold">Unfold all</button>\
<button type="button" data-do="fold">Fold all</button></span>\
<span class="group zoom only-js" role="group" aria-label="Zoom">\
<button type="button" data-do="left" aria-label="Earlier">&#8592;</button>\
<button type="button" data-do="right" aria-label="Later">&#8594;</button>\
<button type="button" data-do="out" aria-label="Zoom out">&#8722;</button>\
<button type="button" data-do="in" aria-label="Zoom in">+</button>\
<button type="button" data-do="all">Whole run</button></span></div>"""


_KEYS = """<p class="soft only-js keys">Open a step to see all that is known of it. \
<kbd>&#8593;</kbd> <kbd>&#8595;</kbd> move, <kbd>&#8592;</kbd> <kbd>&#8594;</kbd> fold and unfold, \
<kbd>Enter</kbd> opens, <kbd>*</kbd> unfolds all below, <kbd>+</kbd> <kbd>-</kbd> <kbd>0</kbd> \
zoom, <kbd>z</kbd> zooms to the step. Drag over the axis to zoom, double-click it for the whole \
run.</p>"""


def _legend(sheet: Sheet) -> str:
    """What the bars mean, as far as this run has them."""
    line = sheet.line
    kinds = {"work"}
    for row in line.rows:
        kinds |= {s.kind for s in row.stretches if not row.children or s.kind not in BODY}
    items = [
        f'<li><svg class="key" aria-hidden="true">{key(kind)}</svg>{KIND_WORDS[kind]}</li>'
        for kind in KINDS
        if kind in kinds
    ]
    items.append(
        '<li><svg class="key" aria-hidden="true"><rect class="b span" x="1" y="4" width="26" '
        'height="4"/><rect class="end" x="1" y="4" width="2" height="11"/><rect class="end" '
        'x="25" y="4" width="2" height="11"/></svg>a step with steps below it</li>'
    )
    items.append(
        '<li><svg class="key" aria-hidden="true"><rect class="crit" x="1" y="14" width="26" '
        'height="3"/></svg>on the critical path (its name is bold)</li>'
    )
    if line.end is None and line.until >= line.now:
        items.append(
            '<li><svg class="key" aria-hidden="true" id="key-now"><line class="nowline" x1="14" '
            'x2="14" y1="2" y2="20"/></svg>now</li>'
        )
    parents = [row for row in line.rows if row.children]
    for kind, words in (("failed", "an attempt of it failed"), ("lost", "it was cut off")):
        if any(s.kind == kind for row in parents for s in row.stretches):
            items.insert(
                -1,
                '<li><svg class="key" aria-hidden="true"><rect class="b span" x="1" y="4" '
                f'width="26" height="4"/><rect class="cap {kind}" x="24" y="2" width="3" '
                f'height="13"/></svg>{words}, not the steps below it</li>',
            )
    return f'<ul class="legend">{"".join(items)}</ul>{_KEYS}'


# --- what failed, what is waited for --------------------------------------------------------------


def _failures(sheet: Sheet) -> str:
    line = sheet.line
    found = origins(line)
    cards = "".join(_failure(sheet, row) for row in found[:_MOST_ERRORS])
    if len(found) > _MOST_ERRORS:
        cards += f"<p>{len(found) - _MOST_ERRORS:,} more: see the steps.</p>"
    if handled := _handled(line):
        named = ", ".join(_link(sheet, row) for row in handled[:_MOST_ERRORS])
        more = f" and {len(handled) - _MOST_ERRORS:,} more" if len(handled) > _MOST_ERRORS else ""
        cards += f'<p class="soft">Failed, and the run went on without them: {named}{more}.</p>'
    return cards


def _handled(line: Timeline) -> list[Row]:
    """What failed, and did not make the step above it fail."""
    found: list[Row] = []
    for row in line.rows:
        if row.node is not None and row.status in ("done", "failed"):
            causes = frozenset(causes_of(row.node)) if row.status == "failed" else frozenset[str]()
            found += [
                child
                for child in row.children
                if child.status == "failed" and child.name not in causes and child.name != END
            ]
    return found


def _failure(sheet: Sheet, row: Row) -> str:
    failure = None if row.node is None else row.node.failure
    facts = [when(failed_at(row))]
    if row.attempt > 1:
        facts.insert(0, f"attempt {row.attempt}")
    if failure is not None and failure.kind != "raised":
        facts.insert(0, failure.kind)
    trace = "\n".join(trace_of(row))
    shown = ""
    if trace:
        shown = (
            "<details open><summary>Traceback</summary>"
            f'<pre tabindex="0">{escape(trace)}</pre></details>'
        )
    types = ""
    if failure is not None and failure.types:
        types = f'<p class="type">{text(failure.types[0])}</p>'
        said = "\n".join(lines_of(failure.message[:4_000]))
    else:
        said = message_of(row)[:4_000]
    return (
        f'<div class="card"><h3>{_link(sheet, row)}</h3><p class="message">{escape(said)}</p>'
        f'{types}<p class="soft">{", ".join(facts)}</p>{shown}</div>'
    )


def _waiting(sheet: Sheet) -> str:
    line = sheet.line
    found = waits(line)
    if not found:
        return ""
    rows = ""
    for row in found[:_MOST_WAITS]:
        due = wake_of(row) or line.now
        left = due - line.now
        until = duration_text(left) if left >= 0 else f"overdue by {duration_text(-left)}"
        why = row.node.detail.why if row.node is not None and row.node.detail is not None else ""
        rows += (
            f"<tr><td>{_link(sheet, row)}</td><td>{row.status}</td>"
            f'<td class="n">{when(due)}</td><td class="n">{until}</td>'
            f'<td class="grow">{text(why[:1_000])}</td></tr>'
        )
    more = ""
    if len(found) > _MOST_WAITS:
        more = f'<p class="soft">{len(found) - _MOST_WAITS:,} more: see the steps.</p>'
    return _table(("step", "status", ">due", ">left", "why"), rows) + more


# --- what took the time ---------------------------------------------------------------------------


def _critical(sheet: Sheet) -> str:
    line = sheet.line
    found = critical_parts(line)
    if not found:
        return ""
    worth = [part for part in found if part.took >= _WORTH * line.span][:_MOST_PARTS]
    rows = "".join(_part(sheet, part) for part in worth)
    if rest := found[len(worth) :]:
        took = sum(part.took for part in rest)
        rows += (
            f"<tr><td>{len(rest):,} more</td>{_share(took, line.span)}"
            f'<td class="n">{data(took)}</td><td class="n">{share_text(took, line.span)}</td>'
            "<td></td><td></td></tr>"
        )
    heads = ("step", "", ">on the path", ">share", ">of that waiting", ">shortens the run by")
    return (
        f"<p>For these {data(line.span)} the run waited for nothing else. Whatever is not here "
        "could take longer without anybody noticing; what is here, and shortened, shortens the "
        f"run.</p>{_table(heads, rows)}{_path(sheet)}"
    )


def _part(sheet: Sheet, part: Part) -> str:
    line, row = sheet.line, part.row
    name = _link(sheet, row)
    if part.together:
        name += f' <span class="soft">{part.together:,} of its {len(row.children):,} steps</span>'
    elif row.children:
        name += ' <span class="soft">its own code</span>'
    return (
        f"<tr><td>{name}</td>{_share(part.took, line.span)}"
        f'<td class="n">{data(part.took)}</td>'
        f'<td class="n">{share_text(part.took, line.span)}</td>'
        f'<td class="n">{data(part.waited + part.idle) if part.waited + part.idle else ""}</td>'
        f'<td class="n">{data(part.saving) if part.saving else ""}</td></tr>'
    )


def _share(took: float, span: float) -> str:
    """A part of the run's time as a bar."""
    share = 100 * took / span if span else 0
    return (
        '<td class="bars"><svg class="share" aria-hidden="true"><rect width="100%" height="10" '
        f'rx="1"/><rect class="full" width="{share:.2f}%" height="10" rx="1"/></svg></td>'
    )


def _path(sheet: Sheet) -> str:
    """The critical path in the order of time."""
    line = sheet.line
    parts = line.critical_path()
    rows = "".join(
        f"<tr><td>{_link(sheet, part.row)}</td>"
        f'<td class="n">+{data(part.start - line.start)}</td>'
        f'<td class="n">{data(part.end - part.start)}</td></tr>'
        for part in parts[:_MOST_PATH]
    )
    if len(parts) > _MOST_PATH:
        rows += f"<tr><td>{len(parts) - _MOST_PATH:,} more</td><td></td><td></td></tr>"
    return (
        "<details><summary>The path in the order of time</summary>"
        f"{_table(('step', '>from', '>for'), rows)}</details>"
    )


def _wasted(sheet: Sheet) -> str:
    found = wasteful(sheet.line)
    if not found:
        return ""
    said = [escape(message_of(row)[:300]) for row in found[:_MOST_PARTS]]
    last = any(said)
    rows = "".join(
        f"<tr><td>{_link(sheet, row)}</td>"
        f'<td class="n">{data(row.failed_work) if row.failed_work else ""}</td>'
        f'<td class="n">{data(row.lost_work) if row.lost_work else ""}</td>'
        f'<td class="n">{row.attempt}</td>'
        f"{f'<td class=grow>{message}</td>' if last else ''}</tr>"
        for row, message in zip(found, said, strict=False)
    )
    if len(found) > _MOST_PARTS:
        rows += f"<tr><td>{len(found) - _MOST_PARTS:,} more</td>{'<td></td>' * (3 + last)}</tr>"
    heads = ("step", ">in failed attempts", ">cut off", ">attempt", "last error")[: 4 + last]
    return (
        f"<p>{data(sheet.line.wasted)} of work came to nothing and had to be done again, or will "
        f"have to be.</p>{_table(heads, rows)}"
    )


def _notes(line: Timeline) -> str:
    if not line.notes:
        return ""
    items = "".join(
        f'<li><span class="soft">{when(seconds(note.at) or 0.0)}'
        f"{f' by {text(note.by)}' if note.by else ''}</span>"
        f"<p>{escape(chr(10).join(lines_of(note.text)))}</p></li>"
        for note in line.notes
    )
    return f'<ol class="notes">{items}</ol>'


def _table(heads: tuple[str, ...], rows: str) -> str:
    """A table; numbers stand below a head that begins with ``>``, bars below one without a name."""
    cells = "".join(
        f'<th scope="col" class="n">{head[1:]}</th>'
        if head.startswith(">")
        else f'<th scope="col">{head}</th>'
        if head
        else '<td class="bars"></td>'
        for head in heads
    )
    return (
        f'<div class="wide"><table class="table"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


_ABOUT = """<details><summary>Where each number comes from</summary><dl class="about">
<dt>took</dt><dd>From a step's first start to its end, as the run's state records them, waits and \
attempts included; of a step that has not ended, until the time of this report, or until somebody \
was last at work on it.</dd>
<dt>own</dt><dd>In the step's own body, while none of the steps below it was under way.</dd>
<dt>waited</dt><dd>While the step was pending (it said so, or a poll or a sleep did), and between \
a failed attempt and the next. Quick checks in between count as work.</dd>
<dt>wasted</dt><dd>Work of attempts that failed, and of bodies that were cut off, by a \
cancellation or the death of a process. When a process died is not known exactly: the run's last \
save is taken, so cut off work is a lower bound.</dd>
<dt>critical path</dt><dd>Backwards from the end of the run: what a step waited for is the step \
below it that ended last before; what lies between is its own time. The parts follow one another \
without gaps, so they add up to what the run took.</dd>
<dt>saves, shortens the run by</dt><dd>How much sooner the run would have ended had the step's own \
time been 0, and had every step begun as soon after those before it as it did. A lower bound for \
groups and maps with a limit.</dd>
<dt>steps done</dt><dd>Steps without steps below them that have ended, of all that are known or \
planned.</dd></dl></details>"""
