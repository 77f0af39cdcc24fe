"""Owners on one host: alive as long as their process, and not for the asking."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import started

from asteps.stores._owner import Owner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """What the lock files' names begin with."""
    return tmp_path / "runs.db"


def files(path: Path) -> list[str]:
    """What is in the directory."""
    return sorted(file.name for file in path.parent.iterdir())


def test_a_client_is_alive_until_it_is_closed(path: Path) -> None:
    """Two clients of one process are two owners; each lives until it is closed or dropped."""
    one, two = Owner(path), Owner(path)
    assert [one.name, two.name] == [None, None]
    name = one.take()
    assert one.take() == name == one.name
    assert two.take() != name
    assert one.alive(name)
    assert two.alive(name)
    one.close()
    one.close()
    assert not two.alive(name)
    other, third = two.take(), Owner(path)
    assert third.alive(other)
    del two
    assert not third.alive(other)
    assert files(path) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_not_its_parent(path: Path) -> None:
    """A child that outlives its parent does not keep the parent's name alive."""
    with started(
        """
        owner = Owner(sys.argv[1])
        name = owner.take()
        if os.fork() == 0:
            assert owner.name is None
            own = owner.take()
            assert own != name
            os.kill(os.getppid(), 9)
            print(name, own, flush=True)
            sys.stdin.read()
            os._exit(0)
        time.sleep(60)
        """,
        path,
    ) as (process, line):
        parent, child = line.split()
        process.wait(10)
        mine = Owner(path)
        assert not mine.alive(parent)
        assert mine.alive(child)


def test_names_are_not_trusted(path: Path) -> None:
    """A name from the storage never leads to another file, and a foreign one is nobody's."""
    owner = Owner(path)
    name = owner.take()
    token = name.rpartition(":")[2]
    Path(f"{path}-owner.x").touch()
    before = files(path)
    for bad in ("", "x", f"h:1:../{token}", f"h:1:{token}/..", f"h:1:{token}\n", f"h/h:1:{token}"):
        assert not Owner(path).alive(bad)
    assert files(path) == before
    assert Owner(path).alive(f"elsewhere:1:{token}")  # the lock decides, not the words
    owner.close()
    assert not Owner(path).alive(name)


def test_what_the_dead_left_is_removed(path: Path) -> None:
    """Taking a name removes the lock files of the dead, and none of the living."""
    living = Owner(path)
    token = living.take().rpartition(":")[2]
    Path(f"{path}-owner.{'0' * 32}").touch()
    taker = Owner(path)
    own = taker.take().rpartition(":")[2]
    assert files(path) == sorted([f"runs.db-owner.{token}", f"runs.db-owner.{own}"])
    taker.close()
    living.close()
    assert files(path) == []
