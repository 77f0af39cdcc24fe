"""What a run in an object's status sends: PATCHes per pass, and bytes of each.

On a server in memory, which counts; where ``KUBECONFIG`` names a real one, on that too, with time.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from statistics import mean
from typing import Any, Literal

import anyio
from goals import FULL, Report

import asteps
from asteps.integrations._kubernetes_view import status_view
from asteps.stores._kubernetes_subtree import apply_patch
from asteps.stores.kubernetes import (
    ObjectRef,
    ObjectTransport,
    StaleError,
    StatusStore,
    TransportError,
)

STEPS = (10, 100, 500)
REF = ObjectRef("example.com", "v1", "databases", "shop", "orders")
RUN = "shop/orders"
RESULT = {"id": "i-0123456789abcdef0", "zone": "eu-1a"}
SaveMode = Literal["step", "pass"]
Body = Callable[[asteps.Step], Awaitable[object]]


class Counting:
    """A transport that counts, to a real server or to one object in memory."""

    def __init__(self, server: ObjectTransport | None = None) -> None:
        self.server = server
        self.gets = 0
        self.patches: list[int] = []
        self.seconds: list[float] = []
        self._object: dict[str, Any] = {
            "metadata": {"name": "orders", "uid": str(uuid.uuid4()), "resourceVersion": "1"},
            "spec": {},
        }

    async def get(self, ref: ObjectRef, /) -> dict[str, Any]:
        self.gets += 1
        return self._object if self.server is None else await self.server.get(ref)

    async def patch_status(self, ref: ObjectRef, patch: Mapping[str, Any], /) -> dict[str, Any]:
        self.patches.append(len(json.dumps(patch, separators=(",", ":"), ensure_ascii=False)))
        began = time.perf_counter()
        try:
            if self.server is not None:
                return await self.server.patch_status(ref, patch)
            version = self._object["metadata"]["resourceVersion"]
            if patch["metadata"]["resourceVersion"] != version:
                raise StaleError("409")
            metadata = {**self._object["metadata"], "resourceVersion": str(int(version) + 1)}
            self._object = {**apply_patch(self._object, patch), "metadata": metadata}
            return self._object
        finally:
            self.seconds.append(time.perf_counter() - began)


def flat(count: int) -> Body:
    """So many steps in a row."""

    async def work() -> dict[str, str]:
        return RESULT

    async def body(s: asteps.Step) -> None:
        for n in range(count):
            await s.call(f"step-{n}", work)

    return body


def nested(count: int) -> Body:
    """As many, in stages of ten: a finished stage is one record."""

    async def stage(s: asteps.Step) -> None:
        await flat(10)(s)

    async def body(s: asteps.Step) -> None:
        for n in range(count // 10):
            await s.do(f"stage-{n}", stage)

    return body


async def waiting(s: asteps.Step) -> None:
    """What is not due for long."""
    await flat(10)(s)
    await s.sleep("a day", 86_400)


async def a_pass(
    body: Body, transport: Counting, mode: SaveMode, ref: ObjectRef = REF
) -> dict[str, float]:
    """One pass, in a new store, as an operator does one: what it sent."""
    transport.patches.clear()
    transport.seconds.clear()
    view = status_view(observed_generation=1)
    async with StatusStore(ref, transport=transport, view=view, warn_bytes=2**20) as store:
        await asteps.reconcile(body, store=store, id=RUN, save=mode)
    obj = await transport.get(ref)
    size = len(json.dumps(obj, separators=(",", ":"), ensure_ascii=False))
    cost = {"patches": float(len(transport.patches)), "object": size / 1000}
    if transport.patches:
        cost["mean"] = mean(transport.patches)
        cost["most"] = max(transport.patches)
        cost["ms"] = mean(transport.seconds) * 1000
    return cost


def describe(cost: Mapping[str, float]) -> str:
    """What a pass cost, in words."""
    return (
        f"{cost['patches']:,.0f} PATCHes of {cost['mean']:,.0f} bytes (the largest "
        f"{cost['most']:,.0f}); the object {cost['object']:,.1f} kB"
    )


def measure(report: Report) -> None:
    """All sizes in both modes, and the passes in which nothing is due."""
    modes: tuple[SaveMode, ...] = ("step", "pass")
    for name, work in (("flat", flat), ("in stages of 10", nested)):
        for count in STEPS:
            for mode in modes:
                cost = anyio.run(a_pass, work(count), Counting(), mode)
                # The first save, one for each outcome, and the end; or the first and the end.
                parents = count // 10 if work is nested else 0
                most = count + parents + 3 if mode == "step" else 3
                what = f"PATCHes of {count} steps {name}, save={mode!r}"
                report.add("K1", what, cost["patches"], most - 1, most, "count")
                report.facts[f"{count} steps {name}, save={mode!r}"] = describe(cost)

    async def again(body: Body) -> float:
        transport = Counting()
        await a_pass(body, transport, "step")
        assert transport.patches
        await a_pass(body, transport, "step")
        return len(transport.patches)

    report.add("K2", "PATCHes of a pass after the end", anyio.run(again, flat(10)), 0, 0, "count")
    report.add("K2", "PATCHes of a pass before the time", anyio.run(again, waiting), 0, 0, "count")


@asynccontextmanager
async def an_object() -> AsyncIterator[tuple[Counting, ObjectRef]]:
    """An object of a new resource, on the server that ``KUBECONFIG`` names."""
    from asteps.stores.kubernetes import LightkubeTransport

    group = f"b{uuid.uuid4().hex[:10]}.example.com"
    anything: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    field = {"asteps": {**anything, "x-kubernetes-map-type": "atomic"}}
    status = {**anything, "properties": field}
    served = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"status": status}}},
    }
    names = {"plural": "databases", "singular": "database", "kind": "Database"}
    crd = ObjectRef(
        "apiextensions.k8s.io", "v1", "customresourcedefinitions", None, f"databases.{group}"
    )
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": crd.name},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }
    ref = ObjectRef(group, "v1", "databases", "default", "orders")
    metadata = {"name": "orders", "namespace": "default"}
    new = {"apiVersion": f"{group}/v1", "kind": "Database", "metadata": metadata}
    async with LightkubeTransport() as server:
        await server.create(crd, definition)
        try:
            with anyio.fail_after(30):
                while True:
                    try:
                        await server.create(ref, new)
                        break
                    except TransportError:
                        await anyio.sleep(0.1)  # not served yet
            yield Counting(server), ref
        finally:
            # The transport has no more than the store needs; what is left does not matter there.
            client: Any = server._client
            await client._client._client.delete(
                f"apis/{crd.group}/{crd.version}/{crd.plural}/{crd.name}"
            )


async def on_a_server(count: int, mode: SaveMode) -> dict[str, float]:
    """What one pass costs on the server."""
    async with an_object() as (transport, ref):
        return await a_pass(flat(count), transport, mode, ref)


def test_kubernetes(benchmark: Any) -> None:
    """K1 and K2."""
    report = Report("kubernetes")
    benchmark.pedantic(measure, args=(report,), rounds=1)
    if os.environ.get("KUBECONFIG"):
        for count in STEPS if FULL else STEPS[:2]:
            for mode in ("step", "pass"):
                cost = anyio.run(on_a_server, count, mode)
                what = f"on the server, {count} steps flat, save={mode!r}"
                report.facts[what] = f"{describe(cost)}, {cost['ms']:.1f} ms each"
    else:
        report.facts["on a server"] = "not measured: KUBECONFIG names none"
    benchmark.extra_info["goals"] = report.goals
    report.finish()
