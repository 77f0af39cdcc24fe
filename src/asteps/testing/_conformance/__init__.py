"""The contract of `asteps._store`, executed: whatever its docstrings promise, a test asks for."""

from __future__ import annotations

from ._browsing import BrowseKit
from ._cancellation import CancellationKit
from ._inspection import InspectKit
from ._leases import LeaseKit
from ._listing import ListKit
from ._open_and_closed import ClosingKit
from ._races import RaceKit
from ._records import RecordKit
from ._saves import SaveKit
from ._scanning import ScanKit

__all__ = ["StoreConformance"]


class StoreConformance(
    RecordKit,
    SaveKit,
    RaceKit,
    CancellationKit,
    ClosingKit,
    ListKit,
    BrowseKit,
    ScanKit,
    InspectKit,
    LeaseKit,
):
    """The tests that every store must pass.

    Subclass it in a test module, and give it a store::

        class TestMyStore(StoreConformance):
            leases = True
            listing = True

            @pytest.fixture
            def storage(self, tmp_path):
                return tmp_path / "runs.db"

            async def client(self, storage):
                return MyStore(storage)

    The tests run wherever anyio's pytest plugin makes them run: by default on asyncio and on trio.

    Attributes:
        leases: Whether the store is a `LeaseStore`. Declared because it is promised: a store that
            is one and does not say so fails, and so does one that says so and is none. What is
            not declared is reported as skipped.
        listing: Whether the store is a `ListStore`; declared for the same reason.
        browsing: Whether it is a `BrowseStore`. This one and those that follow are taken for
            ``False`` where nothing is said.
        scanning: Whether it is a `ScanStore`.
        inspecting: Whether it is an `InspectStore`.
        folding: Whether it is a `FoldStore`.
        max_bytes: How large a run the store takes, in bytes of records; ``None`` where it takes
            1 MiB in one record and 2,000 records, which is then asked for. A larger run must be
            refused, and what was there must stay.
    """
