"""The clock of the tests: the one that `asteps.testing` ships."""

from __future__ import annotations

from asteps.testing import MockClock as FakeClock

__all__ = ["FakeClock"]
