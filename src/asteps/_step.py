"""The step: what a body does with it, and how one step is run until it comes to something.

Here are the rules of concurrency. They belong to the parent step, so that a group, a raw task
group and ``gather`` behave alike:

- *Drain*: a pending step ends the pass only when no sibling under the same parent still runs a
  body. If its time comes while one does, it is called again in place.
- *Close*: a step that runs in another task than its parent's body is cancelled when that body
  ends, and waited for. Nothing of a pass runs after its driver has returned.

A plain child (no options, nothing recorded) takes the short way through `Step.do` and `Step.call`,
where a function call costs as much as a tenth of a step; everything else goes through `_Work`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType
from typing import Any, NoReturn, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

import anyio
from msgspec import Raw

from ._codec import snapshot
from ._events import InfoSaved
from ._loop import Wakeup
from ._outcome import Outcome
from ._pass import Abort, Pass, Signal, Wake, make_not_yet
from ._paths import MAX_DEPTH, check_name, join
from ._payload import SMALL, UNSET, Spec, function_name
from ._policy import Duration, Retry
from ._state import ABSENT, END, State, detail, moment
from ._work import NOT_RUNNING, OWN, Running, Work, as_coroutine, check_at_large, swallowed
from .errors import DuplicateStepError, Failure, StepError, UsageError, type_name

__all__ = ["Step", "StepOptions"]

T = TypeVar("T")
U = TypeVar("U")
Ts = TypeVarTuple("Ts")


class StepOptions(TypedDict, total=False):
    """The keywords of `Step.do` and `Step.call`.

    Attributes:
        retry: When to try again after a failure; without it, never.
        timeout: Seconds (or a ``timedelta``) for one attempt, from its recorded start, waits
            included; a step over its time fails with ``TimeoutError``.
        at_most_once: The start is durable before the body runs; if the step is ever found
            interrupted it fails instead of running again. Needs a store.
        inputs: What the step depends on. When it differs from what was recorded, the step is
            reset and runs again, whatever it had come to.
        returns: The result's type, where ``fn`` has no return annotation; not part of this
            dictionary, because it decides the type of the call.
    """

    retry: Retry | None
    timeout: Duration | None
    at_most_once: bool
    inputs: object


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
    _ended_here = False  # a signal was raised in the body's own task
    _wakes: dict[Any, Wake] = {}  # noqa: RUF012 - replaced, never changed: when parked children are due
    _body: Running = NOT_RUNNING
    _own_path: str | None = None
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
            line.append(_token_part(step._node))
            step = step._parent
        root = self._run.root.detail
        line.append(("", 0 if root is None else root.generation))
        return _hash(self._run.record.nonce, line[::-1])

    def token_for(self, name: str) -> str:
        """The token of a child, which need not have been run yet.

        Raises:
            UsageError: The name is not allowed.
        """
        try:
            check_name(name)
        except UsageError as exc:
            raise self._abort(exc) from None
        child = self._node.child(name)
        part = (
            (_new_token_name(self._node, name) or name, 0) if child is None else _token_part(child)
        )
        return _hash(self.token, [part])

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
        kinds = tuple(type_name(c) for c in StepError.__mro__ if c is not object)
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
        if self._over or self._node._done is not None:
            raise self._abort(
                UsageError(f"the body of {self.path!r} has ended: its Step is of no use any more")
            )
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

    def _work(
        self,
        name: str,
        node: State | None,
        fn: Any,
        args: tuple[Any, ...],
        execution: type[Step] | None,
        options: dict[str, Any],
    ) -> Coroutine[Any, Any, Any]:
        """The long way of `do` and `call`."""
        self._check_open()
        if self._active >= OWN and self._body.cr_running:
            raise self._abort(
                UsageError(
                    f"step {join(self.path, name)!r} was asked for in the body of a step below "
                    f"{self.path or 'the root'}: a body uses the Step that it was given"
                )
            )
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
        node, seen = self._node, self._enter()
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
        child = State(name, place=self._states[-1].place + 1 if self._states else 0)
        self._states.append(child)
        seen.add(name)
        if taken := _new_token_name(node, name):
            detail(child).token_name = taken
        return name, child

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

    def _hand_over(self, name: str, node: State) -> Wakeup | None:
        """Give the outcome of a child to the saver.

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
        return saver.join(alone=True)

    async def _leave(self) -> None:
        """The body returned: was it right to?

        Raises:
            Abort: It swallowed a signal, or left a child running.
        """
        run = self._run
        ended = self._ended
        if self._active or self._parked:
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

    def _scopes_below(self) -> list[anyio.CancelScope]:
        return [s for s, owner in self._run.scopes.items() if owner is self]


def _hash(token: str, line: list[tuple[str, int]]) -> str:
    for part in line:
        token = hashlib.blake2b(repr((token, part)).encode(), digest_size=16).hexdigest()
    return token


def _token_part(node: State) -> tuple[str, int]:
    own = node.detail
    return (node.name, 0) if own is None else (own.token_name or node.name, own.generation)


def _new_token_name(parent: State, name: str) -> str:
    """What tokens call a new child, where a renamed sibling still has its name; else ``""``."""
    if parent.detail is None or not parent.detail.renames:
        return ""
    known = [c.detail.token_name for c in parent.states or () if c.detail is not None]
    taken = sum(1 for t in known if t.split("\0")[0] == name)
    return f"{name}\0{taken}" if taken else ""
