"""Everything that is checked, one session each: ``nox --list`` names them, ``nox`` runs them all.

Sessions share nothing but the source, so any number of them may run at the same time.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = ["3.11", "3.12", "3.13"]


def install(session: nox.Session, *groups: str) -> None:
    """Install asteps, editable, and these groups of pyproject.toml."""
    session.install("-e", ".", *nox.project.dependency_groups(PROJECT, *groups))


def pytest(session: nox.Session, *args: str, prefix: tuple[str, ...] = ("pytest",)) -> None:
    """Run pytest with caches of this session's own."""
    tmp = ROOT / session.create_tmp()
    session.run(
        *prefix,
        *("-o", f"cache_dir={tmp / 'pytest'}"),
        *args,
        *session.posargs,
        env={
            "COVERAGE_FILE": str(tmp / "coverage"),
            "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp / "hypothesis"),
        },
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and format, and who may import whom."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": "src"})


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy, strict, for every Python; pyright over the public API and its uses."""
    install(session, "typing")
    for python in PYTHONS:
        session.run("mypy", "--python-version", python)
    session.run("pyright", "--verifytypes", "asteps", "--ignoreexternal")
    session.run("pyright", "tests/typing")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests, on this Python. Arguments after ``--`` go to pytest."""
    install(session, "test")
    pytest(session)


@nox.session
def coverage(session: nox.Session) -> None:
    """All tests once more, measured; too little coverage fails."""
    install(session, "coverage")
    pytest(session, prefix=("coverage", "run", "-m", "pytest"))
    data = str(ROOT / session.create_tmp() / "coverage")
    session.run("coverage", "report", env={"COVERAGE_FILE": data})


@nox.session
def docs(session: nox.Session) -> None:
    """The pages: links lead somewhere, Python blocks run."""
    install(session, "test")
    pytest(session, "-m", "docs", "tests/test_house.py")


def run_examples(session: nox.Session) -> None:
    """Run every example twice: undisturbed, and again after it was killed half-way."""
    python = shutil.which("python", path=session.bin)
    found = sorted((ROOT / "examples").glob("*.py"))
    if python is None or not found:
        session.error("there is no example to run")
    for example in found:
        tmp = ROOT / session.create_tmp() / example.stem
        shutil.rmtree(tmp, ignore_errors=True)
        undisturbed, killed = tmp / "undisturbed", tmp / "killed"
        undisturbed.mkdir(parents=True)
        killed.mkdir()
        began = time.monotonic()
        with session.chdir(undisturbed):
            session.run("python", str(example))
        took = time.monotonic() - began
        with subprocess.Popen([python, example], cwd=killed) as process:
            try:
                process.wait(took / 2)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        session.log(f"{example.name}: killed after {took / 2:.2f} s; again:")
        with session.chdir(killed):
            session.run("python", str(example))


@nox.session
def examples(session: nox.Session) -> None:
    """Every example runs to its end, also after it was killed half-way."""
    install(session, "examples")
    run_examples(session)


@nox.session
def lowest(session: nox.Session) -> None:
    """The examples run with the oldest dependencies that pyproject.toml admits."""
    oldest = [need.replace(">=", "==") for need in PROJECT["project"]["dependencies"]]
    examples = nox.project.dependency_groups(PROJECT, "examples")
    session.install("-e", ".[aws,cli,kopf,otel,testing]", *oldest, *examples)
    session.run("python", "-W", "error", "-c", IMPORT_ALL)
    run_examples(session)


IMPORT_ALL = """
import importlib, pkgutil, asteps
for module in pkgutil.walk_packages(asteps.__path__, "asteps."):
    importlib.import_module(module.name)
print("asteps comes from", asteps.__file__)
"""


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, shortened: they print ratios measured in one run, and write them as JSON."""
    install(session, "test")
    if not list((ROOT / "benchmarks").glob("bench_*.py")):
        session.error("there is no benchmark to run")
    results = ROOT / session.create_tmp() / "benchmark.json"
    short = () if session.posargs else ("--benchmark-min-rounds=3", "--benchmark-max-time=0.3")
    pytest(session, "benchmarks", "--benchmark-enable", f"--benchmark-json={results}", "-s", *short)
    session.log(f"as JSON: {results}")


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """What a user gets: the wheel, made from the sdist, in a new environment; tests without src."""
    tmp = ROOT / session.create_tmp()
    shutil.rmtree(tmp, ignore_errors=True)
    session.install(*nox.project.dependency_groups(PROJECT, "build"))
    session.run("python", "-m", "build", "--outdir", str(tmp / "dist"))
    (wheel,) = (tmp / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    expected = {
        file.relative_to(ROOT / "src").as_posix()
        for file in (ROOT / "src").rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    found = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    if found != expected or not any(name.endswith("licenses/LICENSE") for name in names):
        session.error(f"the wheel holds {names}")
    session.install(str(wheel), *nox.project.dependency_groups(PROJECT, "test"))
    tree = tmp / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "src", "dist", "__pycache__"))
    with session.chdir(tree):
        session.run("python", "-W", "error", "-c", IMPORT_ALL)
        pytest(session)
