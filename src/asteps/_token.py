"""Tokens: what tells a step from every other, in every process and after every reset."""

from __future__ import annotations

import hashlib

from ._state import State

__all__ = ["hash_of", "new_token_name", "token_part"]


def hash_of(token: str, line: list[tuple[str, int]]) -> str:
    """The token at the end of a path, from that at its beginning (or the nonce) and its nodes."""
    for part in line:
        token = hashlib.blake2b(repr((token, part)).encode(), digest_size=16).hexdigest()
    return token


def token_part(node: State) -> tuple[str, int]:
    """What a node adds to the tokens of its path: its first name, and its generation."""
    own = node.detail
    return (node.name, 0) if own is None else (own.token_name or node.name, own.generation)


def new_token_name(parent: State, name: str) -> str:
    """What tokens call a new child, where a renamed sibling still has its name; else ``""``."""
    if parent.detail is None or not parent.detail.renames:
        return ""
    known = [c.detail.token_name for c in parent.states or () if c.detail is not None]
    taken = sum(1 for t in known if t.split("\0")[0] == name)
    return f"{name}\0{taken}" if taken else ""
