"""Names and paths of steps: what is allowed, and how names join to a path (RFC 6901)."""

from __future__ import annotations

from .errors import UsageError

__all__ = ["MAX_DEPTH", "MAX_NAME", "check_name", "escape", "is_control", "join", "split"]

MAX_DEPTH = 50  # names in a path
MAX_NAME = 200  # characters


def escape(name: str) -> str:
    """A name as a segment of a path (RFC 6901): ``~`` becomes ``~0``, ``/`` becomes ``~1``."""
    if "/" in name or "~" in name:
        return name.replace("~", "~0").replace("/", "~1")
    return name


def join(parent: str, name: str) -> str:
    """The path of a child."""
    return f"{parent}/{escape(name)}" if parent else escape(name)


def split(path: str) -> list[str]:
    """The names of a path, from below the root; none for the root's own, ``""``."""
    if not path:
        return []
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")]


def is_control(char: str) -> bool:
    """Whether no name may hold this: a control character or a surrogate."""
    code = ord(char)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000


def check_name(name: object) -> str:
    """Return a step's name if it is allowed.

    Raises:
        UsageError: It is not a ``str``, is empty or longer than 200 characters, holds control
            characters or surrogates, or begins with ``#`` or ``$``.
    """
    if not isinstance(name, str):
        raise UsageError(f"a step's name is a str, not {type(name).__name__}: {name!r:.100}")
    if not 0 < len(name) <= MAX_NAME:
        raise UsageError(
            f"a step's name has 1 to {MAX_NAME} characters, {name[:40]!r} has {len(name)}"
        )
    if name[0] in "#$":
        raise UsageError(f"step name {name!r} begins with {name[0]!r}, which is kept for asteps")
    if not (name.isascii() and name.isprintable()) and any(map(is_control, name)):
        raise UsageError(f"step name {name!r} holds control characters or surrogates")
    return name
