"""Rich's live display, or an error that says what to install."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    from rich.live import Live
    from rich.text import Text
except ImportError as exc:
    raise MissingDependencyError("rich", "cli") from exc

__all__ = ["Live", "Text"]
