"""The keywords of the drivers, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from inspect import isclass
from typing import Any, Literal, TypedDict

import msgspec

from ._clock import Clock, SystemClock
from ._events import Around, Observer
from ._paths import is_control
from ._payload import UNSET, DecHook, EncHook, Payloads, Spec, function_name
from ._policy import Duration, duration
from ._state import State
from ._step import Step
from ._store import Store
from .errors import UsageError

__all__ = ["Keywords", "Options", "check_id", "make_options"]

MAX_ID = 500  # characters


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A driver's keywords, checked."""

    store: Store | None
    id: str | None
    state: State | None
    name: str
    arguments: str | None
    same_arguments: bool
    inputs: str | None
    relaxed: bool
    max_wait: float
    max_pass: float | None
    max_crashes: int | None
    on_end: Callable[[Step], Awaitable[object]] | None
    end_spec: Spec | None
    recover: bool
    observers: tuple[Observer | Around, ...]
    clock: Clock
    lease: float
    payloads: Payloads


class Keywords(TypedDict, total=False):
    """The keywords of the drivers.

    Attributes:
        store: Where the run lives; needs ``id=``. Without one nothing outlives the call.
        id: The run's id, 1 to 500 characters.
        state: A tree that the caller keeps itself, changed in place; excludes ``store=``.
        name: What the function is known by, if not by its qualified name.
        inputs: What the run depends on. When it differs from what was recorded, a finished run is
            reopened, its children kept.
        save: ``"step"`` (the default) saves each outcome before ``do`` returns, ``"pass"`` when
            the pass ends or waits in place.
        max_wait: Seconds (or a ``timedelta``) of a pass's budget: it waits in place only for what
            comes due before its start + ``max_wait``. `run` has no limit by default, the others 0.
        max_pass: Seconds after which a pass begins no new body, and ends pending.
        max_crashes: A step that was interrupted this often without progress fails as ``crashed``.
        on_end: Runs as the step ``$end`` once the run has ended, done or failed; once per end.
        recover: Recover the causes of a failed run first.
        observers: Told of each event, after the save that holds it, or entered around each call of
            a body, or both: see `Observer` and `Around`.
        clock: Where time comes from.
        lease: Seconds for which a failing save is repeated, and for which the run stays held where
            the store cannot see that its holder has died; 30 by default.
        max_result_bytes: The largest result, as JSON; 1 MiB by default.
        enc_hook: msgspec's hook for types that it cannot encode.
        dec_hook: msgspec's hook for types that it cannot decode.
    """

    store: Store | None
    id: str | None
    state: State | None
    name: str | None
    inputs: object
    save: Literal["step", "pass"]
    max_wait: Duration | None
    max_pass: Duration | None
    max_crashes: int | None
    on_end: Callable[[Step], Awaitable[object]] | None
    recover: bool
    observers: Sequence[Observer | Around]
    clock: Clock | None
    lease: Duration
    max_result_bytes: int
    enc_hook: EncHook | None
    dec_hook: DecHook | None


def make_options(
    fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
    keywords: Keywords,
    *,
    same_arguments: bool,
    inline: bool = False,
) -> Options:
    """Check a driver's keywords; an inline run has no function.

    Raises:
        UsageError: There is no such keyword, one is wrong, or they do not go together.
    """
    if odd := sorted(set(keywords) - set(Keywords.__annotations__)):
        known = ", ".join(sorted(Keywords.__annotations__))
        raise UsageError(f"there is no keyword {', '.join(odd)}: there are {known}")
    return _check(fn, args, same_arguments=same_arguments, inline=inline, **keywords)


def _check(
    fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
    *,
    same_arguments: bool,
    inline: bool,
    store: Store | None = None,
    id: str | None = None,
    state: State | None = None,
    name: str | None = None,
    inputs: object = UNSET,
    save: str = "step",
    max_wait: Duration | None = None,
    max_pass: Duration | None = None,
    max_crashes: int | None = None,
    on_end: Callable[[Step], Awaitable[object]] | None = None,
    recover: bool = False,
    observers: Sequence[Observer | Around] = (),
    clock: Clock | None = None,
    lease: Duration = 30,
    max_result_bytes: int = 1 << 20,
    enc_hook: EncHook | None = None,
    dec_hook: DecHook | None = None,
) -> Options:
    if (store is None) != (id is None):
        raise UsageError(
            "store= and id= go together: the store keeps the run under its id"
            + ("; store= is missing" if store is None else "; id= is missing")
        )
    if store is not None and not _is_store(store):
        raise UsageError(f"store= takes a Store, not {_describe(store)}")
    if state is not None and store is not None:
        raise UsageError("state= and store= exclude each other: the caller keeps a state= itself")
    if state is not None and not isinstance(state, State):
        raise UsageError(f"state= takes a State, not {type(state).__name__}: use State.decode()")
    if id is not None:
        check_id(id)
    if save not in ("step", "pass"):
        raise UsageError(f"save= is 'step' or 'pass', not {save!r}")
    if not (max_crashes is None or _is_count(max_crashes)):
        raise UsageError(f"max_crashes= is a whole number from 1, not {max_crashes!r}")
    if not _is_count(max_result_bytes):
        raise UsageError(f"max_result_bytes= is a whole number from 1, not {max_result_bytes!r}")
    if not (inline or callable(fn)):
        raise UsageError(f"a run needs a function, not {type(fn).__name__}: {fn!r:.100}")
    if callable(observers) or not all(map(_is_observer, observers)):
        raise UsageError(
            "observers= takes a list of callables, each of which is given the events, and of "
            "objects with a method around(call)"
        )
    if clock is not None and not isinstance(clock, Clock):
        raise UsageError(f"clock= takes a Clock, not {type(clock).__name__}")
    if fn is not None and name is None:
        name = function_name(fn)
        if "<lambda>" in name.split(".")[-1]:
            raise UsageError("a lambda has no name to know the run by: pass name=")
    if not isinstance(name, str) or not name:
        raise UsageError(f"name= is a str of at least one character, not {name!r}")
    if any(map(is_control, name)):
        raise UsageError(f"name={name!r} holds control characters or surrogates")
    payloads = Payloads(enc_hook, dec_hook, max_result_bytes)
    return Options(
        store=store,
        id=id,
        state=state,
        name=name,
        arguments=None if fn is None else payloads.digest_of_arguments(fn, args),
        same_arguments=same_arguments,
        inputs=None if inputs is UNSET else payloads.digest(inputs, "inputs="),
        relaxed=save == "pass",
        max_wait=float("inf") if max_wait is None else duration(max_wait, "max_wait=", zero=True),
        max_pass=None if max_pass is None else duration(max_pass, "max_pass="),
        max_crashes=max_crashes,
        on_end=on_end,
        end_spec=None if on_end is None else payloads.spec(on_end, object),
        recover=recover,
        observers=tuple(observers),
        clock=clock or SystemClock(),
        lease=duration(lease, "lease="),
        payloads=payloads,
    )


def _describe(value: object) -> str:
    return f"the class {value.__name__}" if isclass(value) else type(value).__name__


def _is_store(value: object) -> bool:
    return not isclass(value) and isinstance(value, Store)


def _is_observer(value: object) -> bool:
    around = isinstance(value, Around)
    return not isclass(value) if around else callable(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_id(id: object) -> str:
    """Return a run's id if it is allowed.

    Raises:
        UsageError: It is not a str of 1 to 500 characters without control characters and
            surrogates.
    """
    if not isinstance(id, str) or not 0 < len(id) <= MAX_ID:
        raise UsageError(f"id= is a str of 1 to {MAX_ID} characters, not {id!r:.100}")
    if any(map(is_control, id)):
        raise UsageError(f"id={id!r} holds control characters or surrogates")
    return id
