"""A store in memory that folds: few records, whatever the run has done."""

from __future__ import annotations

from typing import Literal

from asteps.stores.memory import MemoryStore

__all__ = ["FoldingStore"]


class FoldingStore(MemoryStore):
    """To it the core writes a finished subtree as one record."""

    folds: Literal[True] = True
