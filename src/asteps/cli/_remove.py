"""``asteps rm`` and ``prune``: runs that nobody needs any more."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, TextIO

from .._operators import delete_if
from .._prune import PruneReport
from .._prune import prune as prune_store
from .._store import Status, Store, StoredRun
from ._arguments import (
    DryRun,
    Json,
    Name,
    Part,
    RunIds,
    Statuses,
    StoreUrl,
    Yes,
    runs_at,
    store_url,
)
from ._ask import confirm
from ._exits import Exits, Stop
from ._listing import wanted_of
from ._output import Line, table, write_error, write_json, write_lines
from ._phrases import ago, counted, parse_duration
from ._show import status_of
from ._stores import Found, find_run, in_store
from ._typer import Context, Option

__all__ = ["prune", "rm"]

_NAMED = 10  # runs that are named before the rest is counted


def rm(
    context: Context,
    ids: RunIds,
    *,
    yes: Yes = False,
    dry_run: DryRun = False,
    store: StoreUrl = None,
) -> None:
    """Delete runs, with all that is known of them. `asteps export` keeps a copy."""
    found = {
        url: in_store(url, partial(_find, ids=named, whole=yes))
        for url, named in runs_at(context, store, ids).items()
    }
    listed = [run for runs in found.values() for run in runs]
    for run in listed:
        if run.holder is not None:
            raise run.holder
    write_lines([[("these are deleted, and cannot be brought back:", "")], *_listed(listed)])
    if dry_run:
        write_lines([[("nothing was deleted (--dry-run)", "dim")]])
        return
    confirm("delete?", yes=yes)

    for url, runs in found.items():
        in_store(url, partial(_delete, runs=runs))


async def _find(opened: Store, *, ids: Iterable[str], whole: bool) -> list[Found]:
    return [await find_run(opened, id, whole=whole) for id in ids]


async def _delete(opened: Store, *, runs: Iterable[Found]) -> None:
    for run in runs:
        if not await delete_if(opened, run.id, partial(_is_as_it_was, run.stored)):
            raise Stop(
                Exits.STORE, f"run {run.id!r} was changed, or removed, meanwhile; it was let be"
            )
        write_lines([[(f"deleted {run.id}", "done")]])


def _is_as_it_was(was: StoredRun, now: StoredRun) -> bool:
    return was.revision == now.revision


def _listed(found: list[Found]) -> list[Line]:
    rows: list[Line] = []
    now = datetime.now(UTC).timestamp()
    for run in found:
        summary = run.stored.summary
        status = status_of(summary, held=run.held)
        rows.append(
            [
                (f"  {run.id}", "head"),
                (status, status),
                (summary.name, ""),
                (f"saved {ago(summary.updated_at, now)}", "dim"),
                (counted(run.steps(), "step"), "dim"),
            ]
        )
    return table(rows)


def prune(
    context: Context,
    *,
    older_than: Annotated[
        str,
        Option(
            "--older-than", metavar="AGE", help="Ended, and not changed, for so long: 30d, 12w."
        ),
    ],
    status: Statuses = None,
    name: Name = None,
    part: Part = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    as_document: Json = False,
    store: StoreUrl = None,
) -> int | None:
    """Delete the runs that ended long ago: those that are done, unless --status says otherwise."""
    url = store_url(context, store)
    wanted = wanted_of(status) or {"done"}
    if odd := wanted - {"done", "failed"}:
        raise Stop(Exits.USAGE, f"prune deletes what is done or failed, not what is {min(odd)}")
    known: tuple[Status, ...] = ("done", "failed")
    ended: list[Status] = [each for each in known if each in wanted]
    call = partial(
        prune_store,
        older_than=parse_duration(older_than, "--older-than"),
        status=ended,
        name=name,
        contains=part,
        now=datetime.now(UTC),
    )
    if dry_run or not yes:
        found = in_store(url, partial(call, dry_run=True))
        if as_document and (dry_run or not found.deleted):
            write_json(_document(found))
            return None
        # What is asked about is no part of the document that is going to be written.
        file = sys.stderr if as_document else sys.stdout
        _write(found, f"{_runs(found)} to be deleted", file)
        if dry_run or not found.deleted:
            return None
        confirm(f"delete {_runs(found)}?", yes=yes)
    report = in_store(url, call)
    if as_document:
        write_json(_document(report))
    else:
        _write(report, f"{_runs(report)} deleted", sys.stdout)
    return Exits.BUSY if report.kept else None


def _runs(report: PruneReport) -> str:
    return counted(len(report.deleted), "run")


def _write(report: PruneReport, head: str, file: TextIO) -> None:
    lines: list[Line] = [[(head, "head")], *([(f"  {id}", "")] for id in report.deleted[:_NAMED])]
    if len(report.deleted) > _NAMED:
        lines.append([(f"  and {len(report.deleted) - _NAMED:,} more", "dim")])
    write_lines(lines, file=file)
    for id, why in report.kept.items():
        write_error(f"run {id!r} was kept: {why}")
    for id, why in report.damaged.items():
        write_error(f"run {id!r} cannot be read, and was kept: {why}")


def _document(report: PruneReport) -> object:
    return {
        "deleted": report.deleted,
        "kept": report.kept,
        "damaged": report.damaged,
        "dryRun": report.dry_run,
    }
