"""Long-running operations of web APIs as steps: Google's shape, and Azure's.

Many services answer a request that takes long with an *operation*: a resource of its own, with a
name, to be asked for until it is done. Two descriptions of it are common:

- Google's, `AIP-151 <https://google.aip.dev/151>`_ (``google.longrunning.Operation``)::

    {"name": "operations/42", "done": true, "response": {…}}
    {"name": "operations/42", "done": true, "error": {"code": 8, "message": "no quota"}}

- Azure's, `Considerations for Service Design: Long-Running Operations
  <https://github.com/microsoft/api-guidelines/blob/vNext/azure/ConsiderationsForServiceDesign.md>`_
  (the header ``Operation-Location``, the body of a *status monitor*, and ``Retry-After``)::

    {"id": "42", "status": "Succeeded", "result": {…}}
    {"id": "42", "status": "Failed", "error": {"code": "NoQuota", "message": "no quota"}}

`run_operation` knows both, and needs nothing but the two calls: one that begins the operation, one
that gets it by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, Unpack, overload

from .._pass import pending
from .._paths import join
from .._payload import UNSET, unwrap
from .._policy import Duration, PollOptions, Retry
from .._step import Step
from ..errors import Failure, StepError, UsageError, type_names

__all__ = ["OperationFailedError", "run_operation"]

R = TypeVar("R")

_NAMES = ("operation-location", "azure-asyncoperation", "name", "id")
_ENDS = {"succeeded": True, "failed": False, "canceled": False, "cancelled": False}
_LONGEST_PAUSE = 86_400.0  # seconds; what asks for more than a day is a mistake


class OperationFailedError(StepError):
    """An operation ended in an error, which asking again will not change.

    The step has failed for good: ``retry=`` tries again neither here nor further up. It is for
    `StepError.is_a`, on any pass; the step raises a plain `StepError`. Recovered, the step looks at
    the same operation again; to begin another one, reset it.

    Attributes:
        operation: Its name.
        code: The service's code: ``8``, ``"NoQuota"``; of a cancelled one without, the status.
        reason: What the service said.
    """

    def __init__(self, path: str, operation: str, code: int | str, reason: str, /) -> None:
        message = f"operation {operation!r} failed with code {code}: {reason}"
        kinds = type_names(OperationFailedError)
        super().__init__(path, Failure(message=message, types=kinds, final=True))
        self.operation = operation
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.operation, self.code, self.reason))


@overload
async def run_operation(
    s: Step,
    name: str,
    start: Callable[[], Awaitable[object]] | Callable[[], object],
    get: Callable[[str], Awaitable[object]] | Callable[[str], object],
    /,
    *,
    every: Duration | Retry,
    **options: Unpack[PollOptions],
) -> Any: ...
@overload
async def run_operation(
    s: Step,
    name: str,
    start: Callable[[], Awaitable[object]] | Callable[[], object],
    get: Callable[[str], Awaitable[object]] | Callable[[str], object],
    /,
    *,
    result: Callable[[Any], R],
    every: Duration | Retry,
    **options: Unpack[PollOptions],
) -> R: ...
async def run_operation(
    s: Step,
    name: str,
    start: Callable[[], Any],
    get: Callable[[str], Any],
    /,
    *,
    result: Callable[[Any], Any] | None = None,
    every: Duration | Retry,
    **options: Any,
) -> Any:
    """Begin an operation, and ask for it until it is done, as the child step ``name``.

    The operation's name is in the store before it is first asked for; after a crash the step goes
    on with that name, and nothing is begun again. Killed between the two, ``start`` is called
    again: hand ``s.token_for(name)`` to the service as the request's ID.

    An operation is a mapping or an object. Read are, of a mapping in any case and with ``-`` or
    ``_``:

    - the name: ``Operation-Location``, ``Azure-AsyncOperation``, ``name``, ``id``, the first there;
    - the end: ``done``, or ``status`` (``Succeeded``, ``Failed``, ``Canceled``);
    - what came of it: ``error`` with ``code`` and ``message``; ``response`` or ``result``;
    - ``Retry-After``, in seconds: the service's own wish for the next pause.

    So where a service says part of this in headers, let the functions return those too:
    ``{**answer.headers, **answer.json()}``.

    Args:
        s: The step below which to wait.
        name: The child's name, as in `Step.do`.
        start: Begins the operation and returns it; sync (in a worker thread) or async.
        get: Given the name, gets the operation; sync or async.
        result: Makes the step's result of the finished operation; not ``None``, and as JSON can
            hold it. By default the result is ``response`` or ``result`` as it stands there; ``{}``
            where there is none, as with a deletion.
        every: Seconds between two questions, or a `Retry` for pauses that grow, as in `Step.poll`;
            a ``Retry-After`` takes its place.
        **options: As in `Step.poll`. ``retry`` is for what ``start`` and ``get`` raise, not for an
            operation that failed.

    Returns:
        What came of the operation; on later passes the same, without a call.

    Raises:
        StepError: It failed: with an `OperationFailedError`, with a ``TimeoutError``, or with what
            ``start`` or ``get`` raised.

    Cancellation: As in `Step.poll`.
    """

    def named(operation: Any) -> str:
        found = _name(operation)
        if found is None:
            raise UsageError(
                f"what start of step {name!r} returned has no name to ask for it by: one of "
                f"{', '.join(_NAMES)} is needed, in {_say(operation)}"
            )
        return found

    def judged(operation: Any, known: str) -> Any:
        done = _is_done(operation)
        if done is None:
            raise UsageError(
                f"what get of step {name!r} returned is no operation: neither done, nor status, "
                f"nor a name is in {_say(operation)}"
            )
        if not done:
            after = _number(_field(operation, "retry-after"))
            if after is not None and 0 < after <= _LONGEST_PAUSE:
                pending(after, f"operation {known!r:.200} is not done")
            return None
        if (error := _error(operation)) is not None:
            raise OperationFailedError(join(s.path, name), known[:200], *error)
        if result is not None:
            value = result(operation)
            if value is None:
                raise UsageError(
                    f"result= of step {name!r} returned None: return what is to be kept"
                )
            return value
        found = _field(operation, "response", "result")
        return {} if found is None else found

    def check(known: str) -> Any:
        return _then(get(known), judged, known)

    async def check_async(known: str) -> Any:
        return judged(await get(known), known)

    def begin() -> Any:
        return _then(start(), named)

    async def begin_async() -> Any:
        return named(await start())

    returns: Any = UNSET
    if result is not None:
        spec = s._spec(result)
        returns = UNSET if spec.exact else spec.type
    return await s.poll(
        name,
        begin_async if inspect.iscoroutinefunction(unwrap(start)) else begin,
        check_async if inspect.iscoroutinefunction(unwrap(get)) else check,
        every=every,
        returns=returns,
        **options,
    )


def _then(value: Any, after: Callable[..., Any], *args: Any) -> Any:
    """Go on with what a function returned, at once or once it has been awaited."""
    if not inspect.isawaitable(value):
        return after(value, *args)

    async def later() -> Any:
        return after(await value, *args)

    return later()


# --- what an operation says -----------------------------------------------------------------------


def _field(operation: Any, *names: str) -> Any:
    """The first of these that is there."""
    if isinstance(operation, Mapping):
        given = {str(key).lower().replace("_", "-"): value for key, value in operation.items()}
        return next((given[name] for name in names if given.get(name) is not None), None)
    for name in names:
        value = getattr(operation, name.replace("-", "_"), None)
        if value is not None:
            return value
    return None


def _name(operation: Any) -> str | None:
    found = _field(operation, *_NAMES)
    return found if isinstance(found, str) and found else None


def _is_done(operation: Any) -> bool | None:
    """Whether it is; ``None`` for what is no operation.

    JSON of Google's leaves ``done`` out as long as it is false.
    """
    done, status = _field(operation, "done"), _field(operation, "status")
    if isinstance(status, str):
        return status.lower() in _ENDS or done is True
    if isinstance(done, bool):
        return done
    return None if _name(operation) is None else False


def _error(operation: Any) -> tuple[int | str, str] | None:
    """Code and message of a done operation that failed.

    A protobuf object has an error even where it is not set; its code is 0 then.
    """
    error, status = _field(operation, "error"), _field(operation, "status")
    code, message = _field(error, "code"), _field(error, "message")
    bad = isinstance(status, str) and not _ENDS.get(status.lower(), True)
    told = isinstance(error, str | Mapping) and bool(error)
    if not (bad or code or message or told):
        return None
    if isinstance(error, str):
        message = error
    return (code if isinstance(code, int | str) and code else status or "unknown"), str(
        message or "no reason was given"
    )


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _say(operation: object) -> str:
    """An operation, without what it holds: that may be secret."""
    if isinstance(operation, Mapping):
        return f"a mapping with {', '.join(map(str, operation)) or 'nothing in it'}"
    return type(operation).__name__
