"""The step: what a body does with it, and how one step is run until it comes to something.

Here are the rules of concurrency. They belong to the parent step, so that a group, a raw task
group and ``gather`` behave alike:

- *Drain*: a pending step ends the pass only when no sibling under the same parent still runs a
  body. If its time comes while one does, it is called again in place.
- *Close*: a step that runs in another task than its parent's body is cancelled when that body
  ends, and waited for. Nothing of a pass runs after its driver has returned.

A plain child (no options, nothing recorded) takes the short way through `Step.do` and `Step.call`,
where a function call costs as much as a tenth of a step; everything else goes through `Work`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from types import CoroutineType
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar, TypeVarTuple, Unpack, cast, overload

import anyio
from msgspec import Raw

from ._body import (
    NOT_RUNNING,
    OWN,
    Running,
    as_coroutine,
    check_at_large,
    ending,
    pattern_of,
    swallowed,
)
from ._codec import snapshot
from ._crew import GroupOptions
from ._events import InfoSaved, Kind
from ._group import GroupOf
from ._loop import Wakeup
from ._map import MapOptions, Mapping
from ._outcome import Outcome
from ._pass import Abort, Left, Pass, PassOver, Signal, Wake, make_not_yet
from ._paths import MAX_DEPTH, MAX_NAME, check_name, join
from ._payload import SMALL, UNSET, Spec, function_name
from ._policy import Duration, PollOptions, Retry, StepOptions, duration
from ._poll import NOTHING, Poll, Sleep
from ._sibling import is_inside
from ._slot import Slot
from ._state import ABSENT, END, State, detail, moment
from ._token import hash_of, new_token_name, token_part
from ._work import Work
from .errors import DuplicateStepError, Failure, StepError, UsageError, type_names

__all__ = ["Group", "Step"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")
I = TypeVar("I")  # noqa: E741 - of items
K = TypeVar("K")
Ts = TypeVarTuple("Ts")


class Planned(Protocol[T_co]):
    """A step that is known before it runs: what `Plan.task` gives."""

    def _result_for(self, step: Any, /) -> T_co: ...


class Step:
    """One execution of a step's body, and the way to run the steps below it.

    A body is given its own Step and must not keep it: once the body has ended, every method raises.

    Attributes:
        name: The step's name; of the root, the function's.
    """

    # Most steps are leaves that use none of these, so instances set only what differs.
    _recorded: dict[str, State]  # children that the tree has and this execution has not asked for
    _states: list[State]  # the node's children
    _announced = False  # the node's start is in the store, or in the next save
    _strict = False  # children were renamed: new ones go the long way
    _seen: set[str] | None = None  # those, and the names that are in use; None before the first
    _active = 0  # children whose bodies run, or wait in place
    _parked = 0  # children that wait for the others to finish before they end the pass
    _still: anyio.Event | None = None  # set when no child is active any more
    _ended: Signal | None = None  # what ended this execution; later calls raise it again
    _over = False  # the body has ended; a task that it left behind is refused
    _left = False  # ... by an exception, so such a task is nobody's mistake
    _ended_here = False  # a signal was raised in the body's own task
    _wakes: dict[Any, Wake] | None = None  # when parked children are due
    _watched = False  # one of them waits for the others to finish, for all
    _changed: anyio.Event | None = None  # set when the rest of them should look again
    _resting = 0  # of the active children's weight, that of those which only wait
    _stands = False  # nothing below works, and the body waits for it
    _weight = OWN  # in the parent's count of active children
    _slot: Slot | None = None  # under the limit of the parent's group
    _late = 0  # of the active children's weight, that of those which only others keep alive
    _cancelled = False  # the driver was, while children ran in other tasks
    _mark: object = None  # of the thread in which a function is called for it
    _crew: Any = None  # of a group, a map or a plan: its body waits for its children
    _tasks: Any = None  # of a plan, which its children are
    _open = False  # ... but the block of the group is still being run
    _body: Running = NOT_RUNNING
    _own_path: str | None = None
    _own_pattern: str | None = None
    _outcome: Outcome[Any] | None = None

    def __init__(self, run: Pass, node: State, parent: Step | None, name: str) -> None:
        self._run = run
        self._node = node
        self._parent = parent
        self.name = name

    # -- what it is --

    @property
    def path(self) -> str:
        """The names from below the root to this step; ``""`` for the root."""
        if self._own_path is None:
            parent = self._parent
            self._own_path = "" if parent is None else join(parent.path, self.name)
        return self._own_path

    @property
    def run_id(self) -> str | None:
        """The run; ``None`` for one that is in no store."""
        return self._run.run_id

    @property
    def attempt(self) -> int:
        """Failures since the last recover or reset, + 1."""
        return self._node.attempt

    @property
    def interruptions(self) -> int:
        """How often this attempt was found begun, with nobody at work on it."""
        return self._node.interruptions

    @property
    def epoch(self) -> int:
        """Number of this holder of the run; grows with each holder. 0 without a store."""
        return self._run.epoch

    @property
    def state(self) -> State:
        """A snapshot of the step's node; changing it changes nothing."""
        return snapshot(self._node)

    @property
    def outcome(self) -> Outcome[Any]:
        """What the run of an `open_run` block came to, once the block has ended.

        Raises:
            UsageError: It has not.
        """
        if self._outcome is None:
            raise UsageError("s.outcome is known when the block of open_run() has ended")
        return self._outcome

    @property
    def token(self) -> str:
        """An idempotency token for the outside world (a cloud API's ``ClientToken``).

        The same on every attempt and in every process, different for every step, every run and
        after every reset. blake2b over the run's nonce and the generation of every node on the
        path; 32 hexadecimal digits.
        """
        line: list[tuple[str, int]] = []
        step: Step | None = self
        while step is not None and step._parent is not None:
            line.append(token_part(step._node))
            step = step._parent
        root = self._run.root.detail
        line.append(("", 0 if root is None else root.generation))
        return hash_of(self._run.record.nonce, line[::-1])

    def token_for(self, name: str, *, inputs: object = UNSET) -> str:
        """The token of a child, which need not have been run yet.

        Args:
            name: The child's.
            inputs: What the child will be given as ``inputs=``: where that resets it, this is the
                token that it has then.

        Raises:
            UsageError: The name is not allowed, or the inputs cannot be encoded.
        """
        try:
            check_name(name)
            child = self._node.child(name)
            if child is None:
                part = (new_token_name(self._node, name) or name, 0)
            else:
                part = token_part(child)
                if inputs is not UNSET and child.detail is not None and child.detail.inputs:
                    what = f"the inputs of step {join(self.path, name)!r}"
                    if child.detail.inputs != self._run.payloads.digest(inputs, what):
                        part = (part[0], part[1] + 1)
        except UsageError as exc:
            raise self._abort(exc) from None
        return hash_of(self.token, [part])

    # -- info --

    @property
    def info(self) -> Any:
        """What the step wrote down, as plain data; ``None`` if nothing.

        Assigned, it rides along with the next save; `save_info` waits until it is durable.
        """
        raw = self._node.info
        return None if raw is ABSENT else self._run.payloads.plain(raw)

    @info.setter
    def info(self, value: object) -> None:
        self._check_open()
        try:
            data = self._run.payloads.encode(value, f"the info of step {self.path!r}")
        except UsageError as exc:
            raise self._abort(exc) from exc
        self._write_info(data)

    def _write_info(self, data: bytes) -> None:
        self._node.info = Raw(data)
        self._announce()
        if self._run.saver is not None:
            self._run.saver.touch(self.path, self._node)

    def info_as(self, type: type[T], /) -> T | None:
        """What the step wrote down, decoded to this type; ``None`` if nothing."""
        raw = self._node.info
        if raw is ABSENT:
            return None
        try:
            value: T = self._run.payloads.decode(raw, type, f"the info of step {self.path!r}")
        except UsageError as exc:
            raise self._abort(exc) from exc
        return value

    async def save_info(self, info: object, /) -> None:
        """Write down how far the step has come, so that it survives a crash.

        It is not the step's result. When this returns, it is in the store.

        Args:
            info: Anything that msgspec encodes; replaces what was written before.
        """
        self.info = info
        if self._run.observers:
            self._run.emit(
                InfoSaved(run_id=self.run_id, path=self.path, at=moment(self._run.now()))
            )
        await self._run.saved(urgent=True)

    # -- of a plan --

    def result_of(self, task: Planned[T], /) -> T:
        """What another task of the plan returned, for a step that runs after it.

        Args:
            task: What `Plan.task` gave. The task in whose body this is asked comes after it, or
                one above does; the body may be that of a step further below.

        Returns:
            What the task returned, as it comes back from its JSON; of a task that is made of tasks,
            what these came to, as of a `Plan`.

        Raises:
            UsageError: It is not certain that the task is done by now, or it is another plan's.
        """
        self._check_open()
        look = getattr(task, "_result_for", None)
        try:
            if look is None:
                raise UsageError(f"result_of() takes what plan.task() gave, not {task!r:.100}")
            found: T = look(self)
        except UsageError as exc:
            raise self._abort(exc) from exc.__cause__
        return found

    # -- not yet, never --

    def pending(self, after: Duration, why: str = "") -> NoReturn:
        """Say that this step is not finished: call it again later.

        Uses up no attempt. In a service the wait happens in place, in a reconciler it ends the
        pass; either way the step is called again with the same arguments.

        Args:
            after: Seconds (or a ``timedelta``) until then; finite, above 0, at most a year.
            why: What it waits for, for people.
        """
        self._check_open()
        signal = make_not_yet(self._run, after, why)
        self._ended = signal
        self._ended_here = self._body.cr_running
        raise signal

    def fail(self, why: str) -> NoReturn:
        """Fail for good: neither this step nor an ancestor retries it.

        Raises:
            StepError: Always; let it leave the body.
        """
        self._check_open()
        kinds = type_names(StepError)
        raise StepError(self.path, Failure(message=str(why) or "failed", types=kinds, final=True))

    # -- children --

    @overload
    async def do(
        self,
        name: str,
        fn: Callable[[Step, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    async def do(
        self,
        name: str,
        fn: Callable[[Step, *Ts], Awaitable[object]],
        /,
        *args: *Ts,
        returns: type[U],
        **options: Unpack[StepOptions],
    ) -> U: ...
    @overload
    async def do(
        self,
        name: str,
        fn: Callable[[Step, *Ts], Awaitable[object]],
        /,
        *args: *Ts,
        returns: object,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    @overload
    async def do(
        self,
        fn: Callable[[Step, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    async def do(self, name: Any, fn: Any = UNSET, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]  # mypy does not match *args: Any with *args: *Ts
        """Run ``fn(child, *args)`` as the child step ``name``, unless it is done already.

        ``do(fn, *args)`` takes the function's name. An empty name numbers the step by its place
        in the body (``#0``, ``#1``, …).

        Args:
            name: 1 to 200 characters, unique among the steps of this body; not beginning with
                ``#`` or ``$``.
            fn: The body: an async function of the child's Step and ``args``.
            *args: Passed on. Keyword arguments go through ``functools.partial``.
            **options: See `StepOptions`.

        Returns:
            What ``fn`` returned, as it comes back from its JSON; on later passes the same, without
            running ``fn``. When it returns, the outcome is in the store (``save="step"``).

        Raises:
            StepError: The step failed, now or on an earlier pass. Nothing else is for a body to
                catch: misuse, conflicts and a lost store end the pass and leave the driver.

        Cancellation: A step whose function had returned is handed to the saver; otherwise it is
            interrupted, and runs again on the next pass.
        """
        if type(name) is not str:
            name, fn, args = self._named(name, fn, args)
        seen = self._seen
        if seen is None:
            seen = self._enter()
        if self._ended is not None:
            self._check_open()
        run = self._run
        node = self._recorded.pop(name, None) if self._recorded else None
        if node is not None and node._done is not None and not (node.errs or options):
            try:
                return run.specs[fn].decode(node.result)
            except Exception:  # the function is new, there is no result, or it does not fit
                return self._replay(node, self._spec(fn))
        if options or self._active or self._strict or not self._body.cr_running:
            return await self._work(name, node, fn, args, Step, options)
        try:
            spec = run.specs[fn]
        except (KeyError, TypeError):
            spec = self._spec(fn)
        if node is None:
            if (
                name in seen
                or name < "%"  # begins with # or $, or is empty; or needs a closer look
                or not name.isprintable()
                or len(name) > 200
            ):
                return await self._work(name, node, fn, args, Step, options)
            node = State(name)
            states = self._states
            if states and not run.quiet:
                node.place = states[-1].place + 1
            states.append(node)
            seen.add(name)
        elif node._started is not None or node._done is not None or node.detail is not None:
            return await self._work(name, node, fn, args, Step, options)
        if not run.ready:
            if run.shown:
                return await self._shown(name, node, fn, args, spec, Step)
            return await self._work(name, node, fn, args, Step, options)

        node._started = run.now()
        self._active = OWN
        child = Step(run, node, self, name)
        try:
            try:
                body = fn(child, *args) if args else fn(child)
                if type(body) is not CoroutineType:
                    body = as_coroutine(body, fn)
                child._body = body
                value = await body
                if child._seen is not None or child._ended is not None or run.at_large:
                    await child._leave()
            except BaseException as exc:
                return await Work(self, name, node, fn, args, spec, Step).run_from(child, exc)
            try:
                data = run.encode(value)
                result = spec.decode(data)
                if (
                    len(data) > SMALL
                    or data.find(b"null") >= 0  # `in` costs ten times as much
                    or (spec.exact and (result != value or type(result) is not type(value)))
                ):
                    run.payloads.vet(value, data, result, spec, name)
            except Exception:
                work = Work(self, name, node, fn, args, spec, Step)
                data, result = await work.fit(value)
            node.result = data
            node._done = run.now()
            if not run.quiet:
                if (saved := self._hand_over(name, node)) is not None:
                    await saved
                run.check_saver()
            elif run.idle:
                run.progress()
            return result
        finally:
            self._active -= OWN
            if self._still is not None and not self._active:
                self._still.set()

    @overload
    async def call(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    async def call(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    async def call(
        self,
        name: str,
        fn: Callable[[*Ts], object],
        /,
        *args: *Ts,
        returns: type[U],
        **options: Unpack[StepOptions],
    ) -> U: ...
    @overload
    async def call(
        self,
        name: str,
        fn: Callable[[*Ts], object],
        /,
        *args: *Ts,
        returns: object,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    @overload
    async def call(
        self,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    async def call(
        self,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    async def call(self, name: Any, fn: Any = UNSET, /, *args: Any, **options: Any) -> Any:  # type: ignore[misc]  # as above
        """Run ``fn(*args)``, a function that knows nothing of steps, as the child step ``name``.

        A sync function runs in a worker thread (anyio's default limiter: 40 at a time), which is
        never abandoned: a timeout or a cancellation takes effect when it has returned. If it
        returns an awaitable, that is awaited on the loop. Otherwise like `do`.
        """
        if type(name) is not str:
            name, fn, args = self._named(name, fn, args)
        seen = self._seen
        if seen is None:
            seen = self._enter()
        if self._ended is not None:
            self._check_open()
        run = self._run
        node = self._recorded.pop(name, None) if self._recorded else None
        if node is not None and node._done is not None and not (node.errs or options):
            try:
                return run.specs[fn].decode(node.result)
            except Exception:  # the function is new, there is no result, or it does not fit
                return self._replay(node, self._spec(fn))
        if options or self._active or self._strict or not self._body.cr_running:
            return await self._work(name, node, fn, args, None, options)
        try:
            spec = run.specs[fn]
        except (KeyError, TypeError):
            spec = self._spec(fn)
        if node is None:
            if (
                name in seen
                or name < "%"  # begins with # or $, or is empty; or needs a closer look
                or not name.isprintable()
                or len(name) > 200
            ):
                return await self._work(name, node, fn, args, None, options)
            node = State(name)
            states = self._states
            if states and not run.quiet:
                node.place = states[-1].place + 1
            states.append(node)
            seen.add(name)
        elif node._started is not None or node._done is not None or node.detail is not None:
            return await self._work(name, node, fn, args, None, options)
        if not (run.ready and spec.is_async):
            if run.shown and spec.is_async:
                return await self._shown(name, node, fn, args, spec, None)
            return await self._work(name, node, fn, args, None, options)

        node._started = run.now()
        self._active = OWN
        try:
            try:
                value = await (fn(*args) if args else fn())
                if run.at_large:
                    check_at_large(run, self, join(self.path, name))
            except BaseException as exc:
                return await Work(self, name, node, fn, args, spec, None).run_from(None, exc)
            try:
                data = run.encode(value)
                result = spec.decode(data)
                if (
                    len(data) > SMALL
                    or data.find(b"null") >= 0  # `in` costs ten times as much
                    or (spec.exact and (result != value or type(result) is not type(value)))
                ):
                    run.payloads.vet(value, data, result, spec, name)
            except Exception:
                work = Work(self, name, node, fn, args, spec, None)
                data, result = await work.fit(value)
            node.result = data
            node._done = run.now()
            if not run.quiet:
                if (saved := self._hand_over(name, node)) is not None:
                    await saved
                run.check_saver()
            elif run.idle:
                run.progress()
            return result
        finally:
            self._active -= OWN
            if self._still is not None and not self._active:
                self._still.set()

    async def _shown(
        self,
        name: str,
        node: State,
        fn: Any,
        args: tuple[Any, ...],
        spec: Spec,
        execution: type[Step] | None,
    ) -> Any:
        """The short way of `do` and `call`, where observers are to be shown what happens."""
        run, observers, child, shown = self._run, self._run.observers, None, None
        node._started = now = run.now()
        self._active = OWN
        path = join(self.path, name)
        try:
            try:
                if observers:
                    run.emit_start(path, now, node)
                if observers.around:
                    kind: Kind = "call" if execution is None else "do"
                    shown = run.call_of(kind, path, pattern_of(self, name, path), node)
                    observers.enter(shown)
                if execution is None:
                    value = await fn(*args)
                    if run.at_large:
                        check_at_large(run, self, path)
                else:
                    child = execution(run, node, self, name)
                    body = fn(child, *args)
                    if type(body) is not CoroutineType:
                        body = as_coroutine(body, fn)
                    child._body = body
                    value = await body
                    if child._seen is not None or child._ended is not None or run.at_large:
                        await child._leave()
            except BaseException as exc:
                work = Work(self, name, node, fn, args, spec, execution)
                return await work.run_from(child, exc, shown)
            try:
                data, result = run.payloads.result(value, spec, name)
            except Exception:
                work = Work(self, name, node, fn, args, spec, execution)
                work._shown = shown
                data, result = await work.fit(value)
            node.result = data
            node._done = now = run.now()
            if observers:
                run.emit_end(path, now)
            saved = None if run.quiet else self._hand_over(name, node)
            if shown is not None:
                observers.leave(shown, "done", None)  # while the store is at work
            if saved is not None:
                await saved
            if not run.quiet:
                run.check_saver()
            elif run.idle:
                run.progress()
        except BaseException as exc:
            if shown is not None:
                observers.leave(shown, *ending(exc))
            raise
        else:
            return result
        finally:
            self._active -= OWN
            if self._still is not None and not self._active:
                self._still.set()

    # -- concurrent children --

    def group(self, name: str, /, **policy: Unpack[GroupOptions]) -> Group:
        """Run children concurrently: ``async with s.group("parts") as g: g.do(…); g.call(…)``.

        ``g.do``, ``g.call``, ``g.poll`` and ``g.map`` begin a child of the step ``name``, in the
        order in which they are called, and give a `Child`. The block ends when all have come to
        something; then `Child.result` is there. It is a namespace with a policy, not a step that
        is skipped: on every pass each child answers for itself, and one that is new runs, unless
        the group was closed by ``enough`` or ``on_error="cancel"``.

        Args:
            name: As in `do`.
            **policy: See `GroupOptions`.

        Raises:
            StepError: More than ``tolerate`` children failed; ``errors`` has each one's.

        Cancellation: Children that were cancelled are interrupted, not failed. An error that is
        raised in the block cancels them, and leaves it as it is.
        """
        return GroupOf(self, name, dict(policy))

    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[Step, I], Awaitable[T]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        **options: Unpack[MapOptions],
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[Step, I], Awaitable[object]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        returns: type[U],
        **options: Unpack[MapOptions],
    ) -> list[U]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[Step, I], Awaitable[object]],
        items: Iterable[I],
        *,
        key: Callable[[I], str | int] | None = None,
        returns: object,
        **options: Unpack[MapOptions],
    ) -> list[Any]: ...
    async def map(
        self,
        name: str,
        fn: Callable[[Any, Any], Any],
        items: Iterable[Any],
        *,
        key: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> Any:
        """Run ``fn(child, item)`` for each item, as children of the step ``name``.

        Workers take the items in their order, and give back their place while an item waits.
        Otherwise it is a `group`; it holds 100,000 items with ease.

        Args:
            name: As in `do`.
            fn: The body: an async function of the child's Step and an item.
            items: Read at once.
            key: The name of an item's step; without it, the item itself, a ``str`` or an ``int``.
            **options: See `MapOptions`. The options of a step hold for each item. ``inputs`` may
                be a function of the item.

        Returns:
            What ``fn`` returned, in the order of the items; with ``enough`` or ``tolerate``, of
            those that are done.

        Raises:
            StepError: More than ``tolerate`` items failed; ``errors`` has each one's.

        Cancellation: As in `group`.
        """
        mapping = Mapping(self, name, fn, items, key, options)
        if not self._active and self._body.cr_running:
            return await mapping.run()
        # Another task than this step's body runs it: it must be possible to end it.
        with anyio.CancelScope() as scope:
            self._run.scopes[scope] = self
            try:
                return await mapping.run()
            finally:
                self._run.left(scope)
        raise PassOver  # the scope was cancelled: the body, or the pass, has ended

    # -- waiting --

    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], Awaitable[K]],
        check: Callable[[K], Awaitable[T | None]],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> T: ...
    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], Awaitable[K]],
        check: Callable[[K], T | None],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> T: ...
    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], K],
        check: Callable[[K], Awaitable[T | None]],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> T: ...
    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], K],
        check: Callable[[K], T | None],
        *,
        every: Duration | Retry,
        **options: Unpack[PollOptions],
    ) -> T: ...
    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], object],
        check: Callable[[Any], object],
        *,
        every: Duration | Retry,
        returns: type[U],
        **options: Unpack[PollOptions],
    ) -> U: ...
    @overload
    async def poll(
        self,
        name: str,
        start: Callable[[], object],
        check: Callable[[Any], object],
        *,
        every: Duration | Retry,
        returns: object,
        **options: Unpack[PollOptions],
    ) -> Any: ...
    async def poll(
        self,
        name: str,
        start: Callable[[], Any],
        check: Callable[[Any], Any],
        *,
        every: Duration | Retry,
        **options: Any,
    ) -> Any:
        """Start a long-running task, and check on it until it has finished.

        However long it polls it is one step: its info has the task ID, how many checks there were,
        when the first and the last were made, and when the next is due. The first check is made at
        once. After a crash, and after `State.recover`, it goes on with the task ID that it has;
        `State.reset` forgets it.

        Args:
            name: As in `do`.
            start: Starts the task and returns its ID, which is in the store before the first
                check. Killed between the two, ``start`` is called again: hand `token_for` to it.
            check: Given the task ID (decoded to the return annotation of ``start``); returns
                ``None`` while the task runs and its result when it has finished, or raises.
            every: Seconds (or a ``timedelta``) from one check to the next. A `Retry` makes the
                pauses grow: its ``delay``, ``factor``, ``max_delay`` and ``jitter`` are taken.
            **options: See `StepOptions`. ``retry`` covers ``start`` and ``check``, and a new
                attempt does not start a new task. ``returns`` is the type of the result.

        Returns:
            What ``check`` returned that was not ``None``.

        Raises:
            StepError: ``start`` or ``check`` raised, or the task was not finished in ``timeout``.

        Cancellation: As in `do`. Sync functions run in worker threads, as in `call`.
        """
        poll, spec = self._make_poll(name, start, check, every, options)
        return await self._wait_for(name, poll, spec, options)

    async def sleep(self, name: str, seconds: Duration, /) -> None:
        """Wait; when the wait ends is fixed when the step first starts, and survives everything.

        Args:
            name: As in `do`.
            seconds: Seconds (or a ``timedelta``) from the first start; 0 to a year.

        Cancellation: The step is interrupted; its end stays.
        """
        try:
            length = duration(seconds, f"sleep({name!r:.100}, …)", zero=True)
        except UsageError as exc:
            raise self._abort(exc) from None
        await self._wait_for(name, Sleep(length), NOTHING, {})

    # -- the parent's part --

    def _enter(self) -> set[str]:
        """Look up the recorded children; once per execution, before the first child.

        Raises:
            Abort: Children of this step would be too deep.
        """
        if self._seen is not None:
            return self._seen
        node = self._node
        if self.path.count("/") + 2 > MAX_DEPTH and self._parent is not None:
            raise self._abort(
                UsageError(
                    f"steps below {self.path[:200]!r} would be more than {MAX_DEPTH} steps deep"
                )
            )
        if node.states is None:
            node.states = []
        self._states = node.states
        self._recorded = {c.name: c for c in node.states}
        self._strict = node.detail is not None and node.detail.renames > 0
        self._seen = set(self._recorded)
        return self._seen

    def _announce(self) -> None:
        """Save the start of this step and of its ancestors together with what comes next.

        A start is no save of its own, but no record of a child may be without its parent's.
        """
        saver, step = self._run.saver, self
        while saver is not None and not step._announced:
            step._announced = True
            saver.touch(step.path, step._node)
            if step._parent is None:
                return
            step = step._parent

    def _check_open(self) -> None:
        """Raise again what ended this execution, or the pass."""
        self._run.check_open()
        if self._over or (self._node._done is not None and self._crew is None):
            error = UsageError(
                f"the body of {self.path!r} has ended: its Step is of no use any more"
            )
            raise Left(error) if self._left else self._abort(error)
        if self._ended is not None:
            raise self._ended

    def _abort(self, error: UsageError) -> Abort:
        signal = self._run.abort(error)
        self._ended = signal
        return signal

    def _named(
        self, fn: Any, first: Any, rest: tuple[Any, ...]
    ) -> tuple[str, Any, tuple[Any, ...]]:
        """``do(fn, *args)``: the function's name is the step's."""
        if isinstance(fn, str):  # a subclass of str
            return str(fn), first, rest
        if not callable(fn):
            raise self._abort(
                UsageError(f"a step's name is a str, not {type(fn).__name__}: {fn!r:.100}")
            )
        name = getattr(fn, "__name__", None)
        if name is None or name == "<lambda>":
            raise self._abort(
                UsageError(f"{function_name(fn)} has no name of its own: pass one, do(name, fn, …)")
            )
        return name, fn, rest if first is UNSET else (first, *rest)

    def _spec(self, fn: Any, returns: object = UNSET) -> Spec:
        try:
            if fn is UNSET:
                raise UsageError("a step needs a function: do(name, fn, *args)")
            return self._run.payloads.spec(fn, returns)
        except UsageError as exc:
            raise self._abort(exc) from exc

    def _make_poll(
        self, name: object, start: Any, check: Any, every: Duration | Retry, options: dict[str, Any]
    ) -> tuple[Poll, Spec]:
        """The body of a polling step, and how its result comes back."""
        what = f"poll({name!r:.100}, every=…)"
        spec = self._spec(check, options.pop("returns", UNSET))
        try:
            if odd := sorted(set(options) - set(PollOptions.__annotations__)):
                raise UsageError(
                    f"poll({name!r:.100}, …) has no option {', '.join(odd)}: there are every, "
                    "retry, timeout, inputs and returns"
                )
            pause: float | Retry
            if isinstance(every, Retry):
                duration(every.delay, f"{what}: the delay of a Retry")
                duration(every.max_delay, f"{what}: the max_delay of a Retry")
                pause = every
            else:
                pause = duration(every, what)
        except UsageError as exc:
            raise self._abort(exc) from None
        return Poll(start, check, pause, start_spec=self._spec(start), check_spec=spec), spec

    def _wait_for(
        self, name: object, body: Poll | Sleep, spec: Spec, options: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        name = self._checked(name)
        self._enter()
        node = self._recorded.pop(name, None)
        return self._work(name, node, body, (), Step, options, spec)

    def _checked(self, name: object) -> str:
        if not isinstance(name, str):
            raise self._abort(
                UsageError(f"a step's name is a str, not {type(name).__name__}: {name!r:.100}")
            )
        return str(name)

    def _node_of(self, name: str) -> tuple[str, State]:
        """The node of a group or map, recorded or new."""
        self._enter()
        node = self._recorded.pop(name, None)
        return self._new(name) if node is None else (name, node)

    def _check_use(self, name: str) -> None:
        """Raise what ended this execution, or that it is the wrong one to run a step in."""
        self._check_open()
        if (self._active >= OWN and self._body.cr_running) or is_inside(self):
            raise self._abort(
                UsageError(
                    f"step {join(self.path, name)!r} was asked for in the body of a step below "
                    f"{self.path or 'the root'}: a body uses the Step that it was given"
                )
            )

    def _work(
        self,
        name: str,
        node: State | None,
        fn: Any,
        args: tuple[Any, ...],
        execution: type[Step] | None,
        options: dict[str, Any],
        spec: Spec | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """The long way of `do` and `call`."""
        self._check_use(name)
        if spec is None:
            spec = self._spec(fn, options.pop("returns", UNSET))
        fresh = node is None
        if node is None:
            name, node = self._new(name)
        work = Work(self, name, node, fn, args, spec, execution)
        return work.with_options(options, fresh=fresh)

    def _take_back(self, node: State) -> None:
        """A child that came to nothing was not meant to be in the tree."""
        self._states[:] = [c for c in self._states if c is not node]

    def _new(self, name: str) -> tuple[str, State]:
        """A node for a name that is not recorded, if it may be used."""
        seen = self._enter()
        if name > "%" and name not in seen and name.isprintable() and len(name) <= MAX_NAME:
            seen.add(name)
            return name, self._append(name)
        try:
            if not name:
                if self._active or not self._body.cr_running:
                    raise UsageError(
                        "an empty name numbers a step by its place in the body, which concurrent "
                        "steps do not have: give it a name"
                    )
                name = f"#{len(seen) - len(self._recorded)}"
                if (found := self._recorded.pop(name, None)) is not None:
                    return name, found
            else:
                check_name(name)
            if name in seen:
                raise DuplicateStepError(join(self.path, name))
        except UsageError as exc:
            raise self._abort(exc) from None
        seen.add(name)
        return name, self._append(name)

    def _append(self, name: str) -> State:
        """A new child's node."""
        states = self._states
        child = State(name)
        if states and not self._run.quiet:
            child.place = states[-1].place + 1
        states.append(child)
        if self._strict and (taken := new_token_name(self._node, name)):
            detail(child).token_name = taken
        return child

    def _replay(self, node: State, spec: Spec) -> Any:
        """The recorded result of a done step."""
        try:
            if node.result is ABSENT:
                return None
            return spec.decode(node.result)
        except Exception:  # say what is wrong
            try:
                where = f"step {join(self.path, node.name)!r}"
                return self._run.payloads.decode_result(node.result, spec, where)
            except UsageError as exc:
                raise self._abort(exc) from exc

    def _hand_over(self, name: str, node: State, *, alone: bool = True) -> Wakeup | None:
        """Give the outcome of a child to the saver.

        Args:
            name: The child's.
            node: The child's.
            alone: No sibling is likely to come to something in this turn of the event loop.

        Returns:
            What to wait for until it is in the store, if anything.
        """
        run = self._run
        saver = run.saver
        if saver is None:
            return None
        if run.idle:
            run.progress()
        if not self._announced:
            self._announce()
        path = self.path
        if "/" in name or "~" in name:
            saver.touch(join(path, name), node)
        else:
            saver.touch(f"{path}/{name}" if path else name, node)
        return saver.join(alone=alone)

    def _is_at_work(self) -> bool:
        """Whether steps below it run, wait, or may be begun by a group whose block is open."""
        scopes = self._run.scopes
        return bool(self._active or self._parked or (scopes and self in scopes.values()))

    async def _leave(self) -> None:
        """The body returned: was it right to?

        Raises:
            Abort: It swallowed a signal, or left a child running.
        """
        run = self._run
        ended = self._ended
        if self._is_at_work():
            left = [c.name for c in self._node.states or () if c.proceeding]
            await self._close()
            if run.halted is None and ended is None:
                names = ", ".join(map(repr, left[:5]))
                raise self._abort(
                    UsageError(
                        f"the body of {self.path or 'the run'!r} returned while steps below it "
                        f"were still running ({names}): await them"
                    )
                )
        if isinstance(run.halted, Abort):
            raise run.halted
        if ended is not None:
            raise self._abort(swallowed(self.path))
        self._over = True
        if run.at_large:
            check_at_large(run, self._parent, self.path)
        self._finished()

    def _finished(self) -> None:
        """The step is done or failed: what is still recorded and was not asked for has vanished."""
        if self._seen is None:
            names = [c.name for c in self._node.states or ()]
        else:
            names = list(self._recorded)
        self._run.vanished += [join(self.path, n) for n in names if n != END]

    def _shift(self, active: int, resting: int = 0) -> None:
        """Children became active, or ceased to be; or active ones began or ceased to rest.

        Args:
            active: Change of the weight of those whose bodies run, or wait in place.
            resting: Change of the weight of those which only wait.
        """
        was = self._active
        self._active = now = was + active
        self._resting += resting
        if not now and self._still is not None:
            self._still.set()
        parent = self._parent
        if self._open and parent is not None and bool(was) != bool(now):
            parent._shift(1 if now else -1)  # the block may wait for a sibling of its group's
        stands = 0 < now == self._resting and (now >= OWN or self._crew is not None)
        if stands != self._stands:
            self._stands = stands
            if stands and self._slot is not None:
                self._slot.give()
            if parent is not None:
                weight = self._weight if parent._crew is None else 1
                parent._shift(0, weight if stands else -weight)

    def _begin_block(self) -> None:
        """The block of a group is run: its body does not wait for its children yet."""
        self._open = True
        self._weight = 1

    def _end_block(self) -> None:
        """The block of a group has been left: from here on its body waits for its children."""
        if self._stands:
            self._stands = False
            self._parent_step()._shift(0, -1)
        if self._active:
            self._parent_step()._shift(-1)
        self._open = False
        if self._still is not None:
            self._still.set()

    def _parent_step(self) -> Step:
        return cast("Step", self._parent)

    async def _close(self) -> None:
        """Cancel the children that other tasks still run, and wait for them.

        Cancellation: The children are cancelled all the same; the driver waits for them.
        """
        for scope in self._scopes_below():
            scope.cancel()
        while self._active or self._parked:
            if self._still is None or self._still.is_set():
                self._still = anyio.Event()
            await self._still.wait()
        await self._run.drained(self)

    def _scopes_below(self) -> list[anyio.CancelScope]:
        return [s for s, owner in self._run.scopes.items() if owner is self]


Group: TypeAlias = GroupOf[Step]
"""What `Step.group` gives: an async context manager whose block begins concurrent children."""
