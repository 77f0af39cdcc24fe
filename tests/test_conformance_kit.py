"""The kit that other people's stores are tested with finds what is broken, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from broken_stores import DEFECTS, class_name

from asteps.testing import StoreConformance

FILE = Path(__file__).with_name("broken_stores.py")
TESTS = sorted(name for name in dir(StoreConformance) if name.startswith("test_"))
HONEST = ("TestHonest", "TestHonestWithoutCapabilities", "TestHonestWithLimit")

Found = dict[tuple[str, str], list[str]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What became of each test of each store, on each event loop: one run of pytest for all."""
    report = tmp_path_factory.mktemp("kit") / "report.xml"
    wanted = [f"{FILE}::{name}" for name in HONEST]
    wanted += [f"{FILE}::{class_name(d)}::{test}" for d, tests in DEFECTS.items() for test in tests]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    run = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout[-3_000:] + run.stderr
    found: Found = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        name, _, backend = case.attrib["name"].partition("[")
        kinds = [child.tag for child in case if child.tag in {"failure", "error", "skipped"}]
        for kind in kinds or ["passed"]:
            test = case.attrib["classname"].rpartition(".")[2], name
            found[test].append(f"{backend.rstrip(']')}: {kind}")
    return found


@pytest.mark.parametrize(
    ("defect", "test"),
    [
        pytest.param(defect, test, id=f"{defect}-{test}")
        for defect, tests in DEFECTS.items()
        for test in tests
    ],
)
def test_broken_store_fails(found: Found, defect: str, test: str) -> None:
    """A store with this defect fails this test, on both event loops."""
    results = found[class_name(defect), test]
    assert {"asyncio: failure", "trio: failure"} <= set(results)


@pytest.mark.parametrize("name", HONEST)
def test_honest_store_passes(found: Found, name: str) -> None:
    """The store without a defect passes all; what it declares not to have is skipped."""
    assert sorted(test for cls, test in found if cls == name) == TESTS
    skipped = set()
    for test in TESTS:
        results = sorted(found[name, test])
        if results == ["asyncio: skipped", "trio: skipped"]:
            skipped.add(test)
        else:
            assert results == ["asyncio: passed", "trio: passed"], test
    assert len(skipped) == (29 if name == "TestHonestWithoutCapabilities" else 0)


def test_every_test_of_the_kit_bites() -> None:
    """Each test of the kit is failed by some broken store: none is there for show."""
    assert {test for tests in DEFECTS.values() for test in tests} == set(TESTS)


def test_every_test_of_the_kit_states_its_guarantee() -> None:
    """Each test of the kit has a docstring of one line, which says what a store promises."""
    for test in TESTS:
        says = getattr(StoreConformance, test).__doc__
        assert says, test
        assert "\n" not in says.strip(), test
