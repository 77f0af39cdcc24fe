"""The runs of an object as its status holds them, and the merge-patches that change them.

Pure. The subtree is plain JSON::

    {"format": 1, "seq": 7, "runs": {"shop/orders": {
        "seq": 7, "writer": "…", "epoch": 2, "summary": {…}, "records": {"": "{…}", "a/b": "{…}"}}}}

Records are JSON *text*: as values the server would round and drop some of what they hold. Every
save counts ``seq`` up, which belongs to the object and not to a run, so that no revision comes
twice after a run was deleted.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import msgspec

from .._store import StoredRun, Summary
from ..errors import StateFormatError, StoreRefusedError

__all__ = [
    "FORMAT",
    "Entry",
    "Json",
    "apply_patch",
    "as_subtree",
    "changed",
    "difference",
    "encoded_bytes",
    "entry_of",
    "gunzipped",
    "gzipped",
    "is_newer",
    "outline",
    "outlined",
    "removed",
    "revision_of",
    "run_of",
    "summary_of",
    "texts_of",
]

Json: TypeAlias = dict[str, Any]

FORMAT = 1
_GZIP_FROM = 64 * 1024  # bytes of records from which "gzip" compresses: below, people can read them
_GUNZIPPED_BYTES = 2**28  # what unpacks to more is no run of ours
_LEVEL = 3  # of zlib: half the time of its default for a tenth more bytes


class Entry(msgspec.Struct, frozen=True):
    """A run as the subtree holds it."""

    seq: int
    writer: str
    epoch: int
    summary: Json
    records: dict[str, str] | None = None
    gzip: str | None = None


class _Told(msgspec.Struct, frozen=True):
    epoch: int
    updated_at: float


class _Outline(msgspec.Struct, frozen=True):
    summary: _Told


# --- merge-patches ------------------------------------------------------------------------------


def difference(old: Mapping[str, Any], new: Mapping[str, Any], /) -> Json:
    """The smallest merge-patch (RFC 7386) that makes one object of another."""
    patch: Json = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
            continue
        before = old[key]
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = difference(cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", value))
            if inner:
                patch[key] = inner
        elif value != before:
            patch[key] = value
    return patch


def apply_patch(target: Any, patch: Any, /) -> Any:
    """What a merge-patch makes of a value, which stays as it was."""
    if not isinstance(patch, Mapping):
        return patch
    fields = cast("Mapping[str, Any]", patch)
    made: Json = dict(cast("Mapping[str, Any]", target)) if isinstance(target, Mapping) else {}
    for key, value in fields.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = apply_patch(made.get(key), value)
    return made


def encoded_bytes(value: object, /) -> int:
    """How much room a value takes as JSON."""
    return len(msgspec.json.encode(value))


# --- reading --------------------------------------------------------------------------------------


def as_subtree(found: object, where: str, /) -> Json:
    """Take what an object holds for a subtree; an empty one where there is nothing.

    Raises:
        StateFormatError: It is of a newer format, or none of ours.
    """
    if found is None:
        return {"format": FORMAT, "seq": 0, "runs": {}}
    subtree = cast("Json", found) if isinstance(found, dict) else {}
    number = subtree.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise StateFormatError(
            f"{where} is of format {number}, written by a newer version of asteps; this one knows "
            f"format {FORMAT}: it was left as it is"
        )
    runs = subtree.get("runs", {})
    if number != FORMAT or not isinstance(subtree.get("seq"), int) or not isinstance(runs, dict):
        raise StateFormatError(
            f"{where} is not what asteps writes there, and was left as it is: is it another "
            "program's field? Give this store a field= of its own"
        )
    return {**subtree, "runs": cast("Json", runs)}


def entry_of(subtree: Json, id: str, where: str, /) -> Entry | None:
    """A run's entry.

    Raises:
        StateFormatError: It is damaged.
    """
    found = subtree["runs"].get(id)
    if found is None:
        return None
    try:
        return msgspec.convert(found, Entry)
    except msgspec.ValidationError as exc:
        raise _damaged(id, where, exc) from exc


def run_of(entry: Entry, id: str, uid: str, where: str, /) -> StoredRun:
    """A run as a store hands it out.

    Raises:
        StateFormatError: It is damaged.
    """
    records = {key: text.encode() for key, text in texts_of(entry, id, where).items()}
    return StoredRun(records, revision_of(uid, entry), summary_of(entry, id, where))


def summary_of(entry: Entry, id: str, where: str, /) -> Summary:
    """A run's summary.

    Raises:
        StateFormatError: It is damaged.
    """
    try:
        return msgspec.convert({"owner": None, **entry.summary}, Summary)
    except msgspec.ValidationError as exc:
        raise _damaged(id, where, exc) from exc


def texts_of(entry: Entry, id: str, where: str, /) -> dict[str, str]:
    """A run's records as text.

    Raises:
        StateFormatError: They are damaged, or not there.
    """
    if entry.gzip is None:
        if entry.records is None:
            raise _damaged(id, where, "its records are missing")
        return entry.records
    try:
        return msgspec.json.decode(gunzipped(entry.gzip), type=dict[str, str])
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise _damaged(id, where, exc) from exc


def revision_of(uid: str, entry: Entry, /) -> str:
    """Names a state of a run.

    ``uid`` tells a recreated object from the one before. ``seq`` alone would come again where
    somebody emptied the status or restored it from a backup; ``writer`` does not.
    """
    return f"{uid}:{entry.seq}:{entry.writer}"


def _damaged(id: str, where: str, why: object) -> StateFormatError:
    return StateFormatError(
        f"run {id!r} in {where} is damaged, and was left as it is: {str(why)[:256]}"
    )


# --- writing --------------------------------------------------------------------------------------


def changed(
    subtree: Json,
    id: str,
    before: Mapping[str, str],
    changes: Mapping[str, bytes | None],
    /,
    *,
    epoch: int,
    write_id: str,
    summary: Summary,
    compress: bool,
) -> Json:
    """The subtree after a save.

    Args:
        subtree: As it was; it stays as it was.
        id: The run.
        before: The run's records.
        changes: What the save changes.
        epoch: As in `Store.save`.
        write_id: Likewise.
        summary: Likewise.
        compress: Whether a run of some size is compressed.

    Raises:
        StoreRefusedError: A record is no text.
    """
    seq = subtree["seq"] + 1
    entry: Json = {
        "seq": seq,
        "writer": write_id,
        "epoch": epoch,
        "summary": _fields(summary),
    }
    texts = {key: text for key, text in before.items() if key not in changes}
    try:
        texts |= {k: str(value, "utf-8") for k, value in changes.items() if value is not None}
    except UnicodeDecodeError as exc:
        raise StoreRefusedError(f"run {id!r}: a record is not UTF-8: {exc}") from exc
    if compress and sum(len(k) + len(t) for k, t in texts.items()) >= _GZIP_FROM:
        entry["gzip"] = gzipped(msgspec.json.encode(texts))
    else:
        entry["records"] = texts
    return {**subtree, "seq": seq, "runs": {**subtree["runs"], id: entry}}


def removed(subtree: Json, id: str, /) -> Json:
    """The subtree after a run was deleted."""
    runs = {key: entry for key, entry in subtree["runs"].items() if key != id}
    return {**subtree, "seq": subtree["seq"] + 1, "runs": runs}


def outlined(subtree: Json, id: str, run: StoredRun | None, /, **fields: str) -> Json:
    """The subtree of a status whose records lie elsewhere, after one run has changed.

    Args:
        subtree: As it was.
        id: The run.
        run: As it is now; ``None`` where there is none any more.
        **fields: What else the subtree says, such as where the records are.
    """
    entries: dict[str, Json] = {k: e for k, e in subtree["runs"].items() if isinstance(e, dict)}
    runs: Json = {
        key: {k: v for k, v in entry.items() if k not in {"records", "gzip"}}
        for key, entry in entries.items()
        if key != id
    }
    if run is not None:
        runs[id] = outline(run)
    return {**subtree, **fields, "seq": subtree["seq"] + 1, "runs": runs}


def outline(run: StoredRun, /) -> Json:
    """What a status says of a run whose records lie elsewhere."""
    return {"summary": _fields(run.summary)}


def _fields(summary: Summary) -> Json:
    fields: Json = msgspec.to_builtins(summary)
    return {key: value for key, value in fields.items() if value is not None}


def is_newer(told: object, run: StoredRun, /) -> bool:
    """Whether an outline is of a later save than a run."""
    try:
        found = msgspec.convert(told, _Outline).summary
    except msgspec.ValidationError:
        return False
    mine = run.summary
    return (found.epoch, found.updated_at) > (mine.epoch, mine.updated_at)


def gzipped(data: bytes, /) -> str:
    """Bytes as text that takes little room; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(data, _LEVEL, mtime=0)).decode()


def gunzipped(text: str, /) -> bytes:
    """What `gzipped` was given.

    Raises:
        ValueError: It is damaged, or larger than anything that is stored so.
    """
    unpack = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
    try:
        data = unpack.decompress(base64.b64decode(text, validate=True), _GUNZIPPED_BYTES)
    except (binascii.Error, zlib.error) as exc:
        raise ValueError(f"what is compressed cannot be read: {exc}") from exc
    if not unpack.eof:
        raise ValueError("what is compressed is cut short, or too large")
    return data
