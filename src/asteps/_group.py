"""Groups: concurrent children that the code of a block begins.

Each child that has to run has a task of its own, and they start in the order in which they were
given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    TypeVar,
    TypeVarTuple,
    Unpack,
    cast,
    overload,
)

import anyio.abc

from ._body import essence
from ._codec import snapshot
from ._crew import Call, Crew, make_policy
from ._failure import error_of
from ._map import MapOptions, Mapping
from ._pass import NotYet, PassOver
from ._paths import join
from ._payload import UNSET, Spec
from ._policy import Duration, PollOptions, Retry, StepOptions
from ._slot import Slot
from ._state import State
from .errors import Failure, StepError, UsageError

__all__ = ["Child", "GroupOf"]

S = TypeVar("S")
T = TypeVar("T")
U = TypeVar("U")
I = TypeVar("I")  # noqa: E741 - of items
K = TypeVar("K")
Ts = TypeVarTuple("Ts")


class Child(Generic[T]):
    """A concurrent child of a group."""

    def __init__(self, crew: Any, call: Any, mapping: Any = None) -> None:
        self._crew: Crew = crew
        self._call: Call = call
        self._map: Mapping | None = mapping

    @property
    def _node(self) -> State:
        return self._call[0]

    if not TYPE_CHECKING:  # for type checkers it is an error as it is

        def __await__(self) -> NoReturn:
            raise UsageError(
                f"child {self._node.name!r} of a group is not awaited: it runs, and its result is "
                "there when the block has ended"
            )

    def __repr__(self) -> str:
        return f"<Child {self._node!r}>"

    @property
    def state(self) -> State:
        """A snapshot of the child's node, at any time."""
        return snapshot(self._node)

    @property
    def result(self) -> T:
        """What the child returned, once the group's block has ended.

        Raises:
            StepError: It failed, or the group ended before it had come to anything.
            UsageError: The block has not ended.
        """
        crew, node = self._crew, self._node
        if not crew.step._over:
            raise UsageError(
                f"the result of {node.name!r} is known when the group's block has ended"
            )
        values = crew.values
        if self not in values:
            path = join(crew.step.path, node.name)
            if node.failed:
                raise error_of(node, path)
            if not node.done:
                why = "the group ended before this child had come to anything"
                raise StepError(path, Failure(message=why, kind="interrupted"))
            values[self] = (
                crew.step._replay(node, self._call[3]) if self._map is None else self._map.results()
            )
        return cast("T", values[self])


class GroupOf(Generic[S]):
    """Concurrent children, until the block ends: see `Step.group`.

    The methods begin a child and give a `Child`; its result is there when the block has ended.
    """

    def __init__(self, parent: Any, name: str, options: dict[str, Any]) -> None:
        self._parent = parent
        self._name: str = parent._checked(name)
        try:
            self._policy = make_policy(options, f"group {name!r:.100}")
        except UsageError as exc:
            raise parent._abort(exc) from None
        self._crew: Crew | None = None

    if not TYPE_CHECKING:  # for type checkers it is an error as it is

        def _misused(self, *_: object) -> NoReturn:
            raise UsageError(f"group {self._name!r} is used as: async with s.group(…) as g")

        __enter__ = __exit__ = __await__ = _misused

    async def __aenter__(self) -> GroupOf[S]:
        parent = self._parent
        name = self._name
        parent._check_use(name)
        try:
            if self._crew is not None:
                raise UsageError(f"group {name!r} has been used before: s.group() makes a new one")
            crew = Crew(parent, name, self._policy, call_of=_call_of, begin=_begin, values={})
        except UsageError as exc:
            raise parent._abort(exc) from None
        self._crew = crew
        crew.surround()
        crew.step._begin_block()
        await crew.begin_tasks()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        crew = self._crew
        if crew is None or crew.tasks is None:
            return
        if isinstance(exc, GeneratorExit):
            crew.left(exc)
            return
        crew.step._end_block()
        left_by = exc
        try:
            if exc is None:
                await crew.work.conclude(crew.step, self._round)
            elif isinstance(essence(exc), PassOver | NotYet):  # children that work come first
                await crew.end_tasks()
                crew.work.tell_due(crew.step)
            else:
                await crew.end_tasks(exc)
        except BaseException as raised:
            left_by = raised
            raise
        finally:
            crew.step._over = True
            crew.forget_unstarted()
            crew.take_back()
            crew.left(left_by or crew.before)
        if crew.before is not None:
            raise crew.before

    async def _round(self) -> bytes | None:
        crew = cast("Crew", self._crew)
        if crew.tasks is not None:
            await crew.end_tasks()
        else:
            crew.again()
        if crew.todo:
            await crew.run_tasks(self._start)
        return crew.verdict()

    async def _start(self) -> None:
        crew = cast("Crew", self._crew)
        crew.held = False
        for _ in range(len(crew.todo)):
            cast("anyio.abc.TaskGroup", crew.tasks).start_soon(crew.next)

    def _begin(
        self,
        name: str,
        fn: Any,
        args: tuple[Any, ...],
        execution: Any,
        options: dict[str, Any],
        spec: Spec | None = None,
    ) -> Child[Any]:
        """A child, which is run if it has not come to anything."""
        crew = self._open_crew()
        step = crew.step
        if spec is None:
            spec = step._spec(fn, options.pop("returns", UNSET))
        node = step._recorded.pop(name, None) if step._recorded else None
        fresh = node is None
        if node is None:
            name, node = step._new(name)
        child: Child[Any] = Child(crew, (node, fn, args, spec, execution))
        if options or not fresh:
            crew.work_on(child).take_options(options)
        if node._done is not None:
            crew.answered(node)
        else:
            self._ask(crew, child)
        return child

    def _ask(self, crew: Crew, child: Child[Any]) -> None:
        crew.ask((child,))
        if crew.tasks is not None and not (crew.decided or crew.held):
            crew.tasks.start_soon(crew.next)

    def _open_crew(self) -> Crew:
        crew = self._crew
        if crew is None:
            raise self._parent._abort(
                UsageError(f"group {self._name!r} is used outside its block: async with s.group(…)")
            )
        parent = crew.parent
        if parent._ended is not None or parent._over or crew.run.halted is not None:
            parent._check_open()
        if crew.tasks is None or not crew.step._open:
            raise parent._abort(
                UsageError(f"the block of group {self._name!r} has ended: it takes no children now")
            )
        return crew

    def token_for(self, name: str, *, inputs: object = UNSET) -> str:
        """The token of a child of the group: see `Step.token_for`."""
        return cast("str", self._open_crew().step.token_for(name, inputs=inputs))

    # -- children --

    @overload
    def do(
        self,
        name: str,
        fn: Callable[[S, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[S, *Ts], Awaitable[object]],
        /,
        *args: *Ts,
        returns: type[U],
        **options: Unpack[StepOptions],
    ) -> Child[U]: ...
    @overload
    def do(
        self,
        name: str,
        fn: Callable[[S, *Ts], Awaitable[object]],
        /,
        *args: *Ts,
        returns: object,
        **options: Unpack[StepOptions],
    ) -> Child[Any]: ...
    @overload
    def do(
        self,
        fn: Callable[[S, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    def do(self, name: Any, fn: Any = UNSET, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]  # as Step.do
        """Begin ``fn(child, *args)`` as the child step ``name``; otherwise like `Step.do`."""
        if type(name) is not str:
            name, fn, args = self._open_crew().step._named(name, fn, args)
        return self._begin(name, fn, args, type(self._parent), options)

    @overload
    def call(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    @overload
    def call(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    @overload
    def call(
        self,
        name: str,
        fn: Callable[[*Ts], object],
        /,
        *args: *Ts,
        returns: type[U],
        **options: Unpack[StepOptions],
    ) -> Child[U]: ...
    @overload
    def call(
        self,
        name: str,
        fn: Callable[[*Ts], object],
        /,
        *args: *Ts,
        returns: object,
        **options: Unpack[StepOptions],
    ) -> Child[Any]: ...
    @overload
    def call(
        self,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    @overload
    def call(
        self,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> Child[T]: ...
    def call(self, name: Any, fn: Any = UNSET, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]  # as Step.call
        """Begin ``fn(*args)`` as the child step ``name``; otherwise like `Step.call`."""
        if type(name) is not str:
            name, fn, args = self._open_crew().step._named(name, fn, args)
        return self._begin(name, fn, args, None, options)

    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], Awaitable[K]],
        check: Callable[[K], Awaitable[T | None]],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> Child[T]: ...
    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], Awaitable[K]],
        check: Callable[[K], T | None],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> Child[T]: ...
    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], K],
        check: Callable[[K], Awaitable[T | None]],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> Child[T]: ...
    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], K],
        check: Callable[[K], T | None],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> Child[T]: ...
    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], object],
        check: Callable[[Any], object],
        *,
        every: Duration | Retry,
        returns: type[U],
        **options: Unpack[PollOptions],
    ) -> Child[U]: ...
    @overload
    def poll(
        self,
        name: str,
        start: Callable[[], object],
        check: Callable[[Any], object],
        *,
        every: Duration | Retry,
        returns: object,
        **options: Unpack[PollOptions],
    ) -> Child[Any]: ...
    def poll(
        self,
        name: str,
        start: Callable[[], Any],
        check: Callable[[Any], Any],
        *,
        every: Duration | Retry,
        **options: Any,
    ) -> Any:
        """Begin a long-running task, and check on it; otherwise like `Step.poll`."""
        step = self._open_crew().step
        poll, spec = step._make_poll(name, start, check, every, options)
        return self._begin(step._checked(name), poll, (), type(self._parent), options, spec)

    @overload
    def map(
        self,
        name: str,
        fn: Callable[[S, I], Awaitable[T]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        **options: Unpack[MapOptions],
    ) -> Child[list[T]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[S, I], Awaitable[object]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        returns: type[U],
        **options: Unpack[MapOptions],
    ) -> Child[list[U]]: ...
    @overload
    def map(
        self,
        name: str,
        fn: Callable[[S, I], Awaitable[object]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        returns: object,
        **options: Unpack[MapOptions],
    ) -> Child[list[Any]]: ...
    def map(
        self,
        name: str,
        fn: Callable[[Any, Any], Any],
        items: Iterable[Any],
        *,
        key: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Any:
        """Begin to run a function for each item; otherwise like `Step.map`."""
        crew = self._open_crew()
        mapping = Mapping(crew.step, name, fn, items, key, options)
        child: Child[Any] = Child(crew, mapping.call, mapping)
        if mapping.is_settled():
            mapping.settled()
            crew.answered(child._node)
        else:
            crew.works[child] = mapping.work
            self._ask(crew, child)
        return child


def _call_of(child: Child[Any]) -> Call:
    return child._call


def _begin(child: Child[Any], slot: Slot | None) -> Coroutine[Any, Any, Any]:
    if child._map is not None:
        return child._map.run(slot)
    return child._crew.work_on(child, slot).run()
