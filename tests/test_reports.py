"""Reports say what the tree says, to whoever reads them: bounded, plain, the same every time."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asteps import Note, Phase, State
from asteps._state import Detail, RunRecord, moment
from asteps.errors import Failure
from asteps.reports import (
    RunDocument,
    html_report,
    json_report,
    markdown_report,
    mermaid_gantt,
    text_report,
    timeline,
)
from asteps.reports._fold import fold
from asteps.reports._words import columns, cut, duration_text, plain

START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
NOW = moment(START + 1000)
TRACE = '  File "flow.py", line 7, in migrate\n    raise ConnectionError(host)\n'

REPORTS: dict[str, Callable[..., str]] = {
    "text": text_report,
    "markdown": markdown_report,
    "json": json_report,
    "mermaid": mermaid_gantt,
}
in_every_format = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)

# --- helpers ------------------------------------------------------------------------------------


def node(
    name: str,
    start: float | None = None,
    end: float | None = None,
    *children: State,
    result: object = msgspec.UNSET,
    info: object = msgspec.UNSET,
    errs: list[str] | None = None,
    **more: Any,
) -> State:
    """A node of a tree made by hand; times in seconds since the start."""
    made = State(
        name,
        _started=None if start is None else moment(START + start),
        _done=None if end is None else moment(START + end),
        states=list(children) or None,
        errs=errs,
        detail=Detail(**more) if more else None,
    )
    if result is not msgspec.UNSET:
        made.result = msgspec.Raw(msgspec.json.encode(result))
    if info is not msgspec.UNSET:
        made.info = msgspec.Raw(msgspec.json.encode(info))
    return made


def phases(*found: tuple[Any, float]) -> list[Phase]:
    """Phases, in seconds since the start."""
    return [Phase(status, moment(START + since)) for status, since in found]


def failed(message: str, *causes: str, trace: str = "", **more: Any) -> dict[str, Any]:
    """What a node that has failed says."""
    failure = Failure(message, ("builtins.ConnectionError",), trace, causes=causes, **more)
    return {"errs": [message], "failure": failure}


def run(*children: State, end: float | None = None, **more: Any) -> State:
    """The root of a tree."""
    made = node("move_to_vpc", 0, end, *children, **more)
    made.run = RunRecord(1)
    return made


def a_failed_run() -> State:
    """A run with a bit of everything."""
    root = run(
        node("initialize", 0, 3, result={"vm": 42}),
        node(
            "quota",
            3,
            12,
            attempt=2,
            phases=phases(("working", 3), ("retrying", 5), ("working", 10)),
        ),
        node(
            "in flight",
            12,
            60,
            node("migrate", 12, 60, **failed("host unreachable", trace=TRACE)),
            node("notify", 12, 13),
            **failed("1 of 2 children failed", "migrate"),
        ),
        end=60,
        planned=["initialize", "quota", "in flight", "finish"],
        **failed("1 of 2 children failed", "in flight"),
    )
    assert root.run is not None
    root.run.notes = [Note(moment(START + 70), "looked at it", "alice")]
    return root


# --- what they say ------------------------------------------------------------------------------


def test_text() -> None:
    """The text says what became of it, what failed first, what to do, and what took the time."""
    assert text_report(a_failed_run(), run_id="move-vm-42", now=NOW, store="sqlite:runs.db") == (
        """\
✗ move-vm-42 (move_to_vpc): failed after 1 min 00 s
  2023-11-14 22:13:20 UTC to 22:14:20, 3 of 5 steps
  first failed: in flight/migrate: ConnectionError: host unreachable
  to do: once the cause is gone, recover it and start it again under the same id
      asteps recover -s sqlite:runs.db move-vm-42

├─ ✓ initialize       3.00 s  → {"vm":42}
├─ ✓ quota            9.00 s  attempt 2; backed off 5.00 s; failed work 2.00 s
├─ ✗ in flight        48.0 s  failed; ConnectionError: 1 of 2 children failed
│  ├─ ✗ migrate       48.0 s  failed; ConnectionError: host unreachable
│  └─ ✓ notify        1.00 s
└─ · finish                   not begun

What took the time (the critical path, 1 min 00 s)
       48.0 s  80 %  47.0 s sooner without       in flight/migrate
       9.00 s  15 %  9.00 s sooner without       quota (waited 5.00 s)
       3.00 s   5 %  3.00 s sooner without       initialize

Wasted work: 50.0 s
  in flight/migrate: 48.0 s failed
  quota: 2.00 s failed

Notes
  2023-11-14 22:14:30 UTC alice: looked at it

Error in in flight/migrate at 22:14:20
  ConnectionError: host unreachable
    File "flow.py", line 7, in migrate
      raise ConnectionError(host)
"""
    )


def test_markdown() -> None:
    """Markdown says the same, as tables."""
    assert markdown_report(a_failed_run(), run_id="move-vm-42", now=NOW) == (
        """\
# Run `move-vm-42`

✗ **failed after 1 min 00 s**

- Function: `move_to_vpc`
- 2023-11-14 22:13:20 UTC to 22:14:20, 3 of 5 steps
- First failed: `in flight/migrate`: `ConnectionError: host unreachable`
- To do: once the cause is gone, recover it and start it again under the same id: `asteps recover -s STORE move-vm-42`

## Steps

| step | status | took | remarks |
|---|---|--:|---|
| `initialize` | ✓ done | 3.00 s | → `{"vm":42}` |
| `quota` | ✓ done | 9.00 s | attempt 2; backed off 5.00 s; failed work 2.00 s |
| `in flight` | ✗ failed | 48.0 s | ConnectionError: 1 of 2 children failed |
| &emsp;`migrate` | ✗ failed | 48.0 s | ConnectionError: host unreachable |
| &emsp;`notify` | ✓ done | 1.00 s |  |
| `finish` | · not begun |  |  |

## What took the time

The critical path: 1 min 00 s.

| took | share | sooner without | step |
|--:|--:|--:|---|
| 48.0 s | 80 % | 47.0 s | in flight/migrate |
| 9.00 s | 15 % | 9.00 s | quota (waited 5.00 s) |
| 3.00 s | 5 % | 3.00 s | initialize |

## Wasted work

50.0 s of work came to nothing.

| step | failed | cut off |
|---|--:|--:|
| `in flight/migrate` | 48.0 s |  |
| `quota` | 2.00 s |  |

## Notes

- 2023-11-14 22:14:30 UTC alice: looked at it

## Errors

### `in flight/migrate`

`ConnectionError: host unreachable`

```text
  File "flow.py", line 7, in migrate
    raise ConnectionError(host)
```
"""  # noqa: E501
    )


def test_mermaid() -> None:
    """The chart has a section for each parent, and a task for each stretch."""
    assert mermaid_gantt(a_failed_run(), run_id="move-vm-42", now=NOW) == (
        """\
gantt
    title move-vm-42#58; failed after 1 min 00 s
    dateFormat x
    axisFormat %H:%M:%S
    todayMarker off
    section move_to_vpc
    ✓ initialize :done, 1700000000000, 1700000003000
    ✓ quota (failed) :crit, 1700000003000, 1700000005000
    ✓ quota (backs off) :1700000005000, 1700000010000
    ✓ quota :done, 1700000010000, 1700000012000
    ✗ in flight :crit, 1700000012000, 1700000060000
    section in flight
    ✗ migrate (failed) :crit, 1700000012000, 1700000060000
    ✓ notify :done, 1700000012000, 1700000013000
"""
    )


def test_a_chart_in_markdown() -> None:
    """The chart can be part of the Markdown."""
    chart = mermaid_gantt(a_failed_run(), now=NOW)
    made = markdown_report(a_failed_run(), now=NOW, chart=True)
    assert made.endswith(f"\n## Chart\n\n```mermaid\n{chart}```\n")


def test_json() -> None:
    """The document decodes strictly into what describes it, and its numbers are the timeline's."""
    made = json_report(a_failed_run(), run_id="move-vm-42", now=NOW)
    document = msgspec.json.decode(made, type=RunDocument)
    found = timeline(a_failed_run(), run_id="move-vm-42", now=NOW)
    assert (document.format, document.run_id, document.status) == (1, "move-vm-42", "failed")
    assert (document.started_at, document.ended_at) == (moment(START), moment(START + 60))
    assert (document.done, document.total, document.wasted) == (3, 5, 50)
    assert document.failed_first == ("in flight/migrate",)
    assert [step.path for step in document.steps] == [row.path for row in found.rows]
    for step, row in zip(document.steps, found.rows, strict=True):
        assert (step.seconds, step.worked, step.saving) == (row.span, row.worked, row.saving)
        assert [(s.kind, s.seconds) for s in step.stretches] == [
            (s.kind, s.end - s.start) for s in row.stretches
        ]
    assert sum(part.seconds for part in document.critical_path) == document.seconds == 60
    initialize, migrate = document.steps[1], document.steps[4]
    assert initialize.result == msgspec.Raw(b'{"vm":42}')
    assert migrate.failure is not None
    assert (migrate.failure.type, migrate.failure.traceback) == ("builtins.ConnectionError", TRACE)
    assert [(note.by, note.text) for note in document.notes] == [("alice", "looked at it")]


def test_json_has_a_schema() -> None:
    """The document's JSON Schema is made from its type; all keys but the payloads are required."""
    schema = msgspec.json.schema(RunDocument)
    step = schema["$defs"]["StepDocument"]
    assert set(step["properties"]) - set(step["required"]) == {"info", "result"}
    run_keys = schema["$defs"]["RunDocument"]
    assert set(run_keys["properties"]) == set(run_keys["required"])


def test_large_payloads_are_left_out_of_the_json() -> None:
    """Infos and results that are too large are left out; their sizes are told."""
    root = run(node("a", 0, 1, result="x" * 98, info="y" * 99), end=1)
    made = json_report(root, now=NOW, most_payload_bytes=100)
    step = msgspec.json.decode(made, type=RunDocument).steps[1]
    assert (step.result_bytes, step.result) == (100, msgspec.Raw(b'"%s"' % (b"x" * 98)))
    assert (step.info_bytes, step.info) == (101, msgspec.UNSET)


@pytest.mark.parametrize("report", [*REPORTS.values(), html_report])
def test_payloads_that_are_no_text(report: Callable[..., str]) -> None:
    """A result that is JSON but no UTF-8, which decoders of trees let through, can be reported."""
    root = State.decode(run(node("a", 0, 1, result="@"), end=1).encode().replace(b"@", b"\xff"))
    made = report(root, now=NOW)
    assert "\xff" not in made


def test_notes_at_the_end_of_the_calendar() -> None:
    """A note from a day that is beyond the calendar in UTC does not keep a page from being made."""
    root = run(node("a", 0, 1), end=1)
    assert root.run is not None
    late = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    root.run.notes = [Note(late, "see you")]
    for report in (*REPORTS.values(), html_report):
        report(root, now=NOW)


@in_every_format
def test_the_same_every_time(report: Callable[..., str]) -> None:
    """With ``now=`` a report is the same every time, and leaves the tree as it was."""
    root = a_failed_run()
    before = root.encode()
    assert report(root, now=NOW) == report(root, now=NOW)
    assert report(timeline(root, now=NOW)) == report(root, now=NOW)
    assert root.encode() == before


# --- headers ------------------------------------------------------------------------------------


def waiting(wake: float) -> State:
    """A run that waits."""
    step = node(
        "wait",
        0,
        None,
        wake_at=moment(START + wake),
        why="the image is not there",
        phases=phases(("working", 0), ("waiting", 2)),
    )
    return run(step)


HEADERS: dict[str, tuple[State, dict[str, Any], list[str]]] = {
    "done": (run(node("a", 0, 4), end=4), {}, ["✓ move_to_vpc: done in 4.00 s"]),
    "proceeding": (run(node("a", 0)), {}, ["▶ move_to_vpc: proceeding for 16 min 40 s"]),
    "interrupted": (
        run(node("a", 40)),
        {"held": False},
        [
            "! move_to_vpc: interrupted after 40.0 s: nobody has been at work on it for 16 min",
            "to do: start it again under the same id: it goes on at the first step that is not",
        ],
    ),
    "pending": (
        waiting(1060),
        {},
        [
            "… move_to_vpc: pending for 16 min 40 s",
            "waits for wait: due at 22:31:00, in 1 min 00 s: the image is not there",
        ],
    ),
    "overdue": (
        waiting(100),
        {"held": False},
        [
            "waits for wait: due since 22:15:00, for 15 min 00 s: the image is not there",
            "to do: it has been due for 15 min 00 s and nobody advances it: see to its worker, or",
        ],
    ),
    "retrying": (
        run(
            node(
                "a",
                0,
                None,
                wake_at=moment(START + 2000),
                attempt=3,
                phases=phases(("working", 0), ("retrying", 10)),
                **failed("no"),
            )
        ),
        {},
        [
            "… move_to_vpc: pending for 16 min 40 s",
            "first failed: a: ConnectionError: no",
            "└─ ↻ a  16 min 40 s  retrying; due at 22:46:40, in 16 min 40 s; ConnectionError: no; ",
        ],
    ),
    "not begun": (State("r", run=RunRecord(1)), {}, ["· r: not begun"]),
    "$end failed": (
        run(node("a", 0, 4), node("$end", 4, 5, **failed("no")), end=4),
        {},
        [
            "✓ move_to_vpc: done in 4.00 s",
            "first failed: $end: ConnectionError: no",
            "to do: what runs after its end has failed: once the cause is gone, recover it and",
            "\n      asteps recover -s STORE ID '$end'\n",
        ],
    ),
    "$end cut off": (
        run(node("a", 0, 4), node("$end", 4), end=4),
        {"held": False},
        ["to do: start it again under the same id: what runs after its end is not done"],
    ),
    "$end overdue": (
        run(
            node("$end", 4, wake_at=moment(START + 100), phases=phases(("waiting", 4))),
            end=4,
        ),
        {"held": False},
        [
            "waits for $end: due since 22:15:00, for 15 min 00 s",
            "to do: it has been due for 15 min 00 s and nobody advances it: see to its worker, or",
        ],
    ),
    "unknown outcome": (
        run(
            node("pay", 0, 4, **failed("who knows", kind="interrupted")),
            end=4,
            **failed("x", "pay"),
        ),
        {"run_id": "order 7"},
        [
            "nobody knows whether 'pay' has had its effect: look; if it has, say what it came to ",
            "\n      asteps set-result -s STORE 'order 7' pay VALUE\n",
            "to do: if it has not, recover it and start it again under the same id\n",
            "\n      asteps recover -s STORE 'order 7'\n",
        ],
    ),
    "several unknown outcomes": (
        run(
            node("-pay", 0, 4, **failed("who knows", kind="interrupted")),
            node("b", 0, 5, **failed("no")),
            end=5,
            **failed("x", "-pay", "b"),
        ),
        {},
        [
            "\n      asteps set-result -s STORE -- ID -pay VALUE\n",
            "to do: if none of them has, and once the cause of the others is gone, recover them ",
        ],
    ),
}


def test_when_an_attempt_failed() -> None:
    """A retrying step failed when it began to back off, not when somebody looks at it."""
    retrying = {"wake_at": moment(START + 2000), **failed("no")}
    early = node("early", 0, None, phases=phases(("working", 0), ("retrying", 10)), **retrying)
    made = text_report(run(early, node("late", 0, 20, **failed("later"))), now=NOW)
    assert "first failed: early: ConnectionError: no (and 1 more)" in made
    assert "Error in early at 22:13:30" in made
    card = html_report(run(early), now=NOW).partition('<div class="card">')[2]
    assert "22:13:30.000 UTC" in card.partition("</div>")[0]


@pytest.mark.parametrize("case", HEADERS)
def test_headers(case: str) -> None:
    """The first lines say what has become of the run, what it waits for, and what to do."""
    root, options, expected = HEADERS[case]
    made = text_report(root, now=NOW, **options)
    flat = re.sub(r"\n +", " ", made)
    for line in expected:
        assert line in made or line in flat


def test_no_command_for_what_no_shell_can_say() -> None:
    """An id that a terminal would not give back unharmed is not put into a command."""
    made = text_report(a_failed_run(), run_id="evil\x1b[2J; rm", now=NOW)
    assert "to do: once the cause is gone, recover it" in made
    assert "asteps" not in made
    assert r"evil\x1b[2J; rm (move_to_vpc)" in made


# --- folding ------------------------------------------------------------------------------------


def a_fan_out(steps: int = 200, bad: tuple[int, ...] = (17, 140)) -> State:
    """A map over many items, of which a few failed."""
    items = [
        node(str(i), i / 8, i / 8 + 1 + i % 7 / 7, **(failed("no such host") if i in bad else {}))
        for i in range(steps)
    ]
    end = steps / 8 + 2
    causes = [str(i) for i in bad]
    attach = node("attach", 0, end, *items, **failed("some failed", *causes))
    return run(attach, end=end, **failed("some failed", "attach"))


def test_long_lists_are_folded() -> None:
    """Of many siblings those are shown that failed, and the few that took longest."""
    made = text_report(a_fan_out(), now=NOW, errors=False)
    tree = made.split("\n\n")[1]
    assert [line.split()[1:3] for line in tree.replace("│", "").splitlines()] == [
        ["✗", "attach"],
        ["✗", "17"],
        ["✗", "140"],
        ["✓", "153"],
        ["✓", "186"],
        ["✓", "199"],
        ["…", "195"],
    ]
    assert tree.endswith("… 195 more done, the longest in 1.86 s")


def test_what_was_tried_again_is_not_folded_away() -> None:
    """Of many that are done, one that needed several attempts is worth more than a slow one."""
    state = a_fan_out(bad=())
    again = state.get("attach/42")
    again.detail = Detail(attempt=3)
    kept, _ = fold(timeline(state, now=NOW).root.children[0].children, 20)
    assert "42" in {row.name for row in kept}


def test_fold() -> None:
    """What failed or goes on is shown up to the limit, in its place; short lists are left alone."""
    rows = timeline(a_fan_out(30, bad=(5, 20)), now=NOW).root.children[0].children
    kept, hidden = fold(rows, 8)
    assert {"5", "20"} < {row.name for row in kept}
    assert len(kept) == 5
    assert sorted(kept + hidden, key=rows.index) == rows
    assert fold(rows[:8], 8) == (rows[:8], [])
    many = timeline(a_fan_out(30, bad=tuple(range(30))), now=NOW).root.children[0].children
    assert len(fold(many, 8)[0]) == 8


def nested(steps: int) -> State:
    """A run of so many steps, three levels deep."""
    side = round(steps ** (1 / 3)) + 1
    span = 3.0
    outer: list[State] = []
    for a in range(side):
        middle: list[State] = []
        for b in range(side):
            at = (a * side + b) * side * span
            inner = [node(f"c{c}", at + c * span, at + (c + 1) * span) for c in range(side)]
            middle.append(node(f"b{b}", at, at + side * span, *inner))
        outer.append(node(f"a{a}", a * side * side * span, (a + 1) * side * side * span, *middle))
    return run(*outer, end=side**3 * span)


@in_every_format
@pytest.mark.parametrize("shape", ["flat", "nested", "failed"])
def test_ten_thousand_steps(report: Callable[..., str], shape: str) -> None:
    """A report of 10,000 steps is made within seconds; what is meant for readers stays short."""
    root = {
        "flat": lambda: a_fan_out(10_000),
        "nested": lambda: nested(10_000),
        "failed": lambda: a_fan_out(10_000, bad=tuple(range(10_000))),
    }[shape]()
    began = time.perf_counter()
    made = report(root, now=NOW)
    assert time.perf_counter() - began < 3
    if report is not json_report:
        assert made.count("\n") < 600
        assert len(made) < 100_000


@in_every_format
def test_large_payloads(report: Callable[..., str]) -> None:
    """A result of a megabyte is shortened, and its size told."""
    root = run(node("a", 0, 1, result="x" * 1_000_000), end=1)
    made = report(root, now=NOW)
    assert len(made) < 5_000
    if report in (text_report, markdown_report):
        assert "… (1,000,002 bytes)" in made


# --- hostile text -------------------------------------------------------------------------------

HOSTILE = [
    "\x1b]0;title\x07\x1b[31mred",
    "\u202eright to left\u2066",
    "</script><script>alert(1)</script><!--",
    "`code` | pipe \\| \\",
    "**bold** _i_ [l](javascript:x) ![i](http://evil) <b> &lt; ~~s~~",
    "@everyone :smile: http://evil.example www.evil.example a@evil.example #1",
    "a:b;c#d,e%%{init: {}}%% #35; \" '",
    "title evil",
    "section evil",
    "日本語" * 66,
    "x" * 200,
    "z" + "\u0301" * 100,
    "line\nbreak\r\ttab\u2028sep\u0085",
    # Entities, as Mermaid writes them down between its two looks at a text:
    "\ufb02\xb0\xb060\xb6\xdfimg src=x onerror=alert(1)\ufb02\xb0\xb062\xb6\xdf",
    "\ud800",
]


def hostile(text: str) -> State:
    """A run in which everything that can be is this text."""
    failure = Failure(text, (text,), f"```\n{text}\n````")
    step = node("step", 0, 1, errs=[text], failure=failure)
    step.name = text  # no name may hold all of these; a tree made by hand does
    good = node("good", 1, 2, result=text.encode("utf-8", "replace").decode())
    wait = node("wait", 2, None, wake_at=moment(START + 9), why=text)
    root = run(step, good, wait, planned=[text + "!"])
    root.name = text
    assert root.run is not None
    root.run.notes = [Note(moment(START), text, text)]
    return root


def is_harmless(char: str) -> bool:
    """Whether a character shows as what it is, in its place."""
    return char == "\n" or char.isprintable()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("report", [text_report, markdown_report, mermaid_gantt])
def test_nothing_controls_the_reader(report: Callable[..., str], text: str) -> None:
    """No control, format or bidirectional character, and no pile of accents, is in a report."""
    made = report(hostile(text), run_id=text, now=NOW)
    assert all(is_harmless(char) for char in made)
    piled = 0
    for char in made:
        piled = piled + 1 if unicodedata.combining(char) else 0
        assert piled <= 3


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_lines_fit(text: str, width: int) -> None:
    """No line is wider than asked for, also with characters that take two columns."""
    made = text_report(hostile(text), run_id="r", now=NOW, width=width, errors=False)
    lines = made.splitlines()
    words = max(columns(word) for line in lines for word in line.split())
    assert all(columns(line) <= width for line in lines), words


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_ascii_only(text: str) -> None:
    """On request there are ASCII characters alone, also where names have others."""
    assert text_report(hostile(text), run_id=text, now=NOW, ascii_only=True).isascii()


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_markdown_keeps_its_shape(text: str) -> None:
    """A table has the cells that it should, and hostile text begins no markup anywhere."""
    made = markdown_report(hostile(text), run_id=text, now=NOW)
    body, _, errors = made.partition("\n## Errors\n")
    for line in body.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (4, 5)
    outside = re.sub(r"`[^`\n]*`", "", body).replace("<code>", "").replace("</code>", "")
    outside = outside.replace("&emsp;", "").replace("|--:", "").replace("&#", "")
    title = re.escape("**pending for 16 min 40 s**")
    outside = re.sub(title + r"|\*\*\w+[\w .:]*\*\*", "", outside)
    for danger in ("<", "*", "[", "]", "`", "@", "~", "_", "http:", "www.", "&"):
        assert danger not in outside, danger
    fence = next(line for line in errors.splitlines() if line.endswith("`text"))
    assert fence == "`````text"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_chart_keeps_its_shape(text: str) -> None:
    """Each line of a chart is what it should be, whatever the names are."""
    made = mermaid_gantt(hostile(text), run_id=text, now=NOW).splitlines()
    assert made[0] == "gantt"
    plainly = r"(?:[^\x00-\x1f:;#%{}<>\"'`\ufb02]|#\d+;)+"
    for line, shape in zip(
        made[1:5],
        (
            rf"    title {plainly}",
            "    dateFormat x",
            r"    axisFormat [%HMSL:. s]+",
            "    todayMarker off",
        ),
        strict=True,
    ):
        assert re.fullmatch(shape, line), line
    for line in made[5:]:
        task = rf"    [✓✗…↻▶!↺·] ?{plainly} :(?:(?:done|active|crit), )?\d+, \d+"
        assert re.fullmatch(rf"    section {plainly}|{task}", line.replace("#33;", "!", 1)), line


@given(st.text(max_size=50))
@settings(max_examples=300)
def test_any_text(text: str) -> None:
    """Whatever a name is, it becomes one line of printable characters."""
    made = plain(text)
    assert made.isprintable()
    if text.isascii() and text.isprintable():
        assert made == text


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0004, "0 ms"),
        (0.0312, "31 ms"),
        (0.0996, "0.10 s"),
        (1.234, "1.23 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3_599.4, "59 min 59 s"),
        (3_599.6, "1 h 00 min"),
        (86_369, "23 h 59 min"),
        (86_399, "1 d 00 h"),
        (900_000, "10 d 10 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    """A duration is said with three digits or two units, and never with sixty of one."""
    assert duration_text(seconds) == said


@given(st.text(max_size=40), st.integers(1, 30))
@settings(max_examples=300)
def test_cut(text: str, most: int) -> None:
    """What is cut takes no more columns than it may, and what fits is left alone."""
    text = plain(text)
    made = cut(text, most)
    assert columns(made) <= most
    assert (made == text) == (columns(text) <= most)
