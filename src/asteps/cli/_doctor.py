"""``asteps doctor``: what a storage holds, and whether it is well."""

from __future__ import annotations

import platform
from typing import Annotated

from .._listing import inspect_store
from .._store import Store, StoreReport
from ._arguments import Json, StoreUrl, store_url
from ._exits import Exits
from ._output import Line, Span, table, write_json, write_lines
from ._stores import in_store
from ._typer import Context, Option

__all__ = ["doctor"]

_NAMED = 20


def doctor(
    context: Context,
    *,
    quick: Annotated[
        bool, Option("--quick", "-q", help="Leave out reading every run with its steps.")
    ] = False,
    as_document: Json = False,
    store: StoreUrl = None,
) -> int | None:
    """Say what the store holds, who holds its runs, and what is wrong. Nothing is changed."""

    async def look(opened: Store) -> StoreReport:
        return await inspect_store(opened, trees=not quick)

    report = in_store(store_url(context, store), look)
    if as_document:
        write_json(_document(report, quick=quick))
    else:
        write_lines(_lines(report, quick=quick), wrap=True)
    return Exits.FAILED if report.damaged or report.problems else None


def _lines(report: StoreReport, *, quick: bool) -> list[Line]:
    living = [holder for holder in report.held if holder.alive]
    dead = [holder for holder in report.held if not holder.alive]
    rows: list[list[Span]] = [
        [("store", "dim"), (f"{report.kind} {report.where}".rstrip(), "head")],
        [("asteps", "dim"), (f"{_version()}, Python {platform.python_version()}", "")],
    ]
    if report.format is not None:
        newest = f", the newest known is {report.newest_format}"
        rows.append([("format", "dim"), (f"{report.format}{newest}", "")])
    if report.size_bytes is not None:
        rows.append([("size", "dim"), (f"{report.size_bytes:,} bytes", "")])
    counts = ", ".join(f"{n:,} {status}" for status, n in report.runs.items())
    rows.append([("runs", "dim"), (f"{sum(report.runs.values()):,}: {counts or 'none'}", "")])
    for what, holders in (("held", living), ("interrupted", dead)):
        if holders:
            named = ", ".join(holder.id for holder in holders[:5])
            more = ", …" if len(holders) > 5 else ""
            rows.append([(what, "dim"), (f"{len(holders):,}: {named}{more}", "")])
    rows += [[(name.replace("_", " "), "dim"), (str(x), "")] for name, x in report.facts.items()]
    lines = table(rows)
    lines += [[("problem  ", "failed"), (text, "")] for text in report.problems]
    lines += [
        [("damaged  ", "failed"), (f"run {id!r}: {why}", "")]
        for id, why in list(report.damaged.items())[:_NAMED]
    ]
    if len(report.damaged) > _NAMED:
        lines.append(
            [(f"and {len(report.damaged) - _NAMED:,} more damaged runs: --json", "failed")]
        )
    if not report.damaged and not report.problems:
        looked = "nothing wrong was found" + (" (--quick: no run was read)" if quick else "")
        lines.append([(looked, "done")])
    return lines


def _document(report: StoreReport, *, quick: bool) -> object:
    return {
        "ok": not report.damaged and not report.problems,
        "quick": quick,
        "version": _version(),
        "kind": report.kind,
        "where": report.where,
        "format": report.format,
        "newestFormat": report.newest_format,
        "sizeBytes": report.size_bytes,
        "runs": report.runs,
        "held": [{"id": h.id, "owner": h.owner, "alive": h.alive} for h in report.held],
        "damaged": report.damaged,
        "problems": report.problems,
        "facts": report.facts,
    }


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - no other verb needs it

    return version("asteps")
