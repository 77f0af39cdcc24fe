"""Random programs of steps, and what they come to: the model of the state machine.

A *program* is a tree of `Node`: plain data, which the machine runs with asteps and which `Forecast`
interprets. What asteps has in its store is boiled down to one `Known` per path. A forecast goes on
from any such knowledge, so it need not know what crashes, cancellations and operators have done so
far: it says what comes of a pass (or of all of them) from here on, if nobody disturbs it.

What the script of a leaf does next depends on what is recorded of it alone, never on how often it
was run; so whatever happens to a run, it has to come to what was forecast.

Where timing legitimately decides, the forecast says so: `Forecast.racy` are groups that were cut
short (which of their children had come to something, nobody knows), and `Unsure` is raised where
the outcome hangs on that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeAlias

import msgspec
from hypothesis import strategies as st
from msgspec.structs import replace

from asteps import State
from asteps._paths import join

Act: TypeAlias = int | Literal["raise", "fail", "hang"]
"""What one execution of a leaf does: pending for so many seconds, raise, fail for good, or hang
until its timeout (again each time). At the end of its script a leaf returns."""

CREWS = ("group", "map")
EVERY = 3  # seconds between two checks of a poll
TIMEOUT = 4  # seconds that an attempt of a leaf that hangs may take


class Node(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A step of a program.

    Attributes:
        kind: ``leaf``; ``call`` (takes no step); ``sleep``; ``poll``; ``seq`` (its steps one after
            the other); ``group``; ``map``; ``guard`` (the first step, and the second one if that
            fails); ``raw`` (its steps in tasks of the body's own).
        name: Its name.
        steps: Its children.
        script: What a leaf does.
        breaks: A call raises, or the check of a poll.
        attempts: Of `Retry`.
        delay: Of `Retry`.
        once: ``at_most_once``.
        ticks: Checkpoints before a leaf does anything, or between two children of a group.
        nap: Seconds that it works before that.
        seconds: How long a sleep is, or what a poll waits for.
        limit: Of a group or map.
        enough: Of a group or map.
        cancel: ``on_error="cancel"``.
        tolerate: Of a group or map.
    """

    kind: str
    name: str
    steps: tuple[Node, ...] = ()
    script: tuple[Act, ...] = ()
    breaks: bool = False
    attempts: int = 1
    delay: int = 0
    once: bool = False
    ticks: int = 0
    nap: int = 0
    seconds: int = 0
    limit: int | None = None
    enough: int | None = None
    cancel: bool = False
    tolerate: int = 0

    def decides(self, done: int, failed: int) -> bool:
        """Whether a group is closed when so many of its children have come to something."""
        return self.is_enough(done) or (self.cancel and failed > self.tolerate)

    def is_enough(self, done: int) -> bool:
        return self.enough is not None and done >= self.enough


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """All steps of a program with their paths, parents first."""
    yield path, node
    for child in node.steps:
        yield from walk(child, join(path, child.name))


def changed(node: Node, path: str, new: Node, at: str = "") -> Node:
    """The program with another node at this path."""
    if at == path:
        return new
    steps = tuple(changed(c, path, new, join(at, c.name)) for c in node.steps)
    return replace(node, steps=steps)


# --- programs at random ---------------------------------------------------------------------------

NAMES = ("a", "b", "c/~", "d")
_ACTS: tuple[Act, ...] = (5, "raise", 2, "fail")
_SIMPLE = ("leaf", "call", "sleep", "poll")
_ANY = (*_SIMPLE, "leaf", "seq", "group", "map", "guard", "raw")
_CHILD = ("leaf", "call", "poll", "leaf", "seq", "map", "guard", "raw")  # what a group can begin
_ITEM = ("leaf", "seq", "guard", "raw")  # what runs as fn(child, item)


_ticks = st.integers(0, 3)
_seldom = st.sampled_from((False, False, False, False, True))


@st.composite
def nodes(
    draw: st.DrawFn, name: str, kinds: tuple[str, ...] = _ANY, *, depth: int, still: bool
) -> Node:
    """A step and what is below it.

    Args:
        draw: Of hypothesis.
        name: The step's.
        kinds: What it may be.
        depth: How deep it may be.
        still: Time stands still while bodies work.
    """
    flat = tuple(k for k in kinds if k in _SIMPLE)
    kind = draw(st.sampled_from(kinds if depth else flat))
    attempts = draw(st.sampled_from((1, 1, 2, 3)))
    delay = draw(st.sampled_from((0, 3))) if attempts > 1 else 0
    node = Node(kind, name, attempts=attempts, delay=delay)
    if kind == "leaf":
        acts = st.sampled_from(_ACTS if still else (*_ACTS, "hang"))
        script = tuple(draw(st.lists(acts, max_size=3)))
        ticks, once = draw(_ticks), draw(_seldom)
        nap = not still and draw(_seldom)
        if "hang" in script:  # what else it did would take longer than its timeout, or not
            return replace(node, script=("hang",), once=once)
        return replace(node, script=script, ticks=ticks, once=once, nap=4 * nap)
    if kind == "call":
        return replace(node, breaks=draw(_seldom))
    if kind == "sleep":
        return replace(node, seconds=draw(st.sampled_from((4, 0, 9))), attempts=1, delay=0)
    if kind == "poll":
        seconds = draw(st.sampled_from((0, 4, 9)))
        return replace(node, breaks=draw(_seldom), seconds=seconds)
    if kind == "guard":
        steps = tuple(draw(nodes(n, depth=depth - 1, still=still)) for n in NAMES[:2])
        return replace(node, steps=steps)
    below = {"group": _CHILD, "map": _ITEM}.get(kind, _ANY)
    count = draw(st.integers(0 if kind == "map" else 1, 4))
    steps = tuple(draw(nodes(n, below, depth=depth - 1, still=still)) for n in NAMES[:count])
    if kind not in CREWS:
        return replace(node, steps=steps)
    enough, cancel = draw(st.sampled_from(((None, False), (1, False), (2, False), (None, True))))
    if kind == "group":
        node = Node(kind, name, ticks=draw(st.sampled_from((0, 0, 2))))
    else:
        steps = tuple(as_item(c, node) for c in steps)
    return replace(
        node,
        steps=steps,
        limit=draw(st.sampled_from((None, 1, 2))),
        enough=enough,
        cancel=cancel,
        tolerate=draw(st.sampled_from((0, 0, 1))),
    )


def as_item(node: Node, of: Node) -> Node:
    """The step as an item of a map, whose options all its items have."""
    script = tuple(act for act in node.script if act != "hang")
    return replace(node, attempts=of.attempts, delay=of.delay, once=False, script=script)


@st.composite
def programs(draw: st.DrawFn) -> Node:
    """A root with what is below it."""
    still = draw(st.sampled_from((True, True, False)))
    count = draw(st.integers(1, 4))
    steps = tuple(draw(nodes(n, depth=2, still=still)) for n in NAMES[:count])
    return Node("seq", "machine", steps)


# --- what is known of a step ----------------------------------------------------------------------

Facts: TypeAlias = tuple[str, str, tuple[Any, ...]]
"""What a StepError says: path, message of a failure that has no causes below, errors."""


class Known(msgspec.Struct):
    """What is recorded of a step.

    Attributes:
        status: What it came to.
        value: What it returned.
        why: What a failure without causes says; ``interrupted`` and ``timeout`` are kinds.
        final: ... and that nobody tries again.
        causes: Names of the children that brought it about.
        attempt: The current attempt.
        due: When it is to be called again.
        position: In its script.
        until: When its sleep ends.
        once: An at-most-once body may have begun.
    """

    status: Literal["open", "retrying", "done", "failed"] = "open"
    value: Any = None
    why: str = ""
    final: bool = False
    causes: tuple[str, ...] = ()
    attempt: int = 1
    due: float | None = None
    position: int = 0
    until: float | None = None
    once: bool = False

    @property
    def over(self) -> bool:
        return self.status in ("done", "failed")

    @property
    def speaks(self) -> bool:
        """Whether there is anything to know: a start may be recorded or not."""
        return self.status != "open" or self.due is not None


Knowledge: TypeAlias = dict[str, Known]


def look(state: State) -> Knowledge:
    """What a stored tree says."""
    return {path: _look_at(node) for path, node in state.walk()}


def _look_at(node: State) -> Known:
    due = None if node.wake_at is None else node.wake_at.timestamp()
    known = Known(attempt=node.attempt, due=due)
    known.status = (
        "done" if node.done else "failed" if node.failed else "retrying" if node.errs else "open"
    )
    if node.done:
        known.value = node.result_as(object)
    if (failure := node.failure) is not None:
        known.causes, known.final = failure.causes, failure.final
        if not failure.causes:
            known.why = failure.message if failure.kind == "raised" else failure.kind
    known.once = node.detail is not None and node.detail.once
    info: Any = json.loads(bytes(node.info) or b"null")
    if isinstance(info, int):
        known.position = info
    elif isinstance(info, dict) and "until" in info:
        known.until = datetime.fromisoformat(info["until"]).timestamp()
    return known


def news(known: Knowledge, path: str) -> Any:
    """What there is to say of a step, as something to compare."""
    k = known[path]
    match k.status:
        case "done":
            return ("done", k.position, k.value)
        case "failed":
            return ("failed", k.position, k.attempt, k.why, k.causes)
        case "retrying":
            return ("retrying", k.position, k.attempt, k.why, k.causes, k.due)
        case "open":
            return ("waiting", k.position, k.attempt, k.due)


def facts(known: Knowledge, path: str) -> Facts:
    """What the error of a failed step says."""
    below = [join(path, name) for name in known[path].causes]
    errors = tuple(facts(known, p) for p in below if p in known and known[p].status == "failed")
    return (path, "" if errors else known[path].why, errors)


def in_any_order(told: Facts) -> Facts:
    """The same, sorted: children whose record was lost come to stand elsewhere in the tree."""
    path, why, errors = told
    return (path, why, tuple(sorted(map(in_any_order, errors))))


def forget(known: Knowledge, path: str) -> None:
    """Drop all below a step."""
    for below in [p for p in known if is_below(p, path)]:
        del known[below]


def children(known: Knowledge, path: str) -> set[str]:
    """Paths of the recorded children of a step."""
    return {p for p in known if p and p.rpartition("/")[0] == path}


def is_below(path: str, ancestor: str) -> bool:
    """Whether a step is somewhere below another one."""
    return path != ancestor and (not ancestor or path.startswith(f"{ancestor}/"))


# --- what operators do to it ----------------------------------------------------------------------


def recover(known: Knowledge, path: str) -> None:
    """Recover a step and the failures that caused its own."""
    recover_causes(known, path)
    _clear(known[path])


def recover_causes(known: Knowledge, path: str) -> None:
    """Recover the failures that caused the last one of a step."""
    for name in known[path].causes:
        below = join(path, name)
        if below in known and known[below].status in ("failed", "retrying"):
            recover(known, below)


def reset(known: Knowledge, path: str) -> None:
    """Forget a step and what is below it."""
    forget(known, path)
    known[path] = Known()


def set_result(known: Knowledge, path: str, value: object) -> None:
    """Make a step done."""
    was = known[path]
    known[path] = replace(was, status="done", value=value, why="", due=None, causes=(), once=False)
    known[path].final = False


def reopen_above(known: Knowledge, path: str) -> None:
    """Make the ancestors of a step enterable."""
    for ancestor, of in known.items():
        if is_below(path, ancestor) and of.speaks:
            _clear(of)


def _clear(of: Known) -> None:
    of.status, of.attempt, of.due = "open", 1, None
    of.value, of.why, of.final, of.causes, of.once = None, "", False, (), False


# --- the interpreter ------------------------------------------------------------------------------


class Waits(Exception):  # noqa: N818 - no error
    """Nothing more in this pass.

    Attributes:
        due: When it goes on.
    """

    def __init__(self, due: float) -> None:
        self.due = due


class Broken(Exception):  # noqa: N818 - as the step has
    """A step failed.

    Attributes:
        causes: Names of the children that brought it about.
        why: What it says without them.
        final: Nobody tries again.
        loose: Which children had failed when the rest was cut short is a matter of timing.
    """

    def __init__(
        self,
        why: str = "",
        causes: tuple[str, ...] = (),
        *,
        final: bool = False,
        loose: bool = False,
    ) -> None:
        self.why = why
        self.causes = causes
        self.final = final
        self.loose = loose


class Unsure(Exception):  # noqa: N818 - no error
    """What comes next is a matter of timing."""


class Forecast:
    """What a program comes to, from what is known.

    Args:
        program: The root.
        known: What is recorded.
        tasks: When the tasks that polls have started are finished, by path.
        now: The time.
        to_the_end: Pass over all waits; else this is one pass, in which time stands still.

    Attributes:
        known: What will be recorded.
        racy: Paths of groups and the like that are cut short.
        vanished: What the driver says of that.
        runs: How often which body begins.
        outcome: ``("done", value)``, ``("failed", facts)``, ``("pending", due)``, ``("unsure",)``.
    """

    def __init__(
        self,
        program: Node,
        known: Knowledge,
        tasks: dict[str, float],
        now: float,
        *,
        to_the_end: bool,
    ) -> None:
        self.known = deepcopy(known)
        self.racy: set[str] = set()
        self.vanished: set[str] = set()
        self.runs: Counter[str] = Counter()
        self.outcome: tuple[Any, ...]
        self._asked: set[str] = set()
        self._tasks = dict(tasks)
        self._now = now
        self._to_the_end = to_the_end
        try:
            self.outcome = ("done", self._settle(program, ""))
        except Broken:
            self.outcome = ("failed", facts(self.known, ""))
        except Waits as waits:
            self.outcome = ("pending", waits.due)
        except Unsure:
            self.outcome = ("unsure",)

    def is_racy(self, path: str) -> bool:
        """Whether what becomes of this step is a matter of timing."""
        return any(is_below(path, cut) for cut in self.racy)

    def _settle(self, node: Node, path: str) -> Any:
        """What a step returns.

        Raises:
            Broken: It fails.
            Waits: It comes to nothing in this pass.
        """
        self._asked.add(path)
        k = self.known.setdefault(path, Known())
        if node.kind in CREWS:
            return self._crew(node, path, k)
        if k.status == "done":
            return k.value
        if k.status == "failed":
            raise Broken(k.why, k.causes, final=k.final)
        while True:
            if k.due is not None and self._now < k.due and not self._to_the_end:
                raise Waits(k.due)
            if node.once and k.once:
                self._fail(path, k, Broken("interrupted", final=True))
            if k.status == "retrying":
                recover_causes(self.known, path)
                k.status, k.why, k.causes, k.final = "open", "", (), False
            k.due = None
            self._asked -= children(self.known, path)
            try:
                k.value = self._body(node, path, k)
            except Broken as broken:
                if (broken.final and not broken.loose) or k.attempt >= node.attempts:
                    self._fail(path, k, broken)
                if broken.loose:
                    raise Unsure from None
                k.attempt += 1
                k.status, k.why, k.causes = "retrying", broken.why, broken.causes
                k.due = self._now + node.delay
            else:
                if k.due is None:
                    k.status, k.once = "done", False
                    self._finished(path)
                    return k.value

    def _fail(self, path: str, k: Known, broken: Broken) -> NoReturn:
        k.status, k.why, k.causes, k.final = "failed", broken.why, broken.causes, broken.final
        k.due, k.once = None, False
        self._finished(path)
        raise broken

    def _body(self, node: Node, path: str, k: Known) -> Any:
        """One execution; it sets ``k.due`` to be called again."""
        self.runs[path] += 1
        match node.kind:
            case "leaf":
                return self._leaf(node, path, k)
            case "call":
                return _or_break(node, path)
            case "sleep":
                k.until = k.until or self._now + node.seconds
                if self._now < k.until and not self._to_the_end:
                    k.due = k.until
            case "poll":
                finished = self._tasks.setdefault(path, self._now + node.seconds)
                _or_break(node, path)
                if self._now >= finished or self._to_the_end:
                    return path
                k.due = self._now + EVERY
            case "guard":
                first, second = node.steps
                try:
                    return self._child(first, path)
                except Broken:
                    return ["handled", self._child(second, path)]
            case "raw":
                return self._raw(node, path)
            case _:
                return [self._child(c, path) for c in node.steps]
        return None

    def _child(self, node: Node, path: str) -> Any:
        """What a child returns whose failure its parent lets through."""
        try:
            return self._settle(node, join(path, node.name))
        except Broken as exc:
            raise Broken("", (node.name,), final=exc.final, loose=exc.loose) from None

    def _leaf(self, node: Node, path: str, k: Known) -> Any:
        act = node.script[k.position] if k.position < len(node.script) else None
        why = f"{path} at {k.position}"
        if act == "hang":
            raise Broken("timeout", final=node.once)
        if act is None:
            return path
        k.position += 1
        if isinstance(act, int):
            k.due = self._now + act
            return None
        raise Broken(why, final=act == "fail")

    def _raw(self, node: Node, path: str) -> Any:
        values, broken, waits = self._concurrently(node, path)
        if broken:
            self.racy.add(path)
            causes = tuple(name for name, _ in broken)
            raise Broken("", causes, final=any(b.final for _, b in broken), loose=True)
        if waits:
            raise Waits(min(waits))
        return [values[c.name] for c in node.steps]

    def _crew(self, node: Node, path: str, k: Known) -> Any:
        paths = [join(path, c.name) for c in node.steps]
        self._asked |= set(paths)
        values: dict[str, Any] = {}
        closed = self._is_closed(node, path)
        news = not (closed or all(p in self.known and self.known[p].over for p in paths))
        if not closed:
            values, _, waits = self._concurrently(node, path)
            if self._is_closed(node, path):
                self.racy.add(path)
            elif waits:
                if k.over:
                    _clear(k)
                raise Waits(min(waits))
        done, failed = self._count(node, path)
        if len(failed) > node.tolerate and not node.is_enough(done):
            if k.status == "failed" and not news:
                raise Broken("", k.causes, final=k.final)
            names = {join(path, c.name): c.name for c in node.steps}
            causes = tuple(names[p] for p in self.known if p in failed)  # in the tree's order
            final = any(self.known[p].final for p in failed)
            self._fail(path, k, Broken("", causes, final=final, loose=path in self.racy))
        _clear(k)
        k.status = "done"
        self._finished(path)
        if node.enough is not None:
            return "enough"
        if node.kind == "group":
            return [values.get(c.name) for c in node.steps]
        return [values[c.name] for c in node.steps if c.name in values]

    def _is_closed(self, node: Node, path: str) -> bool:
        done, failed = self._count(node, path)
        return node.decides(done, len(failed))

    def _count(self, node: Node, path: str) -> tuple[int, list[str]]:
        """How many children are done, and which have failed."""
        done, failed = 0, []
        for child in node.steps:
            below = join(path, child.name)
            k = self.known.get(below, Known())
            if k.status == "failed":
                failed.append(below)
            elif k.status == "done":
                done += not self._has_news(child, below)
        return done, failed

    def _has_news(self, node: Node, path: str) -> bool:
        """Whether a map that was done has items that it did not have then."""
        if node.kind != "map" or self._is_closed(node, path):
            return False
        items = [self.known.get(join(path, c.name), Known()) for c in node.steps]
        return not all(k.over for k in items)

    def _concurrently(
        self, node: Node, path: str
    ) -> tuple[dict[str, Any], list[tuple[str, Broken]], list[float]]:
        values: dict[str, Any] = {}
        broken: list[tuple[str, Broken]] = []
        waits: list[float] = []
        for child in node.steps:
            try:
                values[child.name] = self._settle(child, join(path, child.name))
            except Broken as exc:
                broken.append((child.name, exc))
            except Waits as exc:
                waits.append(exc.due)
        return values, broken, waits

    def _finished(self, path: str) -> None:
        self.vanished |= children(self.known, path) - self._asked


def _or_break(node: Node, path: str) -> str:
    if node.breaks:
        raise Broken(path)
    return path
