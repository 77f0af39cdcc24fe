"""``asteps stats``: what many runs have in common, and where their time goes."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from .._listing import scan_runs
from .._store import Store
from ..errors import StoreError
from ..reports import (
    Statistics,
    StatisticsSummary,
    statistics_csv,
    statistics_html,
    statistics_json,
    statistics_text,
)
from ._arguments import Name, OutputFile, Part, Since, Statuses, StoreUrl, Until, store_url
from ._files import write_bytes
from ._listing import Asked, asked, wanted_of
from ._output import safe_json, write_document, write_error, write_lines
from ._phrases import counted, parse_choice
from ._stores import holder_of, in_store
from ._typer import Context, Option

__all__ = ["stats"]

Format: TypeAlias = Literal["text", "json", "csv", "html"]

_SUFFIXES: dict[str, Format] = {".json": "json", ".csv": "csv", ".html": "html", ".htm": "html"}
_WIDTH = 120  # columns of a text that is not written to a terminal


def stats(
    context: Context,
    *,
    status: Statuses = None,
    name: Name = None,
    part: Part = "",
    since: Since = None,
    until: Until = None,
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
    store: StoreUrl = None,
) -> None:
    """Say what takes the time in many runs, what fails how often, and what to improve first."""
    known: tuple[Format, ...] = get_args(Format)
    if form is None:
        wanted = _SUFFIXES.get(Path(output or "").suffix.lower(), "text")
    else:
        wanted = known[known.index(parse_choice(form, "--format", known))]
    filters = asked(wanted_of(status), name, part, since, until)
    summary, damaged = in_store(store_url(context, store), lambda opened: _collect(opened, filters))
    text = _made(summary, wanted, seen=output in (None, "-") and sys.stdout.isatty())
    if output is None or output == "-":
        write_document(safe_json(text) if wanted == "json" else text, escape=wanted != "html")
    else:
        data = text.encode()
        write_bytes(output, data)
        of = counted(summary.runs, "run")
        write_lines([[(f"wrote {output}, {len(data):,} bytes, of {of}", "done")]])
    for id, error in damaged.items():
        write_error(f"run {id!r} cannot be read, and was left out: {error}")


async def _collect(store: Store, filters: Asked) -> tuple[StatisticsSummary, dict[str, str]]:
    """Read all runs, one after another: it does not matter how many there are."""
    found = Statistics()
    damaged: dict[str, str] = {}
    living: dict[str, bool] = {}
    now = datetime.now(UTC)

    def note(id: str, error: StoreError) -> None:
        damaged[id] = str(error)

    async for run, state in scan_runs(store, **filters._asdict(), damaged=note):
        owner = run.owner
        if owner is not None and owner not in living:
            living[owner] = await holder_of(store, run.id, owner) is not None
        held = owner is not None and living[owner]
        found.add(
            state,
            run_id=run.id,
            now=now,
            held=held,
            saved_at=run.updated_at,
            at_work=run.status == "proceeding",
        )
    return found.summary(), damaged


def _made(summary: StatisticsSummary, form: Format, *, seen: bool) -> str:
    match form:
        case "text":
            width = shutil.get_terminal_size().columns if seen else _WIDTH
            return statistics_text(summary, width=width)
        case "json":
            return statistics_json(summary)
        case "csv":
            return statistics_csv(summary)
        case "html":
            return statistics_html(summary)
