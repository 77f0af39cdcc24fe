"""Arguments and options that several verbs take, and what a shell can complete of them."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeAlias

from .._paths import join
from .._state import State
from .._store import ListStore, Store
from ..errors import UsageError
from ..stores._urls import scheme_of
from ._exits import Exits, Stop
from ._stores import find_run, in_store
from ._typer import Argument, Context, Option

__all__ = [
    "DryRun",
    "Json",
    "Name",
    "NewRunId",
    "OptionalPath",
    "OutputFile",
    "Part",
    "RunId",
    "RunIds",
    "Since",
    "Statuses",
    "StepPath",
    "StoreUrl",
    "Until",
    "Why",
    "Yes",
    "run_at",
    "runs_at",
    "store_url",
]

_COMPLETIONS = 50
# Some shells evaluate what they are offered; nothing in this has a meaning to any of them.
_HARMLESS = re.compile(r"[\w@%./][\w@%+=:,./#-]*")
_DEBUG = "ASTEPS_DEBUG"
_OBJECT = "kubernetes"  # the scheme of URLs that name a store and the run in it


def store_url(context: Context, url: str | None) -> str:
    """The store that is meant: named after the verb, before it, or by the environment.

    Raises:
        Stop: None is named.
    """
    named = url or _named_before(context) or os.environ.get("ASTEPS_STORE")
    if not named:
        raise Stop(
            Exits.USAGE,
            "which store? say --store runs.db (or -s; sqlite:runs.db, file:runs/, …), or set "
            "ASTEPS_STORE",
        )
    return named


def run_at(context: Context, url: str | None, id: str) -> tuple[str, str]:
    """The store and the id of a run; the ID may be a URL that says both.

    Raises:
        Stop: No store is named, or what begins like such a URL is none.
    """
    if scheme_of(id) != _OBJECT or url or _named_before(context):
        return store_url(context, url), id
    from ..integrations._kubernetes_url import run_of  # noqa: PLC0415 - only where it is needed

    try:
        return run_of(id)
    except UsageError as exc:
        raise Stop(Exits.USAGE, str(exc)) from exc


def runs_at(context: Context, url: str | None, ids: Sequence[str]) -> dict[str, list[str]]:
    """The ids of some runs, by their stores; likewise."""
    found: dict[str, list[str]] = {}
    for id in dict.fromkeys(ids):
        store, whole = run_at(context, url, id)
        found.setdefault(store, []).append(whole)
    return found


def _named_before(context: Context) -> str | None:
    value = context.find_root().params.get("store")
    return value if isinstance(value, str) else None


# --- completion -----------------------------------------------------------------------------------


def _quietly(
    context: Context, id: str, do: Callable[[Store, str], Awaitable[list[str]]]
) -> list[str]:
    """What can be found out for a shell; an error would only garble the line that is written."""
    try:
        url, id = run_at(context, context.params.get("store"), id)
        return in_store(url, lambda store: do(store, id))
    except Exception:
        if os.environ.get(_DEBUG):
            raise
        return []


def _complete_run(ctx: Context, incomplete: str) -> list[str]:
    async def find(store: Store, _: str) -> list[str]:
        if not isinstance(store, ListStore):
            return []
        after = None
        if incomplete:  # right before the id that is this text and no more
            after = f"{incomplete[:-1]}{chr(ord(incomplete[-1]) - 1)}\U0010ffff"
        found = await store.list_runs(after=after, limit=_COMPLETIONS)
        return [id for id, _ in found if id.startswith(incomplete) and _HARMLESS.fullmatch(id)]

    return _quietly(ctx, "", find)


def _complete_path(ctx: Context, incomplete: str) -> list[str]:
    async def find(store: Store, id: str) -> list[str]:
        found = await find_run(store, id)
        return list(filter(_HARMLESS.fullmatch, _paths_like(found.tree(), incomplete)))

    return _quietly(ctx, ctx.params.get("id") or "", find)


def _paths_like(state: State, incomplete: str) -> list[str]:
    """The steps of the deepest parent that has been written out."""
    above = incomplete.rpartition("/")[0]
    parent = state.get(above) if state.has(above) else state
    paths = [join(above, child.name) for child in parent.states or ()]
    return [path for path in paths if path.startswith(incomplete)][:_COMPLETIONS]


# --- arguments ------------------------------------------------------------------------------------

StoreUrl: TypeAlias = Annotated[
    str | None,
    Option(
        "--store",
        "-s",
        metavar="URL",
        help="Where the runs are: a path, sqlite:runs.db, file:runs/ … [env: ASTEPS_STORE]",
    ),
]
RunId: TypeAlias = Annotated[
    str,
    Argument(
        metavar="ID",
        help="The run's id, or as much of its beginning as no other has; or "
        "kubernetes:group/version/plural/namespace/name.",
        autocompletion=_complete_run,
    ),
]
RunIds: TypeAlias = Annotated[
    list[str],
    Argument(
        metavar="ID...",
        help="Ids of runs, or as much of their beginnings as no other has.",
        autocompletion=_complete_run,
    ),
]
NewRunId: TypeAlias = Annotated[str, Argument(metavar="ID", help="The id that it is to have.")]
_PATH = Argument(
    metavar="PATH",
    help='A step: the names down to it, joined by "/"; "" is the whole run.',
    autocompletion=_complete_path,
)
StepPath: TypeAlias = Annotated[str, _PATH]
OptionalPath: TypeAlias = Annotated[str | None, _PATH]
Yes: TypeAlias = Annotated[
    bool, Option("--yes", "-y", help="Do not ask. The id must then be whole.")
]
DryRun: TypeAlias = Annotated[bool, Option("--dry-run", "-n", help="Only show what would happen.")]
Why: TypeAlias = Annotated[
    str,
    Option("--why", metavar="TEXT", help="A reason, kept with the run for those who come later."),
]
Json: TypeAlias = Annotated[bool, Option("--json", help="As a JSON document, for programs.")]
OutputFile: TypeAlias = Annotated[
    str | None, Option("--output", "-o", metavar="FILE", help="Write it there, and not here.")
]
Name: TypeAlias = Annotated[
    str | None, Option("--name", metavar="NAME", help="Only runs of this root function.")
]
Part: TypeAlias = Annotated[
    str, Option("--id", metavar="TEXT", help="Only runs with this somewhere in their id.")
]
Statuses: TypeAlias = Annotated[
    list[str] | None,
    Option(
        "--status",
        "-S",
        metavar="STATUS",
        help="Only done, failed, pending, proceeding or interrupted ones; may be repeated.",
    ),
]
Since: TypeAlias = Annotated[
    str | None,
    Option("--since", metavar="AGE", help="Only runs saved within this time: 90s, 2h, 7d."),
]
Until: TypeAlias = Annotated[
    str | None,
    Option("--older-than", metavar="AGE", help="Only runs not saved for as long as this."),
]
