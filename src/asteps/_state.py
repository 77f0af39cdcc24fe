"""The state tree: one Struct per step, its transitions, and the verbs of operators.

Pure: no clock, no I/O, no ``await``. Every transition is a synchronous function that is told the
time, so nothing can come between reading a node and changing it.

**Times** are aware datetimes and **results** ``Raw`` wherever a State is seen from outside. While a
driver works on a tree, the nodes that it touches hold float seconds since the epoch and plain bytes
instead (a datetime costs three times as much to make, and most are never read): `settle` turns
them into what they stand for before anybody else sees them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw

from ._golang import translate
from ._history import MOST_PHASES, Earlier, Phase, PhaseStatus, enter, sum_up
from ._paths import MAX_DEPTH, MAX_NAME, check_name, escape, is_control, join, split
from ._payload import DecHook, EncHook, Payloads
from .errors import DuplicateStepError, Failure, StateFormatError, UsageError

__all__ = [
    "ABSENT",
    "END",
    "FORMAT",
    "Detail",
    "Note",
    "RunRecord",
    "State",
    "begin",
    "between_passes",
    "causes_of",
    "check_tree",
    "cut_off",
    "detail",
    "fail",
    "finish",
    "instant",
    "interrupt",
    "last_seen",
    "latest_time",
    "moment",
    "pend",
    "put_down",
    "recover_causes",
    "reenter",
    "refuse_format",
    "refuse_newer",
    "reopen",
    "reset_node",
    "restart",
    "retry_later",
    "seconds",
    "settle",
    "settle_node",
    "whole_microseconds",
]

T = TypeVar("T")

_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0  # years 1 and 9999, in seconds
END = "$end"  # the step that runs once the run has ended

ABSENT = Raw()
"""No payload. Told apart by identity: a recorded ``null`` is ``Raw(b"null")``."""

if TYPE_CHECKING:
    Instant: TypeAlias = datetime | float | None
    Payload: TypeAlias = Raw | bytes
    Children: TypeAlias = list["State"] | None
else:
    # What msgspec accepts from outside. Floats come from a driver only, never from a document.
    Instant = Annotated[datetime, Meta(tz=True)] | None
    Payload = Raw
    Children = list["State"] | None


MOST_NOTES = 100
_MAX_NOTE = 4_000  # characters

FORMAT = 1
"""Number of the tree's format; a tree that carries a higher one is refused."""

# --- the Structs ----------------------------------------------------------------------------------


class Note(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What somebody did to a run, for those who look at it later.

    Attributes:
        at: When.
        text: What was done, and why.
        by: Who did it.
    """

    at: Annotated[datetime, Meta(tz=True)]
    text: str
    by: str = ""


class RunRecord(
    msgspec.Struct, omit_defaults=True, rename="camel", forbid_unknown_fields=True, dict=True
):
    """What only the root of a tree has to say.

    Attributes:
        format: Version of the tree's format.
        nonce: Random; what makes the tokens of two runs differ.
        function: Name of the root function; empty before a driver has entered it.
        arguments: Digest of its arguments.
        inputs: Digest of the driver's ``inputs=``; empty without.
        idle: Passes that were begun and did not end, since one of them last made progress.
        created_at: When the run was created.
        notes: What operators did to the run, the last `MOST_NOTES` of them.
        carried: What observers of a pass want those of later passes to be shown.
    """

    format: int
    nonce: str = ""
    function: str = ""
    arguments: str = ""
    inputs: str = ""
    idle: int = 0
    created_at: Instant = None
    notes: list[Note] | None = None
    carried: dict[str, str] | None = None


class Detail(msgspec.Struct, omit_defaults=True, rename="camel", forbid_unknown_fields=True):
    """What most nodes have no need to say; kept apart so that they stay small.

    Attributes:
        generation: How often the step was reset.
        attempt: Failures since the last recover or reset, + 1.
        interruptions: How often this attempt was found interrupted.
        failure: What ``errs`` says, in full.
        wake_at: When a pending or retrying step is due again.
        why: What a pending step waits for.
        inputs: Digest of the step's ``inputs=``.
        first_at: When the step was first started, where ``startedAt`` is a later attempt's.
        once: An ``at_most_once`` body may have begun.
        token_name: The name by which tokens know a step that was renamed.
        renames: How many children were renamed.
        items: Its children are the items of a map.
        planned: Names of the children that a plan declares.
        phases: What a step went through that did not just work from its start to its end.
        earlier: What it went through before, summed up.
    """

    generation: int = 0
    attempt: int = 1
    interruptions: int = 0
    failure: Failure | None = None
    wake_at: Instant = None
    why: str = ""
    inputs: str = ""
    first_at: Instant = None
    once: bool = False
    token_name: str = ""
    renames: int = 0
    items: bool = False
    planned: list[str] | None = None
    phases: list[Phase] | None = None
    earlier: Earlier | None = None


_PLAIN = Detail()  # what a node without a Detail says; never changed


class State(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One node of a run's tree: a step, and below it the steps that it was split into.

    The JSON keys ``name, info, errs, startedAt, doneAt, states`` mean what they mean in the Go
    library ``yang-zzhong/steps``.

    Attributes:
        name: The step's name.
        info: What the step wrote down while it worked, as JSON; see `info_as`.
        result: What it returned, as JSON; see `result_as`.
        errs: Messages of a failed or retrying step.
        states: The child steps, in the order in which they were first started.
        place: Place among the siblings, for stores that keep each node on its own.
        detail: What most nodes have no need to say.
        run: The run's own record; only on a root.
    """

    name: str
    info: Raw = ABSENT
    result: Payload = ABSENT
    errs: list[str] | None = None
    _started: Instant = msgspec.field(default=None, name="startedAt")
    _done: Instant = msgspec.field(default=None, name="doneAt")
    states: Children = None
    place: int = 0
    detail: Detail | None = None
    run: RunRecord | None = None

    def __repr__(self) -> str:
        status = (
            "done" if self.done else "failed" if self.failed else _progress(self) or "not begun"
        )
        return f"<State {self.name!r}: {status}, {sum(1 for _ in self.walk()) - 1} steps below>"

    # -- what it came to --

    @property
    def started_at(self) -> datetime | None:
        """When the current attempt began."""
        return instant(self._started)

    @property
    def done_at(self) -> datetime | None:
        """When the step ended, done or failed."""
        return instant(self._done)

    @property
    def wake_at(self) -> datetime | None:
        """When a pending or retrying step is due again."""
        return None if self.detail is None else instant(self.detail.wake_at)

    @property
    def failure(self) -> Failure | None:
        """What made the step fail, or its last attempt."""
        return None if self.detail is None else self.detail.failure

    @property
    def attempt(self) -> int:
        """The current attempt, from 1."""
        return 1 if self.detail is None else self.detail.attempt

    @property
    def interruptions(self) -> int:
        """How often the step was found interrupted since the last recover or reset."""
        return 0 if self.detail is None else self.detail.interruptions

    @property
    def first_started_at(self) -> datetime | None:
        """When the first attempt began, also where `started_at` is a later one's."""
        own = self.detail
        first = None if own is None else own.first_at
        return instant(self._started if first is None else first)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What the step went through; none for one that worked from its start to its end."""
        return () if self.detail is None else tuple(self.detail.phases or ())

    @property
    def earlier(self) -> Earlier | None:
        """What it went through before `phases`, summed up."""
        return None if self.detail is None else self.detail.earlier

    @property
    def of_items(self) -> bool:
        """Whether it is a map, its children its items."""
        return self.detail is not None and self.detail.items

    @property
    def planned(self) -> tuple[str, ...]:
        """Names of the children that a plan declares, begun or not."""
        return () if self.detail is None else tuple(self.detail.planned or ())

    @property
    def notes(self) -> tuple[Note, ...]:
        """What operators wrote down about the run; on a root."""
        return () if self.run is None else tuple(self.run.notes or ())

    @property
    def started(self) -> bool:
        """Whether the step has begun (and was not reset, recovered or reopened since)."""
        return self._started is not None

    @property
    def done(self) -> bool:
        """Whether the step returned."""
        return self._done is not None and not self.errs

    succeeded = done

    @property
    def failed(self) -> bool:
        """Whether the step failed and stays failed."""
        return self._done is not None and bool(self.errs)

    @property
    def pending(self) -> bool:
        """Whether the step waits for its time: it said so, is retrying, or a child is pending.

        A step beneath which something has begun and come to nothing yet is proceeding.
        """
        return _progress(self) == "pending"

    @property
    def proceeding(self) -> bool:
        """Whether the step has begun and come to nothing yet."""
        return _progress(self) == "proceeding"

    # -- finding the way --

    def child(self, name: str) -> State | None:
        """The child of this name."""
        return next((c for c in self.states or () if c.name == name), None)

    def get(self, path: str) -> State:
        """The node at a path, counted from this one; ``""`` is this one.

        Raises:
            UsageError: There is none.
        """
        return self._line(path)[-1]

    def has(self, path: str) -> bool:
        """Whether there is a node at this path."""
        node: State | None = self
        for name in split(path):
            node = None if node is None else node.child(name)
        return node is not None

    def last_path(self) -> str:
        """The path of the last child's last child, and so on; ``""`` without children."""
        path, node = "", self
        while node.states:
            node = node.states[-1]
            path = join(path, node.name)
        return path

    def walk(self) -> Iterator[tuple[str, State]]:
        """Every node with its path, parents before children, siblings in order."""
        stack: list[tuple[str, State]] = [("", self)]
        while stack:
            path, node = stack.pop()
            yield path, node
            stack.extend((join(path, c.name), c) for c in reversed(node.states or ()))

    def _reopen_above(self, path: str, line: list[State]) -> None:
        """Reopen the ancestors of a step; what `END` does is no part of the run's own outcome."""
        if split(path)[:1] != [END]:
            reopen(line[:-1])

    def _line(self, path: str) -> list[State]:
        """The nodes from this one to the one at the path."""
        line = [self]
        for name in split(path):
            node = line[-1].child(name)
            if node is None:
                have = ", ".join(repr(c.name) for c in (line[-1].states or ())[:10]) or "none"
                where = "/".join(escape(n.name) for n in line[1:]) or "the root"
                raise UsageError(f"no step {path!r}: the children of {where} are: {have}")
            line.append(node)
        return line

    # -- payloads --

    def result_as(self, type: type[T], *, dec_hook: DecHook | None = None) -> T:
        """What the step returned, decoded.

        Raises:
            UsageError: There is no result, or it is not of this type.
        """
        return _payload(self.result, "result", self.name, type, dec_hook)

    def info_as(self, type: type[T], *, dec_hook: DecHook | None = None) -> T:
        """What the step wrote down, decoded.

        Raises:
            UsageError: There is no info, or it is not of this type.
        """
        return _payload(self.info, "info", self.name, type, dec_hook)

    # -- as a document --

    def encode(self) -> bytes:
        """The tree as one JSON document, times as RFC 3339.

        Go's ``encoding/json`` reads it into the State of ``yang-zzhong/steps``.
        """
        if self.run is None:  # a tree of the caller's own making, or a part of one
            return _encode(msgspec.structs.replace(self, run=RunRecord(FORMAT)))
        return _encode(self)

    @staticmethod
    def decode(data: bytes | str, /) -> State:
        """Read a tree: one of ours, or one that the Go library saved.

        Raises:
            StateFormatError: It is not JSON, not a tree, newer than this library, or breaks a
                limit (depth, names). ``data`` is untouched.
        """
        return _decode_document(data)

    # -- what operators do --

    def note(self, text: str, /, *, by: str = "", now: datetime | None = None) -> None:
        """Write down what was done to the run, and why; reports show it.

        The last `MOST_NOTES` are kept.

        Args:
            text: What was done; at most 4,000 characters are kept.
            by: Who did it.
            now: When; now by default.

        Raises:
            UsageError: This is no root of a run.
        """
        if self.run is None:
            raise UsageError("notes are written down at the root of a run")
        kept = [each.encode("utf-8", "backslashreplace").decode() for each in (text, by)]
        made = Note(now or datetime.now(UTC), kept[0][:_MAX_NOTE], kept[1][:MAX_NAME])
        self.run.notes = [*(self.run.notes or ()), made][-MOST_NOTES:]

    def recover(self, path: str | None = None) -> list[str]:
        """Make failed steps runnable again, their attempts counted from 1.

        Args:
            path: The step; its ancestors are reopened, and the failures beneath it that caused its
                own are recovered with it. Without one, the causes of the run's failure are
                followed from the root; failures that a parent handled are left alone.

        Returns:
            The paths that were recovered; none if the run has not failed.

        Raises:
            UsageError: There is no such step, or it has not failed.
        """
        line = self._line(path or "")
        node = line[-1]
        if not (node.failed or node.errs):
            if path is None:
                return []
            raise UsageError(f"step {path!r} has not failed: there is nothing to recover")
        self._reopen_above(path or "", line)
        recovered: list[str] = []
        _recover(node, path or "", recovered)
        return recovered

    def reset(self, path: str) -> None:
        """Forget a step and what is below it; it runs again, with new tokens.

        Its ancestors are reopened, its siblings kept.

        Args:
            path: The step; ``""`` begins the whole run again.

        Raises:
            UsageError: There is no such step.
        """
        line = self._line(path)
        self._reopen_above(path, line)
        reset_node(line[-1])

    def set_result(
        self,
        path: str,
        value: object,
        *,
        now: datetime | None = None,
        enc_hook: EncHook | None = None,
    ) -> None:
        """Make a step done, with this result, without running it.

        Its ancestors are reopened: their code runs again and finds the new value.

        Args:
            path: The step.
            value: What it is to have returned; encoded as JSON.
            now: When; now by default.
            enc_hook: msgspec's hook for types that it does not know.

        Raises:
            UsageError: There is no such step, or the value cannot be encoded.
        """
        line = self._line(path)
        data = Payloads(enc_hook).encode(value, f"the result of step {path!r}")
        moment = (now or datetime.now(UTC)).timestamp()
        self._reopen_above(path, line)
        node = line[-1]
        _leave_outcome(node)
        begin(node, moment)
        finish(node, data, moment)
        settle_node(node)

    def rename(self, path: str, name: str) -> None:
        """Give a step the name that changed code knows it by.

        Nothing runs again, and its tokens stay.

        Raises:
            UsageError: There is no such step, it is the root, or the name is not allowed.
            DuplicateStepError: A sibling has that name.
        """
        line = self._line(path)
        if len(line) == 1:
            raise UsageError("the root cannot be renamed: a run is known by its id")
        check_name(name)
        parent, node = line[-2], line[-1]
        if name == node.name:
            return
        if parent.child(name) is not None:
            raise DuplicateStepError(join("/".join(map(escape, split(path)[:-1])), name))
        own, above = detail(node), detail(parent)
        own.token_name = own.token_name or node.name
        above.renames += 1
        if above.planned is not None:
            above.planned = [name if each == node.name else each for each in above.planned]
        if above.failure is not None:
            causes = tuple(name if c == node.name else c for c in above.failure.causes)
            above.failure = msgspec.structs.replace(above.failure, causes=causes)
        node.name = name


def _payload(raw: Payload, what: str, name: str, type: type[T], dec_hook: DecHook | None) -> T:
    if raw is ABSENT:
        raise UsageError(f"step {name!r} has no {what}")
    value: T = Payloads(dec_hook=dec_hook).decode(raw, type, f"the {what} of step {name!r}")
    return value


def _progress(node: State) -> Literal["", "pending", "proceeding"]:
    """Whether an unfinished step is pending or proceeding; neither if it ended or never began."""
    if node._done is not None:
        return ""
    if node.detail is not None and node.detail.wake_at is not None:
        return "pending"
    if node._started is None:
        return ""
    below = {_progress(child) for child in node.states or () if child._done is None}
    return "pending" if "pending" in below and "proceeding" not in below else "proceeding"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(State).decode

# --- times ----------------------------------------------------------------------------------------


def moment(value: float) -> datetime:
    """Seconds since the epoch as a datetime."""
    return datetime.fromtimestamp(value, UTC)


def instant(value: Instant) -> datetime | None:
    """A node's time as a datetime."""
    return moment(value) if isinstance(value, float) else value


def seconds(value: Instant) -> float | None:
    """A node's time as seconds since the epoch."""
    if not isinstance(value, datetime):
        return value
    found = value.timestamp()
    # The first and the last day of the calendar, seen from another time zone, are beyond it.
    return found if _FIRST <= found <= _LAST else min(max(found, _FIRST), _LAST)


def whole_microseconds(value: float) -> float:
    """The next time that a datetime can say: nobody is to be woken before what is recorded."""
    return math.ceil(value * 1e6) / 1e6


def settle_node(node: State) -> State:
    """Turn this node's times into datetimes, and its result into Raw."""
    if isinstance(node.result, bytes):
        node.result = Raw(node.result)
    if isinstance(node._started, float):
        node._started = moment(node._started)
    if isinstance(node._done, float):
        node._done = moment(node._done)
    if (own := node.detail) is not None:
        own.wake_at = instant(own.wake_at)
        own.first_at = instant(own.first_at)
    if (run := node.run) is not None:
        run.created_at = instant(run.created_at)
    return node


def settle(root: State) -> State:
    """Turn all times of a tree into datetimes, and results into Raw."""
    stack = [root]
    while stack:
        node = settle_node(stack.pop())
        if node.states:
            stack.extend(node.states)
    return root


# --- transitions ----------------------------------------------------------------------------------


def detail(node: State) -> Detail:
    """A node's Detail, made if it has none."""
    if node.detail is None:
        node.detail = Detail()
    return node.detail


def begin(node: State, now: float) -> None:
    """An attempt of the step begins, or goes on after a pending or an interruption."""
    if node._started is None:
        node._started = now
    if (own := node.detail) is not None:
        if own.wake_at is not None:
            own.wake_at = None
            own.why = ""
        if own.phases is not None:
            _enter(node, own, "working", now)


def finish(node: State, result: bytes, now: float) -> None:
    """The step returned."""
    node.result = result
    node._done = now
    node.errs = None
    if (own := node.detail) is not None:
        own.failure = own.wake_at = None
        own.why = ""
        own.once = False


def fail(node: State, failure: Failure, now: float) -> None:
    """The step failed and stays failed."""
    own = detail(node)
    own.failure = failure
    own.wake_at = None
    own.why = ""
    own.once = False
    node.errs = [failure.message]
    node._done = now


def retry_later(node: State, failure: Failure, wake_at: float, now: float) -> None:
    """An attempt failed; another is due at ``wake_at``."""
    own = detail(node)
    _enter(node, own, "retrying", now)
    own.failure = failure
    own.wake_at = wake_at
    own.why = failure.message
    own.once = False
    own.attempt += 1
    own.interruptions = 0
    node.errs = [failure.message]


def restart(node: State, now: float) -> None:
    """The next attempt of a retrying step begins: its clock starts again."""
    own = detail(node)
    own.first_at = own.first_at or node._started
    own.wake_at = None
    own.why = ""
    node.errs = None
    node._started = now


def pend(node: State, wake_at: float, why: str, now: float) -> None:
    """The step is not finished; it is called again at ``wake_at``."""
    own = detail(node)
    _enter(node, own, "waiting", now)
    own.wake_at = wake_at
    own.why = why
    own.once = False


def reenter(node: State) -> None:
    """A finished group has something to do again, or comes to something else."""
    _leave_outcome(node)
    node.result = ABSENT
    node.errs = None
    node._done = None
    if node.detail is not None:
        node.detail.failure = None


def interrupt(node: State, since: float) -> None:
    """The step was found begun, with nothing to show for it, and nobody at work on it.

    Args:
        node: The step.
        since: When somebody was last known to be at work on the run.
    """
    own = detail(node)
    own.interruptions += 1
    _enter(node, own, "interrupted", since)


def cut_off(node: State, now: float) -> None:
    """The body is cancelled."""
    if node._started is not None and node._done is None:
        _enter(node, detail(node), "interrupted", now)


def between_passes(root: State, since: float, now: float, *, died: bool) -> None:
    """A pass works at a run; the one before ended at ``since``, or died soon after."""
    own = root.detail
    last = seconds(own.phases[-1].since if own is not None and own.phases else root._started)
    since = min(since, now)
    if last is not None and last < since:  # else the root has begun in this pass
        own = detail(root)
        _enter(root, own, "interrupted" if died else "waiting", since)
        _enter(root, own, "working", now)


def put_down(root: State, since: float) -> None:
    """The run is changed by an operator; nobody was at work on it after ``since``."""
    if root._done is not None or root.run is None or root.first_started_at is None:
        return
    if not root.phases or root.phases[-1].status == "working":
        _enter(root, detail(root), "interrupted" if root.run.idle else "waiting", since)


def last_seen(root: State, saved_at: float) -> float:
    """When somebody was last at work on a run that was last saved then."""
    last = root.phases[-1:]
    if last and last[0].status in ("interrupted", "waiting"):
        return min(last[0].since.timestamp(), saved_at)
    return saved_at


def latest_time(root: State) -> float:
    """The last that a tree says of when somebody was at work on it; 0 if nothing."""
    latest = 0.0
    for _, node in root.walk():
        phase = None if node.detail is None or not node.detail.phases else node.detail.phases[-1]
        for at in (node._started, node._done, None if phase is None else phase.since):
            if at is not None:
                latest = max(latest, seconds(at) or 0.0)
    return latest


def _enter(node: State, own: Detail, status: PhaseStatus, since: float) -> None:
    if own.phases is None:
        began = seconds(own.first_at)
        own.phases = enter(None, status, since, seconds(node._started) if began is None else began)
    else:
        enter(own.phases, status, since, None)
        if len(own.phases) > MOST_PHASES:
            own.earlier = sum_up(own.phases, own.earlier)


def _leave_outcome(node: State) -> None:
    """What a step came to will be forgotten; remember until when it was so."""
    if (done := seconds(node._done)) is not None and node._started is not None:
        _enter(node, detail(node), "failed" if node.errs else "done", done)


def causes_of(node: State) -> Sequence[str]:
    """Names of the children whose failures made this step fail.

    A tree that another library saved does not say: there it is every failed child.
    """
    if node.failure is not None:
        return node.failure.causes
    return [c.name for c in node.states or () if c.failed]


def recover_causes(node: State, path: str) -> list[str]:
    """Recover the failures that caused the step's last one, so that a new attempt is not futile."""
    recovered: list[str] = []
    for name in causes_of(node):
        child = node.child(name)
        if child is not None and (child.failed or child.errs):
            _recover(child, join(path, name), recovered)
    return recovered


def _recover(node: State, path: str, recovered: list[str]) -> None:
    recovered.extend(recover_causes(node, path))
    _clear(node)
    recovered.append(path)


def _clear(node: State) -> None:
    """Forget what a step came to; keep its children, its info and how often it was reset."""
    _leave_outcome(node)
    if (own := node.detail) is not None or node._started is not None:
        own = detail(node)
        own.first_at = own.first_at or node._started
        own.attempt, own.interruptions = 1, 0
        own.failure = own.wake_at = None
        own.why, own.once = "", False
        if own == _PLAIN:
            node.detail = None
    node._started = node._done = None
    node.errs = None
    node.result = ABSENT
    if node.run is not None and (end := node.child(END)) is not None:
        reset_node(end)  # it belongs to an end that the run has no more


def reopen(ancestors: Sequence[State]) -> None:
    """Make finished or waiting ancestors enterable again, their children kept."""
    for node in ancestors:
        if node._done is not None or node.errs or node.wake_at is not None:
            _clear(node)
        elif node._started is not None:  # it is entered afresh, and was not interrupted
            detail(node).first_at = detail(node).first_at or node._started
            node._started = None


def reset_node(node: State) -> None:
    """Forget a step and what is below it: only its name, place and generation stay."""
    was = node.detail or _PLAIN
    node.info = node.result = ABSENT
    node.errs = None
    node._started = node._done = None
    node.states = None
    node.detail = Detail(generation=was.generation + 1, token_name=was.token_name)
    if node.run is not None:
        node.run.idle = 0


# --- documents ----------------------------------------------------------------------------------


class _Probe(msgspec.Struct):
    run: Raw = ABSENT


class _FormatProbe(msgspec.Struct):
    format: int = FORMAT


_UNREADABLE = (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError)


def refuse_newer(data: bytes | str, what: str) -> None:
    """What does not decode may be of a later format: say so rather than `corrupt`."""
    try:
        run = msgspec.json.decode(data, type=_Probe).run
        found = msgspec.json.decode(run, type=_FormatProbe).format
    except _UNREADABLE:
        return
    refuse_format(found, what)


def refuse_format(found: int, what: str) -> None:
    """Refuse a tree of another format."""
    if found != FORMAT:
        raise StateFormatError(
            f"{what} has format {found}, this version of asteps reads format {FORMAT}: "
            "use the version that wrote it, or a later one"
        )


def _is_ours(data: bytes | str) -> bool:
    """Whether a document has the record that every tree of ours carries."""
    try:
        return msgspec.json.decode(data, type=_Probe).run is not ABSENT
    except _UNREADABLE:
        return False


def _decode_document(data: bytes | str) -> State:
    """A tree from one JSON document: one of ours, or one that the Go library saved.

    Raises:
        StateFormatError: It is neither, is newer, or breaks a limit.
    """
    what = "the state"
    try:
        root = _decode(data)
    except RecursionError as exc:
        raise StateFormatError(f"{what} is nested deeper than {MAX_DEPTH} steps") from exc
    except _UNREADABLE as exc:
        refuse_newer(data, what)
        if isinstance(exc, msgspec.ValidationError) and not _is_ours(data):
            return _decode_foreign(data, what)
        raise StateFormatError(f"{what} is corrupt: {exc}") from exc
    if root.run is None:
        return _decode_foreign(data, what)
    refuse_format(root.run.format, what)
    check_tree(root, what)
    return root


def _decode_foreign(data: bytes | str, what: str) -> State:
    root = _decode(translate(data, what))
    root.run = RunRecord(FORMAT)
    check_tree(root, what)
    return root


def check_tree(root: State, what: str) -> None:
    """The limits that msgspec does not check: depth, names and their uniqueness."""
    level: list[tuple[State, list[State]]] = [(root, root.states)] if root.states else []
    for depth in range(1, MAX_DEPTH + 2):
        if not level:
            return
        if depth > MAX_DEPTH:
            break
        below: list[tuple[State, list[State]]] = []
        for parent, children in level:
            names = [c.name for c in children if c.run is None]
            distinct = set(names)
            if len(distinct) != len(children):
                _refuse_family(parent, children, what)
            joined = "".join(names)
            plain = joined.isascii() and joined.isprintable() and "" not in distinct
            if not plain or (len(joined) > MAX_NAME and max(map(len, names)) > MAX_NAME):
                _check_names(names, what)
            below += [(c, c.states) for c in children if c.states]
        level = below
    raise StateFormatError(f"{what} is nested deeper than {MAX_DEPTH} steps")


def _refuse_family(parent: State, children: Sequence[State], what: str) -> NoReturn:
    names = [c.name for c in children]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise StateFormatError(
            f"{what} is corrupt: {parent.name!r} has two children named {twice!r}"
        )
    raise StateFormatError(
        f"{what} is corrupt: {parent.name!r} has a child with the record of a run"
    )


def _check_names(names: Sequence[str], what: str) -> None:
    for name in names:
        if not 0 < len(name) <= MAX_NAME or any(map(is_control, name)):
            raise StateFormatError(
                f"{what} has a step named {name[:MAX_NAME]!r}: names have 1 to {MAX_NAME} "
                "characters, none of them a control character"
            )
