"""``asteps export`` and ``import``: runs as documents, to keep or to move."""

from __future__ import annotations

import sys
from typing import Annotated

from .._operators import export_run, put_run
from .._state import State
from .._store import Store, StoredRun
from ..errors import ConflictError, StateFormatError
from ._arguments import NewRunId, OutputFile, RunId, StoreUrl, Why, Yes, run_at
from ._ask import author, confirm, with_reason
from ._exits import Exits, Stop
from ._files import read_bytes, write_bytes
from ._output import safe_json, write_document, write_lines
from ._phrases import counted
from ._show import status_of
from ._stores import find_run, in_store
from ._typer import Argument, Context, Option

__all__ = ["export", "import_"]


def export(
    context: Context,
    id: RunId,
    *,
    output: OutputFile = None,
    store: StoreUrl = None,
) -> None:
    """Write a run as one JSON document: every step with its result, info, errors and times."""
    url, id = run_at(context, store, id)

    async def read(opened: Store) -> tuple[str, bytes]:
        found = await find_run(opened, id)
        return found.id, await export_run(opened, found.id)

    found, data = in_store(url, read)
    if output is None or output == "-":
        text = data.decode()
        write_document(safe_json(text) if sys.stdout.isatty() else text, escape=False)
        return
    write_bytes(output, data)
    write_lines([[(f"wrote run {found} to {output}, {len(data):,} bytes", "done")]])


def import_(
    context: Context,
    id: NewRunId,
    file: Annotated[str, Argument(metavar="FILE", help='The document; "-" is the standard input.')],
    *,
    replace: Annotated[
        bool, Option("--replace", help="Take the place of the run that has this id.")
    ] = False,
    why: Why = "",
    yes: Yes = False,
    store: StoreUrl = None,
) -> None:
    """Store a run that `asteps export` wrote, or the Go library, under this id."""
    url, id = run_at(context, store, id)
    data = read_bytes(file)
    try:
        root = State.decode(data)
    except StateFormatError as exc:
        raise Stop(Exits.USAGE, f"{file!r} is no run: {exc}") from exc
    steps = sum(1 for _ in root.walk()) - 1
    seen = _confirm_replacing(url, id, yes=yes) if replace else None
    root.note(with_reason(f"imported from {file!r}", why), by=author())

    def admit(there: StoredRun | None) -> None:
        if there is not None and not replace:
            raise Stop(
                Exits.USAGE,
                f"there is a run {id!r} already; give another id, or --replace to overwrite it",
            )
        if there is not None and there.revision != seen:
            raise ConflictError(id, seen, there.revision)

    in_store(url, lambda opened: put_run(opened, id, root, admit), create=True)
    write_lines([[(f"imported run {id}, {counted(steps, 'step')}", "done")]])


def _confirm_replacing(url: str, id: str, *, yes: bool) -> str | None:
    """Ask whether a run may be lost.

    Returns:
        The revision of it that was shown; ``None`` where there is no such run.
    """
    try:
        found = in_store(url, lambda opened: find_run(opened, id, whole=True))
    except Stop as exc:
        if exc.code is Exits.NOT_FOUND:
            return None
        raise
    if found.holder is not None:
        raise found.holder
    status = status_of(found.stored.summary, held=False)
    steps = counted(found.steps(), "step")
    write_lines([[(f"the run {id} ({status}, {steps}) is lost by this", "failed")]])
    confirm("replace it?", yes=yes)
    return found.stored.revision
