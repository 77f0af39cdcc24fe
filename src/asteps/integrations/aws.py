"""Any waiter of boto3 and aiobotocore as a step: durable, and not bound to the process.

botocore ships some 400 waiters: which operation to call, how often, and by what to tell success
from failure. Its own ``waiter.wait()`` sleeps in the process that began the wait, and knows nothing
of it afterwards. `wait_until` has the same waiter do one check at a time, on `Step.poll`::

    image = await wait_until(
        s,
        "image",
        ec2,
        "image_available",
        start=partial(create_image, ec2, instance),  # returns the image's ID, kept at once
        params=lambda image: {"ImageIds": [image]},
    )

It needs ``asteps[aws]``, that is botocore; the client is yours, of boto3 or of aiobotocore.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, Unpack, cast, overload

from .._paths import join
from .._payload import UNSET
from .._policy import Duration, PollOptions, Retry
from .._step import Step
from ..errors import Failure, MissingDependencyError, StepError, UsageError, type_names

try:
    from botocore import xform_name
    from botocore.exceptions import ClientError, ParamValidationError
    from botocore.validate import validate_parameters
    from botocore.waiter import is_valid_waiter_error
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("botocore", "aws") from _exc

__all__ = ["Client", "Parameters", "WaitOptions", "WaiterFailedError", "wait_until"]

K = TypeVar("K")
R = TypeVar("R")

Parameters: TypeAlias = Mapping[str, object]
"""Of an operation, by the names that boto3 has for them: ``{"ImageIds": ["ami-1"]}``."""


class Client(Protocol):
    """A client of boto3 or aiobotocore; of the latter what ``async with`` gives."""

    @property
    def meta(self) -> Any:
        """What botocore knows of the client's service."""


class WaitOptions(PollOptions, total=False):
    """The keywords of `wait_until`, beside its own.

    Attributes:
        every: Seconds between two checks, or a `Retry` for pauses that grow, as in `Step.poll`; by
            default the waiter's own ``delay``.
        retry: For what ``start`` and the checks raise, but for a `WaiterFailedError`, which is
            final. botocore has retries of its own below these.
        timeout: As in `Step.poll`; by default the waiter's ``delay * maxAttempts``, and ``None``
            for no limit. It is time, not a number of checks, and time in which no process was at
            work counts: where a run may stand still for long, give it more.
        inputs: As in `Step.do`.
    """

    every: Duration | Retry


class WaiterFailedError(StepError):
    """A waiter met one of its failure states, which no further check will change.

    The step has failed for good: ``retry=`` tries again neither here nor further up. It is for
    `StepError.is_a`, on any pass; the step raises a plain `StepError`. Recovered, the step looks at
    the same task again; to start another one, reset it.

    Attributes:
        waiter: Its name.
        task: What was waited for, as text.
        reason: Which of its failure states, in botocore's words.
    """

    def __init__(self, path: str, waiter: str, task: str, reason: str, /) -> None:
        message = f"waiter {waiter!r} gave up on {task}: {reason}"
        kinds = type_names(WaiterFailedError)
        super().__init__(path, Failure(message=message, types=kinds, final=True))
        self.waiter = waiter
        self.task = task
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.waiter, self.task, self.reason))


@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    params: Parameters,
    **options: Unpack[WaitOptions],
) -> dict[str, Any]: ...
@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    params: Parameters,
    result: Callable[[dict[str, Any]], R],
    **options: Unpack[WaitOptions],
) -> R: ...
@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    start: Callable[[], Awaitable[K]],
    params: Callable[[K], Parameters],
    **options: Unpack[WaitOptions],
) -> K: ...
@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    start: Callable[[], K],
    params: Callable[[K], Parameters],
    **options: Unpack[WaitOptions],
) -> K: ...
@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    start: Callable[[], Awaitable[K]],
    params: Callable[[K], Parameters],
    result: Callable[[dict[str, Any]], R],
    **options: Unpack[WaitOptions],
) -> R: ...
@overload
async def wait_until(
    s: Step,
    name: str,
    client: Client,
    waiter: str,
    /,
    *,
    start: Callable[[], K],
    params: Callable[[K], Parameters],
    result: Callable[[dict[str, Any]], R],
    **options: Unpack[WaitOptions],
) -> R: ...
async def wait_until(
    s: Step,
    name: str,
    client: Any,
    waiter: str,
    /,
    *,
    params: Parameters | Callable[[Any], Parameters] | None = None,
    start: Callable[[], Any] | None = None,
    result: Callable[[dict[str, Any]], Any] | None = None,
    **options: Any,
) -> Any:
    """Wait until a waiter of botocore is content, as the child step ``name``.

    ``start()`` begins what is waited for. Its ID is in the store before the first check, which is
    made at once; after a crash the wait goes on with that ID, and nothing is started again. Killed
    between the two, ``start`` is called again: hand ``s.token_for(name)`` to the service, as
    ``ClientToken``, where it takes one.

    Each check calls the waiter's operation once. What the answer means (also a ``ClientError``:
    some waiters expect one) is for the waiter's acceptors; what none of them knows is a failure if
    it is an error, and otherwise "not yet". Calls of a boto3 client are made in a worker thread.

    Args:
        s: The step below which to wait.
        name: The child's name, as in `Step.do`.
        client: A client of the service.
        waiter: The waiter's name, as in ``client.waiter_names``: ``"image_available"``.
        start: Begins it, and returns an ID that survives JSON; sync or async. Leave it out where
            what is waited for is there already.
        params: The parameters of the waiter's operation: a function of the ID; without ``start``
            the parameters themselves, which then are the ID.
        result: Makes the step's result of the last answer (of an error, of what botocore has as
            ``ClientError.response``). Not ``None``, and as JSON can hold it; answers as a whole
            cannot, for the times in them. By default the result is the ID.
        **options: See `WaitOptions`.

    Returns:
        The ID, or what ``result`` made; on later passes the same, without a call.

    Raises:
        StepError: It failed: with a `WaiterFailedError`, with a ``TimeoutError``, or with what
            ``start`` or the operation raised.

    Cancellation: As in `Step.poll`.
    """
    try:
        config, operation = _look_up(client, waiter)
        _check_params(client, config.operation, waiter, params, started=start is not None)
    except UsageError as exc:
        raise s._abort(exc) from exc.__cause__

    async def given() -> Any:
        return dict(cast("Parameters", params))

    begin = given if start is None else start
    parameters: Callable[[Any], Parameters] = params if callable(params) else dict
    acceptors = config.acceptors

    def arguments(task: Any) -> dict[str, Any]:
        found = parameters(task)
        if not isinstance(found, Mapping):
            raise UsageError(
                f"params= of step {name!r} is to return the parameters of {config.operation} as a "
                f"mapping, not {type(found).__name__}"
            )
        return dict(found)

    def judge(task: Any, answer: dict[str, Any], error: ClientError | None) -> Any:
        matched = next((a for a in acceptors if a.matcher_func(answer)), None)
        if matched is None:
            if error is not None:
                raise error
            if not is_valid_waiter_error(answer):
                return None
        elif matched.state == "retry":
            return None
        elif matched.state == "success":
            return task if result is None else _make_result(result, answer, name)
        why = f"{answer['Error']}" if matched is None else matched.explanation
        raise WaiterFailedError(join(s.path, name), waiter, f"{task!r:.200}", why) from error

    def check(task: Any) -> Any:
        known = arguments(task)
        try:
            answer, error = operation(**known), None
        except ClientError as exc:
            answer, error = exc.response, exc
        except ParamValidationError as exc:
            raise _wrong_params(config.operation, waiter, exc) from exc
        return judge(task, answer, error)

    async def check_async(task: Any) -> Any:
        known = arguments(task)
        try:
            answer, error = await operation(**known), None
        except ClientError as exc:
            answer, error = exc.response, exc
        except ParamValidationError as exc:
            raise _wrong_params(config.operation, waiter, exc) from exc
        return judge(task, answer, error)

    spec = s._spec(begin if result is None else result)
    return await s.poll(
        name,
        begin,
        check_async if inspect.iscoroutinefunction(client.close) else check,
        returns=UNSET if spec.exact else spec.type,
        **{"every": config.delay, "timeout": config.delay * config.max_attempts, **options},
    )


def _look_up(client: Any, waiter: str) -> tuple[Any, Callable[..., Any]]:
    """The waiter's configuration, and the client's method that it calls.

    Not in a thread: until the step is polled, nobody knows that it is at work. The first look at a
    service's waiters reads a small file of botocore's; the client remembers it.

    Raises:
        UsageError: There is no such waiter, or this is no client.
    """
    names = getattr(client, "waiter_names", None)
    if not isinstance(names, list):
        raise UsageError(
            f"wait_until() needs a client of boto3 or aiobotocore, not {type(client).__name__} "
            "(of a boto3 resource take .meta.client; an aiobotocore client is what `async with` "
            "gives)"
        )
    if waiter not in names:
        near = difflib.get_close_matches(xform_name(str(waiter)), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"a client of {client.meta.service_model.service_name!r} has no waiter {waiter!r}: "
            f"{hint}There are {', '.join(names) or 'none'}"
        )
    config = client.get_waiter(waiter).config
    return config, getattr(client, xform_name(config.operation))


def _check_params(
    client: Client, operation: str, waiter: str, params: object, *, started: bool
) -> None:
    """Find out what is wrong with ``params=`` before anything is started.

    Raises:
        UsageError: It is not what is needed.
    """
    if started != callable(params) or not (started or isinstance(params, Mapping)):
        wanted = (
            "a function that makes them of the ID that start() returned"
            if started
            else "a mapping, for without start= there is no ID to make them of"
        )
        raise UsageError(
            f"params= are the parameters of {operation}, which waiter {waiter!r} calls: {wanted}; "
            f"not {type(params).__name__}"
        )
    shape = client.meta.service_model.operation_model(operation).input_shape
    if isinstance(params, Mapping) and shape is not None:
        try:
            validate_parameters(dict(params), shape)
        except ParamValidationError as exc:
            raise _wrong_params(operation, waiter, exc) from exc


def _wrong_params(operation: str, waiter: str, exc: Exception) -> UsageError:
    return UsageError(
        f"{operation}, which waiter {waiter!r} calls, cannot be called with these params=: {exc}"
    )


def _make_result(result: Callable[[dict[str, Any]], Any], answer: dict[str, Any], name: str) -> Any:
    value = result(answer)
    if value is None:
        raise UsageError(f"result= of step {name!r} returned None: return what is to be kept")
    return value
