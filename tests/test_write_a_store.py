"""The store of the page "Write a store" passes the kit, as the page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_house import ROOT, blocks_on, is_python


def test_the_pages_store_keeps_the_contract(tmp_path: Path) -> None:
    """The page's store and its test class, taken as they stand there, pass `StoreConformance`."""
    store, _, test, _ = filter(is_python, blocks_on(ROOT / "docs" / "write-a-store.md"))
    module = tmp_path / "test_table_store.py"
    module.write_text(store.code + test.code)
    (tmp_path / "pytest.ini").write_text("[pytest]\nanyio_mode = auto\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", module],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
