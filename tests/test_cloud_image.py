"""The example of cloud tasks: killed in the middle of a wait, it waits on for the same image."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "cloud_image.py"
COMMAND = [sys.executable, str(EXAMPLE)]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where to run it; the pretended AWS ends when its file is gone."""
    yield tmp_path
    (tmp_path / "cloud_image.aws").unlink(missing_ok=True)


def run(directory: Path) -> str:
    """Run the example to its end."""
    done = subprocess.run(
        COMMAND, cwd=directory, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def images(output: str) -> dict[str, set[str]]:
    """The images that each step spoke of."""
    found: dict[str, set[str]] = {}
    for step, image in re.findall(r"\b(image|copy)\b.*?(ami-[0-9a-f]+)", output):
        found.setdefault(step, set()).add(image)
    return found


def test_killed(directory: Path) -> None:
    """Killed by SIGKILL while an image is in the making, it goes on with this very image."""
    with subprocess.Popen(COMMAND, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before = ""
        for line in process.stdout:
            before += line
            if "waits    image" in line:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (directory / "cloud_image.aws").exists(), "the pretended AWS has outlived it"

    again = run(directory)
    (image,) = images(before)["image"]
    assert f"  goes on  image: {image} was started before" in again
    assert [line.split()[1] for line in again.splitlines() if "  skipped" in line] == [
        *("base", "machine"),
    ]
    assert images(again)["image"] == {image}
    assert len(images(again)["copy"]) == 1
    assert not (directory / "cloud_image.aws").exists(), "at the end it is stopped"

    finished = run(directory)
    assert "It is finished: nothing is run again." in finished
    assert images(finished) == images(again)
