"""Spans, links and metrics of runs, as the SDK's in-memory exporters have them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint
from clocks import FakeClock
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler

import asteps
from asteps import Failed, MissingDependencyError, Pending, Retry, Step, StepError, UsageError
from asteps.integrations.opentelemetry import OpenTelemetry
from asteps.stores.memory import MemoryStore
from asteps.stores.sqlite import SQLiteStore
from asteps.testing import Crash, FaultyStore


class Telemetry:
    """What one process would export; `observer` is what it gives to its drivers."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        nothing = Resource.get_empty()  # to look for one takes threads
        tracers = TracerProvider(sampler, nothing, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader], nothing, shutdown_on_exit=False)
        self.tracer = tracers.get_tracer("the application's")
        self.observer = OpenTelemetry(tracer_provider=tracers, meter_provider=meters)

    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order in which they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda s: s.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [s for s in self.spans() if s.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def tree(self) -> set[tuple[str, str]]:
        """Each span's name with that of its parent."""
        names = {s.context.span_id: s.name for s in self.spans() if s.context is not None}
        return {
            (s.name, "" if s.parent is None else names.get(s.parent.span_id, "?"))
            for s in self.spans()
        }

    def metrics(self) -> dict[str, dict[tuple[tuple[str, Any], ...], float]]:
        """The sums of counters and the counts of histograms, by their attributes."""
        data = self._reader.get_metrics_data()
        found: dict[str, dict[tuple[tuple[str, Any], ...], float]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        labels = dict(point.attributes or {})
                        labels.pop("asteps.run.name")
                        key = tuple(
                            sorted((k.removeprefix("asteps."), v) for k, v in labels.items())
                        )
                        value = getattr(point, "count", None)
                        found.setdefault(metric.name, {})[key] = (
                            point.value if value is None else value  # type: ignore[union-attr]
                        )
        return found


def status(span: ReadableSpan) -> tuple[object, bool]:
    """What a span's call came to, and whether the span is an error."""
    return (span.attributes or {}).get("asteps.status"), not span.status.is_ok and (
        span.status.status_code is trace.StatusCode.ERROR
    )


def links(span: ReadableSpan) -> dict[object, int]:
    """The spans that a span is linked to, by what they are to it."""
    return {(link.attributes or {})["asteps.link"]: link.context.span_id for link in span.links}


def id_of(span: ReadableSpan) -> int:
    """Its span id."""
    assert span.context is not None
    found: int = span.context.span_id
    return found


async def leaf(s: Step) -> None:
    """A body that lets others run."""
    await checkpoint()


# --- nesting --------------------------------------------------------------------------------------


async def test_spans_nest_as_steps_do() -> None:
    """Steps below steps, in the pass, in the caller's span; a body's own spans below the step's."""
    telemetry = Telemetry()

    def plain() -> None:
        with telemetry.tracer.start_as_current_span("request"):
            pass

    async def parent(s: Step) -> None:
        await s.do("leaf", leaf)
        with telemetry.tracer.start_as_current_span("section"):
            await s.do("late", leaf)
        await s.call("plain", plain)

    async def root(s: Step) -> None:
        await s.do("parent", parent)

    with telemetry.tracer.start_as_current_span("caller") as caller:
        await asteps.run(
            root, id="r", store=MemoryStore(), observers=[telemetry.observer], name="move"
        )
        assert trace.get_current_span() is caller
    assert telemetry.tree() == {
        ("caller", ""),
        ("move", "caller"),
        ("parent", "move"),
        ("parent/leaf", "parent"),
        ("section", "parent"),
        ("parent/late", "section"),
        ("parent/plain", "parent"),
        ("request", "parent/plain"),
    }
    assert dict(telemetry.one("parent/leaf").attributes or {}) == {
        "asteps.run.id": "r",
        "asteps.step.path": "parent/leaf",
        "asteps.status": "done",
    }
    assert dict(telemetry.one("move").attributes or {}) == {
        "asteps.run.id": "r",
        "asteps.run.name": "move",
        "asteps.epoch": 1,
        "asteps.status": "done",
    }
    assert {s.status.status_code for s in telemetry.spans()} == {trace.StatusCode.UNSET}


@pytest.mark.parametrize("how", ["group", "map", "task group", "gather", "TaskGroup"])
async def test_concurrent_spans_nest(how: str) -> None:
    """However steps run concurrently, each one's children lie below its own span."""
    telemetry = Telemetry()
    if how in ("gather", "TaskGroup") and sniffio.current_async_library() == "trio":
        pytest.skip("it is asyncio's")

    async def child(s: Step, *_: str) -> None:
        await checkpoint()
        await s.do(f"of {s.name}", leaf)
        with telemetry.tracer.start_as_current_span(f"request of {s.name}"):
            await checkpoint()

    async def root(s: Step) -> None:
        if how == "group":
            async with s.group("g", limit=2) as g:
                for name in "abc":
                    g.do(name, child)
        elif how == "map":
            await s.map("g", child, "abc", limit=2)
        elif how == "gather":
            await asyncio.gather(*(s.do(name, child) for name in "abc"))
        elif how == "TaskGroup":
            async with asyncio.TaskGroup() as loops:
                for name in "abc":
                    loops.create_task(s.do(name, child))
        else:
            async with anyio.create_task_group() as tasks:
                for name in "abc":
                    tasks.start_soon(s.do, name, child)

    await asteps.run(root, observers=[telemetry.observer], name="root")
    above = "g/" if how in ("group", "map") else ""
    expected = {("root", "")} | ({("g", "root")} if above else set())
    for name in "abc":
        item = "*" if how == "map" else name
        expected |= {
            (f"{above}{item}", "g" if above else "root"),
            (f"{above}{item}/of {name}", f"{above}{item}"),
            (f"request of {name}", f"{above}{item}"),
        }
    assert telemetry.tree() == expected
    by_id = {id_of(s): s for s in telemetry.spans()}
    for name in "abc":  # by the spans themselves, as items share a name
        parent = telemetry.one(f"request of {name}").parent
        assert parent is not None
        assert (by_id[parent.span_id].attributes or {})["asteps.step.path"] == f"{above}{name}"


# --- attempts, waits, failures --------------------------------------------------------------------


async def test_attempts_are_spans_with_links() -> None:
    """Each attempt is a span: those that failed are errors, and each links to the one before."""
    telemetry, clock, tries = Telemetry(), FakeClock(), iter(range(9))

    async def flaky(s: Step) -> None:
        if next(tries) < 2:
            raise ConnectionError("no route")

    async def root(s: Step) -> None:
        await s.do("flaky", flaky, retry=Retry(attempts=3, delay=1))

    await asteps.run(root, clock=clock, observers=[telemetry.observer], name="root")
    spans = telemetry.named("flaky")
    assert [status(s) for s in spans] == [("retrying", True), ("retrying", True), ("done", False)]
    assert [(s.attributes or {}).get("asteps.step.attempt") for s in spans] == [None, 2, 3]
    assert [links(s) for s in spans] == [
        {},
        *({"previous call": id_of(before)} for before, _ in pairwise(spans)),
    ]
    first = spans[0]
    assert (first.attributes or {})["error.type"] == "ConnectionError"
    (event,) = first.events
    assert event.name == "exception"
    assert "no route" in str((event.attributes or {})["exception.stacktrace"])
    assert status(telemetry.one("root")) == ("done", False)


async def test_waits_are_no_errors() -> None:
    """A call that ends with "not yet" is a span with that status, in place and across passes."""
    telemetry, clock, checks = Telemetry(), FakeClock(), iter([None, None, None, 1])

    async def parent(s: Step) -> None:
        await s.poll("poll", lambda: "task", lambda _: next(checks), every=3, returns=int)

    async def root(s: Step) -> None:
        await s.do("parent", parent)

    keywords: dict[str, Any] = {"store": MemoryStore(), "id": "r", "clock": clock, "name": "root"}
    outcome = await asteps.reconcile(root, max_wait=5, observers=[telemetry.observer], **keywords)
    assert isinstance(outcome, Pending)
    assert [(s.name, *status(s)) for s in telemetry.spans()] == [
        ("root", "pending", False),
        ("parent", "pending", False),
        ("parent/poll", "pending", False),
        ("parent/poll", "pending", False),
    ]
    clock.advance(3)
    later = Telemetry()
    await asteps.run(root, observers=[later.observer], **keywords)
    polls = later.named("parent/poll")
    assert {(s.attributes or {})["asteps.step.kind"] for s in polls} == {"poll"}
    assert [status(s) for s in polls] == [("pending", False), ("done", False)]
    assert [links(s) for s in polls] == [{}, {"previous call": id_of(polls[0])}]


async def test_a_failure_is_recorded_where_it_came_from() -> None:
    """Parents that a failure goes through are errors of its type; its exception is told once."""
    telemetry = Telemetry()

    async def bad(s: Step) -> None:
        raise ConnectionError("no route")

    async def parent(s: Step) -> None:
        await s.do("bad", bad)

    async def handles(s: Step) -> None:
        with suppress(StepError):
            await s.do("bad", bad)

    async def root(s: Step) -> None:
        await s.do("handles", handles)
        async with s.group("g") as g:
            g.do("parent", parent)

    outcome = await asteps.reconcile(root, observers=[telemetry.observer], name="root")
    assert isinstance(outcome, Failed)
    assert {s.name: status(s) for s in telemetry.spans()} == {
        "root": ("failed", True),
        "handles": ("done", False),
        "handles/bad": ("failed", True),
        "g": ("failed", True),
        "g/parent": ("failed", True),
        "g/parent/bad": ("failed", True),
    }
    assert {s.name for s in telemetry.spans() if s.events} == {"handles/bad", "g/parent/bad"}
    types = {(s.attributes or {}).get("error.type") for s in telemetry.spans()}
    assert types == {None, "ConnectionError"}


async def test_the_roots_own_failure_is_recorded() -> None:
    """What the root's body raises is recorded on the pass; so is `fail` on its step."""
    telemetry = Telemetry()

    async def gives_up(s: Step) -> None:
        s.fail("no hope")

    async def root(s: Step) -> None:
        with suppress(StepError):
            await s.do("gives up", gives_up)
        raise ValueError("bad")

    await asteps.reconcile(root, observers=[telemetry.observer], name="root")
    recorded = {
        s.name: [(e.attributes or {})["exception.message"] for e in s.events]
        for s in telemetry.spans()
    }
    assert recorded == {"root": ["bad"], "gives up": ["step 'gives up' failed: no hope"]}


async def test_an_error_that_cannot_say_what_it_is_ends_its_span() -> None:
    """A broken ``__str__`` costs the exception's event; span and metrics say all else."""

    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError

    async def bad(s: Step) -> None:
        raise Mute

    async def root(s: Step) -> None:
        with suppress(StepError):
            await s.do("bad", bad)

    telemetry = Telemetry()
    await asteps.run(root, observers=[telemetry.observer])
    span = telemetry.one("bad")
    assert status(span) == ("failed", True)
    assert span.status.description == "Mute"
    assert sum(telemetry.metrics()["asteps.step.failures"].values()) == 1


async def test_a_cancellation_is_no_error() -> None:
    """What was cut off is interrupted, and no error; its spans have ended nevertheless."""
    telemetry = Telemetry()

    async def forever(s: Step) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    async def root(s: Step) -> None:
        async with s.group("g") as g:
            g.do("a", forever)

    with anyio.CancelScope() as scope:
        await asteps.run(root, observers=[telemetry.observer], name="root")
    found = {s.name: status(s) for s in telemetry.spans()}
    assert found == dict.fromkeys(("root", "g", "g/a"), ("interrupted", False))


async def test_what_a_driver_raises_is_an_error_of_the_pass() -> None:
    """Misuse and a lost store make the pass an error; the steps that they cut off are none."""
    telemetry = Telemetry()

    async def misuse(s: Step) -> None:
        await s.do("a", leaf)
        await s.do("a", leaf)

    async def root(s: Step) -> None:
        await s.do("parent", misuse)

    with pytest.raises(UsageError):
        await asteps.run(root, observers=[telemetry.observer], name="root")
    assert {s.name: status(s) for s in telemetry.spans()} == {
        "root": ("interrupted", True),
        "parent": ("interrupted", False),
        "parent/a": ("done", False),
    }
    root_span = telemetry.one("root")
    assert (root_span.attributes or {})["error.type"] == "asteps.errors.DuplicateStepError"


# --- links from pass to pass ----------------------------------------------------------------------


async def test_passes_are_linked_across_processes() -> None:
    """A pass links to the one before it and to the first, also of a process that was killed."""
    store, spans, faults = MemoryStore(), [], [{2: "crash before"}, {5: "crash before"}, {}]
    clock = FakeClock()

    async def root(s: Step) -> None:
        for name in "abc":
            await s.do(name, leaf)

    telemetry = Telemetry()
    for each in faults:  # each time another process, with nothing but the store
        telemetry = Telemetry()
        with suppress(Crash):
            await asteps.run(
                root,
                store=FaultyStore(store.client(), each),  # type: ignore[arg-type]
                id="r",
                clock=clock,
                observers=[telemetry.observer],
                name="root",
            )
        spans.append(telemetry.one("root"))
    first, second, third = spans
    assert links(first) == {}
    assert links(second) == {"previous pass": id_of(first)}
    assert links(third) == {"previous pass": id_of(second), "first pass": id_of(first)}
    assert len({s.context.trace_id for s in spans if s.context}) == 3
    found = [link.context.trace_id for link in third.links]
    assert [c.trace_id for c in (second.context, first.context) if c] == found
    assert [s.name for s in telemetry.spans()] == ["root", "b", "c"]  # a is replayed: no span


async def test_links_are_in_the_file(tmp_path: Path) -> None:
    """What a pass is linked to is kept in the run itself, in whatever store it is."""
    clock, found = FakeClock(), []

    async def root(s: Step) -> None:
        await s.do("a", leaf)
        await s.sleep("nap", 60)

    for _ in range(3):
        telemetry = Telemetry()
        async with SQLiteStore(tmp_path / "runs.db") as store:
            keywords: dict[str, Any] = {"store": store, "id": "r", "clock": clock, "name": "root"}
            await asteps.reconcile(root, observers=[telemetry.observer], **keywords)
        clock.advance(40)
        found.append(telemetry.one("root"))
    first, early, last = found
    assert links(early) == {"previous pass": id_of(first)}
    # The pass that came too early had nothing to run, and so nothing to save: it is not known.
    assert links(last) == {"previous pass": id_of(first)}
    assert [status(s)[0] for s in found] == ["pending", "pending", "done"]


async def test_interruptions_are_told() -> None:
    """A step that a process died in says so when the next one calls it again."""
    store, telemetry = MemoryStore(), Telemetry()

    async def root(s: Step) -> None:
        await s.do("a", leaf)

    faults: list[dict[int, Any]] = [{2: "crash before"}, {4: "crash before"}, {}]
    for each in faults:
        with suppress(Crash):
            keywords: dict[str, Any] = {"store": FaultyStore(store.client(), each), "id": "r"}
            await asteps.run(root, observers=[telemetry.observer], **keywords)
    found = [(s.attributes or {}).get("asteps.step.interruptions") for s in telemetry.named("a")]
    assert found == [None, None, 1]  # the second time its start was saved before it was called


async def test_passes_in_one_call_are_linked() -> None:
    """Also the passes that one driver makes, one after another, lie below the caller's span."""
    telemetry, clock, seen = Telemetry(), FakeClock(), []

    async def waits(s: Step) -> None:
        seen.append(1)
        if len(seen) < 3:
            s.pending(10)

    async def root(s: Step) -> None:
        await s.do("waits", waits)

    with telemetry.tracer.start_as_current_span("caller"):
        await asteps.run(root, clock=clock, max_wait=0, observers=[telemetry.observer], name="root")
    one, two, three = telemetry.named("root")
    assert [links(s) for s in (one, two, three)] == [
        {},
        {"previous pass": id_of(one)},
        {"previous pass": id_of(two), "first pass": id_of(one)},
    ]
    assert ("root", "caller") in telemetry.tree()
    assert [links(s) for s in telemetry.named("waits")] == [{}, {}, {}]  # only within a pass


async def test_nothing_links_to_a_pass_that_was_not_kept() -> None:
    """A pass that the sampler dropped is not linked to; the steps do not notice."""
    store, clock, seen = MemoryStore(), FakeClock(), []

    async def root(s: Step) -> None:
        await s.do("waits", waits)

    async def waits(s: Step) -> None:
        seen.append(1)
        if len(seen) < 2:
            s.pending(10)

    keywords: dict[str, Any] = {"store": store, "id": "r", "clock": clock, "name": "root"}
    dropped = Telemetry(ALWAYS_OFF)
    await asteps.reconcile(root, observers=[dropped.observer], **keywords)
    clock.advance(10)
    telemetry = Telemetry()
    await asteps.reconcile(root, observers=[telemetry.observer], **keywords)
    assert dropped.spans() == []
    assert links(telemetry.one("root")) == {}


# --- metrics --------------------------------------------------------------------------------------


async def test_metrics() -> None:
    """Durations by status, attempts, failures, retries and waits are counted, items folded."""
    telemetry, clock, tries = Telemetry(), FakeClock(), iter(range(9))

    async def item(s: Step, i: int) -> None:
        if i == 2:
            raise ValueError(i)

    async def flaky(s: Step) -> None:
        if next(tries) < 1:
            raise ConnectionError

    async def root(s: Step) -> None:
        await s.map("m", item, [1, 2, 3], tolerate=1)
        await s.do("flaky", flaky, retry=Retry(attempts=2, delay=1))
        await s.sleep("nap", 1)

    await asteps.run(root, clock=clock, observers=[telemetry.observer])
    metrics = telemetry.metrics()
    items, flaky_, nap = (("step.pattern", p) for p in ("m/*", "flaky", "nap"))
    errors = {kind: ("error.type", kind) for kind in ("ValueError", "ConnectionError")}
    durations = metrics.pop("asteps.step.duration")
    assert durations == {
        (("status", "done"), items): 2,
        (errors["ValueError"], ("status", "failed"), items): 1,
        (("status", "done"), ("step.pattern", "m")): 1,
        (errors["ConnectionError"], ("status", "retrying"), flaky_): 1,
        (("status", "done"), flaky_): 1,
        (("status", "pending"), nap): 1,
        (("status", "done"), nap): 1,
    }
    assert metrics == {
        "asteps.pass.duration": {(("status", "done"),): 1},
        "asteps.pass.active": {(): 0},
        "asteps.step.active": {(p,): 0 for p in (("step.pattern", "m"), items, flaky_, nap)},
        "asteps.step.attempts": {
            (("step.pattern", "m"),): 1,
            (items,): 3,
            (flaky_,): 2,
            (nap,): 1,
        },
        "asteps.step.failures": {(errors["ValueError"], items): 1},
        "asteps.step.retries": {(errors["ConnectionError"], flaky_): 1},
        "asteps.step.pendings": {(nap,): 1},
    }


async def test_running_steps_are_counted() -> None:
    """The up-down counters tell how many passes and steps are running right now."""
    telemetry = Telemetry()
    active: list[object] = []

    async def child(s: Step) -> None:
        active.append(telemetry.metrics())

    async def root(s: Step) -> None:
        await s.do("parent", lambda s: s.do("child", child), returns=None)

    await asteps.run(root, observers=[telemetry.observer])
    assert active == [
        {
            "asteps.pass.active": {(): 1},
            "asteps.step.active": {
                (("step.pattern", "parent"),): 1,
                (("step.pattern", "parent/child"),): 1,
            },
        }
    ]


# --- what it needs --------------------------------------------------------------------------------


async def test_without_an_sdk_nothing_happens() -> None:
    """With the API alone, and without providers, a run is as it is without the observer."""

    async def root(s: Step) -> int:
        await s.do("leaf", leaf)
        return 7

    store = MemoryStore()
    assert await asteps.run(root, store=store, id="r", observers=[OpenTelemetry()]) == 7


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the API the import says what to install."""
    monkeypatch.delitem(sys.modules, "asteps.integrations.opentelemetry")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'asteps\[otel\]'"):
        import asteps.integrations.opentelemetry  # noqa: F401
