"""``asteps report``: one run in full, for people and for programs."""

from __future__ import annotations

import shutil
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from ..reports import (
    Timeline,
    html_report,
    json_report,
    markdown_report,
    mermaid_gantt,
    text_report,
)
from ._arguments import OutputFile, RunId, StoreUrl, run_at
from ._exits import Exits, Stop
from ._files import write_bytes
from ._output import safe_json, write_document, write_lines
from ._phrases import parse_choice
from ._show import drawn_of
from ._stores import find_run, in_store, speakable
from ._tree import has_marks
from ._typer import Context, Option

__all__ = ["report"]

Format: TypeAlias = Literal["text", "markdown", "json", "mermaid", "html"]

_WIDTH = 120  # columns of a text that is not written to a terminal

_SUFFIXES: dict[str, Format] = {
    ".txt": "text",
    ".md": "markdown",
    ".json": "json",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".html": "html",
    ".htm": "html",
}


def report(
    context: Context,
    id: RunId,
    *,
    form: Annotated[
        str | None,
        Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help=f"{', '.join(get_args(Format))}; by default what FILE's name says, else text.",
        ),
    ] = None,
    output: OutputFile = None,
    show_it: Annotated[
        bool, Option("--open", help="Show FILE in a browser, once it is written.")
    ] = False,
    store: StoreUrl = None,
) -> None:
    """Report on a run: what took the time, what failed with its tracebacks, every step."""
    wanted = _format_of(form, output)
    if show_it and output in (None, "-"):
        raise Stop(Exits.USAGE, "--open shows a file: say which one to write, with -o FILE")
    url, id = run_at(context, store, id)
    drawn = drawn_of(in_store(url, lambda opened: find_run(opened, id)))
    text = _made(drawn, wanted, url, to_file=output not in (None, "-"))
    if output is None or output == "-":
        write_document(safe_json(text) if wanted == "json" else text, escape=wanted != "html")
        return
    write_bytes(output, text.encode())
    write_lines([[(f"wrote {output}, {len(text.encode()):,} bytes", "done")]])
    if show_it:
        webbrowser.open(Path(output).resolve().as_uri())


def _format_of(said: str | None, output: str | None) -> Format:
    if said is None:
        return _SUFFIXES.get(Path(output or "").suffix.lower(), "text")
    known: tuple[Format, ...] = get_args(Format)
    return known[known.index(parse_choice(said, "--format", known))]


def _made(drawn: Timeline, form: Format, url: str, *, to_file: bool) -> str:
    """The report; the commands that it suggests name this store."""
    store = speakable(url)
    match form:
        case "text":
            seen = not to_file and sys.stdout.isatty()
            return text_report(
                drawn,
                width=shutil.get_terminal_size().columns if seen else _WIDTH,
                ascii_only=not to_file and not has_marks(sys.stdout.encoding),
                store=store,
            )
        case "markdown":
            return markdown_report(drawn, store=store)
        case "json":
            return json_report(drawn)
        case "mermaid":
            return mermaid_gantt(drawn)
        case "html":
            return html_report(drawn, store=store)
