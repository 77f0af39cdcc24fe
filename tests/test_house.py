"""The house is in order: names, imports, docstrings, files, and pages whose code runs."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import anyio.from_thread
import pytest

import asteps

ROOT = Path(__file__).parent.parent
PACKAGE = Path(asteps.__file__).parent

# --- the package --------------------------------------------------------------------------------

MODULES = ["asteps", *(m.name for m in pkgutil.walk_packages(asteps.__path__, "asteps."))]
PUBLIC = [name for name in MODULES if "._" not in name]
SHARED = {
    "asteps.errors.type_name",
    "asteps.errors.type_names",
}  # for the modules of the package, and no part of the API


def documented(owner: object, name: str) -> bool:
    """Whether this attribute of a class or module explains itself, be it by what it overrides."""
    return bool((inspect.getdoc(getattr(owner, name)) or "").strip())


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name: str) -> None:
    """Every module can be imported by itself, and begins with a docstring."""
    assert (importlib.import_module(name).__doc__ or "").strip()


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_the_truth(name: str) -> None:
    """``__all__`` of a public module is sorted, complete, and holds nothing that is not there."""
    module = importlib.import_module(name)
    names: list[str] = getattr(module, "__all__", [])
    if name == "asteps":
        offered = {
            n
            for n, value in vars(module).items()
            if not n.startswith("_") and not inspect.ismodule(value) and n != "annotations"
        }
    else:
        offered = {
            n
            for n, value in vars(module).items()
            if not n.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
            and f"{name}.{n}" not in SHARED
        }
        offered |= {n for n in names if hasattr(module, n)}  # some are imported when asked for
    assert names == sorted(offered)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    """Everything public has a docstring, and so have the public methods of public classes."""
    module = importlib.import_module(name)
    missing = []
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if not documented(module, public):
            missing.append(public)
        if inspect.isclass(value):
            missing += [
                f"{public}.{member}"
                for member, found in vars(value).items()
                if not member.startswith("_")
                and (inspect.isroutine(found) or isinstance(found, property))
                and not documented(value, member)
            ]
    assert missing == []


def test_no_asyncio() -> None:
    """The package imports neither asyncio nor trio, but for the one file that tells them apart."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if {name.partition(".")[0] for name in names} & {"asyncio", "trio"}:
                found.append(file.name)
    assert set(found) <= {"_loop.py"}


def test_typed() -> None:
    """Type checkers are told that the package is typed."""
    assert (PACKAGE / "py.typed").is_file()


# --- the files beside it ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_files(name: str) -> None:
    """The files that a visitor looks for are there."""
    assert (ROOT / name).read_text(encoding="utf-8").strip()


def test_version() -> None:
    """The version that is installed is the one in pyproject.toml, and the changelog knows it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == version("asteps")
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


FRAGMENT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.(added|changed|fixed|removed)\.md")


def test_changelog_fragments() -> None:
    """What waits for the next release is named after its kind, and is one paragraph."""
    waiting = [f for f in (ROOT / "changelog.d").iterdir() if f.name != "README.md"]
    for file in waiting:
        assert FRAGMENT.fullmatch(file.name), file.name
        text = file.read_text(encoding="utf-8")
        assert text.strip(), file.name
        assert "\n\n" not in text.strip(), file.name
        assert text == text.strip() + "\n", file.name


# --- the pages ----------------------------------------------------------------------------------

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
PYTHON_BLOCKS_AT_LEAST = 60  # raise it with the pages: it keeps the check from passing on nothing
OTHER_LANGUAGES = {
    *("console", "diff", "dockerfile", "go", "ini", "json", "mermaid", "sh", "sql", "text", "toml"),
    *("csv", "yaml"),
}

FENCE = re.compile(r"^ *(?:(?:[-*+]|\d+\.) +)?(?P<ticks>`{3,}|~{3,})(?P<info>[^`\n]*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  # of its first line of code, from 1
    info: str
    code: str


def blocks_of(page: Path, text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: re.Match[str] | None = None
    begin = 0
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if opened is None and fence:
            opened, begin = fence, number + 1
        elif opened and fence and fence["ticks"].startswith(opened["ticks"]) and not fence["info"]:
            code = textwrap.dedent("\n".join(lines[begin - 1 : number - 1])) + "\n"
            found.append(Block(page, begin, opened["info"].strip(), code))
            opened = None
    assert opened is None, f"{page.name}:{begin - 1}: this block is never closed"
    return found


def run_blocks(blocks: list[Block]) -> int:
    """Run a page's Python blocks in one namespace, those with ``await`` in one event loop.

    What one of them prints has to be what the page shows in the block after it, if it shows it.

    Returns:
        How many were run.
    """
    ran = 0
    module = ModuleType("__main__")
    real, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        with anyio.from_thread.start_blocking_portal() as portal:
            for block, after in zip(blocks, [*blocks[1:], None], strict=False):
                if not is_python(block):
                    continue
                code = compile(
                    "\n" * (block.line - 1) + block.code,  # tracebacks name the page's line
                    str(block.page),
                    "exec",
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                    dont_inherit=True,
                )
                if "no-run" in block.info.split():
                    continue
                ran += 1
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    if code.co_flags & inspect.CO_COROUTINE:

                        async def in_the_loop(code: object = code) -> None:
                            await eval(code, vars(module))  # type: ignore[arg-type]

                        portal.call(in_the_loop)
                    else:
                        exec(code, vars(module))
                if printed.getvalue() and after is not None and not is_python(after):
                    where = f"{block.page.name}:{after.line}"
                    assert after.code.rstrip() == printed.getvalue().rstrip(), where
    finally:
        sys.modules["__main__"] = real
    return ran


def is_python(block: Block) -> bool:
    """Whether a block is Python, by its first word."""
    return block.info.split()[:1] == ["python"]


def blocks_on(page: Path) -> list[Block]:
    """All fenced blocks of a page that is there."""
    return blocks_of(page, page.read_text(encoding="utf-8"))


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_have_a_language(page: Path) -> None:
    """Every block says what it is, so no Python escapes under another name."""
    for block in blocks_on(page):
        where = f"{page.name}:{block.line}: {block.info!r}"
        language, *words = block.info.split() or [""]
        if language == "python":
            assert words in ([], ["no-run"]), where
        else:
            assert language in OTHER_LANGUAGES, where
            assert not words, where


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's Python blocks run from top to bottom in an empty directory."""
    monkeypatch.chdir(tmp_path)
    run_blocks(blocks_on(page))


@pytest.mark.docs
def test_there_are_blocks() -> None:
    """The pages have as many running blocks as they should, the README one at least."""
    found = [b for page in PAGES for b in blocks_on(page)]
    running = [b for b in found if is_python(b) and "no-run" not in b.info]
    assert len(running) >= PYTHON_BLOCKS_AT_LEAST
    assert any(b.page.name == "README.md" for b in running)


@pytest.mark.docs
def test_a_wrong_block_is_found() -> None:
    """The runner runs what it is given: in order, with ``await``, and a failing block fails."""
    page = Path("page.md")
    text = textwrap.dedent("""\
        ```python
        import dataclasses, typing, anyio

        @dataclasses.dataclass
        class Report:
            image: "str"

        typing.get_type_hints(Report)
        anyio.run(anyio.sleep, 0)
        seen = []
        ```

        - ```python
          await anyio.sleep(0)
          seen.append("awaited")
          ```

        ~~~python no-run
        raise SystemExit
        ~~~

        ````python
        assert seen == ["awaited"], "```"
        ````
        """)
    blocks = blocks_of(page, text)
    assert [(b.line, b.info) for b in blocks] == [
        (2, "python"),
        (14, "python"),
        (19, "python no-run"),
        (23, "python"),
    ]
    assert run_blocks(blocks) == 3
    with pytest.raises(NameError, match="anyio") as raised:
        run_blocks(blocks[1:])
    assert raised.traceback[-1].lineno + 1 == 14
    with pytest.raises(SyntaxError):
        run_blocks([Block(page, 1, "python no-run", "def\n")])
    shown = [Block(page, 1, "python", "print(1)\n"), Block(page, 5, "text", "1\n")]
    assert run_blocks(shown) == 1
    with pytest.raises(AssertionError, match=r"page\.md:5"):
        run_blocks([shown[0], Block(page, 5, "text", "2\n")])
    with pytest.raises(AssertionError, match="never closed"):
        blocks_of(page, "```python\n")


# --- links --------------------------------------------------------------------------------------

LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ +(?P<title>.+?)\s*#*$", re.MULTILINE)


def prose(text: str) -> str:
    """A page without its code."""
    kept, inside = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(re.sub(r"`[^`]*`", "``", line))
    return "\n".join(kept)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual hosts make them."""
    found: set[str] = set()
    text = re.sub(
        r"^(`{3,}|~{3,}).*?^\1",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    for heading in HEADING.finditer(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["title"])
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", a) is not None for a in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def dead_links(page: Path, text: str) -> list[str]:
    """Links of this page to files or headings that are not there."""
    dead = []
    for link in LINK.finditer(prose(text)):
        target, _, anchor = link["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue  # another site
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link["target"])
    return dead


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links(page: Path) -> None:
    """Links between the pages lead somewhere, to the very heading."""
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.docs
def test_a_dead_link_is_found(tmp_path: Path) -> None:
    """A missing file and a missing heading are both found; code and other sites are left alone."""
    other = tmp_path / "other.md"
    other.write_text("# What `run()` does\n\n## Steps, again\n\n```sh\n# no heading\n```\n")
    text = """
[a](other.md) [b](other.md#what-run-does) [c](other.md#steps-again) [d](https://example.org/x)
[e](gone.md) [f](other.md#gone) [g](other.md#no-heading) `[h](gone.md)`
```text
[i](gone.md)
```
"""
    assert dead_links(tmp_path / "page.md", text) == [
        "gone.md",
        "other.md#gone",
        "other.md#no-heading",
    ]
