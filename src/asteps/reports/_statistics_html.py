"""Statistics as a web page: tables that can be sorted, bars for shares, strips of percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

from ._lines import data, text
from ._page import document
from ._statistics_summary import (
    Advice,
    FunctionStatistics,
    PathStatistics,
    Spread,
    StatisticsSummary,
)
from ._statistics_text import counts_text, duration_words, trend_text, wasted_text
from ._words import duration_text, share_text

__all__ = ["statistics_html"]

_SCRIPT = """
document.documentElement.classList.add("js");
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const first = [...body.rows];
  const value = (row, place) => {
    const found = row.cells[place].dataset.v;
    return found === undefined ? row.cells[place].textContent : Number(found);
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const text = first.length > 0 && first[0].cells[place].dataset.v === undefined;
      const next = was === null ? (text ? "ascending" : "descending")
        : was === (text ? "ascending" : "descending") ? (text ? "descending" : "ascending") : null;
      for (const other of heads) other.removeAttribute("aria-sort");
      const rows = [...first];
      if (next !== null) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const x = value(a, place), y = value(b, place);
          return sign * (x < y ? -1 : x > y ? 1 : 0);
        });
      }
      body.replaceChildren(...rows);
    });
  });
}
"""

_RULES = """
.sortable th button { border: 0; padding: 0; min-height: 0; background: none; font: inherit; }
.sortable th[aria-sort]::after { content: " \\2191"; }
.sortable th[aria-sort=descending]::after { content: " \\2193"; }
.table.sortable td { padding-right: 6px; }
.table.sortable th { padding-right: 6px; position: sticky; top: 0; background: var(--bg); }
.table.sortable td:last-child, .table.sortable th:last-child { padding-right: 0; }
section h3 { margin: 18px 0 4px; }
.strip { width: 130px; height: 14px; display: block; margin-top: 3px; overflow: visible; }
.strip .far { stroke: var(--line); stroke-width: 2; }
.strip .most { stroke: var(--work); stroke-width: 6; }
.strip .p { stroke: var(--ink); stroke-width: 2; }
.small { width: 70px; height: 10px; display: block; margin-top: 6px; }
.small rect { fill: var(--faint); } .small .full { fill: var(--work); }
.up { color: var(--failed); font-weight: 600; } .down { color: var(--done); font-weight: 600; }
ol.advice li { margin-bottom: 6px; max-width: 110ch; }
.sortable code { white-space: nowrap; }
"""

_ABOUT = """<section id="about" aria-labelledby="h-about"><h2 id="h-about">About the numbers</h2>
<dl class="about">
<dt>durations</dt><dd>Of runs that have ended, done or failed. A percentile is the least measured \
value that so many per cent do not exceed.</dd>
<dt>work, waiting</dt><dd>Of one execution: time in its body or below, attempts that failed and \
bodies that were cut off included; and time that it was pending or backing off.</dd>
<dt>critical</dt><dd>A path's own time on the critical path, as a share of the time of all runs. \
All of a function's add up to 100 %.</dd>
<dt>saving</dt><dd>By how much the mean run would have been shorter, had the path's own time been \
0: put together from what each run's state shows of the order of its steps.</dd>
<dt>wasted</dt><dd>Own work of attempts that failed and of bodies that were cut off, as a share of \
own work; of a step with steps below, of its time.</dd>
<dt>trend</dt><dd>The median work of the last quarter of the runs, by their start, against that of \
those before; shown where the 99 % confidence intervals of the two medians do not overlap, \
<b>=</b> where they do.</dd>
<dt>*</dt><dd>Stands for what differs in the names of steps that were folded into one path.</dd>
</dl></section>"""


def statistics_html(summary: StatisticsSummary, /, *, title: str = "Statistics") -> str:
    """Statistics as one self-contained web page.

    It loads nothing and runs only its own script, which sorts tables. Names cannot become markup.

    Args:
        summary: What `Statistics.summary` gave.
        title: Of the page.
    """
    links = "".join(
        f'<a href="#f{place}">{text(each.name)} <b>{each.runs:,}</b></a>'
        for place, each in enumerate(summary.functions)
    )
    sections = "".join(_function(f"f{i}", each) for i, each in enumerate(summary.functions))
    return document(
        text(title),
        f'<a class="skip" href="#main">Skip to the tables</a><div class="top">'
        f'<nav aria-label="Functions">{links}</nav></div><main id="main"><div class="head">'
        f'<h1>{text(title)}</h1><p class="id">{summary.runs:,} runs of '
        f"{len(summary.functions):,} functions</p></div>{sections}{_ABOUT}</main>"
        "<footer>Drawn by asteps.</footer>",
        script=_SCRIPT,
        rules=_RULES,
    )


def _function(id: str, of: FunctionStatistics) -> str:
    advice = "".join(f"<li>{_advice(each)}</li>" for each in of.advice)
    if advice:
        advice = f'<h3>What to optimise first</h3><ol class="advice">{advice}</ol>'
    return (
        f'<section id="{id}" aria-labelledby="h-{id}"><h2 id="h-{id}">{text(of.name)}</h2>'
        f"<p><b>{text(counts_text(of))}</b></p><p>{text(duration_words(of))}</p>{advice}"
        f"{_table(of)}{_failures(of)}</section>"
    )


def _advice(advice: Advice) -> str:
    """An advice in words, its path set off."""
    path = text(advice.path)
    return text(advice.text).replace(f"`{path}`", f"<code>{path}</code>", 1)


_HEADS = (
    *("path", "runs", "steps", "failed", "attempts", "p50", "p95", "p99", "max", "work"),
    *("wait p95", "critical", "", "saving", "wasted", "trend"),
)


def _table(of: FunctionStatistics) -> str:
    heads = "".join(
        f'<th scope="col"{"" if head in ("path", "work", "") else " class=n"}>'
        f"{head or 'share'}</th>"
        for head in _HEADS
    )
    scale = _scale([path.work for path in of.paths])
    rows = "".join(_row(path, scale) for path in of.paths)
    return (
        f'<div class="wide"><table class="table sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(path: PathStatistics, scale: tuple[float, float]) -> str:
    work = path.work
    several = path.max_attempts > 1
    times = (work.p50, work.p95, work.p99, work.max)
    return "".join(
        (
            f"<tr><td><code>{text(path.path) or '(run)'}</code></td>",
            _number(path.runs, f"{path.runs:,}"),
            _number(path.executions, f"{path.executions:,}"),
            _number(path.failed, f"{path.failed:,}" if path.failed else ""),
            _number(path.mean_attempts, f"{path.mean_attempts:.2f}" if several else ""),
            *(_number(value, data(value) if work.count else "") for value in times),
            f'<td data-v="{work.p50}">{_strip(work, scale)}</td>',
            _number(path.waiting.p95, data(path.waiting.p95) if path.waiting.max else ""),
            _number(path.critical, share_text(path.critical_share, 1) if path.critical else ""),
            f'<td data-v="{path.critical}">{_bar(path.critical_share)}</td>',
            _number(path.saving, data(path.saving) if path.saving else ""),
            _number(path.wasted_share, wasted_text(path)),
            _trend(path),
            "</tr>",
        )
    )


def _number(value: float, shown: str) -> str:
    return f'<td class="n" data-v="{value}">{shown}</td>'


def _trend(path: PathStatistics) -> str:
    trend = path.trend
    change = 0.0 if trend is None else trend.change
    shown = trend_text(path)
    if trend is not None and trend.significant:
        before, now = duration_text(trend.before), duration_text(trend.recent)
        way = "up" if change > 0 else "down"
        shown = f'<span class="{way}" title="{before}, lately {now}">{shown}</span>'
    return _number(change, shown)


def _bar(share: float) -> str:
    return (
        '<svg class="small" aria-hidden="true"><rect width="100%" height="10" rx="1"/>'
        f'<rect class="full" width="{min(100 * share, 100):.2f}%" height="10" rx="1"/></svg>'
    )


# --- percentiles ----------------------------------------------------------------------------------

_LEAST = 1e-3  # seconds, at the left end of a strip at least


def _scale(spreads: Sequence[Spread]) -> tuple[float, float]:
    """The ends of all strips of a table; in between they are logarithmic."""
    low = min((each.p50 for each in spreads if each.p50 > _LEAST), default=_LEAST)
    high = max((each.max for each in spreads), default=1.0)
    return low, max(high, low * 10)


def _strip(work: Spread, scale: tuple[float, float]) -> str:
    """From the median to the greatest value, with marks at the percentiles."""
    if not work.count:
        return ""
    low, high = scale
    at = [
        f"{100 * log(min(max(value, low), high) / low) / log(high / low):.2f}%"
        for value in (work.p50, work.p95, work.p99, work.max)
    ]
    said = f"median {duration_text(work.p50)}, 95 % {duration_text(work.p95)}"
    return (
        f'<svg class="strip" role="img" aria-label="{said}"><title>{said}</title>'
        f'<line class="far" x1="{at[0]}" x2="{at[3]}" y1="7" y2="7"/>'
        f'<line class="most" x1="{at[0]}" x2="{at[1]}" y1="7" y2="7"/>'
        f'<line class="p" x1="{at[0]}" x2="{at[0]}" y1="1" y2="13"/>'
        f'<line class="p" x1="{at[2]}" x2="{at[2]}" y1="4" y2="10"/></svg>'
    )


def _failures(of: FunctionStatistics) -> str:
    found = [(path, each) for path in of.paths for each in path.failures if not each.below]
    if not found:
        return ""
    found.sort(key=lambda pair: (-pair[1].count, pair[0].path))
    rows = "".join(
        f"<tr><td><code>{text(path.path) or '(run)'}</code></td><td>{text(each.type)}</td>"
        f"{_number(each.count, f'{each.count:,}')}<td>{text(each.run_id)}</td></tr>"
        for path, each in found
    )
    heads = '<th scope="col">path</th><th scope="col">type</th><th scope="col" class="n">count</th>'
    return (
        '<h3>Failures</h3><div class="wide"><table class="table sortable"><thead><tr>'
        f'{heads}<th scope="col">last in</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
