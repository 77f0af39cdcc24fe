"""A child among its siblings: who works, who waits, and when that ends the pass.

The rules (see also `Step`):

- *Drain*: a child that waits beyond the pass's budget is parked. It ends its parent's execution
  when no sibling works any more; if its time comes while one does, it is called again.
- What stands still gives back its place under a limit, and takes it again before it goes on.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from ._body import OWN, Execution
from ._pass import Pass, PassOver, Wake
from ._slot import Slot
from ._state import reenter

__all__ = ["Sibling", "Turn", "inside", "is_inside", "reenter_groups"]

_EVER = float("inf")
_CHECKPOINTS = 10  # at which no child works, before a parent is believed to be still


inside: contextvars.ContextVar[Execution | None] = contextvars.ContextVar(
    "asteps_inside", default=None
)
"""Whose child the code is part of that runs in this task; not set for a child in its parent's own
task, of which the parent's body tells."""


def is_inside(step: Execution) -> bool:
    """Whether the code that runs is part of the body of a step below this one, in another task."""
    above = inside.get()
    while above is not None:
        if above is step:
            return True
        above = above._parent
    return False


class Turn:
    """A place in a line."""

    def __init__(self, line: deque[Turn]) -> None:
        self._line = line
        self._come: anyio.Event | None = None

    async def wait(self) -> None:
        """Return when nobody is before this one."""
        while self._line[0] is not self:
            self._come = self._come or anyio.Event()
            await self._come.wait()

    def over(self) -> None:
        """Leave the line."""
        self._line.remove(self)
        if self._line and self._line[0]._come is not None:
            self._line[0]._come.set()


class Sibling:
    """One child, as its parent counts it.

    Args:
        parent: The execution of the parent's body; ``None`` for the root.
        run: The pass.
    """

    def __init__(self, parent: Execution | None, run: Pass) -> None:
        self._parent = parent
        self._run = run
        self.weight = OWN  # in the parent's count of active children
        self.counted = False  # there, by somebody else
        self.slot: Slot | None = None
        self._late = False  # called again beyond the pass's budget, because others still work
        self._turn: Turn | None = None  # among the group's children that are about to begin

    def join(self) -> None:
        """The parent has one more active child."""
        if self._parent is not None and not self.counted:
            self.weight = OWN if self._parent._body.cr_running else 1
            self._parent._shift(self.weight)

    def leave(self) -> None:
        """And one less."""
        self._be_late(late=False)
        self.begun()
        if self._parent is not None and not self.counted:
            self._parent._shift(-self.weight)

    def line_up(self) -> None:
        """Begin after the children of the group that were taken before."""
        if self._parent is not None and self._parent._crew is not None:
            self._turn = self._parent._crew.turn()

    async def turn(self) -> None:
        """Return when it is this one's turn to begin."""
        if self._turn is not None:
            await self._turn.wait()
            self.begun()

    def begun(self) -> None:
        """The siblings that come after this one may begin."""
        if self._turn is not None:
            self._turn.over()
            self._turn = None

    async def rest(self, seconds: float) -> None:
        """Wait in place."""
        clock, parent = self._run.clock, self._parent
        if parent is None:
            await clock.sleep(seconds)
            return
        parent._shift(0, self.weight)
        if self.slot is not None:
            self.slot.give()
        try:
            await clock.sleep(seconds)
        finally:
            parent._shift(0, -self.weight)
        await self.take_slots()

    async def park(self, parent: Execution, wake: Wake, may_begin: Callable[[], bool]) -> None:
        """Return if the child is to be called again in this pass after all.

        Args:
            parent: The parent's execution.
            wake: When the child is due.
            may_begin: Whether its body may be begun in this pass at all.

        Raises:
            PassOver: Nobody works any more.
        """
        run = self._run
        self._be_late(late=False)
        parent._parked += 1
        parent._shift(-self.weight)
        if self.slot is not None:
            self.slot.give()
        self.tell(parent, wake)
        wakes: dict[Any, Wake] = parent._wakes or {}
        if run.saver is not None:
            run.saver.kick()
        try:
            while parent._ended is None:
                left = wake[0] - run.now() if may_begin() else _EVER
                if left <= 0 and (parent._open or parent._active > parent._late):
                    del wakes[self]
                    break  # its time came while a sibling works: the pass is alive anyway
                with run.clock.move_on_after(left) if 0 < left < _EVER else nullcontext():
                    if parent._watched:
                        await _event(parent, "_changed").wait()
                    else:
                        await _watch(parent)
        finally:
            parent._parked -= 1
            parent._shift(self.weight)
            if not parent._watched and parent._changed is not None:
                parent._changed.set()  # another one is to watch
        if self in wakes:
            parent._ended_here = parent._ended_here or parent._body.cr_running
            raise parent._ended or PassOver()
        self._be_late(late=run.now() > run.wait_until)
        await self.take_slots()

    def tell(self, parent: Execution, wake: Wake) -> None:
        """Tell the parent when the child is due."""
        if parent._wakes is None:
            parent._wakes = {}
        parent._wakes[self] = wake

    def _be_late(self, *, late: bool) -> None:
        """Have the parent know whether this one is called again only because others still work.

        Else two that poll would keep each other's pass alive for ever.
        """
        if self._late != late and self._parent is not None:
            self._late = late
            self._parent._late += self.weight if late else -self.weight
            for event in (self._parent._still, self._parent._changed):
                if event is not None:
                    event.set()  # for those that wait to look again

    async def take_slots(self) -> None:
        """Take again what was given back, from the outside in."""
        slots = [self.slot]
        step = self._parent
        while step is not None:
            slots.append(step._slot)
            step = step._parent
        for slot in reversed(slots):
            if slot is not None:
                await slot.take()


def reenter_groups(step: Execution | None) -> None:
    """A child begins: the group that it belongs to, finished or left, has something to do again."""
    while step is not None and step._crew is not None:  # the root may have a plan's
        if step._node._done is not None:
            reenter(step._node)
        if not step._crew.at_work:
            step._crew.go_on()
        step = step._parent


def _event(step: Execution, name: Literal["_still", "_changed"]) -> anyio.Event:
    """What is set when no child works, or when those that wait should look again."""
    event: anyio.Event | None = getattr(step, name)
    if event is None or event.is_set():
        event = anyio.Event()
        setattr(step, name, event)
    return event


async def _watch(parent: Execution) -> None:
    """Wait until no child works, nor is about to, and end the parent's execution then.

    Of the children that are parked one watches, for all of them. Siblings that were started with a
    pending step, be it in task groups of task groups, need a moment to begin, and an error one to
    arrive.
    """
    parent._watched = True
    try:
        if parent._active or parent._open:
            await _event(parent, "_still").wait()
        for _ in range(_CHECKPOINTS):
            await checkpoint()
            if parent._active or parent._open:
                return
        if parent._ended is None:
            parent._ended = PassOver()
    finally:
        parent._watched = False
        if parent._changed is not None and parent._ended is not None:
            parent._changed.set()
