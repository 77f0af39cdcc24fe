"""Who watches a run: told of events from outside, or entered around the calls of bodies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ._events import Around, BodyCall, Ended, Event, Observer

__all__ = ["Observers"]

_log = logging.getLogger("asteps")


class Observers:
    """The observers of one driver; what one of them raises is logged once and goes no further.

    True if somebody is to be told of events.

    Attributes:
        around: Whether somebody is to be entered around the calls of bodies.
        present: Whether there is anybody at all.
    """

    def __init__(self, observers: Sequence[Observer | Around]) -> None:
        self._listeners: list[tuple[int, Observer]] = []
        self._companions: list[tuple[int, Callable[[BodyCall], AbstractContextManager[object]]]]
        self._companions = []
        for place, observer in enumerate(observers):
            if callable(observer):
                self._listeners.append((place, observer))
            if isinstance(observer, Around):
                self._companions.append((place, observer.around))
        self._observers = tuple(observers)
        self._blamed: set[int] = set()
        self.around: bool = bool(self._companions)
        self.present: bool = bool(self._observers)

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def tell(self, event: Event) -> None:
        """Call each that listens."""
        for place, observer in self._listeners:
            try:
                observer(event)
            except Exception:
                self._blame(place, event)

    def enter(self, call: BodyCall) -> None:
        """A body is about to be called, in this task."""
        entered = call._entered
        for place, around in self._companions:
            try:
                manager = around(call)
                manager.__enter__()
            except Exception:
                self._blame(place, call)
            except BaseException as exc:
                self.leave(call, "interrupted", exc)
                raise
            else:
                entered.append((place, manager))

    def leave(self, call: BodyCall, ended: Ended, error: BaseException | None) -> None:
        """The body has come to this; in the same task. What has been left already is left alone."""
        entered = call._entered
        if not entered:
            return
        call.ended, call.error = ended, error
        try:
            while entered:
                place, manager = entered.pop()
                try:
                    manager.__exit__(None, None, None)
                except Exception:
                    self._blame(place, call)
        finally:
            if entered:  # what is no Exception goes on; the others are left all the same
                self.leave(call, ended, error)

    def _blame(self, place: int, what: Event | BodyCall) -> None:
        if place not in self._blamed:
            self._blamed.add(place)
            _log.exception(
                "observer %r failed on %r; the run goes on",
                self._observers[place],
                what,
                extra={"run_id": what.run_id, "path": what.path},
            )
