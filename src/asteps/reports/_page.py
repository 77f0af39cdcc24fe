"""What every web page of asteps is made of: its frame, its style, its symbols and its policy.

A page is one file. It loads nothing: the policy (CSP) lets no request out, and runs only the style
and the script whose hashes it names. Without the script everything can be read; in print, too.
"""

from __future__ import annotations

import base64
import hashlib

from ._script import SCRIPT

__all__ = ["document"]

_LIGHT = """
color-scheme: light;
--bg: #ffffff; --panel: #f5f6f8; --line: #d9dee3; --faint: #edf0f2; --ink: #1a1f24; --soft: #56606a;
--done: #18753a; --failed: #bd1e2d; --pending: #855400; --retrying: #9c3f0a;
--proceeding: #0a5cba; --interrupted: #763ab0; --reopened: #0b6b74; --not-begun: #56606a;
--work: #5b8cc7; --fail: #d6404d; --lost: #8d5bc2; --wait: #b58416; --backoff: #c4621c;
--idle: #8b959e; --folded: #7d8a96; --parent: #8393a3; --crit: #1a1f24; --focus: #0a5cba;
--mark: #fff6d6;
"""
_DARK = """
color-scheme: dark;
--bg: #14171a; --panel: #1c2125; --line: #343b42; --faint: #22282d; --ink: #e8ebee; --soft: #a0aab3;
--done: #55c878; --failed: #ff8087; --pending: #e3b14a; --retrying: #f59a66;
--proceeding: #74b4ff; --interrupted: #c8a2f4; --reopened: #5fc9d2; --not-begun: #a0aab3;
--work: #5d93d4; --fail: #f0616b; --lost: #a77fdb; --wait: #cf9f35; --backoff: #e08243;
--idle: #7a858f; --folded: #8794a0; --parent: #75869a; --crit: #f4f6f8; --focus: #74b4ff;
--mark: #3a3416;
"""

_DEPTHS = "\n".join(f".d{depth} {{ --d: {depth}; }}" for depth in range(15))
_STATUSES = "\n".join(
    f".s-{name} > details > summary .ic, .i-{name}, .w-{name} {{ color: var(--{name}); }}"
    for name in (
        *("done", "failed", "pending", "retrying", "proceeding", "interrupted", "reopened"),
        "not-begun",
    )
)

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 56px; }
body { margin: 0; background: var(--bg); color: var(--ink); overflow-wrap: anywhere;
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
  sans-serif; }
main, .top, footer { max-width: 1640px; margin: 0 auto; padding: 0 28px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 40px 0 10px; font-weight: 650; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 0; font-weight: 650; }
h4 { font-size: 12px; margin: 14px 0 4px; font-weight: 600; color: var(--soft); }
p { margin: 0 0 8px; max-width: 90ch; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 3px; }
a:hover { text-decoration-thickness: 2px; }
code, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { margin: 0; padding: 10px 12px; overflow: auto; max-height: 420px; background: var(--bg);
  border: 1px solid var(--line); border-radius: 4px; white-space: pre-wrap; }
data, time, .n { font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: var(--soft); }
.vh { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.defs { position: absolute; width: 0; height: 0; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: 12px; top: -60px; background: var(--bg); padding: 8px 12px;
  z-index: 9; border: 1px solid var(--line); }
.skip:focus { top: 8px; }
button, input { font: inherit; color: inherit; background: var(--bg); border: 1px solid var(--line);
  border-radius: 5px; padding: 3px 10px; min-height: 30px; }
button { cursor: pointer; }
button:hover:enabled { border-color: var(--soft); }
button:disabled { color: var(--soft); cursor: default; opacity: .55; }
.ic { width: 14px; height: 14px; flex: none; overflow: visible; }

/* the head */
.top { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; padding-top: 14px;
  padding-bottom: 10px; }
.top nav { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); }
.top nav a { text-decoration: none; }
.top nav a:hover { text-decoration: underline; }
.top nav b { font-weight: 600; color: var(--ink); }
.tools { margin-left: auto; display: flex; gap: 6px; }
.head { border-top: 1px solid var(--line); padding-top: 22px; }
.head h1 { display: flex; gap: 12px; align-items: center; }
.head h1 .ic { width: 26px; height: 26px; }
.head .id { color: var(--soft); margin: 4px 0 14px; }
.verdict { font-size: 17px; margin: 0 0 4px; max-width: none; }
.verdict b { font-weight: 650; }
.why { margin: 0 0 4px; max-width: 110ch; }
.why code { font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(148px, 1fr)); gap: 1px;
  margin: 20px 0 0; background: var(--line); border: 1px solid var(--line); border-radius: 6px;
  overflow: hidden; }
.tiles > div { background: var(--bg); padding: 10px 14px 11px; }
.tiles dt { color: var(--soft); font-size: 12px; }
.tiles dd { margin: 1px 0 0; font-size: 17px; font-weight: 600; line-height: 1.35; }
.tiles small { display: block; font-size: 12px; font-weight: 400; color: var(--soft); }
.tiles dd time { white-space: normal; font-size: 14px; line-height: 1.35; display: inline-block;
  max-width: 17.5ch; }
.tiles .gauge { display: block; width: 100%; height: 5px; margin-top: 7px; }
.gauge rect { fill: var(--faint); }
.gauge .full { fill: var(--done); }

/* tables */
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
.table { max-width: 100%; }
th { text-align: left; font-weight: 600; font-size: 12px; color: var(--soft); }
.table th, .table td { padding: 5px 20px 5px 0; border-bottom: 1px solid var(--faint);
  vertical-align: top; }
.table thead th, .table thead td { border-bottom: 1px solid var(--line); white-space: nowrap; }
.table .n, .history .n { text-align: right; padding-left: 12px; }
.table td:first-child { min-width: 170px; }
.table .grow { min-width: 200px; }
.table .bars { width: 190px; }
.share { width: 176px; height: 10px; display: block; margin-top: 6px; }
.share rect { fill: var(--faint); }
.share .full { fill: var(--work); }

/* failures, pending, notes */
.card { border: 1px solid var(--line); border-left: 4px solid var(--failed); border-radius: 4px;
  padding: 10px 14px; margin: 0 0 10px; }
.card .message { font-size: 15px; margin: 4px 0; }
.card .type, .more .type { color: var(--soft); margin: 0 0 4px;
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.card details > summary { cursor: pointer; color: var(--soft); margin: 4px 0; }
.message { white-space: pre-wrap; max-width: none; }
ol.notes { list-style: none; padding: 0; margin: 0; }
ol.notes li { padding: 6px 0; border-bottom: 1px solid var(--faint); }
ol.notes p { white-space: pre-wrap; margin: 0; }

/* the steps */
#sheet { position: relative; --cols: minmax(230px, 30%) 98px minmax(0, 1fr);
  --numcols: 66px repeat(4, 92px); }
.bar-of-tools { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center;
  margin: 0 0 10px; }
.bar-of-tools .group { display: flex; gap: 4px; }
.bar-of-tools .group button { min-width: 32px; padding: 3px 8px; }
.views { border: 0; padding: 0; margin: 0; display: flex; gap: 12px; }
.views label { display: flex; gap: 5px; align-items: center; }
.views input { min-height: 0; accent-color: var(--focus); }
.search { position: relative; flex: 1 1 180px; max-width: 320px; }
.search input { width: 100%; }
#results { position: absolute; z-index: 6; left: 0; right: 0; top: 34px; background: var(--bg);
  border: 1px solid var(--line); border-radius: 5px; list-style: none; margin: 0; padding: 6px;
  max-height: 320px; overflow: auto; min-width: 260px; box-shadow: 0 6px 20px rgb(0 0 0 / 18%); }
#results li { display: flex; justify-content: space-between; gap: 8px; padding: 3px 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 3px 18px; margin: 10px 0 0; padding: 0;
  list-style: none; color: var(--soft); font-size: 12.5px; }
.legend li { display: flex; gap: 7px; align-items: center; }
kbd { font: 11.5px/1 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; padding: 1px 5px;
  border: 1px solid var(--line); border-radius: 3px; }
.keys { max-width: none; margin-top: 6px; font-size: 12.5px; }
.key { width: 28px; height: 22px; flex: none; vertical-align: middle; margin-right: 6px; }
.legend .key { margin: 0; }
.grid { position: relative; }
.colheads { position: sticky; top: 0; z-index: 4; background: var(--bg); min-height: 34px;
  border-bottom: 1px solid var(--line); font-size: 12px; color: var(--soft); font-weight: 600; }
.colheads, .row, #rulerbox { display: grid; grid-template-columns: var(--cols); }
.colheads > span { align-self: end; padding-bottom: 4px; }
.colheads .num, .colheads .took { text-align: right; }
.colheads .axisbox { align-self: stretch; padding: 0; cursor: crosshair; touch-action: pan-y;
  user-select: none; }
#axis { width: 100%; height: 33px; display: block; overflow: visible; }
#axis text { fill: var(--ink); font-size: 11.5px; font-weight: 600; }
#axis .clock { fill: var(--soft); font-weight: 400; font-size: 11px; }
#axis .drag { fill: var(--focus); opacity: .25; }
#rulerbox { position: absolute; inset: 34px 0 0; pointer-events: none; }
#ruler { grid-column: 3; width: 100%; height: 100%; display: block; }
#ruler line { stroke: var(--faint); }
#ruler .nowline, .nowline { stroke: var(--proceeding); stroke-width: 1.5; stroke-dasharray: 5 3; }
.steps, .steps ul { list-style: none; margin: 0; padding: 0; }
.steps { position: relative; }
.step, .rest, .note, .further { position: relative; }
.row { min-height: 27px; align-items: center; cursor: pointer; list-style: none;
  border-bottom: 1px solid transparent; }
.row::-webkit-details-marker { display: none; }
.row:hover { background: color-mix(in srgb, var(--soft) 9%, transparent); }
.row:focus-visible { outline-offset: -2px; }
.step > details[open] > .row { background: var(--panel); }
.found > details > .row { background: var(--mark) !important; }
.name { display: flex; gap: 7px; align-items: center; min-width: 0; padding-right: 8px;
  padding-left: calc(var(--d) * 17px + 24px); }
.name .t { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 0 1 auto; }
.rest > details > .row .t { color: var(--soft); flex: none; }
.name .sub { color: var(--soft); font-size: 12px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.crit > details > .row .t { font-weight: 620; }
.s-not-begun > details > .row .t { color: var(--soft); }
.badge { font-size: 11px; line-height: 1.35; padding: 0 6px; border-radius: 9px; flex: none;
  border: 1px solid currentcolor; color: var(--soft); white-space: nowrap; }
.took, .num { text-align: right; font-variant-numeric: tabular-nums; padding-right: 12px;
  white-space: nowrap; }
.num { color: var(--soft); padding-right: 0; }
.plot { min-width: 0; }
.plot, .bar, .z { overflow: hidden; }
.bar { display: block; width: 100%; height: 22px; }
.fold { position: absolute; z-index: 2; left: calc(var(--d) * 17px + 1px); top: 3px; width: 21px;
  height: 21px; min-height: 0; padding: 0; border: 0; background: none; display: none; }
.js .fold { display: block; }
.fold::before { content: ""; display: block; width: 0; height: 0; margin: auto;
  border: solid transparent; border-width: 4px 0 4px 6px; border-left-color: var(--soft); }
.fold[aria-expanded=true]::before { border-width: 6px 4px 0; border-color: transparent;
  border-top-color: var(--soft); }
.step > ul::before { content: ""; position: absolute; z-index: 1; top: 27px; bottom: 3px;
  width: 1px; left: calc(var(--d) * 17px + 11px); background: var(--line); }
.step > details[open] ~ ul::before { display: none; }
.rest > details > .row > .name::before { content: "+"; color: var(--soft); width: 14px; flex: none;
  text-align: center; font-weight: 600; }
.rest > details[open] > .row > .name::before { content: "\\2212"; }
.rest li.step { content-visibility: auto; contain-intrinsic-size: auto 28px; }
.note, .further { padding: 4px 8px 4px calc(var(--d) * 17px + 45px); color: var(--soft); }
.js .off { display: none; }

/* bars: kinds differ in height and pattern, too */
.b.work { fill: var(--work); }
.b.failed { fill: url(#p-failed); stroke: var(--fail); }
.b.lost { fill: url(#p-lost); stroke: var(--lost); stroke-dasharray: 4 2; }
.b.wait { fill: url(#p-wait); stroke: var(--wait); stroke-width: .8; }
.b.backoff { fill: url(#p-backoff); }
.b.idle { fill: url(#p-idle); }
.b.folded { fill: url(#p-folded); stroke: var(--folded); }
.end { fill: var(--parent); }
.b.span { fill: var(--parent); }
.cap.failed { fill: var(--fail); } .cap.lost { fill: var(--lost); }
.crit { fill: var(--crit); }
.on { fill: var(--proceeding); }
.crowd { fill: var(--work); opacity: .75; }
.p-failed { stroke: var(--fail); } .p-lost { stroke: var(--lost); } .p-wait { fill: var(--wait); }
.p-backoff { fill: var(--backoff); } .p-idle { fill: var(--idle); }
.p-folded { stroke: var(--folded); }
.p-ground { fill: var(--bg); }

/* what is to know about a step */
.more { position: relative; z-index: 3; background: var(--panel); padding: 12px 18px 16px;
  margin: 0 0 6px calc(var(--d) * 17px + 24px); border-radius: 0 0 5px 5px; cursor: auto; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(232px, 1fr)); gap: 6px 22px;
  margin: 0; }
.facts div { min-width: 0; }
.facts dt { font-size: 12px; color: var(--soft); }
.facts dd { margin: 0; }
.facts time { white-space: normal; }
.history { margin-top: 12px; }
.history td, .history th { padding: 1px 16px 1px 0; }
.about dt { font-weight: 600; margin-top: 8px; }
.about dd { margin: 0; max-width: 90ch; }
footer { color: var(--soft); padding-top: 28px; padding-bottom: 40px; font-size: 12.5px; }

/* wide enough for both: the bars and the numbers */
@media (min-width: 1440px), print {
  #sheet { --cols: minmax(230px, 26%) 98px minmax(0, 1fr) var(--numcols); }
  .views { display: none; }
  .plot { margin-right: 6px; }
}
@media (max-width: 1439.98px) and (min-width: 0px) {
  @media screen {
    #sheet:not(:has(#v-numbers:checked)) .num { display: none; }
    #sheet:has(#v-numbers:checked) { --cols: minmax(200px, 560px) 98px var(--numcols); }
    #sheet:has(#v-numbers:checked) .plot, #sheet:has(#v-numbers:checked) .axisbox,
    #sheet:has(#v-numbers:checked) #rulerbox, #sheet:has(#v-numbers:checked) .zoom {
      display: none !important; }
  }
}
@media (max-width: 760px) {
  main, .top, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 21px; }
  .table .bars { display: none; }
  .table td:first-child { min-width: 140px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); }
  .tools { margin-left: 0; }
  @media screen {
    #sheet { --cols: minmax(0, 1fr) auto; }
    .colheads { min-height: 56px; }
    .plot, .colheads .axisbox { grid-column: 1 / -1; }
    .row { padding-bottom: 2px; }
    #rulerbox { inset: 56px 0 0; }
    #ruler { grid-column: 1 / -1; }
    .step .name, .rest .name { padding-left: calc(var(--d) * 10px + 22px); }
    .fold { left: calc(var(--d) * 10px); }
    .step > ul::before { display: none; }
    .more { margin-left: 0; padding: 10px; }
    .took { padding-right: 0; }
    #sheet:has(#v-numbers:checked) { --cols: repeat(3, minmax(0, 1fr)); }
    #sheet:has(#v-numbers:checked) .name { grid-column: 1 / -1; }
    #sheet:has(#v-numbers:checked) .colheads { display: none; }
    #sheet:has(#v-numbers:checked) .num { text-align: left; font-size: 12.5px; }
    #sheet:has(#v-numbers:checked) .took { text-align: left; }
    #sheet:has(#v-numbers:checked) .took::before { content: "took "; color: var(--soft); }
    #sheet:has(#v-numbers:checked) .num:not(:empty)::before { content: attr(data-l) " "; }
    #sheet:has(#v-numbers:checked) .row { padding-left: 4px; }
  }
}
.only-js { display: none !important; }
.js .only-js { display: flex !important; }
.js p.only-js { display: block !important; }
@media print {
  @page { size: A4 landscape; margin: 11mm; }
  body { font-size: 10.5px; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, .top, footer { padding: 0; max-width: none; }
  #sheet { --numcols: 46px repeat(4, 68px); --cols: 27% 66px minmax(0, 1fr) var(--numcols); }
  .top, .bar-of-tools, .skip, .only-js, .js .only-js, .js p.only-js, .fold, .js .fold,
  .further { display: none !important; }
  .colheads { position: relative; }
  h2 { font-size: 13px; margin-top: 18px; break-after: avoid; }
  h1 { font-size: 20px; }
  .row, tr, .card, .tiles { break-inside: avoid; }
  .row { min-height: 22px; }
  pre { max-height: none; font-size: 9px; }
  .tiles dd { font-size: 13px; } .tiles dd time { font-size: 10px; }
  a { text-decoration: none; }
  #failures details::details-content { content-visibility: visible; block-size: auto; }
}
@media (prefers-reduced-motion: no-preference) { .fold::before { transition: border .1s; } }
"""

STYLE = f""":root {{ {_LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {_DARK} }} }}
@media screen {{ :root[data-theme=dark] {{ {_DARK} }} }}
{_DEPTHS}
{_STATUSES}
{_RULES}"""

_SYMBOLS = """<svg class="defs" aria-hidden="true"><defs>
<symbol id="i-done" viewBox="0 0 14 14"><path class="hand check" d="M2 7.6l3.4 3.6L12 3"/></symbol>
<symbol id="i-failed" viewBox="0 0 14 14"><path d="M4 .2h6L13.8 4v6L10 13.8H4L.2 10V4z" \
fill="currentColor"/><path class="sym" d="M4.6 4.6l4.8 4.8m0-4.8l-4.8 4.8"/></symbol>
<symbol id="i-pending" viewBox="0 0 14 14"><circle cx="7" cy="7" r="6.1" class="ring"/>\
<path class="hand" d="M7 3.4V7l2.6 1.6"/></symbol>
<symbol id="i-retrying" viewBox="0 0 14 14"><path class="hand" d="M12.4 4.2A6 6 0 1 0 13 \
7.6M12.8 1v3.6H9.2"/></symbol>
<symbol id="i-proceeding" viewBox="0 0 14 14"><circle cx="7" cy="7" r="6.1" class="ring"/>\
<path d="M5.3 3.9L10.4 7l-5.1 3.1z" fill="currentColor"/></symbol>
<symbol id="i-interrupted" viewBox="0 0 14 14"><path d="M7 .4L13.8 13H.2z" fill="currentColor"/>\
<path class="sym" d="M7 4.8v4m0 1.6v.4"/></symbol>
<symbol id="i-reopened" viewBox="0 0 14 14"><path class="hand" d="M1.6 4.2A6 6 0 1 1 1 7.6M1.2 \
1v3.6h3.6"/></symbol>
<symbol id="i-not-begun" viewBox="0 0 14 14"><circle cx="7" cy="7" r="6.1" class="ring dots"/>\
</symbol>
<pattern id="p-failed" width="5" height="5" patternUnits="userSpaceOnUse"><rect class="p-ground" \
width="5" height="5"/><path class="p-failed" d="M-1 1L1-1M0 5L5 0M4 6L6 4" stroke-width="2"/>\
</pattern>
<pattern id="p-lost" width="5" height="5" patternUnits="userSpaceOnUse"><rect class="p-ground" \
width="5" height="5"/><path class="p-lost" d="M0 0L5 5M5 0L0 5" stroke-width="1"/></pattern>
<pattern id="p-wait" width="4" height="5" y="1" patternUnits="userSpaceOnUse"><rect \
class="p-ground" width="4" height="5"/><circle class="p-wait" cx="2" \
cy="3.4" r=".9"/></pattern>
<pattern id="p-backoff" width="7" height="3" y="8" patternUnits="userSpaceOnUse"><rect \
class="p-backoff" width="4" height="3"/></pattern>
<pattern id="p-idle" width="4" height="2" y="8" patternUnits="userSpaceOnUse"><rect class="p-idle" \
width="2" height="2"/></pattern>
<pattern id="p-folded" width="3" height="8" patternUnits="userSpaceOnUse"><rect class="p-ground" \
width="3" height="8"/><path class="p-folded" d="M1.5 0V8"/></pattern>
</defs></svg>"""

_SYMBOL_RULES = """
.sym { fill: none; stroke: var(--bg); stroke-width: 1.7; stroke-linecap: round; }
.ring, .hand { fill: none; stroke: currentcolor; stroke-width: 1.6; stroke-linecap: round; }
.check { stroke-width: 2; }
.dots { stroke-dasharray: 1.6 2.6; stroke-width: 1.4; }
"""


def document(
    title: str, body: str, data: bytes | None = None, *, script: str = "", rules: str = ""
) -> str:
    """A whole page.

    Args:
        title: For the window; escaped already.
        body: What is between the tags; escaped already.
        data: JSON for the script, without ``<``; a page without has no script.
        script: A script of the page's own, where it has no data for the usual one.
        rules: More style.
    """
    style = STYLE + _SYMBOL_RULES + rules
    scripts, allowed = "", "'none'"
    if data is not None:
        allowed = f"'{_hash(SCRIPT)}'"
        scripts = (
            f'<script type="application/json" id="data">{data.decode()}</script>\n'
            f"<script>{SCRIPT}</script>\n"
        )
    elif script:
        allowed = f"'{_hash(script)}'"
        scripts = f"<script>{script}</script>\n"
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src {allowed}; "
        "img-src data:; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n'
        f"</head>\n<body>\n{_SYMBOLS}\n{body}\n{scripts}</body>\n</html>\n"
    )


def _hash(content: str) -> str:
    """The name by which a policy knows a style or a script."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
