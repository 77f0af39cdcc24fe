"""The file format of `FileStore`: one run as a log of saves. Pure: bytes in, bytes out.

::

    file    = header frame+
    header  = magic (8) | format (u16) | nonce (16) | length of id (u16) | id | crc32 of all this
    frame   = sync (4) | length of body (u64) | length of head (u32) | crc32 of these and the head
              | head | body | crc32 of the body | length of the frame (u64)
    head    = MessagePack of `Head`
    body    = MessagePack of the changes: bytes by key, nil for a removed one

All numbers are little-endian. The first frame holds the whole run, every other one a save's
changes. A file is put in place with its first frame complete, and then only grows; so whatever is
wrong before the last frame, or in the first one, is damage, while a broken end is what a crash in
the middle of an append leaves. The frame's length at its end lets a reader find the last frame
without passing the others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from .._store import Summary
from ..errors import StateFormatError

__all__ = ["Head", "Log", "frame", "header", "last_head", "nonce_of", "read", "read_header"]

FORMAT = 1

_MAGIC = b"\x89asteps\n"
_SYNC = b"\xffst\xfe"  # no UTF-8 text contains it, so no record does
_START = struct.Struct("<8sH16sH")
_FRAME = struct.Struct("<4sQII")
_CRC = struct.Struct("<I")
_END = struct.Struct("<IQ")

HEADER_BYTES = _START.size + _CRC.size + 4 * 500  # a header is not longer than this


class Head(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a frame says of the save that it holds.

    Attributes:
        number: Counts the run's saves, in all its files since it was created.
        epoch: The saver's epoch.
        write_id: The save's name.
        summary: The summary that came with it.
    """

    number: int
    epoch: int
    write_id: str
    summary: Summary


class Log(NamedTuple):
    """What a file says.

    Attributes:
        nonce: Names the file: random, another one after each compaction.
        id: The run.
        head: The head of the last complete frame.
        first_end: Where the first frame ends: how large the file was when it was put in place.
        end: Where the last complete frame ends; what follows is torn.
    """

    nonce: bytes
    id: str
    head: Head
    first_end: int
    end: int

    @property
    def revision(self) -> str:
        return revision(self.nonce, self.head.number)


_heads = msgspec.msgpack.Decoder(Head)
_bodies = msgspec.msgpack.Decoder(dict[str, bytes | None])
_encode = msgspec.msgpack.Encoder().encode


def revision(nonce: bytes, number: int) -> str:
    """The revision that a save makes: a number never comes twice in a file, nor a file's nonce."""
    return f"{nonce.hex()}.{number}"


def header(nonce: bytes, id: str) -> bytes:
    """The beginning of a file."""
    name = id.encode()
    start = _START.pack(_MAGIC, FORMAT, nonce, len(name)) + name
    return start + _CRC.pack(zlib.crc32(start))


def frame(head: Head, changes: Mapping[str, bytes | None]) -> bytes:
    """One save."""
    top = _encode(head)
    body = _encode(changes)
    size = _FRAME.size + len(top) + len(body) + _END.size
    check = _check(_FRAME.pack(_SYNC, len(body), len(top), 0), top)
    return b"".join(
        (
            _FRAME.pack(_SYNC, len(body), len(top), check),
            top,
            body,
            _END.pack(zlib.crc32(body), size),
        )
    )


def nonce_of(start: bytes) -> bytes | None:
    """The nonce of the file that begins with these bytes, unless they are not ours."""
    if len(start) < _START.size:
        return None
    magic, form, nonce, _ = _START.unpack_from(start)
    return nonce if (magic, form) == (_MAGIC, FORMAT) else None


def read_header(data: bytes, where: str) -> tuple[bytes, str, int]:
    """Nonce, id, and where the first frame begins.

    Args:
        data: At least the first `HEADER_BYTES` of the file, or all of it.
        where: What to call the file in an error.

    Raises:
        StateFormatError: The file is not ours, of a newer format, or damaged.
    """
    if len(data) < _START.size or not data.startswith(_MAGIC):
        cut = "is cut short" if _MAGIC.startswith(data[: len(_MAGIC)]) else "is no run of asteps"
        raise _damaged(where, f"{cut} ({len(data)} bytes)")
    _, form, nonce, length = _START.unpack_from(data)
    if form > FORMAT:
        raise StateFormatError(
            f"{where} has format {form}, and this version of asteps reads up to {FORMAT}; "
            "it was left as it is: use the version that wrote it, or a later one"
        )
    end = _START.size + length + _CRC.size
    if form != FORMAT or len(data) < end:
        raise _damaged(where, "is damaged in its header")
    start = data[: end - _CRC.size]
    if data[len(start) : end] != _CRC.pack(zlib.crc32(start)):
        raise _damaged(where, "is damaged in its header")
    try:
        return nonce, start[_START.size :].decode(), end
    except UnicodeDecodeError:
        raise _damaged(where, "has an id that is no text") from None


def read(data: bytes, where: str) -> tuple[Log, dict[str, bytes]]:
    """A whole file: what it says, and the records.

    Raises:
        StateFormatError: The file is not ours, of a newer format, or damaged elsewhere than in a
            torn end.
    """
    nonce, id, begin = read_header(data, where)
    records: dict[str, bytes] = {}
    view = memoryview(data)
    end = first_end = begin
    top = b""
    while span := _frame_at(view, end):
        top = bytes(view[span[0] : span[1]])
        try:
            changes = _bodies.decode(view[span[1] : span[2]])
        except msgspec.MsgspecError as error:
            raise _damaged(where, f"has a frame at byte {end} that says nothing") from error
        for key, value in changes.items():
            if value is None:
                records.pop(key, None)
            else:
                records[key] = value
        end = span[2] + _END.size
        if first_end == begin:
            first_end = end
    if not top:
        raise _damaged(where, "is cut short, or damaged, in its first frame")
    sync = data.find(_SYNC, end + 1)
    while sync >= 0:
        if _frame_at(view, sync):
            raise _damaged(where, f"is damaged at byte {end}, with good data after it")
        sync = data.find(_SYNC, sync + 1)
    return Log(nonce, id, _decode_head(top, where), first_end, end), records


def last_head(size: int, pread: Callable[[int, int], bytes], where: str) -> Head | None:
    """The head of the last frame, read from the end of the file.

    Args:
        size: How long the file is.
        pread: Reads so many bytes at an offset.
        where: What to call the file in an error.

    Returns:
        ``None`` where the file does not end in a complete frame: only all of it can tell then.
    """
    if size < _END.size:
        return None
    length = int(_END.unpack(pread(_END.size, size - _END.size))[1])
    if not _FRAME.size <= length <= size:
        return None
    start = pread(_FRAME.size, size - length)
    if len(start) < _FRAME.size:
        return None
    sync, body, top_length, check = _FRAME.unpack(start)
    if sync != _SYNC or _FRAME.size + top_length + body + _END.size != length:
        return None
    top = pread(top_length, size - length + _FRAME.size)
    if _check(_FRAME.pack(sync, body, top_length, 0), top) != check:
        return None
    return _decode_head(top, where)


def _decode_head(top: bytes, where: str) -> Head:
    try:
        return _heads.decode(top)
    except msgspec.MsgspecError as error:
        raise _damaged(where, "has a save that says nothing") from error


def _frame_at(data: memoryview, start: int) -> tuple[int, int, int] | None:
    """Where head and body begin, and the body ends, if there is a good frame here."""
    if len(data) - start < _FRAME.size:
        return None
    sync, body_length, top_length, check = _FRAME.unpack_from(data, start)
    if sync != _SYNC:
        return None
    top = start + _FRAME.size
    body = top + top_length
    end = body + body_length
    if end + _END.size > len(data):
        return None
    if _check(_FRAME.pack(sync, body_length, top_length, 0), data[top:body]) != check:
        return None
    if _END.unpack_from(data, end) != (zlib.crc32(data[body:end]), end + _END.size - start):
        return None
    return top, body, end


def _check(start: bytes, top: bytes | memoryview) -> int:
    return zlib.crc32(top, zlib.crc32(start))


def _damaged(where: str, what: str) -> StateFormatError:
    return StateFormatError(
        f"{where} {what}; it was left as it is: restore it from a copy, or move it away"
    )
