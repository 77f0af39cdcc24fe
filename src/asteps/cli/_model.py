"""What the live view knows of runs that go on: told by events and calls, asked for a drawing.

Made so that neither takes long however many steps there are: each step counts its children by
their status, and knows by name only those that have not just been done.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from threading import Lock
from typing import Final

from .._events import (
    BodyCall,
    Event,
    PassEnded,
    PassStarted,
    StepDone,
    StepFailed,
    StepPending,
    StepRetrying,
    StepStarted,
)
from .._paths import split
from ..errors import Failure
from ..reports import RowStatus
from ..reports._words import cut, duration_text
from ._tree import Branch

__all__ = ["Model"]

_MOST_RUNS = 16  # that are remembered; those that rest make room for others
_SIBLINGS = 12  # that are drawn when there are no more
_NAMED: Final[dict[RowStatus, int]] = {
    # Of more siblings: how many of a status are drawn.
    "failed": 5,
    "retrying": 3,
    "interrupted": 3,
    "proceeding": 6,
    "pending": 3,
}
_BUDGET = 400  # lines of one drawing
_REMARK = 200  # characters
_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_TURNS = 10  # of the spinner, in a second


class _Node:
    """A step, as far as it is known."""

    __slots__ = (
        "began",
        "born",
        "children",
        "counts",
        "lively",
        "name",
        "place",
        "remark",
        "status",
        "took",
        "wake",
    )

    def __init__(self, name: str, place: int) -> None:
        self.name = name
        self.place = place
        self.status: RowStatus = "not begun"
        self.remark = ""
        self.born = 0.0  # seconds of the system's clock, for what goes on
        self.began: float | None = None  # by the run's clock
        self.took: float | None = None
        self.wake: float | None = None
        self.children: dict[str, _Node] = {}
        self.counts: Counter[RowStatus] = Counter()
        self.lively: dict[RowStatus, dict[str, _Node]] = {}

    def child(self, name: str) -> _Node:
        """The step below of this name; made if it is new."""
        node = self.children.get(name)
        if node is None:
            node = self.children[name] = _Node(name, len(self.children))
        return node


class Model:
    """Runs and their steps. Its methods may be called from any thread, and return at once.

    Attributes:
        ascii_only: Whether the spinner is drawn in ASCII.
    """

    def __init__(self, *, ascii_only: bool = False) -> None:
        self.ascii_only = ascii_only
        self._runs: dict[str | None, _Node] = {}
        self._lock = Lock()

    # -- what happens --

    def called(self, call: BodyCall) -> None:
        """A body is called right now; its start is told of as an event only later."""
        with self._lock:
            above, node = self._find(call.run_id, call.path)
            if not call.path:
                node.name = call.run_name
            self._enter(above, node, "proceeding")
            node.remark = f"attempt {call.attempt}" if call.attempt > 1 else ""

    def left(self, call: BodyCall) -> None:
        """The call is over. What has been done, or failed, an event tells once it is durable."""
        if call.ended in ("interrupted", "pending"):
            with self._lock:
                above, node = self._find(call.run_id, call.path)
                if node.status == "proceeding":
                    self._enter(above, node, call.ended)

    def tell(self, event: Event) -> None:
        """Something is in the store."""
        with self._lock:
            if isinstance(event, PassEnded) and event.run_id not in self._runs:
                return  # it had to make room
            above, node = self._find(event.run_id, event.path)
            at = event.at.timestamp()
            match event:
                case PassStarted():
                    node.began = node.began or at
                    self._enter(above, node, "proceeding")
                case StepStarted():
                    node.began = node.began or at
                    if node.status in ("not begun", "interrupted", "retrying", "pending"):
                        self._enter(above, node, "proceeding")
                case StepDone():
                    self._end(above, node, "done", at)
                case StepFailed():
                    self._end(above, node, "failed", at)
                    node.remark = _said(event.failure)
                case StepRetrying():
                    self._enter(above, node, "retrying")
                    node.wake = event.wake_at.timestamp() - at + time.time()
                    node.remark = _said(event.failure)
                case StepPending():
                    self._enter(above, node, "pending")
                    node.wake = event.wake_at.timestamp() - at + time.time()
                    node.remark = cut(event.why, _REMARK)
                case PassEnded():
                    self._end_pass(node, event.status, at)
                case _:
                    pass

    def _find(self, run_id: str | None, path: str) -> tuple[_Node | None, _Node]:
        """The step, and the one above it."""
        node = self._runs.get(run_id)
        if node is None:
            self._make_room()
            node = self._runs[run_id] = _Node(run_id or "run", 0)
        above: _Node | None = None
        for name in split(path):
            above, node = node, node.child(name)
        return above, node

    def _make_room(self) -> None:
        """Forget the run that rests for longest, if there are many."""
        if len(self._runs) >= _MOST_RUNS:
            for id, run in self._runs.items():
                if run.status != "proceeding":
                    del self._runs[id]
                    return

    def _enter(self, above: _Node | None, node: _Node, status: RowStatus) -> None:
        if status == "proceeding" and node.status != "proceeding":
            node.born = time.time()
            node.took = None
        node.wake = None
        was, node.status = node.status, status
        if above is not None:
            if was != "not begun":
                above.counts[was] -= 1
                above.lively.get(was, {}).pop(node.name, None)
            above.counts[status] += 1
            if status in _NAMED:
                above.lively.setdefault(status, {})[node.name] = node

    def _end(self, above: _Node | None, node: _Node, status: RowStatus, at: float) -> None:
        self._enter(above, node, status)
        if node.began is not None:
            node.took = max(at - node.began, 0.0)
        elif node.born:  # of groups and maps no event tells when they began
            node.took = time.time() - node.born
        node.remark = ""

    def _end_pass(self, root: _Node, status: str, at: float) -> None:
        if status in ("done", "failed"):
            remark = root.remark
            self._end(None, root, "done" if status == "done" else "failed", at)
            root.remark = remark if status == "failed" else ""
        else:
            self._enter(None, root, "pending" if status == "pending" else "interrupted")

    # -- what is drawn --

    def branches(self) -> list[Branch]:
        """The runs as trees, long lists of steps folded; the last one that began comes last."""
        with self._lock:
            now = time.time()
            drawing = _Drawing(now, _ASCII_SPINNER if self.ascii_only else _SPINNER)
            return [drawing.branch(run, root=True) for run in self._runs.values()]


class _Drawing:
    """One picture: how many lines it has, and where the spinner is."""

    def __init__(self, now: float, spinner: str) -> None:
        self._now = now
        self._mark = spinner[int(now * _TURNS) % len(spinner)]
        self._left = _BUDGET

    def branch(self, node: _Node, *, root: bool = False) -> Branch:
        """A step and what is drawn below it."""
        self._left -= 1
        working = node.status == "proceeding"
        hides = node.status == "done" and not root and self._left < _BUDGET // 2
        shown, hidden = ([], "") if hides or self._left < 0 else _folded(node)
        children = [self.branch(child) for child in shown]
        took = self._now - node.born if working or (root and node.born) else node.took
        if root and node.took is not None:
            took = node.took
        return Branch(
            name=node.name,
            status=node.status,
            took=took,
            remark=self._remark(node, root=root),
            children=children,
            hidden=hidden,
            mark=self._mark if working and not any(c.mark for c in children) else "",
        )

    def _remark(self, node: _Node, *, root: bool) -> str:
        said = [] if node.status in ("done", "proceeding") else [str(node.status)]
        if node.wake is not None:
            left = node.wake - self._now
            said.append(f"due in {duration_text(left)}" if left > 0 else "due")
        if node.remark:
            said.append(node.remark)
        if root or len(node.children) > _SIBLINGS:
            done = node.counts["done"]
            said.append(f"{done:,} of {len(node.children):,} done")
        return ", ".join(said)


def _folded(node: _Node) -> tuple[list[_Node], str]:
    """The steps below a step that are drawn, and what is said of the others."""
    if len(node.children) <= _SIBLINGS:
        return list(node.children.values()), ""
    shown = [
        child
        for status, most in _NAMED.items()
        for child in islice(node.lively.get(status, {}).values(), most)
    ]
    shown.sort(key=lambda child: child.place)
    counts = node.counts.copy()
    counts.subtract(Counter(child.status for child in shown))
    said = [f"{count:,} more {status}" for status, count in counts.items() if count > 0]
    return shown, ", ".join(said)


def _said(failure: Failure) -> str:
    name = failure.types[0].rpartition(".")[2] if failure.types else ""
    if failure.causes:  # the step below says it
        return ""
    text = failure.message[:_REMARK]
    return f"{name}: {text}" if name else text
