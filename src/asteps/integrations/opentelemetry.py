"""Runs in OpenTelemetry: spans of passes and steps, links from pass to pass, metrics.

::

    from asteps.integrations.opentelemetry import OpenTelemetry

    await asteps.run(move_to_vpc, "vm-42", store=store, id="vm-42", observers=[OpenTelemetry()])

A **pass** is a span below the one that is current where the driver is called, and has links to the
run's previous pass and its first one, in whatever process those ran. Each **call** of a step's
body is a span below its parent's: an attempt, or a check of what was pending before, with a link
to the call before it in the same pass. It is the current span while the body runs, so what the
body's own clients trace lies below it, and log records find it. A replayed step is not called, and
has no span.

It needs ``asteps[otel]``, that is opentelemetry-api; the SDK and its exporters are the
application's. Without an SDK the spans and metrics go nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from time import perf_counter
from types import TracebackType
from typing import Any, TypeAlias

from .._events import BodyCall, Ended
from .._failure import say
from ..errors import AstepsError, MissingDependencyError, StepError, type_name

try:
    from opentelemetry import context, trace
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("opentelemetry-api", "otel") from _exc

__all__ = ["OpenTelemetry"]

_NAME = "asteps"
_BOUNDARIES = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0]
_PREVIOUS, _FIRST = "traceparent", "first.traceparent"  # what passes carry to later ones
_PLAIN = ("do", "call")  # kinds of steps
_MAX_DESCRIPTION = 500  # characters

_Attributes: TypeAlias = dict[str, str | int]
_propagator = TraceContextTextMapPropagator()
_attach, _detach = context.attach, context.detach
_current = trace.set_span_in_context


class OpenTelemetry:
    """An observer that makes spans and metrics of what it surrounds.

    One object serves any number of runs at the same time. Spans and durations are by the machine's
    clock, also where the run has another one.

    Args:
        tracer_provider: Where spans go; the global one by default.
        meter_provider: Where metrics go; the global one by default.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = get_meter(_NAME, meter_provider=meter_provider)
        self._pass_duration = meter.create_histogram(
            "asteps.pass.duration",
            unit="s",
            description="Time from a pass's first step to its last, waits in place included.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._step_duration = meter.create_histogram(
            "asteps.step.duration",
            unit="s",
            description="Time that one call of a step's body took.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._passes_active = meter.create_up_down_counter(
            "asteps.pass.active", unit="{pass}", description="Passes that are running."
        )
        self._steps_active = meter.create_up_down_counter(
            "asteps.step.active", unit="{step}", description="Steps whose bodies are running."
        )
        self._counters = {
            ended: meter.create_counter(f"asteps.step.{plural}", unit=unit, description=what)
            for ended, plural, unit, what in (
                ("failed", "failures", "{failure}", "Steps that failed for good."),
                ("retrying", "retries", "{attempt}", "Attempts that failed and are repeated."),
                ("pending", "pendings", "{call}", "Calls that ended with: not yet."),
                ("interrupted", "interruptions", "{call}", "Calls that were cut off."),
            )
        }
        self._attempts = meter.create_counter(
            "asteps.step.attempts", unit="{attempt}", description="Attempts that came to an end."
        )
        self._seen: dict[BodyCall, dict[str, trace.SpanContext]] = {}

    def around(self, call: BodyCall, /) -> AbstractContextManager[object]:
        """Surround a call with a span, and count it."""
        return _Pass(self, call) if call.kind == "pass" else _Step(self, call)


class _Pass:
    """A pass, surrounded."""

    def __init__(self, otel: OpenTelemetry, call: BodyCall) -> None:
        self._otel = otel
        self._call = call

    def __enter__(self) -> None:
        otel, call = self._otel, self._call
        attributes: _Attributes = {"asteps.run.name": call.run_name, "asteps.epoch": call.epoch}
        if call.run_id is not None:
            attributes["asteps.run.id"] = call.run_id
        span = otel._tracer.start_span(
            call.run_name, attributes=attributes, links=_links(call.carried)
        )
        _carry(span, call.carried)
        otel._seen[call] = {}
        self._active = {"asteps.run.name": call.run_name}
        self._span = span
        otel._passes_active.add(1, self._active)
        self._began = perf_counter()
        self._token = _attach(_current(span))  # last: if anything raises, nothing is current

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        took = perf_counter() - self._began
        otel, call = self._otel, self._call
        _detach(self._token)
        otel._seen.pop(call, None)
        otel._passes_active.add(-1, self._active)
        measured = {**self._active, "asteps.status": call.ended or "interrupted"}
        # What a driver raises is an error, also where no step has failed: a lost store, misuse.
        failed = call.ended == "failed" or isinstance(call.error, AstepsError)
        _end(self._span, call, measured, failed=failed)
        otel._pass_duration.record(took, measured)


class _Step:
    """A call of a step's body, surrounded."""

    __slots__ = ("_active", "_began", "_call", "_otel", "_span", "_token")

    def __init__(self, otel: OpenTelemetry, call: BodyCall) -> None:
        self._otel = otel
        self._call = call

    def __enter__(self) -> None:
        otel, call = self._otel, self._call
        attributes: _Attributes = {"asteps.step.path": call.path}
        if call.run_id is not None:
            attributes["asteps.run.id"] = call.run_id
        # An attribute costs the SDK about a microsecond: what is usual goes without saying.
        if call.kind not in _PLAIN:
            attributes["asteps.step.kind"] = call.kind
        if call.attempt > 1:
            attributes["asteps.step.attempt"] = call.attempt
        if call.interruptions:
            attributes["asteps.step.interruptions"] = call.interruptions
        seen = otel._seen.get(call.whole)
        links = None
        if seen and (before := seen.pop(call.path, None)) is not None:
            links = [trace.Link(before, {"asteps.link": "previous call"})]
        span = otel._tracer.start_span(call.pattern, attributes=attributes, links=links)
        self._span = span
        self._active = {"asteps.run.name": call.run_name, "asteps.step.pattern": call.pattern}
        otel._steps_active.add(1, self._active)
        self._began = perf_counter()
        self._token = _attach(_current(span))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        took = perf_counter() - self._began
        otel, call, span = self._otel, self._call, self._span
        _detach(self._token)
        otel._steps_active.add(-1, self._active)
        ended: Ended = call.ended or "interrupted"
        measured = {**self._active, "asteps.status": ended}
        if ended == "done":
            span.set_attribute("asteps.status", "done")
            span.end()
        else:
            failed = ended in ("failed", "retrying")
            _end(span, call, measured, failed=failed)
            counted = {k: v for k, v in measured.items() if k != "asteps.status"}
            otel._counters[ended].add(1, counted)
            if ended in ("pending", "retrying"):
                seen = otel._seen.get(call.whole)
                if seen is not None:
                    seen[call.path] = span.get_span_context()
        if ended in ("done", "failed", "retrying"):
            otel._attempts.add(1, self._active)
        otel._step_duration.record(took, measured)


def _end(span: trace.Span, call: BodyCall, measured: dict[str, str], *, failed: bool) -> None:
    """End a span by what its call came to; an error's type is measured, too."""
    span.set_attribute("asteps.status", call.ended or "interrupted")
    error = call.error
    if failed and error is not None:
        measured["error.type"] = kind = _type_of(error)
        span.set_attribute("error.type", kind)
        span.set_status(trace.StatusCode.ERROR, say(error)[:_MAX_DESCRIPTION])
        if (own := _raised_in(call, error)) is not None:
            with suppress(Exception):  # a broken __str__ must not keep the span from its end
                span.record_exception(own)
    span.end()


def _raised_in(call: BodyCall, error: BaseException) -> BaseException | None:
    """What the call's own body raised; what came from a step below, that step's span has."""
    if not isinstance(error, StepError):
        return error
    if error.path != call.path or error.errors:
        return None
    return error.__cause__ or error


def _type_of(error: BaseException) -> str:
    """Of what a step below raised, the type of that; or why the engine gave up."""
    while isinstance(error, StepError) and error.errors:
        error = error.errors[0]
    if not isinstance(error, StepError):
        name = type_name(type(error))
    else:
        name = next(iter(error.failure.types), error.failure.kind)
    return name.removeprefix("builtins.")  # as the SDK has it in exception.type


def _carry(span: trace.Span, carried: dict[str, str]) -> None:
    """Let the run's later passes know this one, if it is kept at all."""
    if span.get_span_context().trace_flags.sampled:
        fresh: dict[str, str] = {}
        _propagator.inject(fresh, _current(span))
        if _PREVIOUS in fresh:
            carried[_PREVIOUS] = fresh[_PREVIOUS]
            carried.setdefault(_FIRST, fresh[_PREVIOUS])


def _links(carried: Mapping[str, str]) -> list[trace.Link]:
    """To the run's passes before this one, as far as it carries them."""
    links: list[trace.Link] = []
    previous, first = carried.get(_PREVIOUS), carried.get(_FIRST)
    for which, parent in (("previous pass", previous), ("first pass", first)):
        if parent is None or (which == "first pass" and parent == previous):
            continue
        known: dict[str, Any] = {"traceparent": parent}
        found = trace.get_current_span(_propagator.extract(known, context.Context()))
        if found.get_span_context().is_valid:
            links.append(trace.Link(found.get_span_context(), {"asteps.link": which}))
    return links
