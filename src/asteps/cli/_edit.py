"""``asteps recover``, ``reset``, ``set-result``, ``rename``: what operators do to a run's tree.

Each shows first what it is going to do. It is found out on a copy of the tree, by the very calls
that then change the stored one; if that has changed meanwhile, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated

import msgspec

from .._operators import edit_run
from .._paths import split
from .._state import ABSENT, State
from .._store import Store
from ..errors import ConflictError, UsageError
from ._arguments import DryRun, OptionalPath, RunId, StepPath, StoreUrl, Why, Yes, run_at
from ._ask import author, confirm, with_reason
from ._exits import Exits, Stop
from ._output import Line, Span, table, write_lines
from ._show import status_of
from ._stores import Found, find_run, in_store, step_of
from ._typer import Argument, Context

__all__ = ["recover", "rename", "reset", "set_result"]

_NAMED = 12  # steps that are named before the rest is counted
_SHOWN = 200  # characters of a result


class _Did(msgspec.Struct, frozen=True):
    """What was done to a tree.

    Attributes:
        what: In words, without the verb.
        runs: The steps that run again by it.
        details: What else the operator is shown before.
    """

    what: str
    runs: list[str] = []
    details: list[tuple[str, str]] = []


class _Change(msgspec.Struct, frozen=True):
    """What is to be done to a run.

    Attributes:
        verb: What the question says.
        past: What the note says.
        act: Does it to a tree.
        hint: What the operator is told afterwards.
    """

    verb: str
    past: str
    act: Callable[[State], _Did]
    hint: str = "start its program again: it goes on there"


class _How(msgspec.Struct, frozen=True):
    """What the options of these verbs say."""

    url: str
    yes: bool
    dry_run: bool
    why: str


def recover(
    context: Context,
    id: RunId,
    path: OptionalPath = None,
    *,
    why: Why = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    store: StoreUrl = None,
) -> None:
    """Make failed steps runnable again: what caused the run's failure, or the step at PATH."""
    url, id = run_at(context, store, id)

    def act(state: State) -> _Did:
        found = state.recover(path)
        if not found:
            raise Stop(Exits.USAGE, _nothing_failed(id, state))
        return _Did(_named(_deepest(found)), _deepest(found))

    how = _How(url, yes, dry_run, why)
    _change(id, _Change("recover", "recovered", act), how)


def _nothing_failed(id: str, state: State) -> str:
    """Why a run cannot be recovered as a whole, and which of its steps can be."""
    failed = [path for path, node in state.walk() if node.failed]
    first = [path for path in failed if not any(p.startswith(f"{path}/") for p in failed)]
    if not first:
        return f"run {id!r} has not failed: there is nothing to recover"
    named = ", ".join(map(repr, first[:5])) + (", …" if len(first) > 5 else "")
    return (
        f"run {id!r} has not failed, but steps of it have ({named}): "
        "name the one that is to run again (asteps recover ID PATH)"
    )


def reset(
    context: Context,
    id: RunId,
    path: StepPath,
    *,
    why: Why = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    store: StoreUrl = None,
) -> None:
    """Forget a step and all below it: it runs again, with new tokens. PATH "" is the whole run."""
    url, id = run_at(context, store, id)

    def act(state: State) -> _Did:
        step_of(state, path)
        state.reset(path)
        return _Did(_named([path]), [path])

    how = _How(url, yes, dry_run, why)
    _change(id, _Change("reset", "reset", act), how)


def set_result(
    context: Context,
    id: RunId,
    path: StepPath,
    value: Annotated[
        str, Argument(metavar="JSON", help="What it is to have returned: '\"ami-1\"'.")
    ],
    *,
    why: Why = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    store: StoreUrl = None,
) -> None:
    """Make a step done with this result, without running it; what follows it runs again."""
    try:
        result: object = msgspec.json.decode(value.encode())
    except (msgspec.DecodeError, UnicodeEncodeError) as exc:
        raise Stop(
            Exits.USAGE, f"the result {value[:60]!r} is no JSON ({exc}); a text is '\"text\"'"
        ) from None

    url, id = run_at(context, store, id)

    def act(state: State) -> _Did:
        step_of(state, path)
        state.set_result(path, result)
        return _Did(_named([path]), details=[("result", value[:_SHOWN])])

    how = _How(url, yes, dry_run, why)
    _change(id, _Change("set the result of", "set the result of", act), how)


def rename(
    context: Context,
    id: RunId,
    path: StepPath,
    name: Annotated[
        str, Argument(metavar="NAME", help="Its new name; the last of its path alone.")
    ],
    *,
    why: Why = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    store: StoreUrl = None,
) -> None:
    """Give a step the name by which changed code knows it. Nothing runs again by that."""
    url, id = run_at(context, store, id)

    def act(state: State) -> _Did:
        step_of(state, path)
        state.rename(path, name)
        return _Did(f"{_named([path])} to {name!r}", details=[("runs again", "nothing")])

    how = _How(url, yes, dry_run, why)
    _change(id, _Change("rename", "renamed", act, "changed code finds it there"), how)


# --- how it is done -------------------------------------------------------------------------------


def _change(id: str, change: _Change, how: _How) -> None:
    found = in_store(how.url, lambda store: find_run(store, id, whole=how.yes))
    if found.holder is not None:
        raise found.holder
    before, after = found.tree(), found.tree()
    if before.run is None:
        raise Stop(Exits.STORE, f"run {found.id!r} has no record of its own: it cannot be edited")
    try:
        did = change.act(after)
    except UsageError as exc:
        raise Stop(Exits.USAGE, str(exc)) from exc
    write_lines(_preview(found, f"{change.verb} {did.what}", did, before, after), wrap=True)
    if how.dry_run:
        write_lines([[("nothing was changed (--dry-run)", "dim")]])
        return
    confirm(f"{change.verb} {did.what}?", yes=how.yes)
    expected = before.encode()

    async def apply(store: Store) -> None:
        async with edit_run(store, found.id) as state:
            if state.encode() != expected:
                raise ConflictError(found.id, found.stored.revision, "another one")
            text = f"{change.past} {change.act(state).what}"
            state.note(with_reason(text, how.why), by=author())

    in_store(how.url, apply)
    done = f"{change.past} {did.what} in run {found.id}; {change.hint}"
    write_lines([[(done, "done")]], wrap=True)


def _preview(found: Found, text: str, did: _Did, before: State, after: State) -> list[Line]:
    """What is going to happen, exactly."""
    status = status_of(found.stored.summary, held=False)
    rows: list[list[Span]] = [
        [("run", "dim"), (f"{found.id} ({found.stored.summary.name}, {status})", "head")],
        [("change", "dim"), (text, "")],
        *([(name, "dim"), (value, "")] for name, value in did.details),
    ]
    old, new = dict(before.walk()), dict(after.walk())
    undone = [path for path, node in old.items() if path in new and _is_undone(node, new[path])]
    # A step with another name is still there, and so is what is below it.
    gone = [path for path in old if path not in new] if len(new) < len(old) else []
    named = (
        ("runs again", did.runs, ""),
        ("entered again", [path for path in undone if path not in did.runs], ""),
        ("forgotten", gone, "failed"),
    )
    rows += [[(what, "dim"), (_named(paths), style)] for what, paths, style in named if paths]
    lost = _lost(old, new, {*did.runs, *gone})
    if lost:
        rows.append([("lost", "dim"), (lost, "failed")])
    return table(rows)


def _is_undone(was: State, becomes: State) -> bool:
    """Whether a step that had begun, or ended, is to be entered anew."""
    begun = was.started or was.done or was.failed
    ends = becomes.done or becomes.failed
    return begun and not ends and (was.started_at, was.done_at) != (becomes.started_at, None)


def _lost(old: Mapping[str, State], new: Mapping[str, State], paths: Collection[str]) -> str:
    """What these steps had written down, and nobody will find again."""
    left = {path: new.get(path) for path in paths}
    results = [
        path
        for path, node in left.items()
        if old[path].result is not ABSENT and (node is None or node.result is ABSENT)
    ]
    infos = [
        path
        for path, node in left.items()
        if old[path].info is not ABSENT and (node is None or node.info is ABSENT)
    ]
    counts = ((len(results), "result"), (len(infos), "info"))
    return ", ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in counts if n)


def _named(paths: Sequence[str]) -> str:
    """Some steps by their paths."""
    named = [repr(path) if path else "the run itself" for path in paths[:_NAMED]]
    more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(named) + more


def _deepest(paths: Sequence[str]) -> list[str]:
    """Those of some paths below which there is no other of them."""
    above = {
        tuple(names[:n]) for path in paths for names in [split(path)] for n in range(len(names))
    }
    return [path for path in paths if tuple(split(path)) not in above]
