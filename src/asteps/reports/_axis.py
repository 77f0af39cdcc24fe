"""The axis of time: where its marks stand, and what they are called."""

from __future__ import annotations

import math

__all__ = ["tick_text", "ticks"]

_STEPS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    *(86_400, 172_800, 432_000, 864_000),
)
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def ticks(span: float, most: int) -> tuple[list[float], float]:
    """Round moments within a span of seconds, at most so many and 1; and how far they are apart."""
    step = _step(span, most)
    count = int(span / step + 1e-9)
    return [place * step for place in range(count + 1)], step


def tick_text(at: float, step: float) -> str:
    """A mark's name: ``250 ms``, ``15 s``, ``1 h 30 min``."""
    if not at:
        return "0"
    if step < 1:
        if at < 1:
            return f"{round(at * 1e3, 3):g} ms"
        return f"{at:.{max(0, math.ceil(-math.log10(step) - 1e-9))}f} s"
    whole, said = round(at), list[str]()
    for unit, word in _UNITS:
        if count := whole // unit:
            said.append(f"{count} {word}")
        whole %= unit
    return " ".join(said[:2])


def _step(span: float, most: int) -> float:
    exact = span / most
    if exact < 1:
        low = 10.0 ** math.floor(math.log10(max(exact, 1e-6)))
        return next((low * by for by in (1, 2, 5) if span / (low * by) <= most), low * 10)
    longest = _STEPS[-1]
    return next((s for s in _STEPS if span / s <= most), math.ceil(exact / longest) * longest)
