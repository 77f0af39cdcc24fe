"""What a group and a map have in common: concurrent children, and what they come to together.

Both are a namespace with a policy, not a step that is skipped: every pass asks each child, which
answers with what it has come to, and runs those that have not come to anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from types import CoroutineType
from typing import Any, Literal, TypeAlias, TypedDict, cast

import anyio
import anyio.abc
import msgspec

from ._body import OUT_OF_TIME, as_coroutine, check_at_large, ending, pattern_of
from ._events import BodyCall, Kind
from ._failure import error_of
from ._loop import is_cancellation, know_cancellation
from ._pass import Abort, Pass, PassOver
from ._paths import join, split
from ._payload import SMALL, Spec
from ._poll import NOTHING
from ._sibling import Turn, inside, reenter_groups
from ._slot import Slot
from ._state import State, begin, cut_off, detail, reenter, seconds
from ._work import Work
from .errors import StepError, UsageError

__all__ = ["Call", "Crew", "GroupOptions", "OnError", "Policy", "is_unstarted", "make_policy"]

OnError: TypeAlias = Literal["collect", "cancel"]


class GroupOptions(TypedDict, total=False):
    """The keywords of `Step.group`.

    Attributes:
        limit: How many children work at the same time; one that waits gives back its place. An
            ``anyio.CapacityLimiter`` can be shared by several groups. Without one, all work.
        on_error: ``"collect"`` lets all come to something; ``"cancel"`` cancels the others as soon
            as more than ``tolerate`` have failed.
        enough: So many done children make the group done, whatever failed before, and cancel the
            others.
        tolerate: So many failed children do not make the group fail.
    """

    limit: int | anyio.CapacityLimiter | None
    on_error: OnError
    enough: int | None
    tolerate: int


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the children of a group or map come to together: see `GroupOptions`.

    Raises:
        UsageError: A value is out of its range.
    """

    limit: int | anyio.CapacityLimiter | None = None
    on_error: OnError = "collect"
    enough: int | None = None
    tolerate: int = 0

    def __post_init__(self) -> None:
        limit = self.limit
        if not (limit is None or isinstance(limit, anyio.CapacityLimiter) or _is_count(limit, 1)):
            raise UsageError(f"limit={limit!r}: a whole number from 1, or an anyio.CapacityLimiter")
        if self.on_error not in ("collect", "cancel"):
            raise UsageError(f"on_error={self.on_error!r}: 'collect' or 'cancel'")
        if not (self.enough is None or _is_count(self.enough, 1)):
            raise UsageError(f"enough={self.enough!r}: a whole number from 1, or None")
        if not _is_count(self.tolerate, 0):
            raise UsageError(f"tolerate={self.tolerate!r}: a whole number of children, from 0")

    def is_enough(self, done: int) -> bool:
        """Whether so many done children make the group done."""
        return self.enough is not None and done >= self.enough

    def decides(self, done: int, failed: int) -> bool:
        """Whether nothing that the other children come to can matter."""
        return self.is_enough(done) or (self.on_error == "cancel" and failed > self.tolerate)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def make_policy(
    options: dict[str, Any], what: str, *, limit: int | None = None, others: Iterable[str] = ()
) -> Policy:
    """The policy that these options ask for.

    Raises:
        UsageError: There is no such option, or a value is out of its range.
    """
    if odd := sorted(set(options) - set(Policy.__struct_fields__)):
        known = ", ".join((*Policy.__struct_fields__, *others))
        raise UsageError(f"{what} has no option {', '.join(odd)}: there are {known}")
    try:
        return Policy(**{"limit": limit, **options})
    except UsageError as exc:
        raise UsageError(f"{what}: {exc}") from None


Call: TypeAlias = tuple[State, Callable[..., Any], tuple[Any, ...], Spec, Any]
"""What there is to run of a child: node, function, arguments, `Spec`, and what makes an execution
of it, if anything."""


class Crew:
    """The children of one group or map, while this pass runs them.

    A *job* is what stands for a child until it has come to something: a group's `Child`, or the
    index of a map's item.

    Attributes:
        of_items: It is a map's.

    Args:
        parent: The execution of the body that the group or map belongs to.
        name: The name that it has as a step; ``None`` for children of the parent's own.
        policy: What the children come to together.
        call_of: What there is to run of a job.
        begin: Runs a job the long way.
        values: Where the results of jobs go.

    Raises:
        UsageError: The limiter is that of a group around this one.
    """

    of_items: bool = False
    _shown: BodyCall | None = None

    def __init__(
        self,
        parent: Any,
        name: str | None,
        policy: Policy,
        *,
        call_of: Callable[[Any], Call],
        begin: Callable[[Any, Slot | None], Coroutine[Any, Any, Any]],
        values: Any,
    ) -> None:
        path = parent.path if name is None else join(parent.path, name)
        self.limiter: anyio.CapacityLimiter | None = _limiter(policy.limit, parent, path)
        step, node = parent, parent._node
        if name is not None:
            name, node = parent._node_of(name)
            step = type(parent)(parent._run, node, parent, name)
            self.work: Work = Work(parent, name, node, _no_body, (), NOTHING, None)
        self.parent = parent
        self.run: Pass = parent._run
        self.node: State = node
        self.at_work: bool = name is None  # a child has begun in this pass
        self._left = _was_left(node, parent._run.seen_at)
        self.policy = policy
        self.call_of = call_of
        self.begin = begin
        self.values = values
        self.step: Any = step
        step._crew = self
        step._enter()
        self.works: dict[Any, Work] = {}  # of jobs that go the long way
        self.todo: deque[Any] = deque()
        self.waiting: list[Any] = []  # jobs that are due beyond the pass's budget
        self.asked: int = 0
        self.done: int = 0
        self.failed: dict[str, StepError] = {}
        self.decided: bool = False  # nothing that the other children come to can matter
        self.before: StepError | None = None  # the group had failed, and nothing has changed
        self.abort: Abort | None = None
        self.tasks: anyio.abc.TaskGroup | None = None
        self.away: int = 0  # children that have given back their place while they wait
        self._shared = self.limiter is policy.limit is not None
        self.crowded: bool = self._shared  # others may be waiting for a place under the limit
        # Those that may be cut short have a scope of their own.
        cut = policy.on_error == "cancel" or policy.enough is not None
        self._scopes: set[anyio.CancelScope] | None = set() if cut else None
        self.short: bool = not cut  # children may take the short way
        # What was decided before is so still, if the code still asks for those that decided it.
        children = node.states or ()
        self.held: bool = cut and policy.decides(
            sum(1 for c in children if c.done), sum(1 for c in children if c.failed)
        )
        self._turns: deque[Turn] = deque()  # of those that are about to begin, the long way

    # -- children --

    def turn(self) -> Turn:
        """A place in the line of those that are about to begin."""
        turn = Turn(self._turns)
        self._turns.append(turn)
        return turn

    def ask(self, jobs: Sequence[Any]) -> None:
        """These children have not come to anything yet."""
        self.asked += len(jobs)
        if not self.decided:
            self._put(jobs)

    def _put(self, jobs: Sequence[Any]) -> None:
        if jobs:
            self._begin_node()
            if not self.todo:
                self.step._shift(1)  # for the line: somebody is about to work
            self.todo.extend(jobs)

    def take(self) -> Any:
        """The next job, of which there must be one; who takes it counts as active until `leave`."""
        job = self.todo.popleft()
        if self.todo:  # else what counted for the line counts for this one now
            self.step._active += 1
        return job

    def leave(self) -> None:
        """A child that was taken works no more."""
        step = self.step
        if step._resting or step._active == 1:
            step._shift(-1)
        else:
            step._active -= 1

    def answered(self, node: State) -> None:
        """A child had come to something before."""
        self.asked += 1
        if node.errs:
            path = join(self.step.path, node.name)
            self.failed[node.name] = error_of(node, path)
        else:
            self.done += 1
        self._decide()

    async def next(self) -> None:
        """A task: run the next child. So they start in order, whatever the loop's order is."""
        slot = None
        if self.limiter is not None:
            slot = Slot(self.limiter)
            await slot.take()
        if self.todo:
            job = self.take()
            inside.set(self.step)  # of this task, which is the child's own
            try:
                await self.do(job, slot)
            finally:
                self.leave()
                if slot is not None:
                    slot.leave()
        elif slot is not None:
            slot.leave()

    async def do(self, job: Any, slot: Slot | None) -> None:
        """Run a child until it comes to something, or waits beyond the pass's budget."""
        node, fn, args, spec, execution = self.call_of(job)
        if not (self.run.ready and self.short and spec.is_async) or (
            node._started is not None or node.detail is not None or job in self.works
        ):
            await self.do_long(job, slot)
            return
        run, step, child = self.run, self.step, None
        reenter_groups(step)
        node._started = run.now()
        try:
            if execution is None:
                value = await fn(*args)
                if run.at_large:
                    check_at_large(run, step, join(step.path, node.name))
            else:
                child = execution(run, node, step, node.name)
                body = fn(child, *args)
                if type(body) is not CoroutineType:
                    body = as_coroutine(body, fn)
                child._body = body
                child._slot = slot
                value = await body
                if child._seen is not None or child._ended is not None or run.at_large:
                    await child._leave()
        except BaseException as exc:
            await self.settle(job, self.work_on(job, slot).run_from(child, exc))
            return
        try:
            data = run.encode(value)
            result = spec.decode(data)
            if len(data) > SMALL or data.find(b"null") >= 0 or spec.exact:
                run.payloads.vet(value, data, result, spec, node.name)
        except Exception:
            await self.settle(job, self.work_on(job, slot).returned(value))
            return
        node.result = data
        node._done = run.now()
        self.values[job] = result
        if not run.quiet or run.idle:
            await self.done_short(node)
        else:
            self.done += 1

    async def done_short(self, node: State) -> None:
        """A child that took the short way has returned."""
        run = self.run
        self.done += 1
        if not run.quiet:
            if (saved := self.step._hand_over(node.name, node, alone=False)) is not None:
                await saved
            try:
                run.check_saver()
            except Abort as exc:
                self._stop(exc)
        elif run.idle:
            run.progress()

    async def do_long(self, job: Any, slot: Slot | None) -> None:
        """Run a child with all that may come, in a scope of its own if it may be cut short."""
        if self._scopes is None:
            await self.settle(job, self.begin(job, slot))
            return
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await self.settle(job, self.begin(job, slot))
            finally:
                self._scopes.discard(scope)
        self._decide()

    async def settle(self, job: Any, work: Coroutine[Any, Any, Any]) -> None:
        """Take note of what a child comes to."""
        try:
            self.values[job] = await work
        except StepError as exc:
            self.failed[split(exc.path)[-1]] = exc
        except PassOver:
            self.waiting.append(job)
        except Abort as exc:
            self._stop(exc)
        else:
            self.done += 1

    def _stop(self, abort: Abort) -> None:
        self.abort = abort
        if self.tasks is not None:
            self.tasks.cancel_scope.cancel()

    def _decide(self) -> None:
        """Cut the others short if they do not matter any more."""
        if self._scopes is not None and not self.decided:
            self.decided = self.policy.decides(self.done, len(self.failed))
            if self.decided:
                self._drop()
                for scope in self._scopes:
                    scope.cancel()

    def work_on(self, job: Any, slot: Slot | None = None) -> Work:
        """The work on a child; the same one if it is run again in this pass."""
        work = self.works.get(job)
        if work is None:
            node, *call = self.call_of(job)
            work = self.works[job] = Work(self.step, node.name, node, *call)
        return work.among(slot)

    def move_away(self, change: int) -> None:
        """A child has given back its place for a while (1), or taken it again (-1)."""
        self.away += change
        self.crowded = self._shared or self.away > 0

    def forget_unstarted(self) -> None:
        """Children that never began were not meant to be in the tree."""
        states = self.step._states
        if any(map(is_unstarted, states)):
            states[:] = [c for c in states if not is_unstarted(c)]

    def take_back(self) -> None:
        """A group of which nothing has come was not meant to be in the tree."""
        if is_unstarted(self.node) and not self.node.states:
            self.parent._take_back(self.node)

    # -- observers --

    def surround(self) -> None:
        """Have observers around the group or map, if there is something to run."""
        run, node = self.run, self.node
        if run.observers.around and (self.todo or node._done is None):
            kind: Kind = "map" if self.of_items else "group"
            pattern = pattern_of(self.parent, node.name, self.step.path)
            self._shown = run.call_of(kind, self.step.path, pattern, node)
            run.observers.enter(self._shown)

    def left(self, exc: BaseException | None) -> None:
        """It was left, by this exception or none."""
        if self._shown is not None:
            ended, error = ending(exc)
            if ended == "failed" and not self.node.errs:  # raised in the block, by another step
                ended = "interrupted"
            self.run.observers.leave(self._shown, ended, error)

    # -- rounds --

    def again(self) -> None:
        """Ask those once more that waited."""
        self.step._ended = self.step._wakes = None
        waiting, self.waiting = self.waiting, []
        self._put(waiting)

    async def run_tasks(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run what there is to do; `serve` runs in this task, and starts others.

        Raises:
            Abort: A child could not go on.
            PassOver: The pass, or the parent's body, has ended meanwhile.
        """
        await self.begin_tasks()
        try:
            await serve()
        except BaseException as exc:
            await self.end_tasks(exc)
            raise
        else:
            await self.end_tasks()

    async def begin_tasks(self) -> None:
        """Make it possible to start tasks, and to end them from outside."""
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self.tasks = tasks
        if not self.parent._body.cr_running:
            self.run.scopes[tasks.cancel_scope] = self.parent

    async def end_tasks(self, exc: BaseException | None = None) -> None:
        """Wait for the tasks.

        Args:
            exc: What this task is being left by.

        Raises:
            Abort: A child could not go on.
            PassOver: The tasks were ended from outside.
        """
        tasks = cast("anyio.abc.TaskGroup", self.tasks)
        scope = tasks.cancel_scope
        swallowed: bool | None = False
        try:
            if exc is not None and is_cancellation(exc):  # is found to be one afterwards, too
                swallowed = await tasks.__aexit__(type(exc), exc, exc.__traceback__)
            else:  # it goes on as it is, not in an exception group
                if exc is not None:
                    self.decided = True
                    scope.cancel()
                await tasks.__aexit__(None, None, None)
        except BaseException as left_by:
            know_cancellation(left_by)  # no child's CancelledError leaves a task group
            self._drop()
            raise
        finally:
            self.tasks = None
            if scope in self.run.scopes:
                self.run.left(scope)
        if exc is not None:
            self._drop()
        if (exc is None or swallowed) and (self.abort is not None or scope.cancel_called):
            self._drop()
            raise self.abort or PassOver

    def put_off(self, is_new: Callable[[Any], bool]) -> None:
        """The pass has used up its time: those that were never begun wait for the next one."""
        wakes = self.step._wakes = self.step._wakes or {}
        wakes[self] = (self.run.now(), self.step.path, OUT_OF_TIME)
        known = [job for job in self.todo if not is_new(job)]
        self.waiting += [job for job in self.todo if is_new(job)]
        self._drop()
        self._put(known)

    def _drop(self) -> None:
        """Nothing more is begun."""
        if self.todo:
            self.todo.clear()
            self.step._shift(-1)

    def verdict(self) -> bytes | None:
        """What the group has come to: the result to record, if there is a new one.

        Raises:
            PassOver: Children wait.
            ExceptionGroup: Too many have failed.
        """
        node, policy, step = self.node, self.policy, self.step
        if self.waiting and not self.decided:
            raise PassOver
        if self._has_failed():
            if node.errs:
                self.before = error_of(node, step.path)
                return None
            errors = [self.failed[c.name] for c in step._states if c.name in self.failed]
            count = len(errors)
            tolerated = f"; {policy.tolerate} are tolerated" if policy.tolerate else ""
            raise ExceptionGroup(f"{count} of {self.asked} children failed{tolerated}", errors)
        step._over = True
        step._finished()
        if node.done:
            return None
        reenter(node)
        self._begin_node()
        return b"null"

    def _begin_node(self) -> None:
        node = self.node
        if node._started is None:
            node._started = self.run.now()
            if self.of_items:
                detail(node).items = True

    def go_on(self) -> None:
        """The first child begins: until now nobody may have been at work on the group."""
        self.at_work = True
        node, run = self.node, self.run
        if self._left:
            cut_off(node, run.seen_at)
        if node.detail is not None and node.detail.phases is not None:
            begin(node, run.now())
            self.work._touch()

    def is_settled(self) -> bool:
        """Whether there is nothing to run, and what is recorded of the group is so still."""
        settled = not self.todo and self.node._done is not None
        return settled and self._has_failed() == bool(self.node.errs)

    def _has_failed(self) -> bool:
        """Whether too many children have."""
        return len(self.failed) > self.policy.tolerate and not self.policy.is_enough(self.done)


def _was_left(node: State, seen_at: float) -> bool:
    """Whether a group was under way when somebody was last seen at work, and waits for nothing."""
    started = seconds(node._started)
    under_way = started is not None and node._done is None and started < seen_at
    return under_way and not node.pending


def is_unstarted(node: State) -> bool:
    return node._started is None and node._done is None and node.detail is None


async def _no_body() -> None:
    """Groups have none of their own: their children are run by `Crew`."""


def _limiter(
    limit: int | anyio.CapacityLimiter | None, parent: Any, path: str
) -> anyio.CapacityLimiter | None:
    if not isinstance(limit, anyio.CapacityLimiter):
        return None if limit is None else anyio.CapacityLimiter(limit)
    while parent is not None:
        if parent._crew is not None and parent._crew.limiter is limit:
            raise UsageError(
                f"{path!r} has the limiter of a group around it: its children would wait for the "
                "places that their parents hold; give it another one"
            )
        parent = parent._parent
    return limit
