"""The other examples, as a newcomer meets them: run, killed in the middle, and started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import anyio
import pytest
from processes import EXAMPLES, ended_by, example_until, run_example, said

import asteps
from asteps.stores.sqlite import SQLiteStore


def kill(directory: Path, example: str, moment: str) -> list[str]:
    """Run an example until it prints this, and kill it; what it had printed."""
    with example_until(directory, moment, example) as (process, seen):
        code, rest = ended_by(process, signal.SIGKILL)
    assert code == -signal.SIGKILL
    return [*seen, *rest]


def run(directory: Path, example: str) -> list[str]:
    """Run an example to its good end; what it printed."""
    done = run_example(directory, example)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def made(file: Path) -> list[str]:
    """What the pretended cloud has made, without the numbers that tell who came first."""
    return sorted(
        re.sub(r"(address|disk|server)-\d+-", r"\1-", thing)
        for thing in json.loads(file.read_text())["made"].values()
    )


@pytest.mark.parametrize(
    ("example", "moment"),
    [
        ("fan_out.py", "done     20 of 200"),
        ("reconcile_loop.py", "done     shop/disk"),
        ("in_a_service.py", "GET /moves/web"),
    ],
)
def test_interrupted(tmp_path: Path, example: str, moment: str) -> None:
    """Ctrl-C ends it with a friendly line and exit code 130, and it goes on when started again."""
    with example_until(tmp_path, moment, example) as (process, seen):
        code, rest = ended_by(process, signal.SIGINT)
    assert code == 130
    assert rest[-1] == "Stopped. Everything that was done is kept: start it again to go on."
    assert not any("Traceback" in line for line in [*seen, *rest])
    run(tmp_path, example)


# --- fan_out.py -----------------------------------------------------------------------------------


def pages(directory: Path) -> dict[str, datetime | None]:
    """The pages that are done, and since when."""

    async def load() -> asteps.State | None:
        async with SQLiteStore(directory / "fan_out.db") as store:
            return await asteps.load_state(store, "count-words")

    state = anyio.run(load)
    assert state is not None
    return {page.name: page.done_at for page in state.get("fetch").states or () if page.done}


def test_fan_out(tmp_path: Path) -> None:
    """Two hundred pages, each once but for the flaky one; started again it fetches nothing."""
    first = run(tmp_path, "fan_out.py")
    assert said(first, "skipped") == []
    assert said(first, "again") == ["fetch/page-042: the server hung up"] * 2
    assert said(first, "done") == [f"{n} of 200" for n in range(20, 201, 20)]
    assert first[-2:] == [
        "200 pages hold 40100 words.",
        "200 were fetched now, 0 before; 2 retries.",
    ]
    before = pages(tmp_path)
    assert len(before) == 200

    again = run(tmp_path, "fan_out.py")
    assert again[1:] == [
        "  skipped  200 pages, which are done already",
        "200 pages hold 40100 words.",
        "0 were fetched now, 200 before; 0 retries.",
    ]
    assert pages(tmp_path) == before


def test_fan_out_killed(tmp_path: Path) -> None:
    """Killed in the middle it goes on with what is left: no page that is done is fetched again."""
    kill(tmp_path, "fan_out.py", "done     80 of 200")
    before = pages(tmp_path)
    assert 80 <= len(before) < 200

    again = run(tmp_path, "fan_out.py")
    assert said(again, "skipped") == [f"{len(before)} pages, which are done already"]
    assert again[-2] == "200 pages hold 40100 words."
    assert again[-1].startswith(f"{200 - len(before)} were fetched now, {len(before)} before;")
    after = pages(tmp_path)
    assert len(after) == 200
    assert {name: after[name] for name in before} == before


# --- reconcile_loop.py ----------------------------------------------------------------------------

WANTED = sorted(
    [
        *("disk-shop", "disk-blog", "disk-wiki"),
        *(f"server-{name}-v1-on-disk-{name}" for name in ("shop", "blog", "wiki")),
        *("disk-shop", "server-shop-v1-on-disk-shop"),  # another size: both anew
        "server-blog-v2-on-disk-blog",  # another version: the disk stays
        *("disk-mail", "server-mail-v1-on-disk-mail"),
    ]
)


def test_reconcile_loop(tmp_path: Path) -> None:
    """A changed spec makes anew what depends on it and nothing else; again there is no work."""
    cloud = tmp_path / "reconcile_loop.cloud.json"
    first = run(tmp_path, "reconcile_loop.py")
    assert said(first, "skipped") == []
    assert said(first, "FAILED") == ["mail: disk: a disk of 0 GB cannot be made"]
    changed = next(n for n, line in enumerate(first) if line.startswith("Now shop"))
    assert set(said(first[:changed], "done")) == {
        f"{name}/{step}" for name in ("shop", "blog", "wiki") for step in ("disk", "server")
    }
    assert sorted(said(first[changed:], "done")) == [
        *("blog/server", "mail/disk", "mail/server", "shop/disk", "shop/server"),
    ]
    assert first[-1] == "4 databases are as they should be."
    assert made(cloud) == WANTED
    known = cloud.read_text()

    again = run(tmp_path, "reconcile_loop.py")
    assert said(again, "done") == []
    assert len(said(again, "skipped")) == 8
    assert again[-1] == first[-1]
    assert cloud.read_text() == known, "the cloud was not even asked"


@pytest.mark.parametrize(
    "moment",
    ["waits    shop/disk: task", "done     wiki/disk", "done     wiki/server"],
)
def test_reconcile_loop_killed(tmp_path: Path, moment: str) -> None:
    """Killed and started again it skips what was done; every thing is made once."""
    seen = kill(tmp_path, "reconcile_loop.py", moment)
    again = run(tmp_path, "reconcile_loop.py")
    assert set(said(seen, "done")) <= set(said(again, "skipped"))
    assert again[-1] == "4 databases are as they should be."
    assert made(tmp_path / "reconcile_loop.cloud.json") == WANTED


def test_reconcile_loop_killed_after_the_change(tmp_path: Path) -> None:
    """Killed while it makes what the new specs ask for, it goes on with these."""
    kill(tmp_path, "reconcile_loop.py", "is there blog: server-8-blog-v2")
    again = run(tmp_path, "reconcile_loop.py")
    assert not any(line.startswith("Now shop") for line in again)
    assert said(again, "FAILED") == []
    assert again[-1] == "4 databases are as they should be."
    assert made(tmp_path / "reconcile_loop.cloud.json") == WANTED


# --- in_a_service.py ------------------------------------------------------------------------------

IN_SERVICE = sorted(["address-one", "address-two", "disk-web", "server-web-on-disk-web"])


def answers(output: list[str], request: str) -> list[tuple[int, dict[str, object]]]:
    """What was answered to this request, each time."""
    found = re.findall(rf"^ *{request}: (\d+) (.+)$", "\n".join(output), re.MULTILINE)
    return [(int(status), json.loads(answer)) for status, answer in found]


def check_service(output: list[str]) -> None:
    """All requests were answered as they should be, and the move is done in the end."""
    address = (200, {"address": "address-1-one"})
    assert answers(output, "POST /quick/one") == [address, address]
    statuses = sorted(status for status, _ in answers(output, "POST /quick/two"))
    assert statuses in ([200, 409], [200, 200])  # the one that comes second may be late enough
    assert answers(output, "POST /moves/web") == [(202, {"see": "/moves/web"})]
    assert answers(output, "GET /moves/web")[-1] == (
        200,
        {
            "status": "done",
            "steps": {"disk": "done", "let it settle": "done", "server": "done"},
        },
    )


def goes_on(output: list[str]) -> int:
    """How often the service began by going on with the move."""
    return said(output, "goes").count("on  move of web")


def test_in_a_service(tmp_path: Path) -> None:
    """It answers, goes on after it was stopped in the middle, and makes each thing once."""
    first = run(tmp_path, "in_a_service.py")
    check_service(first)
    assert goes_on(first) == 1
    assert made(tmp_path / "in_a_service.cloud.json") == IN_SERVICE

    again = run(tmp_path, "in_a_service.py")
    check_service(again)
    assert goes_on(again) == 0
    assert made(tmp_path / "in_a_service.cloud.json") == IN_SERVICE


@pytest.mark.parametrize(
    "moment",
    ["POST /quick/one", "GET /moves/web: 200", '"disk": "done"'],
    ids=["a request", "the background", "the second life"],
)
def test_in_a_service_killed(tmp_path: Path, moment: str) -> None:
    """Killed and started again it goes on in the background, and makes each thing once."""
    kill(tmp_path, "in_a_service.py", moment)
    again = run(tmp_path, "in_a_service.py")
    check_service(again)
    assert goes_on(again) >= 1
    assert made(tmp_path / "in_a_service.cloud.json") == IN_SERVICE


def test_in_a_service_without_a_server(tmp_path: Path) -> None:
    """Where uvicorn is missing it says what to install."""
    script = (
        "import runpy, sys; sys.modules['uvicorn'] = None; "
        f"sys.path.insert(0, {str(EXAMPLES)!r}); "
        f"runpy.run_path({str(EXAMPLES / 'in_a_service.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install uvicorn")
    assert list(tmp_path.iterdir()) == []
