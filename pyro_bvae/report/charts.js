"use strict";
// Charts from the tables in the page, hover values, CSV, and tables that sort.
const page = JSON.parse(document.getElementById("page-data").textContent);
const MINUS = "\u2212";
// Width of a character of the names, at most for most of them.
const GLYPH = 7.3;
const escaped = text => String(text).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
const round = value => Number(value.toPrecision(4));
const shown = value => typeof value === "number" ? String(round(value)).replace("-", MINUS) : String(value ?? "");

function ticks(low, high, count) {
  const span = high - low || 1, raw = span / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const result = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) result.push(round(t));
  return result;
}

const extent = values => {
  const known = values.filter(v => v !== null && isFinite(v));
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
};

// A linear or logarithmic map from values to places, and back.
function scale([low, high], [start, end], log) {
  const f = log ? Math.log : v => v, g = log ? Math.exp : v => v;
  const a = f(low), b = f(high);
  const of = v => start + (end - start) * (b === a ? 0.5 : (f(v) - a) / (b - a));
  of.back = p => g(a + (b - a) * (p - start) / (end - start));
  return of;
}
const margin = ([a, b], share) => [a - share * (b - a || 1), b + share * (b - a || 1)];

const text = (x, y, words, anchor = "start", kind = "") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" class="${kind}">${escaped(words)}</text>`;
const line = (x1, y1, x2, y2, kind) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${kind}"/>`;
const told = (chart, r) => chart.columns.map((c, j) => [c, r[j]]).filter(([, v]) => v !== null && v !== undefined).map(([c, v]) => `${c} ${shown(v)}`).join("\n");

// Cuts a name to a width; the whole of it is in the hover text.
const fitted = (name, width) => {
  const most = Math.max(4, Math.floor(width / GLYPH));
  return name.length > most ? name.slice(0, most - 1) + "…" : name;
};

// Breaks a name into lines of a width.
function broken(name, width) {
  const most = Math.max(6, Math.floor(width / GLYPH)), lines = [""];
  for (const word of name.split(" ").flatMap(w => w.match(new RegExp(`[^]{1,${most}}`, "g")) ?? [""])) {
    const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
    if (longer.length > most) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

// The frame of a chart over the ranges of its values, or over the part that is zoomed to.
function frame(place, box, ranges, names, { log = false, xs = null } = {}) {
  const [rx, ry] = place.view ?? ranges, [left, top, right, bottom] = box;
  const x = scale(rx, [left, right], log), y = scale(ry, [bottom, top]);
  place.map = { x, y, box };
  let out = "";
  for (const t of ticks(...ry, 5)) out += line(left, y(t), right, y(t), "grid") + text(left - 6, y(t) + 4, shown(t), "end");
  for (const t of xs ?? ticks(...rx, Math.min(8, Math.max(2, (right - left) / 90)))) if (x(t) > left - 1 && x(t) < right + 1) out += text(x(t), bottom + 16, shown(t), "middle");
  out += line(left, bottom, right, bottom, "axis");
  out += text((left + right) / 2, bottom + 33, fitted(names[0], right - left), "middle", "name") + text(left, top - 8, fitted(names[1], right - left), "start", "name");
  const inside = content => `<clipPath id="${place.id}-clip"><rect x="${left - 6}" y="${top - 6}" width="${right - left + 12}" height="${bottom - top + 12}"/></clipPath><g clip-path="url(#${place.id}-clip)">${content}</g>`;
  return { x, y, out, inside };
}

// Rows of a name, marks along an axis, and a value at the right.
function rows(chart, width, values, at, marks, { name = "", legend = [], value = () => "" } = {}) {
  const left = Math.min(width * 0.45, Math.max(...chart.rows.map(r => r[0].length), 4) * GLYPH + 14), right = width - 60;
  const names = chart.rows.map(r => broken(r[0], left - 8)), steps = names.map(lines => Math.max(24, 13 * lines.length + 7));
  const top = legend.length ? 26 : 2, bottom = top + steps.reduce((a, b) => a + b, 0), height = bottom + (name ? 38 : 24);
  const range = extent([...(at ? [] : [0]), ...chart.rows.flatMap(r => values(r).filter(v => v !== null).map(v => at ? at(v, r) : v))]);
  const place = scale(margin(range, at ? 0.03 : 0), [left, right]);
  const x = (v, r) => place(at ? at(v, r) : v);
  let out = ticks(...range, Math.min(8, Math.max(2, (right - left) / 60))).map(t => line(place(t), top, place(t), bottom, "grid") + text(place(t), bottom + 14, shown(t), "middle")).join("");
  out += text(width - 2, height - 6, name, "end", "name");
  let along = 4, y = top;
  for (const [words, mark] of legend) {
    out += mark(along + 9) + text(along + 24, 14, words, "start", "name");
    along += 36 + words.length * GLYPH * 0.9;
  }
  chart.rows.forEach((r, i) => {
    const middle = y + steps[i] / 2, words = escaped(told(chart, r));
    out += `<g tabindex="0" data-tip="${words}" aria-label="${words}"><rect x="0" y="${y}" width="${width}" height="${steps[i]}" class="zone"/>`;
    names[i].forEach((part, k) => { out += text(left - 8, middle + 4 + 13 * (k - (names[i].length - 1) / 2), part, "end"); });
    out += marks(r, x, middle) + text(width - 2, middle + 4, value(r), "end") + "</g>";
    y += steps[i];
  });
  return [out, height];
}
const bar = (from, to, y) => `<rect x="${Math.min(from, to)}" y="${y - 7.5}" width="${Math.max(0.5, Math.abs(to - from))}" height="15" class="bar"/>`;

const drawings = {
  lines(chart, width, place) {
    const height = 220, box = [54, 26, width - 14, height - 42], across = chart.rows.map(r => r[0]);
    const ranges = [extent(across), extent(chart.rows.flatMap(r => r.slice(1)))];
    const names = [chart.columns[0], chart.columns.length === 2 ? chart.columns[1] : ""];
    const { x, y, out, inside } = frame(place, box, ranges, names, { log: chart.log, xs: chart.log ? [...new Set(across)] : null });
    let curves = "", legend = "";
    chart.columns.slice(1).forEach((name, i) => {
      const points = chart.rows.filter(r => r[i + 1] !== null).map(r => [x(r[0]), y(r[i + 1])]);
      curves += `<polyline points="${points.map(p => p.map(v => v.toFixed(1)).join()).join(" ")}" class="curve" style="stroke:var(--c${i})"/>`;
      if (points.length === 1 || chart.marks) points.forEach(p => { curves += `<circle cx="${p[0]}" cy="${p[1]}" r="4" style="fill:var(--c${i})"/>`; });
      if (chart.columns.length > 2) legend += `<circle cx="${box[0] + 6 + 150 * i}" cy="${box[1] - 12}" r="5" style="fill:var(--c${i})"/>` + text(box[0] + 16 + 150 * i, box[1] - 8, name);
    });
    const zones = chart.rows.map((r, i) => {
      const from = i ? (x(across[i - 1]) + x(r[0])) / 2 : x(r[0]) - 5;
      const to = i + 1 < across.length ? (x(across[i + 1]) + x(r[0])) / 2 : x(r[0]) + 5;
      return `<rect x="${from}" y="${box[1]}" width="${Math.max(0, to - from)}" height="${box[3] - box[1]}" class="zone" data-tip="${escaped(told(chart, r))}"/>`;
    });
    return [out + legend + inside(curves + zones.join("")), height];
  },
  bars(chart, width) {
    const most = r => r[1] + (r[2] ?? 0);
    return rows(chart, width, r => [r[1], most(r)], null, (r, x, y) => bar(x(0), x(r[1]), y) + (r[2] ? line(x(r[1] - r[2]), y, x(most(r)), y, "error") : ""),
      { value: r => shown(r[1]) });
  },
  // A mean for each feature, beside the datum; in units of the data where features have their own.
  profile(chart, width) {
    const scaled = chart.rows.some(r => r[6] > 0), at = scaled ? (v, r) => (v - r[5]) / r[6] : null;
    const marks = (r, x, y) => (r[1] === null ? "" : bar(x(scaled ? r[5] : 0, r), x(r[1], r), y)) +
      (r[1] !== null && r[4] > 0 ? line(x(r[1] - r[4], r), y, x(r[1] + r[4], r), y, "error") : "") + (r[3] === null ? "" : line(x(r[3], r), y - 10, x(r[3], r), y + 10, "mark"));
    const legend = [["decoded mean", x => bar(x - 8, x + 8, 10)], ["datum", x => line(x, 2, x, 19, "mark")]];
    if (chart.rows.some(r => r[4] > 0)) legend.push(["± over draws", x => line(x - 9, 10, x + 9, 10, "error")]);
    const values = r => [r[1], r[3], ...(r[1] === null ? [] : [r[1] - (r[4] ?? 0), r[1] + (r[4] ?? 0)])];
    return rows(chart, width, values, at, marks,
      { legend, value: r => shown(r[1]), name: scaled ? "standard deviations from the mean" : "" });
  },
  // From 10% to 90% of each feature, in the data and in draws of the model.
  ranges(chart, width) {
    const span = (r, x, y, k, kind) => r[k] === null ? "" : line(x(r[k], r), y, x(r[k + 2], r), y, kind) + line(x(r[k + 1], r), y - 4, x(r[k + 1], r), y + 4, kind);
    const legend = [["data", x => line(x - 9, 10, x + 9, 10, "seen")], ["draws of the model", x => line(x - 9, 10, x + 9, 10, "drawn")]];
    return rows(chart, width, r => r.slice(1, 7), (v, r) => (v - r[7]) / r[8], (r, x, y) => span(r, x, y - 5, 1, "seen") + span(r, x, y + 5, 4, "drawn"),
      { legend, name: "standard deviations from the mean" });
  },
  waterfall(chart, width) {
    const step = 36, top = 42, height = top + chart.rows.length * step + 34;
    const left = Math.min(width * 0.4, Math.max(...chart.rows.map(r => r[0].length)) * GLYPH + 14), right = width - 44;
    const range = extent([chart.start, chart.end, ...chart.rows.flatMap(r => [r[1], r[2]])]);
    const x = scale(range, [left + 8, right - 12]);
    let out = ticks(...range, Math.max(2, (right - left) / 90)).map(t => line(x(t), top, x(t), height - 30, "grid") + text(x(t), height - 16, shown(t), "middle")).join("");
    [chart.start, chart.end].forEach((v, i) => {
      out += line(x(v), top - 6, x(v), height - 30, "end");
      out += text(x(v), top - 11 - 15 * (1 - i), `${chart.ends[i]} ${v.toFixed(2).replace("-", MINUS)}`, i ? "end" : "start", "name");
    });
    chart.rows.forEach((r, i) => {
      const thin = r[0].startsWith("–"), y = top + i * step + (thin ? 11 : 6), size = r[2] - r[1];
      const words = `${r[0]}: ${shown(size)} nats` + (r[3] === null ? "" : ` ± ${shown(r[3])}`);
      out += `<g tabindex="0" data-tip="${escaped(words)}" aria-label="${escaped(words)}">` + text(left, y + (thin ? 11 : 16), fitted(r[0], left), "end");
      out += `<rect x="${Math.min(x(r[1]), x(r[2]))}" y="${y}" width="${Math.max(1, Math.abs(x(r[2]) - x(r[1])))}" height="${thin ? 12 : 24}" class="${size < 0 ? "bar negative" : "bar"}" style="${thin ? "" : `fill:var(--g${chart.rows.filter(o => !o[0].startsWith("–")).indexOf(r)})`}"/>`;
      out += text(width - 2, y + (thin ? 11 : 16), size.toFixed(2).replace("-", MINUS), "end", "name") + "</g>";
    });
    return [out + text((left + right) / 2, height - 2, `nats a datum`, "middle", "name"), height];
  },
  points(chart, width, place) {
    const height = 320, box = [60, 28, width - 24, height - 44];
    const ranges = [1, 2].map(k => margin(extent(chart.rows.map(r => r[k])), 0.06));
    const { x, y, out, inside } = frame(place, box, ranges, chart.columns.slice(1));
    let marks = "";
    if (chart.joined) marks += `<polyline class="curve thin" points="${[...chart.rows].sort((a, b) => a[1] - b[1]).map(r => `${x(r[1])},${y(r[2])}`).join(" ")}"/>`;
    chart.rows.forEach(r => {
      const words = escaped(told(chart, r)), before = x(r[1]) > (box[0] + box[2]) / 2;
      marks += `<g tabindex="0" data-tip="${words}" aria-label="${words}"><circle cx="${x(r[1])}" cy="${y(r[2])}" r="6" class="bar"/>`;
      marks += text(x(r[1]) + (before ? -10 : 10), y(r[2]) - 8, r[0], before ? "end" : "start") + "</g>";
    });
    return [out + inside(marks), height];
  },
};

// Zoom: to a rectangle of places, by a factor about a place, or back to the whole.
function zoom(place, [left, right], [bottom, top]) {
  const { x, y } = place.map;
  place.view = [[x.back(left), x.back(right)], [y.back(bottom), y.back(top)]];
  draw(place, place.chart);
}
function zoomBy(place, factor, about) {
  const [left, top, right, bottom] = place.map.box, [cx, cy] = about ?? [(left + right) / 2, (top + bottom) / 2];
  zoom(place, [left, right].map(v => cx + factor * (v - cx)), [bottom, top].map(v => cy + factor * (v - cy)));
}
function whole(place) {
  place.view = null;
  draw(place, place.chart);
}
const span = path => [0, 1].map(k => extent(path.map(p => p[k])));
const KEYS = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };

function zoomable(place, svg) {
  place.insertAdjacentHTML("beforeend", ` <span class="zoom"><button type="button" aria-label="Zoom in">+</button><button type="button" aria-label="Zoom out">−</button><button type="button">whole</button></span>`);
  const [more, less, all] = place.querySelectorAll(".zoom button");
  more.addEventListener("click", () => zoomBy(place, 0.7));
  less.addEventListener("click", () => zoomBy(place, 1 / 0.7));
  all.addEventListener("click", () => whole(place));
  svg.tabIndex = 0;
  svg.addEventListener("keydown", e => {
    const [left, top, right, bottom] = place.map.box, way = KEYS[e.key];
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    if (way) zoom(place, [left, right].map(v => v + way[0] * (right - left)), [bottom, top].map(v => v + way[1] * (bottom - top)));
    else if (e.key === "+" || e.key === "=") zoomBy(place, 0.7);
    else if (e.key === "-") zoomBy(place, 1 / 0.7);
    else if (e.key === "0") whole(place);
    else return;
    e.preventDefault();
  });
  const at = e => {
    const box = svg.getBoundingClientRect(), k = svg.viewBox.baseVal.width / box.width;
    return [(e.clientX - box.left) * k, (e.clientY - box.top) * k];
  };
  svg.addEventListener("wheel", e => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    zoomBy(place, e.deltaY < 0 ? 0.8 : 1.25, at(e));
  }, { passive: false });
  // A drag: of a rectangle to zoom to, unless the place has a gesture of its own.
  const gesture = place.gesture ?? {
    draw: path => { const [[x0, x1], [y0, y1]] = span(path); return `<rect x="${x0}" y="${y0}" width="${x1 - x0}" height="${y1 - y0}"/>`; },
    done: path => { const [xs, ys] = span(path); zoom(place, xs, [ys[1], ys[0]]); },
  };
  let path = null, from = null;
  svg.addEventListener("pointerdown", e => {
    from = e.target.closest("[data-row]");
    path = e.button || (e.pointerType === "touch" && !from) ? null : [at(e)];
  });
  svg.addEventListener("pointermove", e => {
    if (!path) return;
    const here = at(e);
    if (path.length === 1 && Math.hypot(here[0] - path[0][0], here[1] - path[0][1]) < 6) return;
    if (path.length === 1) svg.setPointerCapture(e.pointerId);
    path.push(here);
    svg.querySelector(".trail").innerHTML = gesture.draw(path, from);
  });
  svg.addEventListener("pointercancel", () => { path = null; });
  svg.addEventListener("pointerup", () => {
    const own = path;
    path = null;
    svg.querySelector(".trail").innerHTML = "";
    if (own && own.length > 1) gesture.done(own, from);
  });
}

// Draws a chart into its place, and again when the width of the place changes.
function draw(place, chart) {
  const width = Math.max(260, Math.floor(place.clientWidth || 640)), isNew = !place.querySelector("svg");
  if (isNew) {
    place.innerHTML = (chart.title ? `<h3>${escaped(chart.title)}</h3>` : "") +
      `<svg role="group"></svg><button type="button" class="data">data (CSV)</button>`;
    place.querySelector("button").addEventListener("click", () => save(place.chart, place.id));
    new ResizeObserver(() => { if (place.drawn !== Math.floor(place.clientWidth)) draw(place, place.chart); }).observe(place);
  }
  place.chart = chart;
  place.drawn = Math.floor(place.clientWidth);
  const [content, height] = drawings[chart.kind](chart, width, place);
  const svg = place.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", place.dataset.label || chart.title);
  svg.innerHTML = content + `<g class="trail"></g>`;
  if (isNew && place.map) zoomable(place, svg);
  place.redrawn?.();
}

const quoted = cell => {
  const words = String(cell ?? "");
  return /[",\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
};
const csv = table => [table.columns, ...table.rows].map(r => r.map(quoted).join(",")).join("\n") + "\n";

function save(table, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

const tip = document.getElementById("tip");
function tell(target, x, y) {
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(x + 14, room))}px`;
  tip.style.top = `${y + 16}px`;
}
document.addEventListener("pointermove", e => tell(e.target.closest?.("[data-tip]"), e.clientX, e.clientY));
document.addEventListener("focusin", e => {
  const target = e.target.closest?.("[data-tip]"), box = target?.getBoundingClientRect();
  tell(target, box?.left ?? 0, box?.top ?? 0);
});
document.addEventListener("keydown", e => { if (e.key === "Escape") tip.hidden = true; });

for (const [name, chart] of Object.entries(page.charts)) draw(document.getElementById(name), chart);

// The words of a cell as a number, where it starts with one.
const value = cell => parseFloat(cell.textContent.replace(MINUS, "-").replaceAll(",", ""));
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], sign = down ? -1 : 1;
      [...body.rows].sort((a, b) => {
        const [p, q] = [a, b].map(r => value(r.cells[column]));
        if (isNaN(p) || isNaN(q)) {
          if (isNaN(p) !== isNaN(q)) return isNaN(p) ? 1 : -1;
          return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
        }
        return sign * (p - q);
      }).forEach(row => body.append(row));
    });
  });
}
