"""The script of a web page: it adds to what can be read without it, and fetches nothing.

It makes text, elements and attributes one by one, and never HTML from a string: the page's policy
forbids that (``require-trusted-types-for``), so no name or payload can become markup.
"""

from __future__ import annotations

__all__ = ["SCRIPT"]

SCRIPT = r"""
(() => {
"use strict";
const $ = (query, at = document) => at.querySelector(query);
const $$ = (query, at = document) => [...at.querySelectorAll(query)];
const root = document.documentElement;
const run = JSON.parse($("#data").textContent);
const sheet = $("#sheet");
const SVG = "http://www.w3.org/2000/svg";
const CHUNK = 200;
let local = false, view = [0, 1];

// --- words -------------------------------------------------------------------------------------

const even = x => { // rounds as Python does
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 ? low : rest > 0.5 ? low + 1 : low % 2 ? low + 1 : low;
};
const two = n => String(n).padStart(2, "0");
const short = value => value.toFixed(6).replace(/\.?0+$/, "") || "0";
const count = n => n.toLocaleString("en-US");

function duration(took) {
  if (took < 0.0995) return took ? `${even(took * 1000)} ms` : "0 s";
  if (took < 9.995) return `${took.toFixed(2)} s`;
  if (took < 59.95) return `${took.toFixed(1)} s`;
  const whole = even(took);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = even(took / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  const hours = even(took / 3600);
  return `${Math.floor(hours / 24)} d ${two(hours % 24)} h`;
}

function parts(ms) { // a time's date, its clock, and its zone
  const at = new Date(ms);
  if (!local) {
    const said = at.toISOString();
    return [said.slice(0, -14), said.slice(-13, -1), "UTC"];
  }
  const off = -at.getTimezoneOffset(), by = Math.abs(off);
  const said = new Date(ms + off * 60000).toISOString();
  const zone = `UTC${off < 0 ? "-" : "+"}${two(Math.floor(by / 60))}:${two(by % 60)}`;
  return [said.slice(0, -14), said.slice(-13, -1), zone];
}

const timeText = ms => parts(ms).join(" ");
const byZone = () => {
  for (const time of $$("time")) time.textContent = timeText(Date.parse(time.dateTime));
};

// --- elements ----------------------------------------------------------------------------------

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter(child => child !== null));
  return node;
}
const el = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);
const data = took => el("data", {value: short(took)}, duration(took));

function when(offset) {
  const ms = Math.floor((run.start + offset) * 1000 + 1e-3);
  return el("time", {datetime: new Date(ms).toISOString()}, timeText(ms));
}

// --- the lines of steps that the page was not written with -------------------------------------
// A record: [index, depth, name, status, start, until, has ended, stretches, critical, saving,
// numbers, attempt, more, kids]; see `Record` in Python.

const SHAPES = {
  work: [4, 11], failed: [4, 11], lost: [4, 11], wait: [7, 5], backoff: [8, 3], idle: [8, 2],
  folded: [4, 11],
};
const BODY = new Set(["work", "failed", "lost"]);
const share = offset => Math.min(Math.max(offset / run.span, 0), 1) * 100;
const percent = offset => `${share(offset).toFixed(4)}%`;

function rect(name, start, end, y, height) {
  const x = share(start), width = Math.max(share(end) - x, 0);
  return svg("rect", {
    class: name, x: `${x.toFixed(4)}%`, y, width: `${width.toFixed(4)}%`, height,
  });
}

function plotNode(record) {
  const [start, until, ended, stretches, critical] = record.slice(4, 9);
  const plot = el("span", {class: "plot"});
  if (start === null) return plot;
  const parent = record[13] && record[13].length;
  const inner = svg("svg", {class: "z", x: "0%", width: "100%"});
  for (const [code, from, to] of stretches || [[0, start, until]]) {
    const kind = run.kinds[code];
    if (parent && BODY.has(kind)) inner.append(rect("b span", from, to, 4, 4));
    else inner.append(rect(`b ${kind}`, from, to, ...SHAPES[kind]));
  }
  if (parent) {
    for (const [code, , to] of stretches || []) {
      if (!["failed", "lost"].includes(run.kinds[code])) continue;
      inner.append(svg("rect", {
        class: `cap ${run.kinds[code]}`, x: percent(to), y: 2, width: 3, height: 13,
        transform: "translate(-3)",
      }));
    }
    const end = {y: 4, width: 2, height: 11};
    inner.append(svg("rect", {class: "end", x: percent(start), ...end}));
    inner.append(
      svg("rect", {class: "end", x: percent(until), ...end, transform: "translate(-2)"}));
  }
  if (!ended && run.statuses[record[3]] === "proceeding") {
    inner.append(svg("svg", {x: percent(until), width: 1, height: 22, overflow: "visible"},
      svg("path", {class: "on", d: "M-1 3l7 6.5-7 6.5z"})));
  }
  for (const [from, to] of critical === 1 ? [[start, until]] : critical || []) {
    inner.append(rect("crit", from, to, 18, 3));
  }
  zoomOne(inner);
  plot.append(svg("svg", {class: "bar", "aria-hidden": "true"}, inner));
  return plot;
}

function numbersOf(record) { // own, worked, waited, backed off, failed, lost, idle, calls
  if (record[10]) return record[10];
  if (record[4] === null) return [0, 0, 0, 0, 0, 0, 0, 0];
  const span = record[5] - record[4];
  return [span, span, 0, 0, 0, 0, 0, 1];
}

function linkNodes(steps) {
  return steps.flatMap(([index, name], place) =>
    [...(place ? [", "] : []), el("a", {href: `#s${index}`}, name)]);
}

function blockNodes(more) {
  const made = [], error = more.error;
  if (error) {
    const message = (error.kind ? `${error.kind}: ` : "") + error.message;
    made.push(el("h4", {}, "error"), el("p", {class: "message"}, message));
    if (error.type) made.push(el("p", {class: "type"}, error.type));
    if (error.causes) {
      made.push(el("p", {class: "causes"}, "caused by ", ...linkNodes(error.causes)));
    }
    if (error.trace) made.push(el("pre", {tabindex: 0}, error.trace));
  }
  for (const what of ["info", "result"]) {
    if (what in more) {
      made.push(el("h4", {}, what), el("pre", {tabindex: 0}, more[what]));
    }
  }
  return made;
}

function historyNode(record) {
  const stretches = record[7] || [];
  if (stretches.length < 2) return null;
  const lines = stretches.map(([code, start, end, calls]) => {
    const kind = run.kinds[code], [y, height] = SHAPES[kind];
    const mark = svg("svg", {class: "key", "aria-hidden": "true"},
      svg("rect", {class: `b ${kind}`, x: 1, y, width: 26, height}));
    const word = run.words[kind] + (calls ? `, calls in between: ${calls}` : "");
    return el("tr", {}, el("td", {}, mark, word),
      el("td", {class: "n"}, "+", data(start)),
      el("td", {class: "n"}, data(Math.max(end - start, 0))));
  });
  return el("table", {class: "history"},
    el("thead", {}, el("tr", {}, el("th", {}, "what it went through"),
      el("th", {class: "n"}, "from"), el("th", {class: "n"}, "took"))),
    el("tbody", {}, ...lines));
}

function factNodes(record, path) {
  const more = record[12] || {}, status = run.statuses[record[3]], numbers = numbersOf(record);
  const facts = [["path", el("code", {}, path)], ["status", status]];
  const critical = record[8] === 1 ? [[record[4], record[5]]] : record[8] || [];
  const onPath = critical.reduce((sum, [from, to]) => sum + to - from, 0);
  if (record[4] !== null) {
    facts.push(["began", when(record[4])]);
    if (record[6]) facts.push(["ended", when(record[5])]);
    facts.push([record[6] ? "took" : "so far", data(record[5] - record[4])]);
  }
  if ("due" in more) facts.push(["due again", when(more.due)]);
  if ("why" in more) facts.push(["waits for", more.why]);
  ["own time", "worked", "waited", "backed off", "failed work", "lost work", "idle"]
    .forEach((label, place) => {
      if (numbers[place]) facts.push([label, data(numbers[place])]);
    });
  if (onPath) facts.push(["on the critical path", data(onPath)]);
  if (record[9]) facts.push(["shortens the run by", data(record[9])]);
  if (record[11] > 1) facts.push(["attempt", record[11]]);
  if (numbers[7] > 1) facts.push(["calls of its body", count(numbers[7])]);
  if (more.stops) facts.push(["interrupted", `${more.stops} times`]);
  const list = facts.map(([label, value]) =>
    el("div", {}, el("dt", {}, label), el("dd", {}, value)));
  return [el("dl", {class: "facts"}, ...list), historyNode(record), ...blockNodes(more)];
}

function badgeNodes(record, status) {
  const made = [];
  if (status !== "done") made.push(el("span", {class: "badge"}, status));
  if (record[11] > 1) made.push(el("span", {class: "badge tries"}, `attempt ${record[11]}`));
  return made;
}

function stepNode(record, above) {
  const [index, depth, name] = record, status = run.statuses[record[3]];
  const word = status.replaceAll(" ", "-"), kids = record[13] || [];
  const path = (above ? above + "/" : "") + name.replaceAll("~", "~0").replaceAll("/", "~1");
  paths.set(`s${index}`, path);
  const numbers = numbersOf(record);
  const cell = (label, value) => el("span", {class: "num", "data-l": label}, value);
  const timed = value => value >= 0.0005 ? data(value) : "";
  const item = el("li", {
    class: `step d${Math.min(depth, 14)} s-${word}${record[8] ? " crit" : ""}`, id: `s${index}`,
  });
  if (kids.length) {
    item.append(el("button", {
      class: "fold", type: "button", "aria-expanded": "false", tabindex: -1,
      "aria-controls": `k${index}`, "aria-label": `Steps of ${name}`,
    }));
  }
  const more = el("div", {class: "more"}), box = el("details", {},
    el("summary", {class: "row", tabindex: -1},
      el("span", {class: "name"},
        svg("svg", {class: `ic i-${word}`, "aria-hidden": "true"},
          svg("use", {href: `#i-${word}`})),
        el("span", {class: "vh"}, `${status}: `), el("span", {class: "t"}, name),
        ...badgeNodes(record, status)),
      el("span", {class: "took"}, record[4] === null ? "" : data(record[5] - record[4])),
      plotNode(record),
      cell("attempts", numbers[7] ? record[11] : ""), cell("own", timed(numbers[0])),
      cell("waited", timed(numbers[2] + numbers[3])),
      cell("wasted", timed(numbers[4] + numbers[5])), cell("saves", timed(record[9]))),
    more);
  box.addEventListener("toggle", () => {
    if (!more.firstChild) fill(more, {}, factNodes(record, path));
  }, {once: true});
  item.append(box);
  if (kids.length) {
    const list = el("ul", {id: `k${index}`, hidden: ""});
    item.append(list);
    queues.set(list, {steps: kids, next: 0, path});
  }
  return item;
}

// --- lists that are written when they are wanted -----------------------------------------------

const queues = new Map(), made = new Set(), paths = new Map();

function writeOut(list) {
  const queue = queues.get(list);
  if (!queue) return;
  const lines = document.createDocumentFragment();
  let room = CHUNK;
  while (queue.next < queue.steps.length && room) {
    const record = queue.steps[queue.next++];
    if (made.has(record[0])) continue;
    made.add(record[0]);
    lines.append(stepNode(record, queue.path));
    room--;
  }
  $(":scope > .further", list)?.remove();
  list.insertBefore(lines, $(":scope > .note:not(.off)", list));
  const left = queue.steps.length - queue.next;
  if (!left) { queues.delete(list); return; }
  const button = el("button", {type: "button"}, `Show ${count(Math.min(CHUNK, left))} more`);
  button.addEventListener("click", () => {
    const before = button.parentElement.previousElementSibling;
    writeOut(list);
    before?.nextElementSibling?.querySelector("summary, button")?.focus();
  });
  const further = el("li", {class: "further"}, button, ` ${count(left)} are left`);
  list.insertBefore(further, $(":scope > .note:not(.off)", list));
  watcher?.observe(further);
}

const watcher = "IntersectionObserver" in window && new IntersectionObserver(seen => {
  for (const one of seen) {
    if (one.isIntersecting && one.target.isConnected) writeOut(one.target.parentElement);
  }
}, {rootMargin: "600px"});

for (const rest of $$("details[data-lazy]")) {
  const list = $(":scope > ul", rest), {path, steps} = run.lazy[rest.dataset.lazy];
  queues.set(list, {steps, next: 0, path});
  rest.addEventListener("toggle", () => {
    if (rest.open && !$(":scope > .step", list)) writeOut(list);
  });
}

function isFolded(item) {
  const list = $(":scope > ul", item);
  return list !== null && list.hidden;
}

function fold(item, folded) {
  const list = $(":scope > ul", item), button = $(":scope > .fold", item);
  if (!list || !button) return;
  list.hidden = folded;
  button.setAttribute("aria-expanded", String(!folded));
  if (!folded && queues.has(list) && !$(":scope > .step", list)) writeOut(list);
}

// --- going to a step ---------------------------------------------------------------------------

function chainTo(steps, index) { // the records from a list's to the step's own
  let found = null;
  for (const record of steps) {
    if (record[0] === index) return [record];
    if (record[0] < index && (!found || record[0] > found[0])) found = record;
  }
  const below = found && found[13] ? chainTo(found[13], index) : null;
  return below && [found, ...below];
}

function bring(index) { // a step's line, made if need be
  const there = document.getElementById(`s${index}`);
  if (there) return there;
  for (const [parent, {path, steps}] of Object.entries(run.lazy)) {
    const chain = chainTo(steps, index);
    if (!chain) continue;
    const rest = $(`details[data-lazy="${parent}"]`).parentElement;
    if (!made.has(chain[0][0])) {
      made.add(chain[0][0]);
      rest.before(stepNode(chain[0], path));
    }
    for (const [record] of chain.slice(0, -1)) {
      const item = document.getElementById(`s${record}`);
      fold(item, false);
      const list = $(":scope > ul", item);
      while (queues.has(list)) writeOut(list);
    }
    return document.getElementById(`s${index}`);
  }
  return null;
}

function reveal(index) {
  const item = bring(index);
  if (!item) return false;
  for (let up = item.parentElement; up && up !== sheet; up = up.parentElement) {
    if (up.matches("li.step")) fold(up, false);
    if (up.matches("details")) up.open = true;
  }
  $(":scope > details", item).open = true;
  const line = $(":scope > details > summary", item);
  rove(line);
  line.scrollIntoView({block: "center"});
  for (const old of $$(".found", sheet)) old.classList.remove("found");
  item.classList.add("found");
  return true;
}

document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#s']");
  const index = link && /^#s(\d+)$/.exec(link.getAttribute("href"));
  if (index && reveal(Number(index[1]))) {
    event.preventDefault();
    history.replaceState(null, "", link.getAttribute("href"));
  }
  const button = event.target.closest(".fold");
  if (button) fold(button.parentElement, button.getAttribute("aria-expanded") === "true");
});

// --- keys --------------------------------------------------------------------------------------

let current = $("summary.row", sheet);

function rove(line) {
  if (current) current.tabIndex = -1;
  current = line;
  line.tabIndex = 0;
  line.focus();
}

function visible(list, found = []) {
  for (const item of list.children) {
    const box = $(":scope > details", item);
    if (!box) continue;
    found.push(box.firstElementChild);
    const below = $(":scope > ul", item);
    if (below && !below.hidden) visible(below, found);
    if (item.matches(".rest") && box.open) visible($(":scope > ul", box), found);
  }
  return found;
}

for (const line of $$("summary.row", sheet)) line.tabIndex = -1;
current.tabIndex = 0;
const steps = $(".steps", sheet);
steps.addEventListener("focusin", event => {
  const line = event.target.closest("summary.row");
  if (line && line !== current) rove(line);
});
steps.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const line = event.target.closest("summary.row");
  if (!line) {
    if (event.key === "Escape") {
      const box = event.target.closest("details");
      box.open = false;
      rove(box.firstElementChild);
    }
    return;
  }
  const item = line.closest("li"), box = line.parentElement, isRest = item.matches(".rest");
  const above = item.parentElement.closest("li");
  const lines = () => visible(steps);
  const go = way => {
    const all = lines(), to = all[all.indexOf(line) + way];
    if (to) rove(to);
  };
  const keys = {
    ArrowDown: () => go(1),
    ArrowUp: () => go(-1),
    Home: () => rove(lines()[0]),
    End: () => rove(lines().at(-1)),
    ArrowRight: () => {
      if (isRest && !box.open) box.open = true;
      else if (isFolded(item)) fold(item, false);
      else if (isRest || $(":scope > ul", item)) go(1);
    },
    ArrowLeft: () => {
      if (isRest && box.open) box.open = false;
      else if ($(":scope > ul", item) && !isFolded(item)) fold(item, true);
      else if (above) rove($(":scope > details > summary", above));
    },
    Escape: () => { if (box.open) box.open = false; },
    "*": () => unfold(item),
    "+": () => zoom(0.5),
    "-": () => zoom(2),
    "0": () => look(0, 1),
    z: () => zoomTo(item),
  };
  if (event.key in keys) {
    event.preventDefault();
    keys[event.key]();
  }
});

function unfold(at) {
  if (at.matches("li")) fold(at, false);
  for (const item of $$("li.step", at)) fold(item, false);
  for (const rest of $$(".rest > details:not([data-lazy])", at)) rest.open = true;
}

// --- zoom --------------------------------------------------------------------------------------

function zoomOne(inner) {
  const wide = view[1] - view[0];
  inner.setAttribute("x", wide === 1 ? "0%" : `${-view[0] / wide * 100}%`);
  inner.setAttribute("width", wide === 1 ? "100%" : `${100 / wide}%`);
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
  86400, 172800, 432000, 864000];

function tickStep(room, most) {
  let step = 10 ** Math.floor(Math.log10(room / most || 1e-6));
  if (step >= 1) return STEPS.find(s => room / s <= most) || Math.ceil(room / most / 864e3) * 864e3;
  for (const by of [1, 2, 5, 10]) if (room / (step * by) <= most) return step * by;
  return step * 10;
}

function tickText(at, step) {
  if (!at) return "0";
  const whole = Math.round(at);
  if (step < 1) {
    if (at < 1) return `${Math.round(at * 1e6) / 1e3} ms`;
    return `${at.toFixed(Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)))} s`;
  }
  const said = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]
    .map(([unit, word], place, all) => {
      const n = Math.floor((place ? whole % all[place - 1][0] : whole) / unit);
      return n ? `${n} ${word}` : "";
    });
  return said.filter(Boolean).slice(0, 2).join(" ");
}

function drawAxis() {
  const axis = $("#axis"), ruler = $("#ruler"), wide = axis.getBoundingClientRect().width;
  const from = view[0] * run.span, room = (view[1] - view[0]) * run.span;
  const step = tickStep(room, Math.max(2, Math.floor((wide || 700) / 104)));
  const labels = [], lines = [];
  for (let n = Math.ceil(from / step - 1e-9); n * step <= from + room; n++) {
    const at = n * step, x = `${((at - from) / room * 100).toFixed(4)}%`;
    lines.push(svg("line", {x1: x, x2: x, y1: 0, y2: "100%"}));
    if ((1 - (at - from) / room) * (wide || 700) < (step < 1 || room > 86400 ? 84 : 60)) continue;
    const [date, clock] = parts((run.start + at) * 1000);
    const said = step >= 86400 ? date.slice(-5)
      : step >= 3600 && room > 86400 ? `${date.slice(-5)} ${clock.slice(0, 5)}`
      : step >= 60 ? clock.slice(0, 5)
      : step >= 1 ? clock.slice(0, 8) : clock;
    labels.push(svg("text", {x, y: 13, dx: 4}, tickText(at, step)),
      svg("text", {x, y: 27, dx: 4, class: "clock"}, said));
  }
  axis.replaceChildren(...labels);
  const now = $(".nowline", ruler);
  if (now) {
    const x = `${((Number(now.dataset.at) - from) / room * 100).toFixed(4)}%`;
    now.setAttribute("x1", x);
    now.setAttribute("x2", x);
    lines.push(now);
  }
  ruler.replaceChildren(...lines);
}

function look(from, to) {
  const wide = Math.min(Math.max(to - from, 1e-5), 1);
  const begin = Math.min(Math.max(from, 0), 1 - wide);
  view = [begin, begin + wide];
  for (const inner of $$(".z", sheet)) zoomOne(inner);
  sheet.classList.toggle("zoomed", wide < 1);
  for (const button of $$("[data-do=all], [data-do=left], [data-do=right]")) {
    button.disabled = wide === 1;
  }
  drawAxis();
}

function zoom(by) {
  const middle = (view[0] + view[1]) / 2, half = (view[1] - view[0]) * by / 2;
  look(middle - half, middle + half);
}

function zoomTo(item) {
  const bars = $$(":scope > details .b", item);
  if (!bars.length) return;
  const x = bars.map(bar => parseFloat(bar.getAttribute("x")) / 100);
  const ends = bars.map((bar, n) => x[n] + parseFloat(bar.getAttribute("width")) / 100);
  const from = Math.min(...x), to = Math.max(...ends), rim = Math.max((to - from) * 0.05, 1e-5);
  look(from - rim, to + rim);
}

const move = by => look(view[0] + (view[1] - view[0]) * by, view[1] + (view[1] - view[0]) * by);

const handle = $("#axis").parentElement;
let dragged = null;
const place = event => {
  const box = $("#axis").getBoundingClientRect();
  return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
};
handle.addEventListener("pointerdown", event => {
  if (event.button) return;
  dragged = place(event);
  handle.setPointerCapture(event.pointerId);
  event.preventDefault();
});
handle.addEventListener("pointermove", event => {
  if (dragged === null) return;
  $(".drag", handle)?.remove();
  const to = place(event), from = Math.min(dragged, to);
  $("#axis").append(svg("rect", {
    class: "drag", x: `${from * 100}%`, width: `${Math.abs(to - dragged) * 100}%`, y: 0,
    height: "100%",
  }));
});
handle.addEventListener("pointerup", event => {
  if (dragged === null) return;
  const to = place(event), from = Math.min(dragged, to), wide = Math.abs(to - dragged);
  const size = view[1] - view[0];
  $(".drag", handle)?.remove();
  dragged = null;
  if (wide > 0.005) look(view[0] + from * size, view[0] + (from + wide) * size);
});
handle.addEventListener("dblclick", () => look(0, 1));

// --- finding -----------------------------------------------------------------------------------

let known = null;

function everyStep() {
  const found = $$("li.step", sheet).map(item => ({
    index: Number(item.id.slice(1)),
    path: paths.get(item.id) ?? $(".facts code", item).textContent,
    status: /\bs-([a-z-]+)/.exec(item.className)[1].replaceAll("-", " "),
  }));
  const seen = new Set(found.map(one => one.index));
  const add = (steps, above) => {
    for (const record of steps) {
      const name = record[2].replaceAll("~", "~0").replaceAll("/", "~1");
      const path = above ? `${above}/${name}` : name;
      if (!seen.has(record[0])) {
        found.push({index: record[0], path, status: run.statuses[record[3]]});
      }
      if (record[13]) add(record[13], path);
    }
  };
  for (const {path, steps} of Object.values(run.lazy)) add(steps, path);
  return found.sort((a, b) => a.index - b.index);
}

$("#find").addEventListener("input", event => {
  const words = event.target.value.trim().toLowerCase(), results = $("#results");
  known ??= everyStep().map(one => ({...one, key: `${one.path} ${one.status}`.toLowerCase()}));
  const hits = words ? known.filter(one => one.key.includes(words)) : [];
  results.replaceChildren(...hits.slice(0, 30).map(one =>
    el("li", {class: `s-${one.status.replaceAll(" ", "-")}`},
      el("a", {href: `#s${one.index}`}, one.path), el("span", {class: "badge"}, one.status))));
  if (hits.length > 30) {
    results.append(el("li", {class: "note"}, `${count(hits.length - 30)} more`));
  }
  if (words && !hits.length) results.append(el("li", {class: "note"}, "no step is called that"));
  results.hidden = !words;
});
$("#find").addEventListener("keydown", event => {
  if (event.key === "Escape") {
    event.target.value = "";
    $("#results").hidden = true;
  }
  if (event.key === "Enter") $("#results a")?.click();
});
$("#results").addEventListener("click", () => { $("#results").hidden = true; });

// --- buttons -----------------------------------------------------------------------------------

const themes = ["auto", "light", "dark"];
const actions = {
  theme: button => {
    const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % 3];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  },
  zone: button => {
    local = !local;
    button.textContent = local ? "Times: local" : "Times: UTC";
    byZone();
    drawAxis();
  },
  unfold: () => unfold(steps),
  fold: () => {
    for (const rest of $$(".rest > details", steps)) rest.open = false;
    for (const item of $$("li.step", steps)) if (!item.matches(".d0")) fold(item, true);
    for (const box of $$("li.step > details", steps)) box.open = false;
  },
  in: () => zoom(0.5),
  out: () => zoom(2),
  all: () => look(0, 1),
  left: () => move(-0.5),
  right: () => move(0.5),
};
document.addEventListener("click", event => {
  const button = event.target.closest("[data-do]");
  if (button) actions[button.dataset.do](button);
});
addEventListener("resize", drawAxis);
addEventListener("beforeprint", () => {
  look(0, 1);
  for (const box of $$("#failures details")) box.open = true;
});
root.classList.add("js");
look(0, 1);
const target = /^#s(\d+)$/.exec(location.hash);
if (target) reveal(Number(target[1]));
})();
"""
