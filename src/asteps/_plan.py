"""Plans: tasks that are declared before they run, so that they can be checked, drawn and counted.

A plan is a body like any other, which runs its tasks as the steps below its own: tasks that follow
one another by `Step.do`, others as the children of a group that has no node of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, Generic, TypeVar, Unpack, cast, overload

import anyio
import msgspec

from ._crew import Call, Crew, Policy, make_policy
from ._pass import PassOver
from ._paths import MAX_DEPTH, check_name, escape, join
from ._payload import UNSET, Payloads, Spec, function_name, unwrap
from ._picture import Box, Status, as_flowchart, as_tree
from ._policy import Retry, StepOptions, duration
from ._slot import Slot
from ._state import State, detail
from ._step import Step
from .errors import DuplicateStepError, UsageError

__all__ = ["Plan", "Progress", "Task"]

T = TypeVar("T")
U = TypeVar("U")


class Progress(msgspec.Struct, frozen=True):
    """How far a run of a plan has come; as a ``str`` it reads ``7 of 12``.

    Attributes:
        done: How many tasks are done, of those that are not made of tasks themselves.
        total: How many such tasks the plan declares.
    """

    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.done} of {self.total}"


# --- declaring ------------------------------------------------------------------------------------


@overload
def _task(
    self: Plan | Task[Any],
    name: str,
    fn: Callable[Concatenate[Step, ...], Awaitable[T]],
    /,
    *,
    after: Sequence[Task[Any]] | None = None,
    **options: Unpack[StepOptions],
) -> Task[T]: ...
@overload
def _task(
    self: Plan | Task[Any],
    name: str,
    fn: Callable[Concatenate[Step, ...], Awaitable[object]],
    /,
    *,
    after: Sequence[Task[Any]] | None = None,
    returns: type[U],
    **options: Unpack[StepOptions],
) -> Task[U]: ...
@overload
def _task(
    self: Plan | Task[Any],
    name: str,
    fn: Callable[Concatenate[Step, ...], Awaitable[object]],
    /,
    *,
    after: Sequence[Task[Any]] | None = None,
    returns: object,
    **options: Unpack[StepOptions],
) -> Task[Any]: ...
@overload
def _task(
    self: Plan | Task[Any],
    name: str,
    /,
    *,
    after: Sequence[Task[Any]] | None = None,
    limit: int | anyio.CapacityLimiter | None = None,
    **options: Unpack[StepOptions],
) -> Task[Any]: ...
def _task(  # noqa: D417 - a method of both classes
    self: Plan | Task[Any],
    name: str,
    fn: Any = UNSET,
    /,
    *,
    after: Sequence[Task[Any]] | None = None,
    **options: Any,
) -> Task[Any]:
    """Declare a task: when its turn comes, ``fn(child, *args)`` runs as the step ``name``.

    Args:
        name: As in `Step.do`; unique among the tasks beside it.
        fn: The body: an async function of the child's Step and the run's arguments, or a `Plan`.
            Without one, the task is made of those that are declared by its own `Task.task`.
        after: The tasks beside it that have to be done before it begins; none means that it
            begins at once. Without ``after``, it comes after all that were declared before it.
        **options: See `StepOptions`. ``inputs`` may be a function of the run's arguments. A task
            without ``fn`` takes ``limit``, see `GroupOptions`.

    Returns:
        What the task is known by: in the ``after`` of others, and in `Step.result_of`.

    Raises:
        DuplicateStepError: A task beside it has that name.
        UsageError: The name is not allowed, an option is wrong, a task in ``after`` is not beside
            it, or the plan has been run. Nothing was declared.
    """
    return self._level.declare(name, fn, after, options)


class Task(Generic[T]):
    """A task of a plan: what `Plan.task` gives.

    ``after`` takes tasks that exist, so tasks cannot wait for each other in a circle.

    Attributes:
        name: The task's name.
        path: The names from below the plan's own step to this one; where the plan is what is run,
            the path of its step.
        after: The tasks that have to be done before it begins.
    """

    def __init__(self, beside: Any, name: str, after: tuple[Task[Any], ...], /) -> None:
        self.name: str = name
        self.path: str = join(beside.path, name)
        self.after: tuple[Task[Any], ...] = after
        self._beside: _Level = beside
        self._place: int = len(beside.tasks)
        self._level: _Level = _Level(beside.plan, self)
        self._before: int = 0  # one bit for the place of each task that is done before it begins
        for task in after:
            self._before |= task._before | 1 << task._place
        self._followers: list[Task[Any]] = []
        self._fn: Any = self._level
        self._returns: Any = UNSET
        self._options: dict[str, Any] = {}

    task = _task

    def __repr__(self) -> str:
        return f"<Task {self.path!r} of plan {self._beside.plan.name!r}>"

    def _spec(self, payloads: Payloads) -> Spec:
        return payloads.spec(self._fn, self._returns)

    def _options_for(self, args: tuple[Any, ...], path: str) -> dict[str, Any]:
        """The options of the step, in a run with these arguments."""
        inputs = self._options.get("inputs")
        if not callable(inputs):
            return self._options
        try:
            return {**self._options, "inputs": inputs(*args)}
        except Exception as exc:
            raise UsageError(
                f"step {path!r}: inputs= raised {exc!r} for the run's arguments"
            ) from exc

    # -- results --

    def _result_for(self, step: Step) -> T:
        """The task's result, for a step that is run after it: see `Step.result_of`.

        Raises:
            UsageError: It is not certain that the task is done when that step runs.
        """
        inner: Step | None = None
        at: Step | None = step
        while at is not None:
            if (line := self._line_from(at._tasks)) is not None:
                asks = None if inner is None else at._tasks.names.get(inner.name)
                self._check_order(line[0], asks, step)
                return self._read(at, line, step)
            inner, at = at, at._parent
        raise UsageError(
            f"task {self.path!r} belongs to plan {self._beside.plan.name!r}, which does not run "
            f"{_say(step)}: what another plan came to is the result of the task that runs it"
        )

    def _line_from(self, level: object) -> list[Task[Any]] | None:
        """The tasks from this level down to this one, if it is declared there or below."""
        line: list[Task[Any]] = [self]
        while line[0]._beside is not level:
            above = line[0]._beside.above
            if above is None:
                return None
            line.insert(0, above)
        return line

    def _check_order(self, mine: Task[Any], asks: Task[Any] | None, step: Step) -> None:
        if asks is not None and not asks._before >> mine._place & 1:
            raise UsageError(
                f"{_say(step)} asks for the result of task {self.path!r}, which need not be done "
                f"by then: {asks.path!r} does not come after {mine.path!r}, name it in after="
            )

    def _read(self, at: Step, line: list[Task[Any]], step: Step) -> T:
        node: State | None = at._node
        for task in line:
            node = None if node is None else node.child(task.name)
        if node is None or not node.done:
            raise UsageError(f"{_say(step)} asks for the result of {self.path!r}: it is not done")
        payloads = step._run.payloads
        where = f"step {join(at.path, self.path)!r}"
        return cast("T", payloads.decode_result(node.result, self._spec(payloads), where))


class _Level:
    """The tasks that are declared beside each other: a plan's own, or those of one task.

    It is the body of the step that is made of them.
    """

    def __init__(self, plan: Plan, above: Task[Any] | None) -> None:
        self.plan: Plan = plan
        self.above: Task[Any] | None = above
        self.path: str = "" if above is None else above.path
        self.tasks: list[Task[Any]] = []
        self.names: dict[str, Task[Any]] = {}
        self.ends: dict[Task[Any], None] = {}  # tasks that no other comes after, in order
        self.policy: Policy = Policy()
        self.frozen: bool = False
        self.in_a_row: bool = True  # each task comes after all that were declared before
        self.__qualname__: str = plan.name if above is None else above.path

    # -- declaring --

    def declare(
        self, name: str, fn: Any, after: Sequence[Task[Any]] | None, options: dict[str, Any]
    ) -> Task[Any]:
        """See `Plan.task`."""
        check_name(name)
        what = f"task {join(self.path, name)!r}"
        self._check_open(what)
        if name in self.names:
            raise DuplicateStepError(join(self.path, name), self.plan.name)
        if self._depth() + (_height(fn._level) if isinstance(fn, Plan) else 0) > MAX_DEPTH:
            raise UsageError(f"{what} would be more than {MAX_DEPTH} steps deep")
        before = list(self.ends) if after is None else self._checked(after, what)
        task: Task[Any] = Task(self, str(name), tuple(before))
        options = dict(options)
        if fn is not UNSET:
            _check_fn(fn, what, self.plan)
            task._fn, task._returns = fn, options.pop("returns", UNSET)
        elif "limit" in options:
            task._level.policy = make_policy({"limit": options.pop("limit")}, what)
        _check_options(options, what, has_fn=fn is not UNSET)
        task._options = options
        self._add(task)
        return task

    def _add(self, task: Task[Any]) -> None:
        self.tasks.append(task)
        self.names[task.name] = task
        for each in task.after:
            each._followers.append(task)
            self.ends.pop(each, None)
        self.ends[task] = None
        self.in_a_row = self.in_a_row and len(self.ends) == 1

    def _check_open(self, what: str) -> None:
        if self.plan._level.frozen:
            raise UsageError(
                f"{what} is declared too late: plan {self.plan.name!r} has been run, and is fixed"
            )
        if self.above is not None and self.above._fn is not self:
            raise UsageError(
                f"{what} cannot be declared: {self.above.path!r} has a function of its own, and "
                "only a task without one is made of tasks"
            )

    def _checked(self, after: Sequence[Task[Any]], what: str) -> list[Task[Any]]:
        if isinstance(after, Task) or not isinstance(after, Sequence):
            raise UsageError(f"{what}: after= takes a list of tasks, not {after!r:.100}")
        for task in after:
            if not isinstance(task, Task):
                raise UsageError(f"{what}: after= takes tasks, not {task!r:.100}")
            if task._beside is self:
                continue
            if task._beside.plan is not self.plan:
                raise UsageError(f"{what}: after= takes tasks of its own plan, not {task!r}")
            raise UsageError(
                f"{what}: after= takes the tasks beside it, not {task.path!r}; "
                "order the tasks that these are made of"
            )
        return sorted(set(after), key=lambda task: task._place)

    def freeze(self) -> None:
        """No more tasks from now on, in this plan and in those that it runs.

        Raises:
            UsageError: A level has none. Nothing is fixed then.
        """
        if not self.plan._level.frozen:
            levels = _levels(self.plan._level)
            for level in levels:
                level._check_complete()
            for level in levels:
                level.frozen = True

    def _check_complete(self) -> None:
        if not self.tasks and self.above is None:
            raise UsageError(f"plan {self.plan.name!r} has no tasks")
        if not self.tasks:
            raise UsageError(f"task {self.path!r} has neither a function nor tasks of its own")

    def _depth(self) -> int:
        """How many steps deep its tasks are."""
        return self.path.count("/") + 2 if self.path else 1

    def _levels_below(self) -> list[_Level]:
        return [below for below in map(_below, self.tasks) if below is not None]

    # -- running --

    async def __call__(self, s: Step, /, *args: Any) -> Any:
        """Run the tasks as the steps below this one."""
        if not isinstance(s, Step):
            raise UsageError(f"run plan {self.plan.name!r} by asteps.run(plan, …) or s.do(…, plan)")
        s._check_open()
        try:
            self.freeze()
            if s._seen is not None:
                raise UsageError(
                    f"plan {self.plan.name!r} shares a step with nothing that comes before it: "
                    "run it by s.do(name, plan, …)"
                )
        except UsageError as exc:
            raise s._abort(exc) from None
        s._enter()
        s._tasks = self
        self._tell(s)
        try:
            if self.in_a_row and not isinstance(self.policy.limit, anyio.CapacityLimiter):
                return await self._run_in_a_row(s, args)
            return await _Running(self, s, args).run()
        except Exception:
            for task in self.tasks:  # those that were not reached have not vanished
                s._recorded.pop(task.name, None)
            raise

    def _tell(self, s: Step) -> None:
        """Have the tree say what is planned."""
        names = [task.name for task in self.tasks]
        if list(s._node.planned) != names:
            detail(s._node).planned = names
            s._announce()
            if s._run.saver is not None:
                s._run.saver.touch(s.path, s._node)

    async def _run_in_a_row(self, s: Step, args: tuple[Any, ...]) -> Any:
        value: Any = None
        for task in self.tasks:
            options: dict[str, Any] = {}
            if task._options:
                options = _options(task, s, args)
            if task._returns is not UNSET:
                options = {**options, "returns": task._returns}
            value = await s.do(task.name, task._fn, *args, **options)
        return value

    def spec_of_result(self, payloads: Payloads) -> Spec:
        """How the results of the ends come back: the only one's, or a mapping by path."""
        self.freeze()
        if len(self.ends) == 1:
            spec = next(iter(self.ends))._spec(payloads)
            return _as_spec(spec.type, spec.decode)
        specs = {escape(end.name): end._spec(payloads) for end in self.ends}

        def decode(data: Any) -> dict[str, Any]:
            found = _decode_mapping(data)
            return {
                path: specs[path].decode(raw) if path in specs else payloads.plain(raw)
                for path, raw in found.items()
            }

        return _as_spec(dict, decode)

    # -- looking --

    def boxes(self, state: State | None, *, looked_at: bool) -> tuple[Box, ...]:
        """The tasks as they are drawn."""
        nodes = _children(state)
        return tuple(_box(task, nodes.get(task.name), looked_at=looked_at) for task in self.tasks)

    def count(self, node: State | None) -> tuple[int, int]:
        """How many tasks are done below this node, and how many there are."""
        done = total = 0
        nodes = _children(node)
        for task in self.tasks:
            child = nodes.get(task.name)
            below = _below(task)
            part = (0, 1) if below is None else below.count(child)
            total += part[1]
            done += part[1] if child is not None and child.done else part[0]
        return done, total


def _as_spec(type: object, decode: Callable[[Any], Any]) -> Spec:
    """How a plan's result comes back; a plan is no function's constant, and is not kept alive."""
    return Spec(is_async=True, exact=False, type=type, decode=decode, lasting=False)


_decode_mapping = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Running:
    """The tasks of one level, while this pass runs them concurrently."""

    def __init__(self, level: _Level, s: Step, args: tuple[Any, ...]) -> None:
        self._level = level
        self._s = s
        self._args = args
        self._calls: dict[Task[Any], Call] = {}
        self._left: list[int] = [len(task.after) for task in level.tasks]
        try:
            self._crew = Crew(
                s, None, level.policy, call_of=self._calls.__getitem__, begin=self._begin, values={}
            )
        except UsageError as exc:
            raise s._abort(exc) from None
        self._crew.short = False

    async def run(self) -> Any:
        """Run what has not come to anything.

        Raises:
            StepError: One task has failed.
            ExceptionGroup: Several have.
            PassOver: Some wait.
        """
        crew = self._crew
        try:
            self._ask([task for task in self._level.tasks if not task.after])
            if crew.todo:
                await crew.run_tasks(self._start)
        finally:
            crew._drop()
            crew.forget_unstarted()
            self._s._crew = None
        if crew.waiting:
            raise PassOver
        if crew.failed:
            raise self._failure()
        results = {escape(end.name): self._result(end) for end in self._level.ends}
        return results if len(results) > 1 else results.popitem()[1]

    def _failure(self) -> Exception:
        failed, tasks = self._crew.failed, self._level.tasks
        errors = [failed[task.name] for task in tasks if task.name in failed]
        if len(errors) == 1:
            return errors[0]
        return ExceptionGroup(f"{len(errors)} of {len(tasks)} tasks failed", errors)

    def _result(self, task: Task[Any]) -> Any:
        values: dict[Task[Any], Any] = self._crew.values
        if task in values:
            return values[task]
        node, _, _, spec, _ = self._calls[task]
        return self._s._replay(node, spec)

    async def _start(self) -> None:
        for _ in range(len(self._crew.todo)):
            cast("anyio.abc.TaskGroup", self._crew.tasks).start_soon(self._crew.next)

    async def _begin(self, task: Task[Any], slot: Slot | None) -> Any:
        """Run a task; those that can begin then are asked for while it still counts as active.

        So a sibling that waits never finds that nobody works between the two.
        """
        value = await self._crew.work_on(task, slot).run()
        self._ask(self._freed_by(task))
        return value

    def _freed_by(self, done: Task[Any]) -> list[Task[Any]]:
        freed: list[Task[Any]] = []
        for task in done._followers:
            self._left[task._place] -= 1
            if not self._left[task._place]:
                freed.append(task)
        return freed

    def _ask(self, tasks: list[Task[Any]]) -> None:
        """See what these tasks have come to, and those after them; begin those that can."""
        while tasks:
            done = [task for task in tasks if self._is_done(task)]
            tasks = [freed for task in done for freed in self._freed_by(task)]

    def _is_done(self, task: Task[Any]) -> bool:
        s, crew = self._s, self._crew
        spec = s._spec(task._fn, task._returns)
        node = s._recorded.pop(task.name, None)
        if node is None:
            _, node = s._new(task.name)
        self._calls[task] = (node, task._fn, self._args, spec, type(s))
        if task._options:
            crew.work_on(task).take_options(_options(task, s, self._args))
        if node._done is not None:
            crew.answered(node)
            return not node.errs
        crew.ask((task,))
        if crew.tasks is not None:
            crew.tasks.start_soon(crew.next)
        return False


def _options(task: Task[Any], s: Step, args: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return task._options_for(args, join(s.path, task.name))
    except UsageError as exc:
        raise s._abort(exc) from exc.__cause__


# --- the plan -------------------------------------------------------------------------------------


class Plan:
    """Tasks that are declared before they run, so that they can be checked, drawn and counted.

    ::

        plan = Plan("MoveToVPC")
        image = plan.task("image", make_image, timeout=3600)
        networks = plan.task("networks", map_networks, after=[])  # at once, beside the image
        plan.task("launch", launch)                               # after both
        await asteps.run(plan, "vm-42", store=store, id="move-vm-42")

    A plan is a body, an async function of a Step and the run's arguments: it is given to the
    drivers, to `Step.do`, or to `task` of another plan. Each task gets its own Step and the run's
    arguments, and what other tasks returned by `Step.result_of`. It returns what the task returned
    that no other comes after; where there are several, a ``dict`` of their results by path.

    When a task fails, those that do not come after it are run to their end; then the plan fails
    with one `StepError`, whose ``errors`` are those of the tasks.

    It is made once, for any number of runs at the same time, and fixed by the first.

    Args:
        name: What the plan is known by, as the root of a run, too.
        limit: How many of its own tasks work at the same time, see `GroupOptions`.

    Raises:
        UsageError: The name or the limit is not allowed.
    """

    def __init__(self, name: str, *, limit: int | anyio.CapacityLimiter | None = None) -> None:
        self.name: str = check_name(name)
        self.__name__: str = self.name  # what functions are known by
        self.__qualname__: str = self.name
        self._level: _Level = _Level(self, None)
        self._level.policy = make_policy({"limit": limit}, f"plan {name!r}")

    task = _task

    def __call__(self, s: Step, /, *args: Any) -> Coroutine[Any, Any, Any]:
        """Run the tasks as the steps below this one: what the drivers and `Step.do` call."""
        return self._level(s, *args)

    def __repr__(self) -> str:
        return f"<Plan {self.name!r}: {self._level.count(None)[1]} tasks>"

    def __str__(self) -> str:
        return self.draw()

    def spec_of_result(self, payloads: Payloads) -> Spec:
        """How its result comes back from JSON; for the engine."""
        return self._level.spec_of_result(payloads)

    def progress(self, state: State) -> Progress:
        """How many tasks are done: those that are not made of tasks themselves are counted.

        Args:
            state: The state of a run of this plan, or of the step that runs it.
        """
        done, total = self._level.count(state)
        return Progress(total if state.done else done, total)

    def draw(self, state: State | None = None) -> str:
        """The tasks as a tree of text; a task without a remark comes after the one above it.

        Args:
            state: Of a run of this plan, or of the step that runs it; marks what each task has come
                to.
        """
        return as_tree(self.name, self._level.boxes(state, looked_at=state is not None))

    def mermaid(self, state: State | None = None) -> str:
        """The tasks as a flowchart of Mermaid.

        Args:
            state: As in `draw`; each status has a symbol, and a class with colours of its own.
        """
        return as_flowchart(self._level.boxes(state, looked_at=state is not None))


# --- details --------------------------------------------------------------------------------------


def _below(task: Task[Any]) -> _Level | None:
    """The tasks that a task is made of, be they a plan's."""
    if isinstance(task._fn, Plan):
        return task._fn._level
    return task._fn if isinstance(task._fn, _Level) else None


def _levels(top: _Level) -> list[_Level]:
    """This level and those below it; once each, however many tasks run the same plan."""
    found = {top: None}
    todo = [top]
    while todo:
        below = [level for level in todo.pop()._levels_below() if level not in found]
        found.update(dict.fromkeys(below))
        todo += below
    return list(found)


def _height(level: _Level) -> int:
    """How many steps deep what is declared so far is, as far as that may be."""
    height, layer = 0, [level]
    while layer and height <= MAX_DEPTH:
        height += 1
        layer = list({below: None for each in layer for below in each._levels_below()})
    return height


def _check_fn(fn: Any, what: str, plan: Plan) -> None:
    if not callable(fn):
        raise UsageError(f"{what} runs a function, not {type(fn).__name__}: {fn!r:.100}")
    inner = inspect.unwrap(unwrap(fn))
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise UsageError(
            f"{what}: {function_name(fn)} is a generator: a task's function returns its result once"
        )
    if isinstance(fn, Plan) and plan._level in _levels(fn._level):
        raise UsageError(f"{what}: plan {plan.name!r} would run itself")


def _check_options(options: dict[str, Any], what: str, *, has_fn: bool) -> None:
    known = [*StepOptions.__annotations__, "after", "returns" if has_fn else "limit"]
    if odd := sorted(set(options) - set(StepOptions.__annotations__)):
        hint = "; a limit is for a task that is made of tasks" if "limit" in odd else ""
        raise UsageError(
            f"{what} has no option {', '.join(odd)}: there are {', '.join(sorted(known))}{hint}"
        )
    retry, timeout = options.get("retry"), options.get("timeout")
    if not (retry is None or isinstance(retry, Retry)):
        raise UsageError(f"{what}: retry= takes a Retry, not {type(retry).__name__}")
    if timeout is not None:
        duration(timeout, f"{what}: timeout=")
    if not isinstance(options.get("at_most_once", False), bool):
        raise UsageError(f"{what}: at_most_once= is True or False, not {options['at_most_once']!r}")


def _say(step: Step) -> str:
    return f"step {step.path!r}" if step.path else "the run"


def _children(node: State | None) -> dict[str, State]:
    return {} if node is None else {child.name: child for child in node.states or ()}


def _box(task: Task[Any], node: State | None, *, looked_at: bool) -> Box:
    below = _below(task)
    return Box(
        task.name,
        tuple(each._place for each in task.after),
        tuple(_remarks(task)),
        () if below is None else below.boxes(node, looked_at=looked_at),
        _status(node) if looked_at else None,
    )


def _remarks(task: Task[Any]) -> list[str]:
    """What there is to say of a task beside its place."""
    found: list[str] = []
    retry: Retry | None = task._options.get("retry")
    below = _below(task)
    limit = None if below is None else below.policy.limit
    if retry is not None and retry.attempts > 1:
        found.append(f"{retry.attempts} attempts")
    if (timeout := task._options.get("timeout")) is not None:
        found.append(f"within {duration(timeout, 'timeout='):g} s")
    if task._options.get("at_most_once"):
        found.append("at most once")
    if limit is not None:
        count = limit if isinstance(limit, int) else limit.total_tokens
        found.append(f"{count:g} at a time")
    return found


def _status(node: State | None) -> Status:
    if node is None:
        return "not begun"
    if node.done:
        return "done"
    if node.failed:
        return "failed"
    if node.pending:
        return "retrying" if node.errs else "pending"
    return "proceeding" if node.proceeding else "not begun"
