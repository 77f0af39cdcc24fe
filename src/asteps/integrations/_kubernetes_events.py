"""What ``kubectl describe`` tells of a run: an Event when a step first fails, and one at the end.

Not one for each retry: a cluster forgets Events after an hour, and drops them when there are many.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import anyio

from .._clock import SystemClock
from .._events import Event, StepDone, StepFailed, StepRetrying
from .._state import moment
from ..stores.kubernetes import ObjectRef, ObjectTransport, StaleError, TransportError

__all__ = ["Teller", "event_of", "post"]

_log = logging.getLogger("asteps.kubernetes")
_PATIENCE = 5.0  # seconds for all Events of a pass: they are not worth waiting for
_MOST_MESSAGE = 1024  # characters that an Event's message may have
_MOST_NAME = 253 - 17


class Told(NamedTuple):
    """Something that people are told of.

    Attributes:
        type: Whether it is as it should be.
        reason: In one CamelCase word.
        message: In a sentence.
        once: What makes it another one: the same Event is told once, whoever tells it.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    once: str


class Teller:
    """An observer that notes what is worth an Event.

    Args:
        cleanup: Whether the run is a clean-up.
        generation: Of the spec that the run was driven with: a step that fails again after the
            spec was changed is told of again.
    """

    def __init__(self, *, cleanup: bool, generation: int | None) -> None:
        self._done = "CleanedUp" if cleanup else "Succeeded"
        self._failed = "CleanUpFailed" if cleanup else "Failed"
        self._what = "clean-up" if cleanup else "run"
        self._generation = generation
        self._blamed: set[str] = set()  # steps that failed, and those that did because of them
        self.told: list[Told] = []

    def __call__(self, event: Event) -> None:
        at, told = event.at.isoformat(), self.told
        match event:
            case StepDone(path=""):
                told.append(Told("Normal", self._done, f"the {self._what} is done", at))
            case StepFailed(path="", failure=failure):
                said = f"the {self._what} failed: {failure.message}"
                told.append(Told("Warning", self._failed, said, at))
            case StepFailed(path=path, attempt=attempt, failure=failure):
                if path not in self._blamed and attempt == 1:
                    self._tell(path, f"step {path!r} failed: {failure.message}")
                self._blame(path)
            case StepRetrying(path=path, attempt=1, failure=failure) if path:
                if path not in self._blamed:
                    said = f"step {path!r} failed, and is tried again: {failure.message}"
                    self._tell(path, said)
                self._blame(path)
            case _:
                pass

    def stuck(self, reason: Literal["StateRefused", "StateUnreadable"], message: str) -> None:
        """The run's state cannot be kept or read, and so cannot show why either."""
        self.told.append(Told("Warning", reason, message, f"{self._generation}"))

    def _tell(self, path: str, message: str) -> None:
        self.told.append(Told("Warning", "StepFailed", message, f"{self._generation} {path}"))

    def _blame(self, path: str) -> None:
        """The steps above may fail because of this one."""
        while path:
            self._blamed.add(path)
            path = path.rpartition("/")[0]


def event_of(
    told: Told, obj: Mapping[str, Any], ref: ObjectRef, *, at: datetime
) -> tuple[ObjectRef, dict[str, Any]]:
    """An Event about an object, and where it belongs.

    Args:
        told: What there is to say.
        obj: The object.
        ref: The same.
        at: The time.
    """
    meta = obj.get("metadata", {})
    uid = meta.get("uid", "")
    digest = hashlib.sha256(f"{uid} {told.reason} {told.once}".encode()).hexdigest()[:16]
    name = f"{ref.name[:_MOST_NAME].rstrip('.-')}.{digest}"
    namespace = ref.namespace or "default"  # where Events about cluster-scoped objects go
    when = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    about = {
        "apiVersion": obj.get("apiVersion") or f"{ref.group}/{ref.version}".lstrip("/"),
        "kind": obj.get("kind", ""),
        "name": ref.name,
        "namespace": ref.namespace,
        "uid": uid,
    }
    message = told.message
    if len(message) > _MOST_MESSAGE:
        message = message[: _MOST_MESSAGE - 1] + "…"
    return ObjectRef("", "v1", "events", namespace, name), {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {key: value for key, value in about.items() if value},
        "type": told.type,
        "reason": told.reason,
        "message": message,
        "firstTimestamp": when,
        "lastTimestamp": when,
        "count": 1,
        "source": {"component": "asteps"},
        "reportingComponent": "asteps",
        "reportingInstance": "asteps",
    }


async def post(
    teller: Teller, obj: Mapping[str, Any], ref: ObjectRef, transport: ObjectTransport
) -> None:
    """Tell what there is to be told, as well as it goes: nothing depends on it."""
    told, teller.told = teller.told, []
    if not told:
        return
    at = moment(SystemClock().now())
    with anyio.move_on_after(_PATIENCE) as scope:
        for each in told:
            try:
                await transport.create(*event_of(each, obj, ref, at=at))
            except StaleError:
                pass  # it has been told
            except TransportError as exc:
                _log.warning("the Event %s about %s was not told: %s", each.reason, ref, exc)
    if scope.cancelled_caught:
        _log.warning("not all Events about %s were told in time", ref)
