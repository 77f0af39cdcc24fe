"""The pictures of the docs show real runs, and every number on them comes from the run's state.

``ASTEPS_PICTURES=write pytest tests/test_pictures.py`` makes them anew.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest
from browser import Visit
from playwright.sync_api import Browser
from processes import ended_by, example_until, run_example

import asteps
from asteps import State
from asteps.reports import html_report, text_report
from asteps.reports._words import duration_text
from asteps.stores.sqlite import SQLiteStore

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
WRITES = os.environ.get("ASTEPS_PICTURES") == "write"
LARGEST = 250_000  # bytes of a picture

Run: TypeAlias = tuple[State, str]


def load(path: Path, run_id: str) -> State:
    """A run's tree; in a thread, as the browser's driver has an event loop in this one."""

    async def from_the_store() -> State:
        async with SQLiteStore(path) as store:
            state = await asteps.load_state(store, run_id)
        assert state is not None
        return state

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(anyio.run, from_the_store).result()


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The main example: killed while it waits for the network, and started again."""
    path = tmp_path_factory.mktemp("moved")
    fast = () if WRITES else ("--fast",)
    with example_until(path, "waits    preFlight/chkNetwork", "move_to_vpc.py", *fast) as killed:
        code, _ = ended_by(killed[0], signal.SIGKILL)
        assert code == -signal.SIGKILL
    assert run_example(path, "move_to_vpc.py", *fast).returncode == 0
    return load(path / "move_to_vpc.db", "move-web-to-vpc"), "move-web-to-vpc"


@pytest.fixture(scope="module")
def fanned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two hundred pages, ten at a time."""
    path = tmp_path_factory.mktemp("fanned")
    assert run_example(path, "fan_out.py").returncode == 0
    return load(path / "fan_out.db", "count-words"), "count-words"


@contextmanager
def shown(browser: Browser, path: Path, run: Run, **options: Any) -> Iterator[Visit]:
    """The report of a run, open in the browser; it has to be quiet."""
    file = path / "report.html"
    file.write_text(html_report(run[0], run_id=run[1], now=run[0].done_at), encoding="utf-8")
    options.setdefault("viewport", {"width": 1280, "height": 800})
    with browser.new_context(**options) as context:
        made = Visit(context.new_page())
        made.page.goto(file.as_uri())
        yield made
        assert made.said == []


# --- numbers --------------------------------------------------------------------------------------

LINES = """() => Object.fromEntries([...document.querySelectorAll("li.step")].map(item => {
  const path = item.querySelector(".facts code").textContent;
  const line = item.querySelector("summary");
  return [path === "(the run)" ? "" : path, {
    took: Number(line.querySelector(".took data")?.value || 0),
    attempts: Number(line.querySelector("[data-l=attempts]").textContent),
    wasted: Number(line.querySelector("[data-l=wasted] data")?.value || 0),
    waited: Number(line.querySelector("[data-l=waited] data")?.value || 0),
    result: [...item.querySelectorAll(":scope > details h4")]
      .find(h => h.textContent === "result")?.nextElementSibling.textContent ?? "",
    times: [...item.querySelectorAll(":scope > details .facts time")].map(t => t.dateTime),
  }];
}))"""


def seconds_in(node: State, *statuses: str) -> float:
    """How long a step was in phases of these statuses, counted from its own record."""
    assert node.earlier is None
    phases = node.phases
    assert node.done_at is not None
    ends = [*(phase.since for phase in phases[1:]), node.done_at]
    return sum(
        (end - phase.since).total_seconds() - phase.worked
        for phase, end in zip(phases, ends, strict=False)
        if phase.status in statuses
    )


def failed_work(node: State) -> float:
    """The work of attempts that failed: what came before a retry."""
    return sum(
        (after.since - phase.since).total_seconds()
        for phase, after in zip(node.phases, node.phases[1:], strict=False)
        if phase.status == "working" and after.status == "retrying"
    )


@pytest.mark.parametrize("name", ["moved", "fanned"])
def test_numbers_come_from_the_state(
    name: str, request: pytest.FixtureRequest, browser: Browser, tmp_path: Path
) -> None:
    """What a line says of a step can be counted from the step's node alone."""
    run: Run = request.getfixturevalue(name)
    with shown(browser, tmp_path, run) as v:
        lines = v.page.evaluate(LINES)
        tiles = dict(
            v.page.evaluate(
                "[...document.querySelectorAll('.tiles > div')].map(d => ["
                "d.querySelector('dt').textContent, d.querySelector('dd').innerText])"
            )
        )
        wasted = float(v.page.locator(".tiles data").nth(1).get_attribute("value") or "nan")
    nodes = dict(run[0].walk())
    assert lines.keys() == nodes.keys()
    leaves = [node for node in nodes.values() if not node.states]
    for path, node in nodes.items():
        line = lines[path]
        began, ended = node.first_started_at, node.done_at
        assert began is not None
        assert ended is not None
        assert line["took"] == pytest.approx((ended - began).total_seconds(), abs=2e-6)
        assert line["attempts"] == node.attempt
        said = [f"{moment:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z" for moment in (began, ended)]
        assert line["times"] == said
        result = re.sub(r"\s", "", bytes(node.result).decode())
        assert re.sub(r"\s", "", line["result"]) == result
        if not node.states:
            waited = seconds_in(node, "waiting", "retrying")
            assert line["waited"] == pytest.approx(waited, abs=2e-5)
            assert line["wasted"] >= failed_work(node) - 2e-5
    assert tiles["steps done"].split("\n")[0] == f"{len(leaves)} of {len(leaves)}"
    shown_of_it = sum(line["wasted"] for line in lines.values())
    assert wasted == pytest.approx(shown_of_it, abs=0.0005 * len(nodes))
    assert wasted >= sum(map(failed_work, leaves)) - 1e-4


def test_the_kill_is_seen(moved: Run, browser: Browser, tmp_path: Path) -> None:
    """The page of the killed run shows when nobody was at work on it."""
    root = moved[0]
    assert [phase.status for phase in root.phases] == ["working", "interrupted", "working"]
    with shown(browser, tmp_path, moved) as v:
        assert v.page.locator("#s0 > details .plot .b.idle").count() == 1
        assert v.page.locator("#s0 > details .plot .cap.lost").count() == 1
        idle = v.page.locator("#s0 > details .facts div", has_text="idle").locator("data")
        value = float(idle.get_attribute("value") or "nan")
        assert value == pytest.approx(seconds_in(root, "interrupted"), abs=2e-5)


# --- pictures -------------------------------------------------------------------------------------


def the_top(v: Visit) -> None:
    """The page as it opens."""


def the_steps(v: Visit) -> None:
    """The steps, at the top of the window."""
    v.page.evaluate("scrollTo(0, document.querySelector('#steps').offsetTop + 24)")


def a_step(v: Visit) -> None:
    """One step with all that is known of it."""
    v.page.get_by_text("chkNetwork", exact=True).click()
    v.page.mouse.move(0, 0)
    the_steps(v)


Pose: TypeAlias = Callable[[Visit], None]

SHOTS: list[tuple[str, str, str, dict[str, int], Pose]] = [
    ("move-to-vpc-light", "moved", "light", {"width": 1500, "height": 900}, the_top),
    ("move-to-vpc-dark", "moved", "dark", {"width": 1500, "height": 900}, the_top),
    ("move-to-vpc-step", "moved", "light", {"width": 1200, "height": 800}, a_step),
    ("move-to-vpc-narrow", "moved", "light", {"width": 400, "height": 860}, the_steps),
    ("fan-out-light", "fanned", "light", {"width": 1500, "height": 800}, the_top),
    ("fan-out-dark", "fanned", "dark", {"width": 1500, "height": 800}, the_top),
]


@pytest.mark.parametrize(
    ("name", "run", "scheme", "size", "pose"), SHOTS, ids=[shot[0] for shot in SHOTS]
)
def test_picture(
    name: str,
    run: str,
    scheme: Any,
    size: Any,
    pose: Pose,
    request: pytest.FixtureRequest,
    browser: Browser,
    tmp_path: Path,
) -> None:
    """The picture can be made, is small, and the docs have it in this size."""
    file = (PICTURES if WRITES else tmp_path) / f"{name}.png"
    file.parent.mkdir(exist_ok=True)
    with shown(
        browser, tmp_path, request.getfixturevalue(run), viewport=size, color_scheme=scheme
    ) as v:
        pose(v)
        v.page.screenshot(path=file)
    kept = PICTURES / f"{name}.png"
    for picture in (file, kept):
        data = picture.read_bytes()
        assert len(data) < LARGEST
        assert size_of(data) == (size["width"], size["height"])


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


# --- as text --------------------------------------------------------------------------------------

LINE = re.compile(r"[├└]─ \S (?P<name>.+?) {2,}(?P<took>\d.*?)(?: {2}|$)")


@pytest.mark.parametrize(("name", "run"), [("move-to-vpc", "moved"), ("fan-out", "fanned")])
def test_text(name: str, run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The report as text, which the docs have too, says of each step how long it took."""
    state, run_id = request.getfixturevalue(run)
    text = text_report(state, run_id=run_id, now=state.done_at)
    file = (PICTURES if WRITES else tmp_path) / f"{name}.txt"
    file.write_text(text + "\n", encoding="utf-8")
    steps = {node.name: node for _, node in state.walk()}
    found = {line["name"]: line["took"] for line in LINE.finditer(text)}
    assert len(found) >= 3
    for step, took in found.items():
        node = steps[step]
        assert took == duration_text((node.done_at - node.first_started_at).total_seconds()), step
    kept = (PICTURES / f"{name}.txt").read_text(encoding="utf-8")
    folded = run == "fanned"
    assert folded or [line["name"] for line in LINE.finditer(kept)] == list(found)
    assert kept.startswith(f"✓ {run_id} ({state.name}): done in ")


def test_no_other_pictures() -> None:
    """All pictures of reports in the docs are made here."""
    names = {shot[0] for shot in SHOTS}
    assert {file.stem for file in PICTURES.glob("*.png")} == names
