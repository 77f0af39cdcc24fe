"""User values as JSON: results, infos and inputs, and the function annotations that type them.

Pure. A value is encoded once, when it enters the tree, and what the caller gets back is decoded
from those bytes: so the first pass gives exactly what every later pass will give.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
import re
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Never, NoReturn, TypeAlias, TypeVar

import msgspec

from .errors import UsageError

__all__ = [
    "SMALL",
    "UNSET",
    "DecHook",
    "EncHook",
    "Payloads",
    "Spec",
    "Specified",
    "TooLargeError",
    "Unset",
    "function_name",
    "unwrap",
]

T = TypeVar("T")
EncHook: TypeAlias = Callable[[Any], Any]
"""msgspec's ``enc_hook``: turns a value that msgspec does not know into one that it knows."""
DecHook: TypeAlias = Callable[[type, Any], Any]
"""msgspec's ``dec_hook``: makes a value of the given type from the decoded JSON."""

Unset: TypeAlias = msgspec.UnsetType
UNSET = msgspec.UNSET

MAX_NESTING = 100  # of a payload; the tree around it adds up to 100 more
SMALL = 2 * MAX_NESTING  # bytes up to which a payload cannot be nested too deep
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MAX_SPECS = 2_048  # functions remembered per driver; lambdas made in loops would fill memory


class TooLargeError(Exception):
    """A payload is larger than ``max_result_bytes``."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the result is {size:,} bytes of JSON, more than max_result_bytes={limit:,}; store "
            "the data elsewhere and return a reference to it"
        )


class Spec:
    """What there is to know of a step's function: how to call it, how its result comes back.

    Attributes:
        is_async: Calling it makes a coroutine.
        exact: There is no annotation: a result must equal what its JSON decodes to.
        decode: Result bytes to the value that the caller gets.
        lasting: It holds nothing of its function, and may be remembered as long as that lives.
    """

    __slots__ = ("decode", "exact", "is_async", "lasting", "type")

    def __init__(
        self,
        *,
        is_async: bool,
        exact: bool,
        type: object,
        decode: Callable[[Any], Any],
        lasting: bool = True,
    ) -> None:
        self.is_async: bool = is_async
        self.exact: bool = exact
        self.type: object = type
        self.decode: Callable[[Any], Any] = decode
        self.lasting: bool = lasting


_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
_decode: Callable[[Any], Any] = msgspec.json.Decoder().decode
_EXACT = {kind: Spec(is_async=kind, exact=True, type=Any, decode=_decode) for kind in (True, False)}

# What is known of functions, without hooks: a memo of `Payloads.spec`, which costs as much as
# twenty steps. Weak, so that it keeps no closure alive.
_memo: weakref.WeakKeyDictionary[Callable[..., Any], Spec] = weakref.WeakKeyDictionary()


def _known(fn: Callable[..., Any]) -> Spec | None:
    try:
        return _memo.get(fn)
    except TypeError:  # it takes no weak references, or has no hash
        return None


def _remember(fn: Callable[..., Any], spec: Spec) -> None:
    with contextlib.suppress(TypeError):
        _memo[fn] = spec


class Specified(typing.Protocol):
    """A callable object whose result has no annotation, because it is known only to itself."""

    def spec_of_result(self, payloads: Payloads) -> Spec:
        """How to call it, and how its result comes back."""
        ...


class Payloads:
    """Encodes and decodes user values under one pair of hooks and one size limit.

    Args:
        enc_hook: msgspec's hook for types that it cannot encode.
        dec_hook: msgspec's hook for types that it cannot decode.
        max_bytes: The largest result that `result` accepts.
    """

    def __init__(
        self,
        enc_hook: EncHook | None = None,
        dec_hook: DecHook | None = None,
        max_bytes: int = 1 << 20,
    ) -> None:
        self._enc_hook = enc_hook
        self._dec_hook = dec_hook
        self._max_bytes = max_bytes
        self.encode_only: Callable[[Any], bytes] = (
            _encode if enc_hook is None else msgspec.json.Encoder(enc_hook=enc_hook).encode
        )
        self.specs: dict[object, Spec] = {}

    # -- values --

    def encode(self, value: object, what: str) -> bytes:
        """The value as JSON.

        Raises:
            UsageError: It cannot be encoded, is cyclic, nested more than 100 deep, or holds NaN or
                an infinity. ``what`` says what was being encoded.
        """
        try:
            data = self.encode_only(value)
        except RecursionError:
            raise UsageError(f"{what} is cyclic, or nested more than {MAX_NESTING} deep") from None
        except UnicodeEncodeError as exc:
            raise UsageError(f"{what} holds a str with surrogates: {exc}") from exc
        except UsageError:
            raise
        except Exception as exc:  # msgspec, or whatever the hook raises
            raise UsageError(
                f"{what} cannot be stored as JSON: {exc}; return plain data, or pass enc_hook= "
                "and dec_hook= to the driver"
            ) from exc
        self._vet_data(value, data, what)
        return data

    def _vet_data(self, value: object, data: bytes, what: str) -> None:
        if len(data) > SMALL and _nesting_exceeds(data, MAX_NESTING):
            raise UsageError(f"{what} is nested more than {MAX_NESTING} deep")
        if data.find(b"null") >= 0 and value is not None and self._has_nonfinite(value):
            raise UsageError(f"{what} holds NaN or an infinity, which JSON cannot hold")

    def result(self, value: object, spec: Spec, where: str) -> tuple[bytes, Any]:
        """A step's result as JSON, and as every later pass will see it.

        Raises:
            UsageError: It cannot come back as what it is.
            TooLargeError: It is larger than the limit.
        """
        data = self.encode(value, f"the result of {where}")
        try:
            again = spec.decode(data)
        except Exception as exc:
            raise UsageError(
                f"the result of {where} does not come back as {_say(spec.type)}: {exc}; "
                "correct the return annotation, or pass returns="
            ) from exc
        self.vet(value, data, again, spec, where)
        return data, again

    def vet(self, value: object, data: bytes, again: object, spec: Spec, where: str) -> None:
        """The checks of `result`, for a caller that has encoded and decoded already.

        Raises:
            UsageError: It cannot come back as what it is.
            TooLargeError: It is larger than the limit.
        """
        if len(data) > self._max_bytes:
            raise TooLargeError(len(data), self._max_bytes)
        self._vet_data(value, data, f"the result of {where}")
        if spec.exact and not _is_equal(value, again):
            raise UsageError(
                f"the result of {where} comes back from JSON as {_cut(again)}, not as "
                f"{_cut(value)}: annotate the function's return type, or pass returns="
            )

    def decode_result(self, data: msgspec.Raw | bytes, spec: Spec, where: str) -> Any:
        """A recorded result, as its function's type; ``None`` where none was recorded.

        Raises:
            UsageError: It does not fit the function any more.
        """
        if not bytes(data):
            return None
        try:
            return spec.decode(data)
        except Exception as exc:
            raise UsageError(
                f"the recorded result of {where} does not fit its function any more: {exc}; "
                "reset it, or give changed code a new name"
            ) from exc

    def decode(self, data: msgspec.Raw | bytes, type: object, what: str) -> Any:
        """A stored value, as this type.

        Raises:
            UsageError: It is not of this type.
        """
        decode = self.decoder(type)
        try:
            return decode(data)
        except Exception as exc:  # msgspec, or whatever the hook raises
            raise UsageError(f"{what} is not {_say(type)}: {exc}") from exc

    def plain(self, data: msgspec.Raw | bytes) -> Any:
        """A stored value as dicts, lists, strings and numbers."""
        return _decode(data)

    def digest(self, value: object, what: str) -> str:
        """A short name for a value, equal for equal values: blake2b over its sorted JSON.

        Raises:
            UsageError: It cannot be encoded.
        """
        self.encode(value, what)  # the checks, and the messages
        # Sets have another order in each process, and keys need not be text.
        plain = msgspec.to_builtins(
            value, str_keys=True, enc_hook=self._enc_hook, order="deterministic"
        )
        data = msgspec.json.encode(plain, order="sorted")
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def digest_of_arguments(self, fn: Callable[..., object], args: tuple[object, ...]) -> str:
        """The digest of a call; an argument that cannot be encoded counts by its type's name."""
        while isinstance(fn, functools.partial):
            args = (*fn.args, *args, *sorted(fn.keywords.items()))
            fn = fn.func
        return self.digest([self._comparable(a) for a in args], "the arguments")

    def _comparable(self, value: object) -> object:
        try:
            self.encode(value, "")
        except UsageError:
            return f"<{type(value).__module__}.{type(value).__qualname__}>"
        return value

    def _has_nonfinite(self, value: object) -> bool:
        stack = [msgspec.to_builtins(value, enc_hook=self._enc_hook)]
        while stack:
            item = stack.pop()
            if isinstance(item, float):
                if not math.isfinite(item):
                    return True
            elif isinstance(item, dict):
                stack.extend(item.values())
            elif isinstance(item, list | tuple):
                stack.extend(item)
        return False

    # -- functions --

    def spec(self, fn: Callable[..., Any], returns: object = UNSET) -> Spec:
        """How to call a function, and the type of what it returns.

        Raises:
            UsageError: It is not callable, is a generator, or its result's type cannot come back.
        """
        key: object = fn if returns is UNSET else (fn, id(returns))
        try:
            return self.specs[key]
        except (KeyError, TypeError):  # new, or an unhashable callable object
            pass
        if returns is UNSET and self._dec_hook is None:
            known = _known(fn)
            spec = known or self._make_spec(fn, returns)
            if known is None and spec.lasting:
                _remember(fn, spec)
        else:
            spec = self._make_spec(fn, returns)
        if len(self.specs) >= _MAX_SPECS:
            self.specs.clear()
        try:
            self.specs[key] = spec
            if returns is not UNSET:
                spec.type = returns  # keeps it alive, so that its id() stays its own
        except TypeError:  # an unhashable callable object
            pass
        return spec

    def _make_spec(self, fn: Callable[..., Any], returns: object) -> Spec:
        if not callable(fn):
            raise UsageError(f"a step runs a function, not {type(fn).__name__}: {_cut(fn)}")
        inner = unwrap(fn)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            raise UsageError(
                f"{function_name(fn)} is a generator: a step's function returns its result once"
            )
        if returns is UNSET and (owner := _owner_of(inner)) is not None:
            return owner.spec_of_result(self)
        is_async = inspect.iscoroutinefunction(inner)
        found = _return_annotation(inner, needed=returns is UNSET)
        if returns is UNSET:
            if found is UNSET or found is Any or found is object or isinstance(found, TypeVar):
                return _EXACT[is_async]
            wanted = found
        else:
            _check_agreement(fn, found, returns)
            wanted = returns
        return Spec(is_async=is_async, exact=False, type=wanted, decode=self.decoder(wanted))

    def decoder(self, wanted: object) -> Callable[[Any], Any]:
        """A decoder for a type.

        Raises:
            UsageError: msgspec cannot decode it, with the hook that there is.
        """
        try:
            if self._dec_hook is None and (odd := _custom_type(wanted)):
                raise UsageError(
                    f"{_say(wanted)} cannot be read back from JSON: msgspec does not know "
                    f"{_say(odd)}; use a dataclass, a Struct or plain data, pass returns=, or "
                    "give the driver enc_hook= and dec_hook="
                )
            decode: Callable[[Any], Any] = msgspec.json.Decoder(
                wanted, dec_hook=self._dec_hook
            ).decode
        except TypeError as exc:
            raise UsageError(
                f"{_say(wanted)} cannot be read back from JSON: {exc}; pass returns="
            ) from exc
        return decode


def unwrap(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function inside partials; a callable object's ``__call__``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return fn
    call = getattr(fn, "__call__", None)  # noqa: B004 - the method is wanted, not the answer
    return call if isinstance(call, types.MethodType) else fn


def function_name(fn: Callable[..., Any]) -> str:
    """The qualified name of a function; of a callable object, its type's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) else type(fn).__qualname__


def _owner_of(fn: Callable[..., Any]) -> Specified | None:
    """The object behind a method that knows its result better than an annotation does."""
    owner: Any = getattr(inspect.unwrap(fn), "__self__", None)
    return owner if hasattr(type(owner), "spec_of_result") else None


def _return_annotation(fn: Callable[..., Any], *, needed: bool) -> Any:
    """What a function says it returns, once awaited; UNSET if it does not say."""
    if isinstance(fn, type):
        return fn
    own = inspect.unwrap(getattr(fn, "__func__", fn))  # of a bound method, of a decorated one
    said = getattr(own, "__annotations__", {}).get("return", UNSET)
    if said is UNSET:
        return UNSET
    # Only the return annotation is resolved: others often exist for type checkers alone.
    code, closure = getattr(own, "__code__", None), getattr(own, "__closure__", None) or ()
    local = dict(zip(code.co_freevars, closure, strict=False)) if code else {}
    try:
        names = {name: cell.cell_contents for name, cell in local.items()}
        holder = types.SimpleNamespace(__annotations__={"return": said})
        found = typing.get_type_hints(
            holder, getattr(own, "__globals__", {}), names, include_extras=True
        )["return"]
    except Exception as exc:
        if not needed:
            return UNSET
        raise UsageError(
            f"the return annotation {said!r} of {function_name(fn)} cannot be resolved "
            f"({exc}): pass returns="
        ) from exc
    if typing.get_origin(found) in (Awaitable, Coroutine) and not inspect.iscoroutinefunction(fn):
        found = typing.get_args(found)[-1]
    return type(None) if found in (NoReturn, Never) else found


def _check_agreement(fn: Callable[..., Any], said: object, returns: object) -> None:
    """Refuse ``returns=`` that plainly contradicts the annotation."""
    if (
        isinstance(said, type)
        and isinstance(returns, type)
        and not {said, returns} & {Any, object}
        and said is not type(None)
        and typing.get_origin(said) is None
        and typing.get_origin(returns) is None
        and not (issubclass(said, returns) or issubclass(returns, said))
    ):
        raise UsageError(
            f"returns={_say(returns)} contradicts {function_name(fn)}, which is annotated to "
            f"return {_say(said)}"
        )


def _custom_type(wanted: object) -> object | None:
    """A type in here that msgspec knows only with hooks."""
    from msgspec import inspect as schema  # noqa: PLC0415 - not needed by most, and slow to import

    info = schema.type_info(wanted)
    seen: set[int] = set()
    stack: list[object] = [info]
    while stack:
        item = stack.pop()
        if isinstance(item, schema.CustomType) and item.cls is not object:
            return item.cls  # but an object is whatever the JSON holds
        if isinstance(item, tuple):
            stack.extend(item)
        elif isinstance(item, schema.Type | schema.Field) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(getattr(item, name) for name in item.__struct_fields__)
    return None


def _is_equal(value: object, again: object) -> bool:
    try:
        return type(again) is type(value) and bool(again == value)
    except Exception:  # what cannot be compared cannot be trusted to be the same
        return False


def _nesting_exceeds(data: bytes, limit: int) -> bool:
    """Whether JSON is nested deeper than this; all passes over the bytes are C loops."""
    if data.count(b"[") + data.count(b"{") <= limit:
        return False
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        # Innermost pairs go; `[]{}` and `[[]]` differ, so each kind is taken once per level.
        brackets = _PAIRS.sub(b"", brackets)
    return bool(brackets)


_PAIRS = re.compile(rb"(?:\[\]|\{\})+")


def _say(type_: object) -> str:
    if isinstance(type_, type) and typing.get_origin(type_) is None:
        return type_.__qualname__
    return repr(type_)


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
