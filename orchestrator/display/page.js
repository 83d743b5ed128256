
"use strict";
// Whatever comes from the run is text: it goes into the page by textContent, and into Plotly through `plain`.
// `take` reads what the run folder holds, `render` shows it; a live page does both again whenever that has changed, so
// what the reader chose (filters, order, curves, what is open) lies in variables of its own, by names that stay.
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
const live = root.dataset.live === "true";
const POLL_MS = 2000;
const MOST_CURVES = 8;

let data, axes, metric, higher, columns, rows, byId, configurations, severalDraws;

function take(fresh) {
  data = fresh;
  ({ axes, metric } = data);
  higher = isHigher(metric);
  columns = data.board.columns;
  rows = records(data.board);
  byId = new Map(rows.map((row) => [row.point_id, row]));
  severalDraws = data.configurations !== null;
  configurations = new Map();
  for (const row of rows) {
    const key = keyOf(row);
    if (!configurations.has(key)) configurations.set(key, { key, label: named(axes, row), rows: [] });
    configurations.get(key).rows.push(row);
  }
}

const records = ({ columns }) => Object.values(columns)[0].map((_, i) => Object.fromEntries(Object.keys(columns).map((name) => [name, columns[name][i]])));
const isHigher = (name) => Boolean(data.metrics[name]?.higher);
const keyOf = (row) => JSON.stringify(axes.map((axis) => row[axis] ?? null));
const named = (names, row) => names.map((name) => `${name}=${show(name, row[name])}`).join(" ") || "every setting as in the spec";
const draws = () => ["seed", "fold"].filter((name) => new Set(columns[name] ?? []).size > 1);
const label = (row) => named([...axes, ...draws()], row);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function field(text, control) {
  control.id ||= `field-${text.replace(/\W+/g, "-")}`;
  return element("div", { className: "field" }, element("label", { htmlFor: control.id, textContent: text }), control);
}

// Whether a value differs from the last one of this name: what has not changed is left alone, with its focus and scroll.
const last = new Map();
function changed(name, value) {
  const text = JSON.stringify(value);
  const differs = last.get(name) !== text;
  last.set(name, text);
  return differs;
}

// Plotly reads its texts as a little HTML, so that a label with a `<` would lose it.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text) => plain(text.length > 24 ? `${text.slice(0, 23)}…` : text); // for ticks; the hover has all of it
const absent = (value) => value === null || value === undefined;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);
const once = (values) => [...new Set(values)];
const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const better = (a, b) => (higher ? b - a : a - b);
const capital = (text) => text.replace(/^./, (first) => first.toUpperCase());

function show(name, value) {
  if (absent(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (name === "recall" || name === "precision") return value.toFixed(3);
  if (name === "share") return `${(100 * value).toFixed(1)}%`;
  const known = data.metrics[name.replace(/_(std|low|high)$/, "")];
  if (known) return value.toFixed(known.decimals);
  if (name === "images_per_s" || name === "peak_memory_mb") return Math.round(value).toLocaleString("en");
  if (name === "train_s") return value.toFixed(1);
  if (name === "parameters") return Math.round(value).toLocaleString("en");
  if (name === "model_mb" || name === "ms_per_image") return String(Number(value.toPrecision(3)));
  if (name === "cost_usd") return value.toFixed(4);
  return String(Number(value.toPrecision(6)));
}

function clock(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function ordered(values) {
  const found = once(values.filter((value) => !absent(value)));
  return found.every((value) => typeof value === "number") ? found.sort((a, b) => a - b) : found;
}

/* ---- names and units ---- */

const UNITS = {
  batch_size: "images", image_size: "pixels", rotation_deg: "degrees", width_shift: "of the width", height_shift: "of the height", dropout: "of the units",
  train_s: "seconds", images_per_s: "per second", peak_memory_mb: "MB", model_mb: "MB", ms_per_image: "ms", cost_usd: "US dollars", epochs_trained: "epochs", recall: "0 to 1", precision: "0 to 1",
};

// What stands below a column's name.
function unit(name) {
  const base = name.replace(/_(std|low|high)$/, "");
  if (base === "score") return `of ${data.score_of}`;
  if (!(base in data.metrics)) return UNITS[name] ?? "";
  return /^(best_)?val_/.test(base) ? "validation" : "training";
}

// A metric in words, with what it is measured in.
function measure(name) {
  const words = (name === "score" ? `score (mean ${data.score_of})` : name.replace(/^val_/, "")).replaceAll("_", " ").replace(/\b(auc|f1)\b/, (found) => found.toUpperCase());
  if (name === "score") return words;
  return isHigher(name) ? `${words}, 0 to 1` : /loss/.test(name) ? `${words}, cross-entropy` : words;
}

const axisTitle = (name) => ({ text: plain(name in data.metrics ? measure(name) : UNITS[name] ? `${name}, ${UNITS[name]}` : name) });

// The ends of an axis: a little more than its values, also where these are all equal; a share stays within 0 and 1.
function range(values, name) {
  const [low, high] = [least(values), most(values)];
  const room = high > low ? 0.06 * (high - low) : isHigher(name) ? 0.05 : Math.abs(high) / 20 || 0.5;
  return isHigher(name) ? [Math.max(low - room, -0.02), Math.min(high + room, 1.02)] : [low - room, high + room];
}

/* ---- tables ---- */

// A table whose headers sort it. keyed: row -> what it is recognised by. lead: gives each row a first cell.
function makeTable(host, caption, keyed, lead, wanting = () => "None.") {
  const made = new Map(); // key -> what it shows, and its element
  const [head, body] = [element("thead"), element("tbody")];
  let [names, shown, sorted, texts] = [[], [], null, new Set()];
  host.replaceChildren(element("table", {}, element("caption", { className: "hidden", textContent: caption }), head, body));

  function fillHead() {
    const first = lead ? [element("th", { className: "plain", scope: "col" }, element("span", { className: "hidden", textContent: "curve" }))] : [];
    const cells = names.map((name) => {
      const words = name.split(/(?<=_)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));
      const button = element("button", { type: "button" }, element("span", {}, ...words), element("small", { textContent: unit(name) }));
      const cell = element("th", { scope: "col", className: texts.has(name) ? "text" : "", "data-name": name }, button);
      if (sorted?.name === name) cell.setAttribute("aria-sort", sorted.way);
      button.addEventListener("click", () => {
        const first = isHigher(name) || name === "images_per_s" ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        sorted = { name, way: sorted?.name === name && sorted.way === first ? other : first };
        for (const each of head.querySelectorAll("th")) {
          if (each === cell) each.setAttribute("aria-sort", sorted.way);
          else each.removeAttribute("aria-sort");
        }
        render();
      });
      return cell;
    });
    head.replaceChildren(element("tr", {}, ...first, ...cells));
  }

  function line(row) {
    const [key, says] = [keyed(row), JSON.stringify(names.map((name) => row[name]))];
    if (made.get(key)?.says !== says) {
      const style = (name) => (name === "error" ? "text long error" : name === "stopped_because" || name === "reason" ? "text long" : texts.has(name) ? "text words" : "");
      const tr = element("tr", {}, ...names.map((name) => element("td", { className: style(name), textContent: absent(row[name]) && /long/.test(style(name)) ? "" : show(name, row[name]) })));
      if (lead) tr.prepend(lead(row, tr));
      made.set(key, { says, tr });
    }
    return made.get(key).tr;
  }

  function render() {
    const list = [...shown];
    if (sorted) {
      const sign = sorted.way === "ascending" ? 1 : -1;
      list.sort((a, b) => {
        const [x, y] = [a[sorted.name], b[sorted.name]];
        if (absent(x) || absent(y)) return absent(x) - absent(y);
        return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
      });
    }
    const focused = body.contains(document.activeElement) && document.activeElement.dataset.key;
    body.replaceChildren(...list.map(line));
    if (!list.length) body.append(element("tr", {}, element("td", { className: "text words", colSpan: names.length + (lead ? 1 : 0), textContent: wanting() })));
    if (focused) body.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  return (list, wanted, all = list) => {
    if (wanted.join() !== names.join()) {
      names = wanted;
      texts = new Set(names.filter((name) => all.some((row) => typeof row[name] === "string" || typeof row[name] === "boolean")));
      if (sorted && !names.includes(sorted.name)) sorted = null;
      made.clear();
      fillHead();
    }
    shown = list;
    render();
  };
}

/* ---- filters ---- */

let chosen = []; // what the filters leave
let brushed = null; // of these, the ids of points that were chosen in a chart; null: all
let brushedWhat = null; // { text, key }: what that is, and of which configuration, if it is one
const wanted = {}; // column -> value as text
let typed = "";
const isShown = (row) => !brushed || brushed.has(row.point_id);

function distance(a, b) {
  let before = [...Array(b.length + 1).keys()];
  for (let i = 1; i <= a.length; i++) {
    const now = [i];
    for (let j = 1; j <= b.length; j++) now[j] = Math.min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a[i - 1] !== b[j - 1]));
    before = now;
  }
  return before[b.length];
}

// A word of the filter as a test of a row, or as a sentence on what is wrong with it.
function condition(word) {
  const found = /^([^<>=!]+)(<=|>=|!=|==?|<|>)(.*)$/.exec(word);
  const names = data.board.shown;
  if (!found) return (row) => names.some((name) => show(name, row[name]).toLowerCase().includes(word.toLowerCase()));
  const [, name, sign, text] = found;
  if (!(name in columns)) {
    const near = names.filter((each) => distance(each, name) <= Math.max(1, name.length / 3)).sort((a, b) => distance(a, name) - distance(b, name))[0];
    return `No column is called “${name}”${near ? `: did you mean ${near}?` : `. There are ${names.join(", ")}.`}`;
  }
  if (!text) return `After “${name}${sign}” there must be a value, such as ${show(name, columns[name].find((value) => !absent(value)))}.`;
  if (columns[name].some((value) => typeof value === "number") && Number.isNaN(Number(text))) return `${name} must be compared with a number, got “${text}”.`;
  return (row) => {
    if (absent(row[name])) return sign === "!=";
    const [a, b] = typeof row[name] === "number" ? [row[name], Number(text)] : [String(row[name]).toLowerCase(), text.toLowerCase()];
    return { "=": a === b, "==": a === b, "!=": a !== b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b }[sign];
  };
}

const input = element("input", { type: "search", id: "typed", autocomplete: "off" });
input.setAttribute("aria-describedby", "hint");

function fillFilters() {
  const lists = [...axes, ...draws(), "status"].map((name) => [name, ordered(columns[name]).map((value) => show(name, value))]).filter(([, values]) => values.length > 1 && values.length <= 40);
  if (!changed("filters", lists)) return;
  for (const name of Object.keys(wanted)) if (!lists.some(([each, values]) => each === name && values.includes(wanted[name]))) delete wanted[name];
  input.placeholder = `${metric}>0.8 dropout=0.5, or any text`;
  const typing = field("condition or text", input);
  typing.classList.add("grow");
  const focused = $("filters").contains(document.activeElement) && document.activeElement;
  $("filters").replaceChildren(
    ...lists.map(([name, values]) => {
      const select = element("select", {}, element("option", { value: "", textContent: "all" }), ...values.map((value) => element("option", { value: `=${value}`, textContent: value })));
      select.value = name in wanted ? `=${wanted[name]}` : "";
      select.addEventListener("change", () => {
        if (select.value) wanted[name] = select.value.slice(1);
        else delete wanted[name];
        filter();
      });
      return field(name, select);
    }),
    typing,
    element("button", { type: "reset", className: "button", textContent: "Show all" })
  );
  if (focused) $(focused.id)?.focus({ preventScroll: true });
}

function showAll() {
  for (const name of Object.keys(wanted)) delete wanted[name];
  for (const select of $("filters").querySelectorAll("select")) select.value = "";
  typed = input.value = "";
  brushed = brushedWhat = null;
  filter();
}

function filter() {
  const tests = typed.split(/\s+/).filter(Boolean).map(condition);
  const wrong = tests.filter((test) => typeof test === "string");
  const right = tests.filter((test) => typeof test !== "string");
  chosen = rows.filter((row) => Object.entries(wanted).every(([name, value]) => show(name, row[name]) === value) && right.every((test) => test(row)));
  if (changed("hint", wrong)) $("hint").textContent = wrong.join(" ");
  input.setAttribute("aria-invalid", wrong.length > 0);
  showChosen();
}

// What filters and charts have chosen, in the tables and the charts.
function showChosen() {
  const list = chosen.filter(isShown);
  for (const id of ["points", "folded"]) $(id).style.minHeight = brushed ? `${$(id).offsetHeight}px` : ""; // so that charts below stay where they are
  showPoints(list, data.board.shown, rows);
  if (severalDraws) {
    const keys = new Set(list.map(keyOf));
    const all = records(data.configurations);
    showFolded(all.filter((row) => keys.has(keyOf(row))), data.configurations.shown, all);
  }
  const count = `${list.length.toLocaleString("en")} of ${many(rows.length, "point")}`;
  if (changed("count", count)) $("count").textContent = count;
  $("brush").hidden = !brushed;
  if (changed("brushed", [count, brushedWhat])) $("brushed").textContent = brushed ? `${brushedWhat.text} (${count})` : "";
  if (brushed) {
    $("brush-curve").hidden = !brushedWhat.key;
    $("brush-curve").textContent = picked.has(brushedWhat.key) ? "Hide its curve" : "Draw its curve";
  }
  refresh();
}

// Keep only these points, of those that the filters leave. They are named below, where the reader is.
function brush(ids, text, key = null) {
  brushed = ids.size ? ids : null;
  brushedWhat = brushed && { text, key };
  showChosen();
}

/* ---- which curves are drawn ---- */

const picked = new Map(); // key of a configuration -> place in the palette
let hasPicked = false; // until the reader chooses, the best ones are drawn, whichever these are by now
let eachSeed = false;
const hasCurve = (row) => row.trial_id in data.curves && !absent(row.epochs_trained);
const drawable = (each) => each.rows.some(hasCurve);

function pick(key) {
  hasPicked = true;
  if (picked.has(key)) picked.delete(key);
  else {
    if (picked.size === MOST_CURVES) picked.delete(picked.keys().next().value);
    picked.set(key, [...Array(MOST_CURVES).keys()].find((place) => ![...picked.values()].includes(place)));
  }
  showPicked();
  showChosen();
}

function pickBest() {
  if (!hasPicked) {
    const best = data.best && JSON.stringify(axes.map((axis) => data.best.values[axis] ?? null));
    const order = [best, ...(severalDraws ? records(data.configurations).map(keyOf) : []), ...configurations.keys()];
    picked.clear();
    once(order).filter((key) => configurations.has(key) && drawable(configurations.get(key))).slice(0, 3).forEach((key, place) => picked.set(key, place));
  }
  for (const key of picked.keys()) if (!configurations.has(key)) picked.delete(key);
}

function showPicked() {
  const colours = palette();
  for (const swatch of document.querySelectorAll(".swatch")) {
    const colour = colours[picked.get(swatch.dataset.configuration)];
    swatch.setAttribute("aria-pressed", colour !== undefined);
    swatch.style.backgroundColor = swatch.style.borderColor = colour ?? "";
  }
  if (changed("chips", [[...picked], severalDraws, colours])) {
    const chips = [...picked].map(([key, place]) => {
      const dot = element("i");
      dot.style.background = colours[place];
      const chip = element("button", { type: "button", className: "button", title: "Take this curve away" }, dot, configurations.get(key).label);
      chip.addEventListener("click", () => pick(key));
      return chip;
    });
    const each = element("input", { type: "checkbox", id: "each", checked: eachSeed, style: "width: auto; min-height: 0" });
    each.addEventListener("change", () => ((eachSeed = each.checked), refresh(data.charts.map(curveId))));
    const own = severalDraws ? [element("label", { htmlFor: "each" }, each, " each seed or fold, too")] : [];
    $("chips").replaceChildren(...(chips.length ? [...chips, ...own] : [element("p", { className: "why", textContent: "No configuration is chosen: choose a row of the board." })]));
  }
  refresh(data.charts.map(curveId));
}

// The first cell of a row of the board: a button that draws the curve of its configuration.
function pickCell(row, tr) {
  const key = keyOf(row);
  if (!drawable(configurations.get(key))) return element("td", {});
  const what = row.point_id && severalDraws ? `${configurations.get(key).label}, of which this is ${named(draws(), row)}` : configurations.get(key).label;
  const swatch = element("button", { type: "button", className: "swatch", "aria-pressed": "false", "aria-label": `Learning curve of ${what}`, "data-configuration": key, "data-key": `${row.point_id ?? ""}${key}` });
  tr.className = "pick";
  tr.addEventListener("click", () => {
    if (!getSelection().toString()) pick(key);
  });
  return element("td", {}, swatch);
}

/* ---- charts: drawn once Plotly is there, those near the screen first, and again when what they show changed ---- */

const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const palette = () => style("--series").split(/\s+/);
const scale = () => style("--scale").split(/\s+/).map((colour, i, all) => [i / (all.length - 1), colour]);
const rem = () => parseFloat(getComputedStyle(root).fontSize);
const charts = new Map();

function chart(id, draw) {
  charts.set(id, { draw, stale: true, near: false, drawn: false });
  watcher.observe($(id));
  resized.observe($(id));
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (charts.has(target.id)) charts.get(target.id).near = isIntersecting;
      if (isIntersecting) paint(target.id);
    }
  },
  { rootMargin: "300px" }
);
const resized = new ResizeObserver((entries) => {
  const ids = entries.map(({ target }) => target.id).filter((id) => charts.get(id)?.drawn && charts.get(id).width !== $(id).clientWidth);
  if (!root.classList.contains("printing")) refresh(ids);
});

function refresh(ids = [...charts.keys()]) {
  for (const id of ids) {
    if (!charts.has(id)) continue;
    charts.get(id).stale = true;
    if (charts.get(id).near) paint(id);
  }
  later();
}

// What is further down is drawn while nothing else is to do, so that it is there when somebody scrolls, or prints.
let waiting = false;
function later() {
  if (waiting || !window.Plotly) return;
  waiting = true;
  (window.requestIdleCallback ?? ((draw) => setTimeout(draw)))(() => {
    waiting = false;
    const next = [...charts.keys()].find((id) => charts.get(id).stale && $(id).clientWidth);
    if (next) {
      paint(next);
      later();
    }
  }, { timeout: 500 }); // on a machine that is busy with trials a browser is never idle
}

// draw gives { traces, layout, says, select } (says: the chart in words; select: what a box over it chooses), or a
// sentence why there is none.
function paint(id) {
  const [it, host] = [charts.get(id), $(id)];
  if (!window.Plotly || !it?.stale || !host.clientWidth) return;
  it.stale = false;
  const drawing = it.draw();
  if (typeof drawing === "string") {
    if (it.drawn) Plotly.purge(host);
    it.drawn = false;
    host.replaceChildren(element("p", { className: "why", textContent: drawing }));
    host.removeAttribute("role");
    host.removeAttribute("aria-label");
    return;
  }
  if (!it.drawn) host.replaceChildren();
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", drawing.says);
  it.select = drawing.select;
  it.width = host.clientWidth;
  const selects = drawing.select && !matchMedia("(pointer: coarse)").matches;
  const layout = { ...dress(drawing.layout), width: host.clientWidth, height: host.clientHeight, uirevision: "kept", selections: [], dragmode: selects ? "select" : "zoom" };
  Plotly.react(host, drawing.traces, layout, { displaylogo: false, displayModeBar: false, doubleClick: "reset" });
  if (!it.drawn) {
    // once Plotly is through with the event: it does not expect its chart to be drawn anew meanwhile
    host.on("plotly_click", (event) => setTimeout(() => it.select && choose(event.points[0]?.customdata)));
    host.on("plotly_selected", (event) => event && setTimeout(() => {
      Plotly.relayout(host, { dragmode: "zoom", selections: [] }); // leaving the mode takes the drawn box away
      it.select?.(event);
      Plotly.relayout(host, { dragmode: "select" });
    }));
  }
  it.drawn = true;
}

// A click on a point, or on a configuration: customdata is the id of one of its points.
function choose(id) {
  const row = byId.get(id);
  if (!row) return;
  const of = configurations.get(keyOf(row));
  brush(new Set(of.rows.map((each) => each.point_id)), `${of.label}: ${row.score === null ? row.status : `score ${show("score", mean(of.rows.map((each) => each.score).filter((score) => !absent(score))))}`}`, of.key);
}

function dress(layout) {
  const [ink, muted, line, card] = ["--ink", "--muted", "--line", "--card"].map(style);
  const touch = matchMedia("(pointer: coarse)").matches;
  const font = 0.75 * rem();
  const axis = (given = {}) => ({
    gridcolor: line, linecolor: line, zeroline: false, automargin: true, fixedrange: touch, tickfont: { color: muted },
    ...given, title: { font: { color: muted, size: font }, standoff: 8, ...given.title },
  });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: font },
    hoverlabel: { bgcolor: card, bordercolor: muted, font: { color: ink }, align: "left", namelength: -1 },
    newselection: { line: { color: style("--accent"), width: 2 } },
    margin: { l: 48, r: 12, t: 12, b: 40 },
    ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  };
}

const title = (text) => ({ text: plain(text) });

const curveId = ({ validation }) => `chart-${validation.replace(/^val_/, "")}`;
const curveTitle = ({ validation }) => capital(validation.replace(/^val_/, "").replaceAll("_", " "));

// The epochs of a point, and a metric after each; none where it was not recorded.
function curve(row, name) {
  const own = data.curves[row.trial_id];
  if (!own?.[name]) return null;
  const until = own.epoch.filter((epoch) => epoch <= row.epochs_trained).length;
  return until ? { row, x: own.epoch.slice(0, until), y: own[name].slice(0, until) } : null;
}

// Several curves as their mean and their ends, in the epochs that all have.
function folded(list) {
  const values = new Map();
  for (const { x, y } of list) x.forEach((epoch, i) => values.set(epoch, [...(values.get(epoch) ?? []), y[i]]));
  const x = [...values.keys()].filter((epoch) => values.get(epoch).length === list.length).sort((a, b) => a - b);
  return { x, y: x.map((epoch) => mean(values.get(epoch))), low: x.map((epoch) => least(values.get(epoch))), high: x.map((epoch) => most(values.get(epoch))) };
}

function curveChart({ training, validation }) {
  const colours = palette();
  const traces = [];
  const said = [];
  for (const [key, place] of picked) {
    const { rows: own, label: text } = configurations.get(key);
    for (const [name, dash] of [[training, "dot"], [validation, "solid"]]) {
      const all = own.filter(hasCurve).map((row) => curve(row, name)).filter(Boolean);
      const done = all.filter(({ row }) => row.status === "ok");
      const thin = all.filter(({ row }) => row.status !== "ok" || (eachSeed && done.length > 1));
      const line = (x, y, width, hovertext) => ({
        x, y, mode: x.length === 1 ? "markers" : "lines", hoverinfo: "text", hovertext,
        line: { color: colours[place], dash, width }, marker: { color: colours[place], symbol: dash === "dot" ? "circle-open" : "circle" },
      });
      for (const { row, x, y } of thin) {
        const what = row.status === "ok" ? "" : `, ${row.status}`;
        traces.push(line(x, y, 1.1, y.map((value, i) => `${plain(`${name} ${show(name, value)} after epoch ${x[i]}${what}`)}<br>${plain(label(row))}`)));
      }
      if (!done.length) continue;
      const { x, y, low, high } = folded(done);
      if (done.length > 1 && name === validation) {
        traces.push({ x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", mode: "lines", line: { width: 0 }, fillcolor: colours[place], opacity: 0.2, hoverinfo: "skip" });
      }
      const over = (i) => (done.length > 1 ? ` (${show(name, low[i])} to ${show(name, high[i])} over ${done.length})` : "");
      traces.push(line(x, y, 2.2, y.map((value, i) => `${plain(`${name} ${show(name, value)}${over(i)} after epoch ${x[i]}`)}<br>${plain(text)}`)));
      if (name === validation && x.length) said.push(`${text} ${show(name, y.at(-1))} after epoch ${x.at(-1)}`);
    }
  }
  if (!traces.length) return "No configuration is chosen.";
  const best = data.best && JSON.stringify(axes.map((axis) => data.best.values[axis] ?? null));
  const turn = picked.has(best) && data.overfitting;
  const line = { type: "line", x0: turn, x1: turn, y0: 0, y1: 1, yref: "paper", line: { color: style("--bad"), dash: "dash", width: 1.5 } };
  const text = { x: turn, y: 1, yref: "paper", text: `the best overfits from epoch ${turn}`, showarrow: false, xanchor: "auto", yanchor: "bottom", font: { color: style("--bad"), size: 0.7 * rem() } };
  const ended = rows.filter((row) => row.status === "stopped" && hasCurve(row) && data.curves[row.trial_id][validation] && !picked.has(keyOf(row))).slice(0, 200);
  const ends = range(traces.flatMap(({ y }) => y), validation);
  const epochs = most(traces.flatMap(({ x }) => x));
  if (ended.length) traces.unshift(faint(ended, validation));
  return {
    traces,
    layout: {
      margin: { l: 48, r: 12, t: 22, b: 40 }, xaxis: { title: title("epoch"), tickformat: "d", range: epochs > 1 ? [1, epochs + (epochs - 1) / 50] : [0.5, 1.5], ...(epochs > 8 ? { nticks: 8 } : { dtick: 1 }) },
      yaxis: { title: title(measure(validation)), range: ends }, ...(turn ? { shapes: [line], annotations: [text] } : {}),
    },
    says: `${[training, validation].filter(Boolean).join(" and ")} by epoch. ${validation}: ${said.join("; ")}${ended.length ? `; in grey ${many(ended.length, "point")} that the race stopped` : ""}`,
  };
}

// What a race stopped, in one trace behind the others; nulls part the curves.
function faint(ended, name) {
  const trace = { x: [], y: [], hovertext: [], hoverinfo: "text", mode: "lines", line: { color: style("--muted"), width: 1 }, opacity: 0.5 };
  for (const row of ended) {
    const { x, y } = curve(row, name);
    x.forEach((epoch, i) => {
      trace.x.push(epoch);
      trace.y.push(y[i]);
      trace.hovertext.push(`${plain(label(row))}<br>${plain(`stopped, ${row.stopped_because}`)}`);
    });
    for (const list of [trace.x, trace.y, trace.hovertext]) list.push(null);
  }
  return trace;
}

function fillCurves() {
  const several = severalDraws ? "the band is from the lowest to the highest of its seeds or folds, the line their mean; " : "";
  $("curves-note").textContent = `Solid: validation; ${several}dotted: training, measured while it trains, with dropout and augmentation on. Thin: what is not trained to the end. In grey: what a race stopped. Choose configurations in the board.`;
  if (!changed("curve-cards", data.charts)) return;
  for (const id of charts.keys()) if (!$(id)?.isConnected || $("curve-cards").contains($(id))) charts.delete(id);
  $("curve-cards").replaceChildren(...data.charts.map((each) =>
    element("figure", {}, element("figcaption", {}, element("h3", { textContent: curveTitle(each) })), element("div", { className: "chart", id: curveId(each) }))
  ));
  for (const each of data.charts) chart(curveId(each), () => curveChart(each));
}

function fillEffects() {
  const found = data.effects;
  if (!found) return;
  $("effects-note").textContent = `Mean of ${metric} over the other axes; the bar spans one standard deviation of the configurations there. All points, whatever the filter. ${capital(found.note)}.`;
  const names = found.axes.map(({ axis }) => axis);
  if (changed("effects", names)) {
    for (const id of [...charts.keys()].filter((each) => each.startsWith("chart-effect-"))) charts.delete(id);
    $("effects-cards").replaceChildren(...names.map((_, i) =>
      element("figure", {}, element("figcaption", {}, element("h3", { id: `effect-${i}` }), element("div", { className: "share" }, element("div"))), element("div", { className: "chart low", id: `chart-effect-${i}` }))
    ));
    names.forEach((_, i) => chart(`chart-effect-${i}`, () => effectChart(i)));
  }
  found.axes.forEach(({ axis, share }, i) => {
    $(`effect-${i}`).textContent = `${axis} · ${(100 * share).toFixed(0)}% of the variance`;
    $(`effect-${i}`).nextSibling.firstChild.style.width = `${100 * share}%`;
  });
}

function effectChart(i) {
  const { axis, levels } = data.effects.axes[i];
  const values = levels.map(({ value }) => show(axis, value));
  const all = data.effects.axes.flatMap(({ levels }) => levels.flatMap(({ mean, std }) => [mean - (std ?? 0), mean + (std ?? 0)]));
  return {
    traces: [{
      x: values.map((_, place) => place), y: levels.map((level) => level.mean), mode: "lines+markers", hoverinfo: "text", cliponaxis: false,
      error_y: { type: "data", array: levels.map(({ std }) => std ?? 0), color: style("--muted"), thickness: 1.5, width: 5 },
      line: { color: style("--accent"), width: 2 }, marker: { size: 8, color: style("--accent") },
      hovertext: levels.map((level, place) => plain(`${axis}=${values[place]}: ${show(metric, level.mean)}${absent(level.std) ? "" : ` ± ${show(metric, level.std)}`}, ${many(level.count, "configuration")}`)),
    }],
    layout: {
      margin: { l: 48, r: 16, t: 8, b: 28 },
      xaxis: { title: title(UNITS[axis] ?? " "), tickvals: values.map((_, place) => place), ticktext: values.map(short), range: [-0.4, values.length - 0.6], showgrid: false },
      yaxis: { title: title(i ? "" : "score"), range: range(all, metric), nticks: 5 },
    },
    says: `Mean ${metric} by ${axis}: ${levels.map((level, place) => `${values[place]} ${show(metric, level.mean)}`).join(", ")}`,
  };
}

const ok = () => chosen.filter((row) => row.status === "ok" && !absent(row[metric]));
const NONE = "No point that the filters leave is ok.";

function parallelChart() {
  const list = ok();
  if (!list.length) return NONE;
  const dimensions = [...axes.filter((axis) => ordered(columns[axis]).length > 1), "train_s", metric];
  const places = dimensions.map((name) => {
    const values = ordered(list.map((row) => row[name]));
    const numbers = values.every((value) => typeof value === "number");
    const [low, high] = [values[0], values.at(-1)];
    if (axes.includes(name) && (!numbers || values.length <= 10)) {
      const at = (value) => (values.length > 1 ? Math.max(0, values.indexOf(value)) / (values.length - 1) : 0.5);
      return { at, spread: 0.07, ticks: values.map((value) => [at(value), show(name, value)]) };
    }
    const [on, back] = data.ranges[name]?.log && low > 0 ? [Math.log, Math.exp] : [Number, Number];
    const at = (value) => (high > low ? (on(value) - on(low)) / (on(high) - on(low)) : 0.5);
    const tick = (part) => back(on(low) + part * (on(high) - on(low)));
    const written = (value) => show(name, data.ranges[name] ? Number(value.toPrecision(3)) : value);
    return { at, spread: 0, ticks: (high > low ? [0, 0.25, 0.5, 0.75, 1] : [0.5]).map((part) => [part, written(tick(part))]) };
  });
  const scores = list.map((row) => row[metric]);
  const [low, high] = [least(scores), most(scores)];
  // Points of one value fan out a little, the best on top, or their lines would hide each other.
  const order = new Map([...list].sort((a, b) => better(b[metric], a[metric])).map((row, i) => [row, list.length > 12 ? i / (list.length - 1) - 0.5 : 0]));
  const height = (row, place) => places[place].at(row[dimensions[place]]) + places[place].spread * order.get(row);
  const faintest = Math.min(0.45, 40 / list.length);
  const BINS = 12;
  const bins = Array.from({ length: BINS + 1 }, () => []); // the first: what a chart has not chosen
  for (const row of list) {
    const part = high > low ? (row[metric] - low) / (high - low) : 1;
    bins[isShown(row) ? 1 + Math.min(BINS - 1, Math.floor((higher ? part : 1 - part) * BINS)) : 0].push(row);
  }
  const traces = bins.map((bin, i) => ({
    x: bin.flatMap(() => [...dimensions.keys(), null]), mode: "lines", hoverinfo: i ? "text" : "skip",
    y: bin.flatMap((row) => [...dimensions.map((_, place) => height(row, place)), null]),
    hovertext: bin.flatMap((row) => Array(dimensions.length + 1).fill(plain(`${label(row)}: ${show(metric, row[metric])}`))),
    customdata: bin.flatMap((row) => Array(dimensions.length + 1).fill(row.point_id)),
    line: { color: i ? `rgb(${between((i - 1) / (BINS - 1))})` : style("--line"), width: 1 + i / BINS }, opacity: i ? faintest + ((0.95 - faintest) * (i - 1) ** 2) / (BINS - 1) ** 2 : 0.6,
  }));
  const annotations = places.flatMap(({ ticks }, place) =>
    ticks.map(([y, text]) => ({ x: place, y, text: short(text), xanchor: "right", xshift: -6, showarrow: false, font: { size: 0.7 * rem(), color: style("--ink") }, bgcolor: style("--card"), opacity: 0.92 }))
  );
  $("chart-parallel").style.minWidth = root.classList.contains("printing") ? "" : `${Math.max(dimensions.length * 95, 300)}px`;
  return {
    traces,
    layout: {
      margin: { l: 64, r: 30, t: 16, b: 44 }, annotations,
      shapes: places.map((_, x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, line: { color: style("--muted"), width: 1 }, layer: "below" })),
      xaxis: { tickvals: [...dimensions.keys()], ticktext: dimensions.map((name) => `<b>${plain(name)}</b>${unit(name) ? `<br>${plain(unit(name))}` : ""}`), showgrid: false, showline: false, range: [-0.1, dimensions.length - 0.9], tickfont: { color: style("--ink"), size: 0.75 * rem() }, fixedrange: true },
      yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true },
    },
    says: `Parallel coordinates of ${many(list.length, "point")} over ${dimensions.join(", ")}`,
    select: ({ range: box }) => {
      if (!box?.x) return;
      const [[left, right], [bottom, top]] = [box.x, box.y].map((ends) => [...ends].sort((a, b) => a - b));
      const crossed = dimensions.map((_, place) => place).filter((place) => place >= left && place <= right);
      const inside = list.filter(isShown).filter((row) => crossed.every((place) => height(row, place) >= bottom && height(row, place) <= top));
      if (crossed.length) brush(new Set(inside.map((row) => row.point_id)), `Chosen on ${crossed.map((place) => dimensions[place]).join(", ")}`);
    },
  };
}

// A colour of the scale, 0 to 1, as red, green and blue.
function between(part) {
  const stops = scale();
  const i = Math.min(stops.length - 2, Math.floor(part * (stops.length - 1)));
  const rest = part * (stops.length - 1) - i;
  const [a, b] = [stops[i][1], stops[i + 1][1]].map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  return a.map((value, k) => Math.round(value + rest * (b[k] - value)));
}

// Black or white, whichever reads better on a colour (WCAG's luminance).
function inkOn(colour) {
  const [r, g, b] = colour.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

const heatAxes = () => axes.filter((axis) => ordered(columns[axis]).length > 1);

function fillHeatAxes() {
  const names = heatAxes();
  if (names.length < 2 || !changed("heat", names)) return;
  const before = ["across", "down"].map((text) => $(`heat-${text}`)?.value);
  const first = data.effects ? once([...data.effects.axes.map(({ axis }) => axis), ...names]) : names;
  $("heat-axes").replaceChildren(...["across", "down"].map((text, i) => {
    const select = element("select", { id: `heat-${text}` }, ...names.map((axis) => element("option", { value: axis, textContent: axis })));
    select.value = names.includes(before[i]) ? before[i] : first[i];
    select.addEventListener("change", () => refresh(["chart-heat"]));
    return field(text, select);
  }));
}

// The quarter of its range in which a drawn value lies: its place among data.ranges' parts.
function quarter({ edges, high }, value) {
  return edges.filter((edge) => value >= edge).length + (value > high);
}

function heatChart() {
  const list = ok();
  if (!list.length) return NONE;
  const [across, down] = [$("heat-across").value, $("heat-down").value];
  if (across === down) return "Choose two different axes.";
  const of = (axis, row) => (data.ranges[axis]?.edges.length ? quarter(data.ranges[axis], row[axis]) : row[axis]);
  const [xs, ys] = [across, down].map((axis) => ordered(list.map((row) => of(axis, row))));
  const text = (axis, value) => (data.ranges[axis]?.edges.length ? data.ranges[axis].parts[value] : show(axis, value));
  const z = ys.map((y) => xs.map((x) => {
    const scores = list.filter((row) => of(across, row) === x && of(down, row) === y).map((row) => row[metric]);
    return scores.length ? mean(scores) : null;
  }));
  return grid(z, xs.map((x) => text(across, x)), ys.map((y) => text(down, y)), axisTitle(across), axisTitle(down), [across, down], (value) => show(metric, value), `mean ${metric}`, !higher);
}

// A heat map with its values written in.
function grid(z, xs, ys, xTitle, yTitle, [across, down], write, what, reversed) {
  const texts = z.map((row) => row.map((value) => (absent(value) ? "" : write(value))));
  const few = xs.length <= (innerWidth < 860 ? 5 : 10) && ys.length <= 14;
  const values = z.flat().filter((value) => !absent(value));
  const [low, high] = [least(values), most(values)];
  const part = (value) => (high > low ? (reversed ? high - value : value - low) / (high - low) : 0.5);
  const written = z.flatMap((row, j) => row.map((value, i) => ({ x: i, y: j, text: texts[j][i], showarrow: false, font: { color: absent(value) ? "#888" : inkOn(between(part(value))) } })));
  return {
    traces: [{
      type: "heatmap", z, x: xs.map((_, i) => i), y: ys.map((_, i) => i), xgap: 2, ygap: 2, hoverongaps: false,
      colorscale: scale(), reversescale: reversed, showscale: !few, zmin: high > low ? low : low - 1, zmax: high > low ? high : low + 1, hoverinfo: "text", colorbar: { thickness: 12, outlinewidth: 0, tickfont: { color: style("--muted") } },
      hovertext: z.map((row, j) => row.map((value, i) => plain(`${down}=${ys[j]}, ${across}=${xs[i]}: ${what} ${absent(value) ? "–" : write(value)}`))),
    }],
    layout: {
      annotations: few ? written : [],
      xaxis: { title: xTitle, tickvals: xs.map((_, i) => i), ticktext: xs.map(short), showgrid: false },
      yaxis: { title: yTitle, tickvals: ys.map((_, i) => i), ticktext: ys.map(short), showgrid: false, autorange: "reversed" },
    },
    says: `${what} by ${down} and ${across}: ${texts.flatMap((row, j) => row.map((text, i) => `${ys[j]}, ${xs[i]}: ${text || "none"}`)).slice(0, 60).join("; ")}`,
  };
}

// What a configuration may cost: [what it is, how it reads in a sentence].
const COSTS = {
  train_s: ["training time of a point, s", (value) => `after ${clock(value)}`],
  parameters: ["parameters of the model", (value) => `with ${many(Math.round(value), "parameter")}`],
  ms_per_image: ["time to validate an image, ms", (value) => `at ${show("ms_per_image", value)} ms an image`],
};

function fillCosts() {
  const models = once(columns.parameters.filter((value) => value > 0)).length > 1;
  const names = Object.keys(COSTS).filter((name) => models || name === "train_s");
  if (!changed("costs", names)) return;
  const before = $("cost-of")?.value;
  const select = element("select", { id: "cost-of" }, ...names.map((name) => element("option", { value: name, textContent: COSTS[name][0] })));
  select.value = names.includes(before) ? before : "train_s";
  select.addEventListener("change", () => refresh(["chart-cost"]));
  $("cost-by").replaceChildren(...(models ? [field("cost", select)] : []));
}

function costChart() {
  const cost = $("cost-of")?.value ?? "train_s";
  const [what, said] = COSTS[cost];
  const groups = new Map();
  for (const row of ok().filter((row) => row[cost] > 0)) groups.set(keyOf(row), [...(groups.get(keyOf(row)) ?? []), row]);
  const dots = [...groups.values()].map((group) => ({
    x: mean(group.map((row) => row[cost])), y: mean(group.map((row) => row[metric])), id: group[0].point_id, count: group.length,
    text: named(axes, group[0]), shown: group.some(isShown),
  }));
  if (!dots.length) return NONE;
  const frontier = [];
  for (const dot of [...dots].sort((a, b) => a.x - b.x || better(a.y, b.y))) {
    if (!frontier.length || better(dot.y, frontier.at(-1).y) < 0) frontier.push(dot);
  }
  const hover = (dot) => `${plain(dot.text)}<br>${show(metric, dot.y)} ${said(dot.x)}${dot.count > 1 ? `, mean of ${dot.count} points` : ""}`;
  const alpha = (list, strong) => list.map((dot) => (dot.shown ? strong : 0.3));
  const trace = (list, more) => ({ x: list.map(({ x }) => x), y: list.map(({ y }) => y), customdata: list.map(({ id }) => id), hoverinfo: "text", hovertext: list.map(hover), selected: {}, unselected: {}, selectedpoints: null, ...more });
  const xs = dots.map(({ x }) => x);
  return {
    traces: [
      trace(dots, { mode: "markers", marker: { size: 8, color: style("--muted"), opacity: alpha(dots, 0.7) } }),
      trace(frontier, { mode: "lines+markers", line: { shape: "hv", color: style("--accent"), width: 2 }, marker: { size: 10, color: style("--accent"), opacity: alpha(frontier, 1) } }),
    ],
    layout: { xaxis: { title: title(what), type: most(xs) > 30 * least(xs) ? "log" : "linear" }, yaxis: { title: title(measure(metric)), range: range(dots.map(({ y }) => y), metric) } },
    says: `${metric} against ${what} of ${many(dots.length, "configuration")}; frontier: ${frontier.map((dot) => `${dot.text} ${show(metric, dot.y)} ${said(dot.x)}`).join("; ")}`,
    select: ({ points }) => {
      const keys = new Set(points.map(({ customdata }) => customdata).filter((id) => byId.has(id)).map((id) => keyOf(byId.get(id))));
      if (keys.size) brush(new Set(chosen.filter((row) => keys.has(keyOf(row))).map((row) => row.point_id)), `${many(keys.size, "configuration")} chosen by cost and score`);
    },
  };
}

function batchChart(what, unit, value) {
  const list = ok().filter((row) => !absent(value(row)));
  if (!list.length) return NONE;
  const sizes = ordered(list.map((row) => row.batch_size));
  const means = sizes.map((size) => mean(list.filter((row) => row.batch_size === size).map(value)));
  const spot = (row) => sizes.indexOf(row.batch_size);
  const some = sizes.filter((_, i) => i % Math.ceil(sizes.length / 12) === 0);
  return {
    traces: [
      { x: list.map(spot), y: list.map(value), mode: "markers", customdata: list.map((row) => row.point_id), hoverinfo: "text", marker: { size: 7, color: style("--muted"), opacity: list.map((row) => (isShown(row) ? 0.5 : 0.1)) }, hovertext: list.map((row) => plain(`${label(row)}: ${show("", value(row))} ${unit}`)) },
      { x: sizes.map((_, i) => i), y: means, mode: "lines+markers", hoverinfo: "text", line: { color: style("--accent"), width: 2 }, marker: { size: 9, color: style("--accent") }, hovertext: sizes.map((size, i) => `batch_size=${size}: mean ${show("", means[i])} ${unit}`) },
    ],
    layout: { xaxis: { title: axisTitle("batch_size"), tickvals: some.map((size) => sizes.indexOf(size)), ticktext: some.map(String), showgrid: false, range: [-0.4, sizes.length - 0.6] }, yaxis: { title: title(`${what}, ${unit}`), rangemode: "tozero" } },
    says: `${what} by batch size: ${sizes.map((size, i) => `${size}: ${show("", means[i])} ${unit}`).join(", ")}`,
    select: ({ points }) => {
      const ids = new Set(points.map(({ customdata }) => customdata).filter((id) => byId.has(id)));
      if (ids.size) brush(ids, `Chosen by batch_size and ${what}`);
    },
  };
}

// Where a loss is no number, the curve ends.
function rateChart() {
  const colours = palette();
  const names = Object.keys(data.rates[0].values).filter((name) => once(data.rates.map(({ values }) => values[name])).length > 1);
  const lines = [...data.rates].sort((a, b) => (a.values.batch_size - b.values.batch_size)).map((test, i) => ({
    ...test, text: names.length ? named(names, test.values) : "range test", colour: colours[i % colours.length],
    dash: ["solid", "dash", "dot", "dashdot"][Math.floor(i / colours.length) % 4],
  }));
  const nearest = ({ rate, rates, losses }) => losses[rates.reduce((best, each, i) => (Math.abs(Math.log(each / rate)) < Math.abs(Math.log(rates[best] / rate)) ? i : best), 0)];
  return {
    traces: lines.flatMap((test) => [
      { x: test.rates, y: test.losses, name: plain(test.text), mode: "lines+markers", line: { color: test.colour, dash: test.dash, width: 2 }, marker: { size: 5 }, hoverinfo: "text", hovertext: test.rates.map((rate, i) => plain(`${test.text}: loss ${show("loss", test.losses[i])} at ${rate}`)) },
      { x: [test.rate], y: [nearest(test)], mode: "markers", showlegend: false, marker: { size: 13, symbol: "circle-open", color: test.colour, line: { width: 3 } }, hoverinfo: "text", hovertext: plain(`${test.text}: ${test.rate}`) },
    ]),
    layout: { showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, xaxis: { title: title("learning rate"), type: "log", exponentformat: "power" }, yaxis: { title: title("loss") } },
    says: `learning rates found: ${lines.map(({ text, rate }) => `${text}: ${rate}`).join("; ")}`,
  };
}

/* ---- the winner, the data, the spec ---- */

function confusionChart() {
  const { classes, matrix } = data.validation;
  return grid(matrix, classes, classes, title("said to be"), title("class"), ["said to be", "class"], String, "images", false);
}

function fillWinner() {
  if (!changed("winner", [data.model, data.validation])) return;
  if (!data.model || !data.validation) return;
  const values = named(Object.keys(data.model.values ?? {}), data.model.values ?? {});
  const images = data.validation.matrix.flat().reduce((sum, count) => sum + count, 0);
  const when = data.model.epoch ? ` after epoch ${data.model.epoch}` : "";
  $("winner").textContent = `${values}${data.model.seed ? ` seed=${data.model.seed}` : ""}${data.model.fold ? ` fold=${data.model.fold}` : ""}${when}: its predictions of ${many(images, "validation image")}.`;
  const { figures, says } = data.validation;
  showClasses(records(figures), figures.shown);
  $("class-notes").replaceChildren(...says.map((text) => element("p", { className: "count", textContent: `${capital(text)}.` })));
  $("worst-images").replaceChildren(...data.validation.worst.map((image, place) => {
    const button = element("button", { type: "button" }, element("img", { src: source(image), alt: `${image.path}: ${caption(image)}`, loading: "eager" }));
    button.addEventListener("click", () => zoom(place));
    return element("figure", {}, button, element("figcaption", {}, caption(image), element("span", { textContent: image.path })));
  }));
}

const source = (image) => `data:image/png;base64,${image.png}`;
const percent = (value) => `${(100 * value).toFixed(1)}%`;
const caption = (image) => `${image.label}, ${image.label === image.predicted ? "rightly" : `taken for ${image.predicted}`} (${percent(image.probability)})`;
let zoomed = 0;

function zoom(place) {
  const all = data.validation.worst;
  zoomed = (place + all.length) % all.length;
  const image = all[zoomed];
  $("zoom-image").src = source(image);
  const own = image.label === image.predicted ? "" : ` Its own class: ${percent(image.own)}.`;
  $("zoom-says").textContent = `${zoomed + 1} of ${all.length}: ${caption(image)}.${own} ${image.path}`;
  if (!$("zoom").open) $("zoom").showModal();
}

function facts(host, pairs) {
  host.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
  return host;
}

function fillData() {
  if (!changed("data", [data.dataset, data.skipped])) return;
  const found = data.dataset;
  const host = $("dataset");
  host.replaceChildren();
  if (found) {
    const parts = { training: "they train", validation: "they validate", test: "they test the winner" };
    const names = Object.keys(parts).filter((part) => Object.values(found.classes).some((count) => part in count));
    const list = Object.entries(found.classes).map(([name, count]) => ({ class: name, ...count }));
    const total = (name) => many(list.reduce((sum, row) => sum + row[name], 0), "image");
    host.append(
      facts(element("dl", { className: "facts" }), [
        ["images", found.uri], ["trained at", `${found.image_size.join(" × ")} pixels`], ...names.map((part) => [parts[part], total(part)]),
        ...(found.folds ? [["split", `in ${found.folds} folds; these are the first one's`]] : []),
        ["left out", `${found.skipped} unreadable, ${found.ignored} other`], ["laid out as", found.layout || (found.packed ? "Parquet shards" : "single files")],
        ...(found.notes || []).map((note) => ["note", note]),
      ])
    );
    const box = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Classes" });
    host.append(box);
    makeTable(box, "Classes", (row) => row.class)(list, ["class", ...names]);
  }
  if (data.skipped.count) {
    const list = data.skipped.first.map(({ key, reason }) => ({ file: key, reason }));
    const box = element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Files left out" });
    const more = data.skipped.count > list.length ? `, the first ${list.length} here, all in skipped.json` : "";
    host.append(element("details", {}, element("summary", { textContent: `${many(data.skipped.count, "file")} left out${more}` }), box));
    makeTable(box, "Files left out", (row) => row.file)(list, ["file", "reason"]);
  }
}

/* ---- the head, what runs, what is not here ---- */

const count = (status) => rows.filter((row) => row.status === status).length;

// The most of a column over the points of each trial, which share it, in all.
function total(name) {
  const found = new Map();
  for (const row of rows) if (row[name]) found.set(row.trial_id, Math.max(row[name], found.get(row.trial_id) ?? 0));
  return [...found.values()].reduce((sum, value) => sum + value, 0);
}

function fillHead() {
  const { best, model } = data;
  $("name").textContent = data.name;
  $("score-is").textContent = data.score_is;
  $("best-by").textContent = data.score_of;
  if (changed("verdict", best)) {
    if (best) {
      const spread = absent(best.half_width) ? "" : ` ± ${show("score", best.half_width)}`;
      const of = best.count > 1 ? `mean of ${best.count} ${best.draws} ± its 95% interval` : "one seed";
      $("figure").replaceChildren(element("b", { textContent: show("score", best.mean) }), element("i", { textContent: spread }), element("span", { textContent: `score: ${measure(data.score_of)}, on validation images; ${of}` }));
      const values = Object.entries(best.values).map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: show(name, value) })));
      $("verdict").replaceChildren(element("p", { className: "kicker", textContent: "Best configuration" }), values.length ? element("dl", { className: "values" }, ...values) : element("p", { textContent: "every setting as in the spec" }));
    } else {
      $("figure").replaceChildren();
      $("verdict").replaceChildren(element("p", { textContent: "No point is ok yet." }));
    }
    $("signs").replaceChildren(...(best?.signs ?? []).map(([kind, text]) => element("li", { className: kind, textContent: text })));
    $("signs").hidden = !best;
  }
  if (changed("also", data.verdict)) $("also").replaceChildren(...data.verdict.map((text) => element("li", { textContent: text })));
  $("in-full").hidden = !data.verdict.length;
  const notOk = ["stopped", "failed", "running", "pending"].filter(count).map((status) => `${count(status)} ${status}`).join(", ");
  const cost = total("cost_usd");
  const seen = model?.test && model.point_id === rows[0]?.point_id ? model.test : null;
  const tiles = [
    ["points", `${count("ok")} of ${rows.length} ok`, notOk],
    ["training time", clock(total("train_s")), `of ${many(once(columns.trial_id).length, "trial")}${data.progress ? ", as far as reported" : ""}`],
    ...(cost ? [["cost so far", `$${cost < 1 ? cost.toFixed(4) : cost.toFixed(2)}`, "by the nodes' price per hour"]] : []),
    ...(seen ? [["on test images", show("score", seen.value), `${show("score", seen.low)} to ${show("score", seen.high)} (95%), ${many(seen.images, "image")}`]] : []),
    ...(model && !absent(model.threshold) ? [[`${model.classes[1]} is said above`, String(model.threshold), "in place of 0.5; chosen on the validation images"]] : []),
    ...(model?.size_bytes ? [["model", size(model.size_bytes), "models/best.keras"]] : []),
  ];
  if (changed("tiles", tiles)) {
    $("tiles").replaceChildren(...tiles.map(([name, value, small]) => element("div", {}, element("dt", { textContent: name }), element("dd", {}, value, ...(small ? [element("small", { textContent: small })] : [])))));
  }
}

function fillNow() {
  const now = data.progress;
  $("now").hidden = !now;
  if (!now) return;
  const running = Object.entries(now.running);
  const left = now.left_s > 0 ? `About ${clock(now.left_s)} left. ` : "";
  $("now-note").textContent = `${left}${many(running.length, "trial")} running, ${now.waiting.toLocaleString("en")} waiting. ${now.preparing.map((line) => `${capital(line)}.`).join(" ")}`;
  const list = running.slice(0, 100).map(([id, { epochs, history }]) => {
    const row = rows.find((each) => each.trial_id === id);
    const last = history.at(-1);
    return { trial: row ? named([...axes.filter((axis) => axis !== "epochs" || !sharesTrial(id)), ...draws()], row) : id, epoch: last?.epoch ?? null, of: epochs, val_accuracy: last?.val_accuracy ?? null, val_loss: last?.val_loss ?? null, images_per_s: last?.images_per_s ?? null };
  });
  showNow(list, ["trial", "epoch", "of", "val_accuracy", "val_loss", "images_per_s"], [...list, { trial: "" }]);
}

const sharesTrial = (id) => once(rows.filter((row) => row.trial_id === id).map((row) => row.epochs)).length > 1;

function fillStopped() {
  const list = rows.filter((row) => row.status === "stopped");
  $("stopped").hidden = !list.length;
  const names = [...axes, ...draws(), "epochs_trained", "score", data.score_of, "stopped_because"];
  if (!list.length || !changed("stopped", list.map((row) => row.point_id + row.stopped_because))) return;
  $("race").replaceChildren(...data.verdict.filter((text) => /^(race|stopped):/.test(text)).map((text) => element("li", { textContent: text })));
  showStopped(list, once(names));
}

// Section -> why it has nothing to show.
function absences() {
  const ranked = rows.some((row) => row.status === "ok" && !absent(row[metric]));
  const none = ranked ? null : "No point is ok yet.";
  const batch = axes.includes("batch_size") ? none : "batch_size is no axis of this grid: give it two values to see what it does.";
  const model = data.model && data.validation ? null : "The run folder holds no predictions of a winner (models/best-validation.parquet).";
  return {
    curves: rows.some(hasCurve) ? null : "No trial has finished an epoch.",
    effects: data.effects ? null : "No axis has two values whose points are ok, so there is nothing to compare.",
    parallel: none, cost: none,
    heat: heatAxes().length > 1 ? none : "It takes two axes with two values each, and this grid has fewer.",
    time: batch, memory: batch, confusion: model, classes: model,
    samples: data.samples ? null : "No point changes its training images, or none has begun to train.",
    worst: model ?? (data.validation.worst.length ? null : "No image of the winner's predictions has a thumbnail."),
    "data-facts": data.dataset || data.skipped.count ? null : "The run folder holds no facts of its data (dataset.json).",
  };
}

function fillAbsences() {
  $("rates").hidden = !data.rates.length;
  const why = Object.entries(absences()).filter(([, reason]) => reason);
  for (const [id, reason] of Object.entries(absences())) $(id).hidden = Boolean(reason);
  $("absent").hidden = !why.length;
  const reasons = once(why.map(([, reason]) => reason));
  if (changed("absent", why)) facts($("absences"), reasons.map((reason) => [why.filter(([, each]) => each === reason).map(([id]) => $(id).dataset.short).join(", "), reason]));
  const shown = [...document.querySelectorAll("main > section:not([hidden])")];
  if (!changed("sections", shown.map(({ id }) => id))) return;
  $("sections").replaceChildren(...shown.map((section) => {
    const link = element("a", { href: `#${section.id}`, textContent: section.dataset.short });
    link.addEventListener("click", () => open(section));
    return element("li", {}, link);
  }));
}

// On a narrow screen a section is a heading that opens it.
const narrow = matchMedia("(max-width: 860px)").matches;
const OPEN = ["now", "board", "curves"];

function open(section, on = true) {
  section.classList.toggle("closed", !on);
  section.querySelector("h2 button")?.setAttribute("aria-expanded", on);
  if (on) refresh([...section.querySelectorAll(".chart")].map(({ id }) => id));
}

function foldSections() {
  for (const section of document.querySelectorAll("main > section")) {
    const heading = section.querySelector("h2");
    const button = element("button", { type: "button", textContent: heading.textContent });
    heading.replaceChildren(button);
    button.addEventListener("click", () => open(section, section.classList.contains("closed")));
    open(section, OPEN.includes(section.id));
  }
}

/* ---- drawing all of it, now and again ---- */

const showPoints = makeTable($("points"), "Points", (row) => row.point_id, pickCell, () => "No point fulfils all of this. “Show all” brings them back.");
const showFolded = makeTable($("folded"), "Configurations", keyOf, pickCell, () => "No configuration fulfils all of this.");
const showStopped = makeTable($("stopped-points"), "Stopped points", (row) => JSON.stringify(row));
const showClasses = makeTable($("class-figures"), "Figures by class", (row) => row.class);
const showNow = makeTable($("now-trials"), "Running trials", (row) => row.trial, null, () => "None at this moment.");

function render() {
  fillHead();
  fillNow();
  fillStopped();
  fillAbsences();
  fillFilters();
  $("configurations").hidden = !severalDraws;
  fillCurves();
  fillEffects();
  fillHeatAxes();
  fillCosts();
  fillWinner();
  fillData();
  if (changed("versions", data.versions)) facts($("versions"), Object.entries(data.versions));
  if (data.samples && changed("samples", data.samples)) $("samples-image").src = `data:image/webp;base64,${data.samples}`;
  if (changed("spec", data.spec)) $("spec-text").textContent = data.spec ?? "The run folder holds no spec.yaml.";
  pickBest();
  filter();
  showPicked();
  sayState();
}

const moment = (iso) => iso.replace("T", " ").replace("+00:00", " UTC");
let isReached = true;

function sayState() {
  const left = count("pending") + count("running");
  const done = rows.length - left;
  const isOver = !data.progress && (data.is_over || !live || !isReached); // a driver that ends still has the run as it writes the last page
  const state = !left && !data.progress ? "" : isOver ? `not running: ${many(left, "point")} not trained, which the same grid command goes on with` : "running";
  const text = live && !state ? "The run has ended" : live && !isReached && !isOver ? "This page is no longer served: it shows what was last read" : capital(state);
  const as = state === "running" && !live ? `, as it stood at ${moment(data.written)}` : "";
  if (changed("state", text + as)) $("state").textContent = text + as;
  document.title = live && state === "running" ? `${done}/${rows.length} ${data.name}` : data.name;
  $("written").textContent = `${live ? "Read" : "Written"} ${moment(data.written)}. This page holds all it shows and asks the network for nothing.`;
}

let tag = "";
async function poll() {
  try {
    const answer = await fetch("data.json", { headers: tag ? { "If-None-Match": tag } : {} });
    isReached = answer.ok || answer.status === 304;
    if (answer.ok) {
      tag = answer.headers.get("ETag");
      take(await answer.json());
      render();
    }
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // of fetch: nobody answers
    isReached = false;
  }
  sayState();
  setTimeout(poll, POLL_MS);
}

/* ---- on paper: everything open, in light, as wide as the page ---- */

let closedBefore = [];

function print(on) {
  start();
  root.classList.toggle("printing", on);
  if (on) closedBefore = [...document.querySelectorAll("details:not([open])")];
  for (const details of closedBefore) details.open = on;
  for (const [id, it] of charts) {
    it.stale = true;
    paint(id);
  }
  showPicked();
}

addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

function start() {
  if (!window.Plotly) document.head.append(element("script", { textContent: $("plotly").textContent }));
}

take(JSON.parse($("data").textContent));
if (narrow) foldSections();
chart("chart-parallel", parallelChart);
chart("chart-heat", heatChart);
chart("chart-cost", costChart);
chart("chart-time", () => batchChart("training time of an epoch", "s", (row) => (row.epochs_trained ? row.train_s / row.epochs_trained : null)));
chart("chart-memory", () => batchChart("peak memory of the worker", "MB", (row) => row.peak_memory_mb));
chart("chart-rates", rateChart);
chart("chart-confusion", confusionChart);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", (event) => (event.preventDefault(), showAll()));
for (const id of ["heat-axes", "cost-by"]) $(id).addEventListener("submit", (event) => event.preventDefault());
input.addEventListener("input", () => ((typed = input.value), filter()));
$("unbrush").addEventListener("click", () => brush(new Set(), ""));
$("brush-curve").addEventListener("click", () => pick(brushedWhat.key));
$("zoom-before").addEventListener("click", () => zoom(zoomed - 1));
$("zoom-next").addEventListener("click", () => zoom(zoomed + 1));
$("zoom-close").addEventListener("click", () => $("zoom").close());
$("zoom").addEventListener("click", (event) => event.target === $("zoom") && $("zoom").close());
$("zoom").addEventListener("keydown", ({ key }) => ["ArrowLeft", "ArrowRight"].includes(key) && zoom(zoomed + (key === "ArrowLeft" ? -1 : 1)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (showPicked(), refresh()));
render();

// Plotly takes a second to start: the verdict and the board are on the screen before.
requestAnimationFrame(() => setTimeout(() => {
  start();
  refresh();
  if (live) poll();
}));
