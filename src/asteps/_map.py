"""A function for each item of many: workers that take the next item when they have done one."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from types import CoroutineType
from typing import Any, cast

from anyio.lowlevel import checkpoint_if_cancelled

from ._body import as_coroutine
from ._crew import Call, Crew, GroupOptions, is_unstarted, make_policy
from ._pass import Abort, Signal
from ._paths import MAX_NAME, check_name, join
from ._payload import SMALL, UNSET, Spec
from ._policy import StepOptions
from ._sibling import inside, reenter_groups
from ._slot import Slot
from ._state import State
from ._work import Work
from .errors import DuplicateStepError, UsageError

__all__ = ["MapOptions", "Mapping"]

_MOST = 100  # items at the same time, unless a map says otherwise


class MapOptions(StepOptions, GroupOptions, total=False):
    """The keywords of `Step.map`: those of its items as steps, and those of a group.

    ``limit`` is 100 by default.
    """


class Mapping:
    """One map while this pass runs it: see `Step.map`.

    Raises:
        Abort: It is used wrongly: nothing has been run.
    """

    def __init__(
        self,
        parent: Any,
        name: str,
        fn: Callable[..., Any],
        items: Iterable[Any],
        key: Callable[[Any], Any] | None,
        options: dict[str, Any],
    ) -> None:
        self._fn = fn
        self._spec: Spec = parent._spec(fn, options.pop("returns", UNSET))
        self._execution = type(parent)
        own = {k: options.pop(k) for k in set(options) - set(StepOptions.__annotations__)}
        self._options = options
        name = parent._checked(name)
        parent._check_use(name)
        what = f"map {name!r:.100}"
        try:
            others = ("key", "returns", *StepOptions.__annotations__)
            policy = make_policy(own, what, limit=_MOST, others=others)
            self._items = list(items)
            self._names = _names(self._items, key, join(parent.path, name))
            self._inputs = _inputs(self._items, options.get("inputs"), what)
            values = [UNSET] * len(self._items)
            self._crew = crew = Crew(
                parent, name, policy, call_of=self._call_of, begin=self._begin, values=values
            )
        except (UsageError, TypeError) as exc:
            error = exc if isinstance(exc, UsageError) else UsageError(f"{what}: {exc}")
            raise parent._abort(error) from exc
        crew.of_items = True
        self.call: Call = (crew.node, fn, (), self._spec, None)
        if options:  # found to be wrong before any body runs, and without items, too
            trial = Work(crew.step, name, State(name), fn, (), self._spec, None)
            try:
                trial.take_options({k: v for k, v in options.items() if k != "inputs"})
            except Abort:
                crew.take_back()
                raise
        crew.short = crew.short and self._spec.is_async and not options
        self._nodes: list[State | None] = [None] * len(self._items)
        self._workers = 0
        self._context = contextvars.Context()
        self._new = True
        self._all = False  # every item is run by this pass, or the map fails
        self._ask()

    def _ask(self) -> None:
        """See what the items have come to before."""
        crew, recorded = self._crew, self._crew.step._recorded
        if not recorded:
            crew.ask(range(len(self._items)))
            self._all = crew.short and not crew.policy.tolerate
            return
        self._nodes = [recorded.pop(name, None) for name in self._names]
        todo = []
        for index, node in enumerate(self._nodes):
            if node is not None and self._options:
                self._with_options(index)
            if node is None or node._done is None:
                todo.append(index)
            else:
                crew.answered(node)
        crew.ask(todo)

    def _call_of(self, index: int) -> Call:
        node = self._nodes[index]
        if node is None:
            node = self._nodes[index] = self._crew.step._append(self._names[index])
        return (node, self._fn, (self._items[index],), self._spec, self._execution)

    def _with_options(self, index: int) -> Work:
        """The work on an item that has options."""
        options = self._options
        if self._inputs:
            options = {**options, "inputs": self._inputs[index]}
        work = self._crew.work_on(index)
        work.take_options(options)
        return work

    async def _begin(self, index: int, slot: Slot | None) -> Any:
        if self._options and index not in self._crew.works:
            self._with_options(index)
        return await self._crew.work_on(index, slot).run()

    @property
    def work(self) -> Work:
        """The work on the map as a step."""
        return self._crew.work

    def is_settled(self) -> bool:
        """Whether every item has answered, and nothing has changed."""
        return self._crew.is_settled()

    def settled(self) -> None:
        """It is not run again: items that the code has no more have vanished."""
        self._crew.step._finished()

    async def run(self, slot: Slot | None = None) -> list[Any]:
        """Run what has not come to anything.

        Args:
            slot: The map's own place under a limit, where it is a group's child.
        """
        crew = self._crew
        if crew.parent._crew is not None:
            crew.work.among(slot)
            crew.step._slot = slot
        left_by: BaseException | None = None
        try:
            crew.surround()
            await crew.work.conclude(crew.step, self._round)
            if crew.before is not None:
                raise crew.before
        except BaseException as exc:
            left_by = exc
            if isinstance(exc, Signal):
                self._forget_unstarted()
            raise
        finally:
            crew.left(left_by)
        return self.results()

    def _forget_unstarted(self) -> None:
        self._crew.forget_unstarted()
        self._crew.take_back()
        for index, node in enumerate(self._nodes):
            if node is not None and is_unstarted(node):
                self._nodes[index] = None
                self._crew.works.pop(index, None)

    def results(self) -> list[Any]:
        """What the done items returned, in the order of the items."""
        if self._all:
            return cast("list[Any]", self._crew.values)
        replay, spec = self._crew.step._replay, self._spec
        return [
            replay(node, spec) if value is UNSET else value
            for value, node in zip(self._crew.values, self._nodes, strict=True)
            if value is not UNSET or (node is not None and node.done)
        ]

    async def _round(self) -> bytes | None:
        self._crew.again()
        self._new = True  # there may be items to do that were never begun
        if self._crew.todo:
            await self._crew.run_tasks(self._work)
        return self._crew.verdict()

    async def _work(self) -> None:
        """This task is the first worker, and often the only one that is needed."""
        self._workers = 1
        token = inside.set(self._crew.step)
        self._context = contextvars.copy_context()  # of workers, whichever item makes room for them
        if len(self._crew.todo) > 1:
            self._start_workers(1)  # for when an item keeps this one waiting
        try:
            await self._serve()
        finally:
            inside.reset(token)

    def _start_workers(self, count: int) -> None:
        """Start so many workers more, if there is something left to do for them."""
        crew = self._crew
        most = crew.away + (crew.limiter.total_tokens if crew.limiter else len(self._items))
        while (
            count
            and crew.todo
            and crew.abort is None
            and crew.tasks is not None
            and self._workers < most
        ):
            count -= 1
            self._workers += 1
            start: Callable[..., object] = crew.tasks.start_soon
            self._context.run(start, self._worker)

    async def _worker(self) -> None:
        await checkpoint_if_cancelled()
        if len(self._crew.todo) > 1:
            self._start_workers(2)  # so their number doubles, but only while all are at work
        await self._serve()

    async def _serve(self) -> None:
        crew = self._crew
        slot = None if crew.limiter is None else Slot(crew.limiter, self._moved)
        try:
            if slot is not None:
                await slot.take()
            while crew.todo and crew.abort is None:
                if crew.short and crew.run.ready:
                    await self._run_short(crew, slot)
                elif self._new and not crew.run.may_begin():
                    self._new = False
                    crew.put_off(lambda index: self._nodes[index] is None)
                else:
                    index = crew.take()
                    try:
                        await crew.do_long(index, slot)
                    finally:
                        crew.leave()
                if slot is not None and crew.todo and crew.crowded:
                    slot.leave()  # those that have waited come first
                    await slot.take()
        finally:
            self._workers -= 1
            if slot is not None:
                slot.leave()

    async def _run_short(self, crew: Crew, slot: Slot | None) -> None:
        """Run items of which nothing is known, each as `Step.do` does it, as long as that goes.

        A loop of its own, because what it need not ask again for each item is half of the cost.
        """
        run, step, todo, values = crew.run, crew.step, crew.todo, crew.values
        items, names, nodes, fn = self._items, self._names, self._nodes, self._fn
        execution, decode, exact = self._execution, self._spec.decode, self._spec.exact
        now, encode, states, quiet = run.now, run.encode, step._states, run.quiet
        at = now()
        reenter_groups(step)
        step._active += 1  # more than for the line
        try:
            while todo and run.ready:
                index = todo.popleft()
                if not todo:
                    step._shift(-1)
                if nodes[index] is not None:
                    await crew.do_long(index, slot)
                    return
                name = names[index]
                if quiet and not step._strict:
                    node = nodes[index] = State(name)
                    states.append(node)
                else:
                    at = now()
                    node = nodes[index] = step._append(name)
                node._started = at
                child = None
                try:
                    child = execution(run, node, step, name)
                    body = fn(child, items[index])
                    if type(body) is not CoroutineType:
                        body = as_coroutine(body, fn)
                    child._body = body
                    if slot is not None:
                        child._slot = slot
                    value = await body
                    if child._seen is not None or child._ended is not None or run.at_large:
                        await child._leave()
                except BaseException as exc:
                    await crew.settle(index, crew.work_on(index, slot).run_from(child, exc))
                    at = now()
                else:
                    try:
                        data = encode(value)
                        result = decode(data)
                        if (
                            len(data) > SMALL
                            or data.find(b"null") >= 0
                            or (exact and (result != value or type(result) is not type(value)))
                        ):
                            run.payloads.vet(value, data, result, self._spec, name)
                    except Exception:
                        await crew.settle(index, crew.work_on(index, slot).returned(value))
                        at = now()
                    else:
                        node.result = data
                        node._done = at = now()
                        values[index] = result
                        if not quiet or run.idle:
                            await crew.done_short(node)
                if crew.crowded:
                    return
        finally:
            crew.leave()

    def _moved(self, change: int) -> None:
        """An item waits, or goes on: another one may take its place meanwhile."""
        self._crew.move_away(change)
        if change > 0:
            self._start_workers(1)


def _names(items: list[Any], key: Callable[[Any], Any] | None, path: str) -> list[str]:
    """The names of a map's items.

    Raises:
        UsageError: One has none, or one that is not allowed.
        DuplicateStepError: Two have the same.
    """
    keys = items if key is None else [key(item) for item in items]
    kinds = set(map(type, keys))
    if kinds == {int} and len(set(keys)) == len(keys):
        names = list(map(str, keys))
        if max(map(len, names)) <= MAX_NAME:
            return names
    names = keys if kinds == {str} else [_name(item, path, key) for item in keys]
    joined = "".join(names)
    if names and not (
        joined.isascii()
        and joined.isprintable()
        and min(names) > "%"  # none is empty, or begins with # or $
        and max(map(len, names)) <= MAX_NAME
    ):
        for name in names:
            check_name(name)
    if len(set(names)) < len(names):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise DuplicateStepError(join(path, name))
            seen.add(name)
    return names


def _inputs(items: list[Any], inputs: object, what: str) -> list[object]:
    """The inputs of each item, where they are given by a function of it."""
    if not callable(inputs):
        return []
    found = []
    for item in items:
        try:
            found.append(inputs(item))
        except Exception as exc:
            raise UsageError(f"{what}: inputs= raised {exc!r} for {item!r:.100}") from exc
    return found


def _name(item: object, path: str, key: object) -> str:
    if isinstance(item, str) or type(item) is int:
        return str(item)
    raise UsageError(
        f"map {path!r}: an item is known by its name, and {item!r:.100} "
        + ("is no str or int: pass key=" if key is None else "from key= is no str or int")
    )
