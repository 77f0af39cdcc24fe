"""What every test stands on: both event loops, and a harness that bites.

- An async test runs on asyncio and on trio; it needs no mark.
- A blocking call on asyncio's loop fails the test (`blockbuster.BlockingError`).
- A task or a thread that outlives its test fails it, fixtures included.

`test_canary.py` proves each of these.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
import trio
from blockbuster import BlockBuster
from browser import MISSING as NO_BROWSER
from browser import started_browser
from hypothesis import HealthCheck, settings
from kubectl import MISSING as NO_KUBECTL
from kubernetes_server import MISSING as NO_SERVER
from kubernetes_server import NO_START, Kube, a_kube
from playwright.sync_api import Browser

# --- hypothesis: HYPOTHESIS_PROFILE=nightly looks for longer, and elsewhere every time ------------

settings.register_profile("ci", derandomize=True, max_examples=60, deadline=None)
settings.register_profile(
    "nightly",
    max_examples=2_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# --- both event loops ---------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that an async test runs on: each in turn."""
    return str(request.param)


# --- blocking calls -----------------------------------------------------------------------------

_BLOCKBUSTER = BlockBuster()
# Coverage's tracers take a lock of theirs in the midst of whatever line they look at.
_BLOCKBUSTER.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")


@pytest.fixture
def _no_blocking_calls() -> Iterator[None]:
    _BLOCKBUSTER.activate()
    yield
    _BLOCKBUSTER.deactivate()


# --- leaks --------------------------------------------------------------------------------------

_GRACE = 1.0  # seconds for a thread that has been told to end

_POOLS = (
    str(Path(anyio.__file__).parent),
    str(Path(trio.__file__).parent),
    threading.__file__,
    sys.modules["queue"].__file__ or "",
)


def _is_idle_worker(thread: threading.Thread) -> bool:
    """Whether this is a thread of anyio's or trio's pool that waits for work."""
    frame = sys._current_frames().get(thread.ident or 0)
    names: list[str] = []
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_POOLS):
            return False
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    # asyncio: WorkerThread.run waits in Queue.get; trio: WorkerThread._work waits for its lock.
    return "get" in names or (bool(names) and names[0] == "_work")


def _leaked_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t not in before and not _is_idle_worker(t)]


def _trio_tasks(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    if task is not None:
        yield task
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from _trio_tasks(child)


def _tasks(backend: str) -> set[Any]:
    if backend == "trio":
        return set(_trio_tasks(trio.lowlevel.current_root_task()))
    return {task for task in asyncio.all_tasks() if not _is_the_runners(task)}


def _is_the_runners(task: asyncio.Task[Any]) -> bool:
    """Whether anyio's plugin waits in this task for a test or a fixture: it makes one for each."""
    return getattr(task.get_coro(), "__qualname__", "") == "TestRunner._call_in_runner_task"


@pytest.fixture
async def _no_leaked_tasks(anyio_backend: str) -> AsyncIterator[None]:
    await anyio.lowlevel.checkpoint()
    before = _tasks(anyio_backend)
    yield
    leaked = sorted(str(task) for task in _tasks(anyio_backend) - before)
    assert not leaked, f"{len(leaked)} tasks outlived the test: {leaked}"


@pytest.fixture(autouse=True)
def _guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put the guards around async tests, and around what their fixtures do."""
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    backend = request.getfixturevalue("anyio_backend")
    before = set(threading.enumerate())
    request.getfixturevalue("_no_leaked_tasks")
    if backend == "asyncio":
        request.getfixturevalue("_no_blocking_calls")
    yield
    deadline = time.monotonic() + _GRACE
    while (leaked := _leaked_threads(before)) and time.monotonic() < deadline:
        time.sleep(0.002)
    assert not leaked, f"{len(leaked)} threads outlived the test: {leaked}"


# --- the browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. Its driver has an event loop in this thread: no async tests in such a module."""
    with started_browser() as started:
        yield started


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _common_definition() -> Iterator[str]:
    with a_kube() as kube:
        yield kube.install()


@pytest.fixture
def kube(_common_definition: str) -> Iterator[Kube]:
    """A namespace and a group of one's own on the API server that ``KUBECONFIG`` names."""
    with a_kube(_common_definition) as kube:
        yield kube


# --- what was left out ----------------------------------------------------------------------------

_LEFT_OUT = {
    NO_BROWSER: (
        "tests of web pages",
        "apt-get install chromium, or ASTEPS_CHROMIUM=/path/to/it",
    ),
    NO_SERVER: (
        "tests with a real Kubernetes API server",
        "KUBECONFIG=/path/to/an/administrator's/kubeconfig",
    ),
    NO_KUBECTL: (
        "tests of what kubectl shows",
        "apt-get install kubernetes-client",
    ),
    NO_START: (
        "tests that restart a Kubernetes API server",
        "ASTEPS_KUBE_START=/path/to/a/program that starts one in the directory it is given",
    ),
}


@pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: what it says comes last
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """The last lines say loudly what was left out."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    for missing, (what, cure) in _LEFT_OUT.items():
        if left_out := sum(missing in str(report.longrepr) for report in skipped):
            terminalreporter.line("")
            terminalreporter.line(
                f"NOT TESTED: {left_out} {what} were left out: {missing} ({cure})",
                red=True,
                bold=True,
            )
