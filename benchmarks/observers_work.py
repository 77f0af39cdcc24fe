"""What observing costs on disk, for `bench_observers`: a process of its own, prints JSON.

Usage: python observers_work.py DIRECTORY ROUNDS

In each round every subject makes a run of its own in one file, one after the other.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from opentelemetry import context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from sqlite_work import step

import asteps
from asteps.integrations.logs import StepContext
from asteps.integrations.opentelemetry import OpenTelemetry
from asteps.stores.sqlite import SQLiteStore

STEPS = 40  # of a turn: so short that the disk is the same for all


class Nowhere(SpanExporter):
    """Takes spans, and drops them."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider(*, batch: bool = False) -> TracerProvider:
    """The SDK, with all that it does for a span but sending it; in batches, as applications do."""
    tracers = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
    processor = BatchSpanProcessor if batch else SimpleSpanProcessor
    tracers.add_span_processor(processor(Nowhere()))
    return tracers


def subjects(*, batch: bool = False) -> dict[str, list[Any]]:
    """Observers, by what they are called in the results."""
    return {
        "off": [],
        "observer": [lambda _: None],
        "logs": [StepContext()],
        "opentelemetry": [OpenTelemetry(tracer_provider=provider(batch=batch))],
    }


def traced() -> Any:
    """The step that traces itself, by the SDK alone."""
    tracer = provider(batch=True).get_tracer("bare")

    async def traced_step() -> dict[str, Any]:
        attributes = {"asteps.step.path": "step", "asteps.run.id": "run"}
        span = tracer.start_span("step", attributes=attributes)
        token = context.attach(trace.set_span_in_context(span))
        result = await step()
        context.detach(token)
        span.set_attribute("asteps.status", "done")
        span.end()
        return result

    return traced_step


async def main(directory: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds and CPU seconds per step, by subject, round by round."""
    names = [f"step {i}" for i in range(STEPS)]

    async def body(s: asteps.Step, who: str) -> None:
        fn = fns.get(who, step)
        began, cpu = time.perf_counter(), time.process_time()
        for name in names:
            await s.call(name, fn)
        found[who]["wall"].append((time.perf_counter() - began) / STEPS)
        found[who]["cpu"].append((time.process_time() - cpu) / STEPS)

    fns = {"bare sdk": traced()}
    watching = list({**subjects(batch=True), "bare sdk": []}.items())
    found: dict[str, dict[str, list[float]]] = {who: {"wall": [], "cpu": []} for who, _ in watching}
    async with SQLiteStore(directory / "runs.db", synchronous="FULL") as store:
        for turn in range(rounds + 3):
            if turn == 3:  # the first ones are for warming up
                for costs in found.values():
                    for times in costs.values():
                        times.clear()
            watching.append(watching.pop(0))
            for who, observers in watching:
                gc.collect(0)
                await asteps.run(body, who, store=store, id=f"{who} {turn}", observers=observers)
    return found


if __name__ == "__main__":
    gc.freeze()
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))))
