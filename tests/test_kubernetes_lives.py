"""A run in an object's status lives through lost answers, refusals, other writers and cancellation.

The server is pretended, the engine is not: whatever happens to the writes, a step that was reported
never runs again, and the run ends.
"""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from kubernetes_memory import Call, MemoryCluster

import asteps
from asteps import Step
from asteps.errors import StoreError
from asteps.stores.kubernetes import (
    BusyServerError,
    StaleError,
    StatusStore,
    UnknownFateError,
)
from asteps.stores.memory import MemoryStore

REF = "example.com/v1/databases/shop/orders"
LIVES = 60
TROUBLED = 40  # of them; after that the server does what it is asked to


class Trouble:
    """What happens around the calls of one client."""

    def __init__(self, cluster: MemoryCluster, chance: random.Random, rate: float) -> None:
        self._cluster = cluster
        self._chance = chance
        self._rate = rate
        self._others_write = chance.random() < 0.4

    async def before(self, call: Call) -> None:
        """Somebody else writes the status; the server refuses, or nothing reaches it."""
        writes = call.method != "GET"
        if writes and self._others_write and self._chance.random() < 0.3:
            self._cluster.change(REF, {"status": {"other": self._chance.random()}}, status=True)
        if self._chance.random() < self._rate:
            errors = [BusyServerError("429"), UnknownFateError("lost on the way")]
            raise self._chance.choice([*errors, StaleError("409")] if writes else errors)
        if self._chance.random() < 0.05:
            await anyio.sleep(0.001)

    async def after(self, _: Call) -> None:
        """The answer is lost."""
        if self._chance.random() < self._rate:
            raise UnknownFateError("lost on the way back")


class Programme:
    """Steps in a row, in one another and side by side; knows which were reported."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.reported: set[str] = set()
        self.again: list[str] = []

    async def root(self, s: Step) -> str:
        """All of it."""
        await self._reported(s, "first")
        await s.do("middle", self._three, "middle")
        async with s.group("group") as group:
            for name in ("a", "b", "c"):
                group.do(name, self._three, name)
        await self._reported(s, "last")
        return "ended"

    async def _three(self, s: Step, name: str) -> None:
        for number in range(3):
            await self._reported(s, f"{name}-{number}")

    async def _reported(self, s: Step, name: str) -> None:
        await s.call(name, self._work, name)
        self.reported.add(name)

    async def _work(self, name: str) -> str:
        if name in self.reported:
            self.again.append(name)
        await checkpoint()
        return "x" * self._chance.choice([1, 100, 9_000])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "bodies",
    [
        ["status"],
        ["gzip"],
        ["configmap"],
        ["store"],
        ["status", "gzip"],
        ["status", "configmap"],
        ["gzip", "secret"],
        ["status", "gzip", "configmap"],
    ],
    ids="-".join,
)
async def test_no_reported_step_runs_again(
    bodies: list[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life has another client, in trouble of its own, and perhaps another idea of the body."""
    monkeypatch.setattr("asteps.stores._kubernetes_body._PAUSES", (0.001,))
    chance = random.Random(f"{bodies} {seed}")
    cluster = MemoryCluster()
    cluster.make(REF)
    programme = Programme(chance)
    elsewhere = MemoryStore()
    for life in range(LIVES):
        transport = cluster.client()
        trouble = Trouble(cluster, chance, 0.15 if life < TROUBLED else 0.0)
        transport.before, transport.after = trouble.before, trouble.after
        name = chance.choice(bodies)
        body: Any = elsewhere if name == "store" else name
        store = StatusStore(REF, transport=transport, body=body)
        with anyio.move_on_after(chance.choice([10, 0.002, 0.004, 0.008, 0.02, 0.05])):
            try:
                outcome = await asteps.reconcile(programme.root, store=store, id="shop/orders")
            except StoreError:
                continue
            assert programme.again == []
            assert isinstance(outcome, asteps.Done)
            assert outcome.value == "ended"
            assert len(programme.reported) == 14
            return
    pytest.fail(f"not done after {LIVES} lives")
