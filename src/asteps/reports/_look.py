"""How a run is looked at: the keywords that all reports share."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from .._state import State
from ._timeline import Timeline, timeline

__all__ = ["Look", "looked_at"]


class Look(TypedDict, total=False):
    """The keywords of `timeline`, which every report passes on to it.

    Attributes:
        run_id: The run's id.
        now: Until when what goes on is drawn; the present time by default.
        held: Whether somebody holds the run; what is proceeding is interrupted if nobody does.
        saved_at: When the run was last saved, if that is known.
        at_work: The store's summary says that a driver was at work then.
    """

    run_id: str
    now: datetime | None
    held: bool
    saved_at: datetime | None
    at_work: bool


def looked_at(run: State | Timeline, look: Look) -> Timeline:
    """The timeline of a run; one that is given stays as it is."""
    return run if isinstance(run, Timeline) else timeline(run, **look)
