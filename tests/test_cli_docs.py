"""The page of the command line shows what the command line really writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_tools import make_runs

from asteps.cli._app import run
from asteps.cli._exits import Exits

PAGE = Path(__file__).parent.parent / "docs" / "command-line.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEAST = 14  # commands with their output: keeps the check from passing on nothing


def examples() -> list[tuple[str, str]]:
    """The commands of the page, in order, each with what it says the command writes."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def steady(text: str) -> str:
    """Text without what is another one on every machine and every day."""
    text = re.sub(r"[\w.-]+@[\w.-]+", "USER@HOST", text)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( UTC)?", "TIME", text)
    text = re.sub(r"\d\d:\d\d:\d\d", "TIME", text)
    text = re.sub(r"just now|(\d+ [a-z]+ \d+ [a-z]+|[\d.]+ m?s) ago", "AGO", text)
    text = re.sub(r"\d+ d \d+ h", "DAYS", text)
    text = re.sub(r"Python [\d.]+|SQLite file \S+|[\d,]+ bytes|(?<=version  )[\d.]+", "HERE", text)
    text = re.sub(r"(page count|freelist count|wal bytes) +\d+", r"\1 N", text)
    text = re.sub(r'File "[^"]*", line \d+', "FILE", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def test_the_page_shows_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of the page was run, in their order, and gave this."""
    make_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASTEPS_STORE", "runs.db")
    shown = examples()
    assert len(shown) >= LEAST
    for command, output in shown:
        program, *words = shlex.split(command, comments=True)
        if program == "echo":
            continue
        assert program == "asteps"
        run(words)
        written = capsys.readouterr()
        assert steady(written.out + written.err) == steady(output), command


def test_the_page_has_all_exit_codes() -> None:
    """The table of exit codes is that of the code."""
    rows = re.findall(r"^\| (\d+) \| ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == [code.value for code in Exits]


if __name__ == "__main__":  # writes the page anew, to be looked at: the examples as they are now
    import contextlib
    import io
    import os
    import tempfile

    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        make_runs(Path(directory))
        os.chdir(directory)
        os.environ["ASTEPS_STORE"] = "runs.db"
        blocks = []
        for block in BLOCK.findall(text):
            made = ""
            for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
                data = io.BytesIO()
                both = io.TextIOWrapper(data, "utf-8")
                with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
                    run(shlex.split(command, comments=True)[1:])
                    both.flush()
                made += f"$ {command}\n{data.getvalue().decode()}"
            made = made.replace(str(Path(directory).resolve()), "/data")
            blocks.append(re.sub(r"[\w.-]+@[\w.-]+", "ops@web-3", made))
    it = iter(blocks)
    PAGE.write_text(BLOCK.sub(lambda _: f"```console\n{next(it)}```", text), encoding="utf-8")
