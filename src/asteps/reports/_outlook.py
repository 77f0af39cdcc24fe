"""What a reader asks first: what came of it, what failed first, what is waited for, what to do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from .._state import END, causes_of, seconds
from ._timeline import Kind, Row, Timeline
from ._words import duration_text, instant_text, lines_of, plain, time_text

__all__ = [
    "Advice",
    "Part",
    "advised",
    "critical_parts",
    "failed_at",
    "headline",
    "message_of",
    "origins",
    "part_text",
    "paths",
    "progress_text",
    "remarks",
    "since_text",
    "trace_of",
    "wait_text",
    "waits",
    "wake_of",
    "wake_text",
    "wasteful",
]

_MANY = 12  # children of one step that are taken together where the time went
_MOST_LINES = 60  # of one traceback
_MOST_WHY = 200  # characters of what a step waits for
_AGAIN = "start it again under the same id"
_LATE = 60.0  # seconds after which what is due and not advanced is worth a word


def headline(drawn: Timeline) -> str:
    """What has become of the run, in one sentence."""
    took = duration_text(drawn.span)
    match drawn.status:
        case "done":
            return f"done in {took}"
        case "failed":
            return f"failed after {took}"
        case "proceeding":
            return f"proceeding for {took}"
        case "interrupted":
            idle = duration_text(max(drawn.now - drawn.until, 0.0))
            return f"interrupted after {took}: nobody has been at work on it for {idle}"
        case "reopened":
            return "reopened: it goes on with the next pass"
        case "pending" | "retrying":
            return f"{drawn.status} for {took}"
        case "not begun":
            return "not begun"


def origins(drawn: Timeline) -> list[Row]:
    """Where the failures began that count, the first one first.

    Of a failed run these are the deepest steps that caused its failure. Of a run that goes on they
    are those that have failed, or are retried, below what has not ended.
    """
    found: list[Row] = []
    for row in _failures(drawn.root):
        _follow(row, found)
    found.sort(key=failed_at)
    return found


def failed_at(row: Row) -> float:
    """When a step failed, or its last attempt."""
    backing_off = row.stretches[-1:] if row.status == "retrying" else ()
    return next((s.start for s in backing_off if s.kind == "backoff"), row.until)


def _failures(row: Row) -> list[Row]:
    if row.node is not None and row.node.errs:
        return [row]
    children = row.children
    if row.status == "done":  # it went on without what failed below it; what runs after it did not
        children = [child for child in children if row.depth == 0 and child.name == END]
    return [failure for child in children for failure in _failures(child)]


def _follow(row: Row, found: list[Row]) -> None:
    names = frozenset(() if row.node is None else causes_of(row.node))
    causes = [
        child
        for child in row.children
        if child.name in names and child.node is not None and child.node.errs
    ]
    if not causes:
        found.append(row)
    for child in causes:
        _follow(child, found)


def message_of(row: Row) -> str:
    """What a failed or retrying step's exception said, with its type; one line."""
    node = row.node
    if node is None:
        return ""
    failure = node.failure
    if failure is None:
        return plain("; ".join(node.errs or ()))
    name = failure.types[0].rpartition(".")[2] if failure.types else ""
    return plain(f"{name}: {failure.message}" if name else failure.message)


def waits(drawn: Timeline) -> list[Row]:
    """The steps that wait for their time, those that are due first before the others."""
    found = [
        row
        for row in drawn.rows
        if row.status in ("pending", "retrying") and wake_of(row) is not None
    ]
    found.sort(key=lambda row: wake_of(row) or 0.0)
    return found


def wake_of(row: Row) -> float | None:
    """When a waiting step is due again."""
    return None if row.node is None else seconds(row.node.wake_at)


def wake_text(row: Row, now: float) -> str:
    """When a waiting step is due again: ``due at 22:13:20, in 5 min 00 s``."""
    wake = wake_of(row)
    if wake is None:
        return ""
    if wake >= now:
        return f"due at {time_text(wake, now)}, in {duration_text(wake - now)}"
    return f"due since {time_text(wake, now)}, for {duration_text(now - wake)}"


def wait_text(row: Row, now: float) -> str:
    """When a waiting step is due again, and why it waits."""
    detail = None if row.node is None else row.node.detail
    why = plain(detail.why)[:_MOST_WHY] if detail is not None else ""
    return ": ".join(filter(None, [wake_text(row, now), why]))


def trace_of(row: Row) -> list[str]:
    """The traceback of a failed or retrying step, without its middle if it is long."""
    failure = None if row.node is None else row.node.failure
    if failure is None or not failure.traceback:
        return []
    lines = lines_of(failure.traceback.rstrip("\n"))
    half = _MOST_LINES // 2
    if len(lines) > 2 * half:
        lines[half:-half] = [f"({len(lines) - 2 * half} lines are left out)"]
    return lines


def wasteful(drawn: Timeline) -> list[Row]:
    """The steps whose work came to nothing, those with most of it first."""
    found = [row for row in drawn.rows if row.wasted and not _is_little(row, row.wasted)]
    return sorted(found, key=lambda row: -row.wasted)


def _is_little(row: Row, took: float) -> bool:
    """Whether this is but the moment that a step with steps below it spends between them."""
    return bool(row.children) and took < 0.01 * row.span


class Advice(msgspec.Struct, frozen=True):
    """What can be done about a run.

    Attributes:
        text: What, in words.
        command: The line for a shell that does it, if one does.
    """

    text: str
    command: str = ""


def advised(drawn: Timeline, store: str = "STORE") -> list[Advice]:
    """What an operator can do about the run; nothing where it needs nobody.

    Args:
        drawn: The run.
        store: How commands name the store.
    """
    found: list[Advice] = []
    if drawn.status == "failed":
        found = _about_failure(drawn, store)
    elif drawn.status == "interrupted":
        found = [Advice(f"{_AGAIN}: it goes on at the first step that is not done")]
    elif drawn.status == "reopened":
        found = [Advice(f"{_AGAIN}: it goes on with what was reopened")]
    if drawn.end is not None:
        found += _about_end(drawn, store)
    return found + _about_waits(drawn)


def _about_failure(drawn: Timeline, store: str) -> list[Advice]:
    failed = origins(drawn)
    unknown = [row for row in failed if _is_unknown(row)]
    if not unknown:
        said = f"once the cause is gone, recover it and {_AGAIN}"
        return [Advice(said, _command(drawn, store, "recover"))]
    path = unknown[0].path
    said = f"nobody knows whether {plain(path)!r} has had its effect: look; if it has"
    known = Advice(
        f"{said}, say what it came to and {_AGAIN}",
        _command(drawn, store, "set-result", path, "VALUE"),
    )
    said = "if it has not, recover it"
    if len(failed) > 1:
        said = "if none of them has, and once the cause of the others is gone, recover them"
    return [known, Advice(f"{said} and {_AGAIN}", _command(drawn, store, "recover"))]


def _is_unknown(row: Row) -> bool:
    """Whether a step that may run only once was cut off."""
    failure = None if row.node is None else row.node.failure
    return failure is not None and failure.kind == "interrupted"


def _about_end(drawn: Timeline, store: str) -> list[Advice]:
    """About what runs after the run's end."""
    status = next((row.status for row in drawn.root.children if row.name == END), "done")
    if status == "failed" and drawn.status == "done":
        said = "what runs after its end has failed: once the cause is gone, recover it"
        return [Advice(f"{said} and {_AGAIN}", _command(drawn, store, "recover", END))]
    if status in ("interrupted", "reopened"):
        return [Advice(f"{_AGAIN}: what runs after its end is not done")]
    return []


def _about_waits(drawn: Timeline) -> list[Advice]:
    """About what is due, and nobody calls."""
    if drawn.held or drawn.status in ("interrupted", "reopened"):
        return []
    due = min((wake_of(row) or 0.0 for row in waits(drawn)), default=drawn.now)
    if drawn.now - due <= _LATE:
        return []
    late = duration_text(drawn.now - due)
    said = f"it has been due for {late} and nobody advances it: see to its worker, or"
    return [Advice(f"{said} {_AGAIN}")]


def _command(drawn: Timeline, store: str, verb: str, *words: str) -> str:
    given = [drawn.run_id or "ID", *words]
    if any(plain(word) != word for word in (store, *given)):  # no shell gives these back unharmed
        return ""
    options = ["-s", store]
    if any(word.startswith("-") for word in given):
        options.append("--")  # what follows is no option
    return shlex.join(["asteps", verb, *options, *given])


def remarks(row: Row, now: float) -> list[str]:
    """What is worth a word about a step, besides its status and how long it took."""
    found: list[str] = []
    node = row.node
    if row.status in ("pending", "retrying") and (when := wake_text(row, now)):
        found.append(when)
    if row.status in ("failed", "retrying"):
        found.append(message_of(row)[:_MOST_WHY])
    elif node is not None and node.detail is not None and node.detail.why:
        found.append(plain(node.detail.why)[:_MOST_WHY])
    if row.attempt > 1:
        found.append(f"attempt {row.attempt}")
    if node is not None and node.interruptions:
        count = node.interruptions
        found.append("interrupted once" if count == 1 else f"interrupted {count} times")
    if row.waited:
        checks = sum(s.calls for s in row.stretches if s.kind == "wait")
        calls = f" ({checks} checks meanwhile)" if checks > 1 else ""
        found.append(f"waited {duration_text(row.waited)}{calls}")
    for took, what in (
        (row.backed_off, "backed off"),
        (row.failed_work, "failed work"),
        (row.lost_work, "lost work"),
        (row.idle, "idle"),
    ):
        if what == "failed work" and row.failed_work == row.span:
            continue
        if took and not (what.endswith("work") and _is_little(row, took)):
            found.append(f"{what} {duration_text(took)}")
    return found


class Part(msgspec.Struct, frozen=True):
    """What steps had of the critical path; durations in seconds.

    Attributes:
        row: The step; of steps that are taken together the one above them.
        together: How many steps below ``row`` these are; 0 if it is ``row``'s own time.
        took: Their own time on the critical path.
        waited: Of that, pending or before another attempt.
        idle: Of that, while nobody was to work on them.
        saving: By how much sooner the run would have ended without; 0 for several steps.
    """

    row: Row
    together: int
    took: float
    waited: float
    idle: float
    saving: float


def critical_parts(drawn: Timeline) -> list[Part]:
    """What the critical path is made of, what took longest first.

    The children of one step, if they are many, are taken together.
    """
    found: list[Part] = []
    for row in drawn.rows:
        if row.critical:
            found.append(_part(row, [row], together=0))
        if len(row.children) > _MANY:
            leaves = [child for child in row.children if child.critical and not child.children]
            if len(leaves) > 1:
                found.append(_part(row, leaves, together=len(leaves)))
    many = {id(c) for part in found if part.together for c in part.row.children if not c.children}
    found = [part for part in found if part.together or id(part.row) not in many]
    found.sort(key=lambda part: -part.took)
    return found


def _part(row: Row, rows: Sequence[Row], *, together: int) -> Part:
    return Part(
        row,
        together,
        sum(each.critical_time for each in rows),
        sum(_critical_share(each, ("wait", "backoff")) for each in rows),
        sum(_critical_share(each, ("idle",)) for each in rows),
        0.0 if together else row.saving,
    )


def _critical_share(row: Row, kinds: Sequence[Kind]) -> float:
    """How much of a step's part of the critical path lies in stretches of these kinds."""
    share = 0.0
    for stretch in row.stretches:
        if stretch.kind in kinds:
            for start, end in row.critical:
                share += max(min(end, stretch.end) - max(start, stretch.start), 0.0)
    return share


def part_text(part: Part) -> str:
    """The steps of a part, and what else than work it was."""
    path = plain(part.row.path)
    if part.together:
        name = f"{path or 'the run'}: {part.together:,} of its {len(part.row.children):,} steps"
    elif part.row.children:
        name = f"{path}: its own code" if path else "the run's own code"
    else:
        name = path or "the run itself"
    said = [
        f"{what} {duration_text(took)}"
        for took, what in ((part.waited, "waited"), (part.idle, "idle"))
        if took
    ]
    return f"{name} ({', '.join(said)})" if said else name


def since_text(drawn: Timeline) -> str:
    """From when to when the run is drawn."""
    if drawn.end is None:
        return f"since {instant_text(drawn.start)}"
    return f"{instant_text(drawn.start)} to {time_text(drawn.end, drawn.start)}"


def progress_text(drawn: Timeline) -> str:
    """How far it has come: ``7 of 12 steps``."""
    return f"{drawn.done:,} of {drawn.total:,} steps" if drawn.total else ""


def paths(rows: Sequence[Row], most: int = 3) -> str:
    """A few paths, and how many more there are."""
    named = ", ".join(plain(row.path) or "the run itself" for row in rows[:most])
    return f"{named} and {len(rows) - most:,} more" if len(rows) > most else named
