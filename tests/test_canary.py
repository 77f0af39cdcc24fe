"""The harness bites: what must fail a test does, and async tests do run.

Each canary is a test file of its own that runs in a process of its own, with this project's
pytest configuration and its `conftest.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio.lowlevel
import pytest
import sniffio

TESTS = Path(__file__).parent
RAN_ON: list[str] = []


async def test_an_async_test_runs(anyio_backend: str) -> None:
    """An async test without any mark runs inside the event loop that it is named for."""
    await anyio.lowlevel.checkpoint()
    assert sniffio.current_async_library() == anyio_backend
    RAN_ON.append(anyio_backend)


def test_it_ran_on_both(request: pytest.FixtureRequest) -> None:
    """The test above ran once on each backend, unless it was left out by name."""
    chosen = [i.name for i in request.session.items if i.name.startswith("test_an_async_test_runs")]
    assert sorted(f"test_an_async_test_runs[{backend}]" for backend in RAN_ON) == sorted(chosen)


def run(pytester: pytest.Pytester, code: str, **outcomes: int) -> str:
    """Run this code as a test file under the project's configuration."""
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    file = pytester.makepyfile(test_it=code)
    config = ("-c", TESTS.parent / "pyproject.toml", "--rootdir", pytester.path)
    with pytest.MonkeyPatch.context() as patch:  # the conftest.py imports what stands beside it
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        result = pytester.runpytest_subprocess(*config, "-p", "no:cacheprovider", file)
    result.assert_outcomes(**outcomes)
    return result.stdout.str()


def test_both_backends(pytester: pytest.Pytester) -> None:
    """An async test is one test per backend, and its assertions count."""
    out = run(
        pytester,
        """
        async def test_fails():
            assert 1 + 1 == 3
        """,
        failed=2,
    )
    assert "test_fails[asyncio]" in out
    assert "test_fails[trio]" in out
    assert "assert (1 + 1) == 3" in out


def test_hypothesis_runs_async(pytester: pytest.Pytester) -> None:
    """An async property runs its examples on both backends, and a false one fails."""
    run(
        pytester,
        """
        import anyio.lowlevel
        from hypothesis import given, strategies as st

        @given(st.integers())
        async def test_true(n):
            await anyio.lowlevel.checkpoint()
            assert n == n

        @given(st.integers())
        async def test_false(n):
            await anyio.lowlevel.checkpoint()
            assert n < 10
        """,
        passed=2,
        failed=2,
    )


def test_blocking_call(pytester: pytest.Pytester) -> None:
    """A blocking call on asyncio's loop fails the test; in a worker thread it does not."""
    out = run(
        pytester,
        """
        import sqlite3
        import time
        from functools import partial

        import anyio.to_thread
        import pytest

        @pytest.fixture(scope="session")
        def anyio_backend():
            return "asyncio"

        async def test_sleeps():
            time.sleep(0.001)

        async def test_asks_sqlite():
            db = sqlite3.connect(":memory:")
            try:
                db.execute("select 1")
            finally:
                db.close()

        async def test_reads(tmp_path):
            file = tmp_path / "x"
            await anyio.to_thread.run_sync(partial(file.write_bytes, b"x"))
            with file.open("rb") as f:
                f.read()

        async def test_in_a_thread():
            await anyio.to_thread.run_sync(time.sleep, 0.001)

        def test_outside():
            time.sleep(0.001)
        """,
        failed=3,
        passed=2,
    )
    assert "BlockingError: Blocking call to time.sleep" in out


def test_leaked_task(pytester: pytest.Pytester) -> None:
    """A task that outlives its test fails it, on both backends."""
    out = run(
        pytester,
        """
        import asyncio

        import anyio
        import trio

        kept = []

        async def test_leaves_a_task(anyio_backend):
            if anyio_backend == "asyncio":
                kept.append(asyncio.create_task(asyncio.sleep(60), name="left behind"))
            else:
                trio.lowlevel.spawn_system_task(trio.sleep, 60, name="left behind")

        async def test_leaves_none():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 0)
        """,
        passed=4,
        errors=2,
    )
    assert "1 tasks outlived the test" in out


def test_leaked_thread(pytester: pytest.Pytester) -> None:
    """A thread that outlives its test fails it, one of a pool that still works too."""
    out = run(
        pytester,
        """
        import threading
        import time

        import anyio
        import anyio.to_thread
        import pytest

        stop = threading.Event()

        @pytest.fixture(scope="module", autouse=True)
        def stopper():
            yield
            stop.set()

        async def test_leaves_a_thread():
            threading.Thread(target=stop.wait, name="left behind", daemon=True).start()

        async def test_leaves_a_worker():
            with anyio.move_on_after(0.01):
                await anyio.to_thread.run_sync(time.sleep, 2, abandon_on_cancel=True)

        async def test_leaves_idle_workers():
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(anyio.to_thread.run_sync, time.sleep, 0.001)

        async def test_leaves_a_thread_that_ends():
            threading.Thread(target=time.sleep, args=(0.01,)).start()
        """,
        passed=8,
        errors=4,
    )
    assert "1 threads outlived the test" in out


def test_warning_is_an_error(pytester: pytest.Pytester) -> None:
    """A warning fails the test, so does a coroutine that nobody awaited."""
    run(
        pytester,
        """
        import gc
        import warnings

        def test_warns():
            warnings.warn("careful")

        def test_forgets():
            async def nothing():
                pass

            nothing()
            gc.collect()
        """,
        failed=2,
    )
