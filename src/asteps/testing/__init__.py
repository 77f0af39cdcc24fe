"""What tests are made of.

For flows: `MockClock`, `both_ways` and `crash_everywhere`. For stores: `StoreConformance`, a pytest
class, which alone needs the extra ``testing``. For both: `FaultyStore`.
"""

import sys
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from ._both_ways import both_ways
from ._clock import MockClock
from ._crashes import CrashReport, crash_everywhere
from ._faulty import Crash, FaultyStore

if TYPE_CHECKING:
    from ._conformance import StoreConformance

__all__ = [
    "Crash",
    "CrashReport",
    "FaultyStore",
    "MockClock",
    "StoreConformance",
    "both_ways",
    "crash_everywhere",
]


def __getattr__(name: str) -> Any:
    if name != "StoreConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest  # noqa: PLC0415 - clocks and flows are for any test runner
    except ModuleNotFoundError as exc:
        raise MissingDependencyError("pytest", "testing") from exc
    kit = "asteps.testing._conformance"
    if kit not in sys.modules:  # so that a failing assertion of the kit says what the values were
        pytest.register_assert_rewrite(kit)
    from ._conformance import StoreConformance as Kit  # noqa: PLC0415

    globals()[name] = Kit  # asked for once
    return Kit
