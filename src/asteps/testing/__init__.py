"""What tests are made of: a kit that every store must pass, and a store that fails on purpose."""

from ..errors import MissingDependencyError

try:
    import pytest
except ModuleNotFoundError as _exc:
    raise MissingDependencyError("pytest", "testing") from _exc

# Before the first import, so that a failing assertion of the kit says what the values were.
pytest.register_assert_rewrite("asteps.testing._conformance")

from ._conformance import StoreConformance  # noqa: E402 - see above
from ._faulty import Crash, FaultyStore  # noqa: E402

__all__ = ["Crash", "FaultyStore", "StoreConformance"]
