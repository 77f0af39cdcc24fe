"""Operators as processes, for the tests on a real API server, and what they have done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from kubernetes_server import Kube
from lightkube import ApiError
from lightkube.resources.core_v1 import Event

__all__ = ["KINDS", "Effect", "World", "a_world", "condition"]

KINDS = ["kopf", "asyncio", "trio"]
TARGET = Path(__file__).with_name("operator_target.py")


class Effect(NamedTuple):
    """Something that an operator did."""

    pid: int
    name: str
    generation: int
    what: str
    path: str
    value: Any


class World:
    """A resource, its operators, and the file of their effects.

    Attributes:
        kube: The test's part of the server.
        resource: ``group/version/plural``.
        hold: As long as this file exists, the step ``hold`` does not end, and ``stuck`` fails.
        log: What the operators say.
    """

    def __init__(self, kube: Kube, directory: Path, resource: str, **options: Any) -> None:
        self.kube = kube
        self.resource = resource
        self.hold = directory / "hold"
        self.log = directory / "log"
        self._effects = directory / "effects"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "KUBECONFIG": kube.kubeconfig,
            "RESOURCE": resource,
            "NAMESPACE": kube.namespace,
            "EFFECTS": str(self._effects),
            "HOLD": str(self.hold),
            "OPTIONS": json.dumps({"max_wait": 1, **options}),
            "PYTHONWARNINGS": "default",
        }

    def start(self, kind: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start an operator of a kind."""
        command = [sys.executable, str(TARGET), kind]
        if kind == "kopf":
            command = [sys.executable, "-m", "kopf", "run", "--standalone", "--verbose", "-n"]
            command += [self.kube.namespace, str(TARGET)]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, env={**self._environment, **environment}, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def kill(self) -> None:
        """Kill all operators, as ``kill -9`` does."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        self._processes.clear()

    # -- what was done --

    def effects(self) -> list[Effect]:
        """All effects so far."""
        text = self._effects.read_bytes() if self._effects.exists() else b""
        return [Effect(*json.loads(line)) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def did(self, what: str, path: str, **wanted: Any) -> list[Effect]:
        """Effects of a step."""
        return [
            each
            for each in self.effects()
            if (each.what, each.path) == (what, path)
            and all(getattr(each, key) == value for key, value in wanted.items())
        ]

    def none_again(self) -> None:
        """Check that no step was run again after it had been reported with the same inputs."""
        reported: set[tuple[str, str, str]] = set()
        for each in self.effects():
            step = (each.name, each.path, json.dumps(each.value))
            if each.what == "reported":
                reported.add(step)
            else:
                assert step not in reported, f"{each} was run again"

    # -- what the cluster says --

    def status(self, ref: str) -> dict[str, Any]:
        """An object's status."""
        found: dict[str, Any] = self.kube.get(ref).get("status", {})
        return found

    def is_gone(self, ref: str) -> bool:
        """Whether an object is there no more."""
        try:
            self.kube.get(ref)
        except ApiError as exc:
            return exc.response.status_code == 404
        return False

    def events(self) -> list[tuple[str, str, str]]:
        """Events by asteps: type, reason, message, in their order."""
        found = self.kube.client.list(Event, namespace=self.kube.namespace)
        return [
            (str(event.type), str(event.reason), str(event.message))
            for event in sorted(found, key=lambda event: int(event.metadata.resourceVersion or 0))
            if event.source is not None and event.source.component == "asteps"
        ]

    def until_all(self, count: int) -> None:
        """Wait until there are this many effects."""
        self.until(lambda: len(self.effects()) >= count)

    def until(self, so: Callable[[], bool]) -> None:
        """Wait until something is so; what the operators said shows why it did not become so."""

        def is_so() -> bool:
            for process in self._processes:
                assert process.poll() is None, "an operator has ended"
            return so()

        try:
            self.kube.until(is_so)
        except AssertionError:
            print(self.log.read_text()[-8000:])
            raise

    def until_phase(self, ref: str, phase: str, *, generation: int | None = None) -> None:
        """Wait for a phase, of the object as it was changed last if a generation is given."""

        def so() -> bool:
            with suppress(httpx2.HTTPError):
                status = self.status(ref)
                fits = generation in (None, status.get("observedGeneration"))
                return fits and status.get("phase") == phase
            return False

        self.until(so)

    def until_did(self, what: str, path: str, **wanted: Any) -> None:
        """Wait for an effect."""
        self.until(lambda: bool(self.did(what, path, **wanted)))


@contextmanager
def a_world(kube: Kube, directory: Path, resource: str, **options: Any) -> Iterator[World]:
    """A world, whose operators end with it."""
    world = World(kube, directory, resource, **options)
    try:
        yield world
    finally:
        world.kill()


def condition(status: Mapping[str, Any], type: str) -> Mapping[str, Any]:
    """A condition of a status."""
    return next(each for each in status["conditions"] if each["type"] == type)
