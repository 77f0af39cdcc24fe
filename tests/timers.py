"""What is left ticking: the timers of the event loop that the caller runs in."""

from __future__ import annotations

import asyncio

import trio._core._run
from anyio.lowlevel import current_token

__all__ = ["timers"]


def timers() -> int:
    """How many timers the event loop has that would still go off."""
    loop = current_token().native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        return sum(not handle.cancelled() for handle in vars(loop)["_scheduled"])
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner.deadlines._active
