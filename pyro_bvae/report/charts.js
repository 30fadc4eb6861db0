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

// A linear or logarithmic map from values to places.
function scale([low, high], [start, end], log) {
  const f = log ? Math.log : v => v;
  const a = f(low), b = f(high);
  return v => start + (end - start) * (b === a ? 0.5 : (f(v) - a) / (b - a));
}

const text = (x, y, words, anchor = "start", kind = "") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}" class="${kind}">${escaped(words)}</text>`;
const line = (x1, y1, x2, y2, kind) =>
  `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" class="${kind}"/>`;

// Cuts a name to a width; the whole of it is in the hover text.
const fitted = (name, width) => {
  const most = Math.max(4, Math.floor(width / GLYPH));
  return name.length > most ? name.slice(0, most - 1) + "…" : name;
};

function axes(x, y, box, xs, ys, names) {
  const [left, top, right, bottom] = box;
  let out = "";
  for (const t of ys) out += line(left, y(t), right, y(t), "grid") + text(left - 6, y(t) + 4, shown(t), "end");
  for (const t of xs) out += text(x(t), bottom + 16, shown(t), "middle");
  out += line(left, bottom, right, bottom, "axis");
  return out + text((left + right) / 2, bottom + 33, fitted(names[0], right - left), "middle", "name") + text(left, top - 8, fitted(names[1], right - left), "start", "name");
}

const drawings = {
  lines(chart, width) {
    const height = 220, box = [54, 26, width - 14, height - 42];
    const across = chart.rows.map(r => r[0]);
    const all = chart.rows.flatMap(r => r.slice(1));
    const x = scale(extent(across), [box[0], box[2]], chart.log);
    const y = scale(extent(all), [box[3], box[1]]);
    const xs = chart.log ? [...new Set(across)] : ticks(...extent(across), Math.max(2, width / 90));
    let out = axes(x, y, box, xs, ticks(...extent(all), 4), [chart.columns[0], chart.columns.slice(1).length === 1 ? chart.columns[1] : ""]);
    chart.columns.slice(1).forEach((name, i) => {
      const points = chart.rows.filter(r => r[i + 1] !== null).map(r => [x(r[0]), y(r[i + 1])]);
      out += `<polyline points="${points.map(p => p.map(v => v.toFixed(1)).join()).join(" ")}" class="curve" style="stroke:var(--c${i})"/>`;
      if (points.length === 1 || chart.marks) points.forEach(p => { out += `<circle cx="${p[0]}" cy="${p[1]}" r="4" style="fill:var(--c${i})"/>`; });
      if (chart.columns.length > 2) out += `<circle cx="${box[0] + 6 + 150 * i}" cy="${box[1] - 12}" r="5" style="fill:var(--c${i})"/>` + text(box[0] + 16 + 150 * i, box[1] - 8, name);
    });
    const tips = chart.rows.map((r, i) => {
      const from = i ? (x(across[i - 1]) + x(r[0])) / 2 : box[0] - 5;
      const to = i + 1 < across.length ? (x(across[i + 1]) + x(r[0])) / 2 : box[2] + 5;
      const words = chart.columns.map((c, j) => `${c} ${shown(r[j])}`).join("\n");
      return `<rect x="${from}" y="${box[1]}" width="${Math.max(0, to - from)}" height="${box[3] - box[1]}" class="zone" data-tip="${escaped(words)}" data-at="${x(r[0])}"/>`;
    });
    return [out + tips.join(""), height];
  },
  bars(chart, width) {
    const rows = chart.rows, step = 24, height = rows.length * step + 30;
    const longest = Math.max(...rows.map(r => r[0].length), 4);
    const left = Math.min(width * 0.5, longest * GLYPH + 14), right = width - 64;
    const [low, high] = extent([0, ...rows.flatMap(r => [r[1] + (chart.marked ? 0 : r[2] ?? 0), r[3] ?? null])]);
    const x = scale([low, high], [left, right]);
    let out = ticks(low, high, 4).map(t => line(x(t), 2, x(t), height - 24, "grid") + text(x(t), height - 8, shown(t), "middle")).join("");
    rows.forEach((r, i) => {
      const y = i * step + 4, value = r[1] ?? 0;
      const words = chart.columns.map((c, j) => `${c} ${shown(r[j])}`).join("\n");
      out += `<g tabindex="0" data-tip="${escaped(words)}" aria-label="${escaped(words)}"><rect x="0" y="${y - 2}" width="${width}" height="${step}" class="zone"/>`;
      out += text(left - 8, y + 13, fitted(r[0], left - 8), "end");
      out += `<rect x="${Math.min(x(0), x(value))}" y="${y + 1}" width="${Math.max(0.5, Math.abs(x(value) - x(0)))}" height="15" class="bar"/>`;
      if (!chart.marked && r[2]) out += line(x(value - r[2]), y + 8.5, x(value + r[2]), y + 8.5, "error");
      if (chart.marked && r[3] !== null) out += line(x(r[3]), y - 2, x(r[3]), y + 19, "mark");
      out += text(x(Math.max(value + (chart.marked ? 0 : r[2] ?? 0), r[3] ?? 0, 0)) + 8, y + 13, shown(r[1])) + "</g>";
    });
    return [out, height];
  },
  waterfall(chart, width) {
    const rows = chart.rows, step = 36, top = 42, height = top + rows.length * step + 34;
    const left = Math.min(width * 0.4, Math.max(...rows.map(r => r[0].length)) * GLYPH + 14), right = width - 20;
    const range = extent([chart.start, chart.end, ...rows.flatMap(r => [r[1], r[2]])]);
    const x = scale(range, [left + 8, right - 40]);
    let out = ticks(...range, Math.max(2, (right - left) / 90)).map(t => line(x(t), top, x(t), height - 30, "grid") + text(x(t), height - 14, shown(t), "middle")).join("");
    [chart.start, chart.end].forEach((v, i) => {
      out += line(x(v), top - 6, x(v), height - 30, "end");
      out += text(x(v), top - 11 - 15 * (1 - i), `${chart.ends[i]} ${v.toFixed(2).replace("-", MINUS)}`, i ? "end" : "start", "name");
    });
    rows.forEach((r, i) => {
      const thin = r[0].startsWith("–"), y = top + i * step + (thin ? 11 : 6), size = r[2] - r[1];
      const words = `${r[0]}: ${shown(size)} nats` + (r[3] === null ? "" : ` ± ${shown(r[3])}`);
      out += `<g tabindex="0" data-tip="${escaped(words)}" aria-label="${escaped(words)}">` + text(left, y + (thin ? 11 : 16), fitted(r[0], left), "end");
      out += `<rect x="${Math.min(x(r[1]), x(r[2]))}" y="${y}" width="${Math.max(1, Math.abs(x(r[2]) - x(r[1])))}" height="${thin ? 12 : 24}" class="${size < 0 ? "bar negative" : "bar"}" style="${thin ? "" : `fill:var(--g${rows.filter(o => !o[0].startsWith("–")).indexOf(r)})`}"/>`;
      out += text(Math.max(x(r[1]), x(r[2])) + 5, y + (thin ? 11 : 16), size.toFixed(2).replace("-", MINUS), "start", "halo") + "</g>";
    });
    return [out + text((left + right) / 2, height - 1, `nats a datum`, "middle", "name"), height];
  },
  points(chart, width) {
    const height = 320, box = [60, 28, width - 24, height - 44];
    const across = extent(chart.rows.map(r => r[1])), up = extent(chart.rows.map(r => r[2]));
    const margin = ([a, b]) => [a - 0.06 * (b - a || 1), b + 0.06 * (b - a || 1)];
    const x = scale(margin(across), [box[0], box[2]]), y = scale(margin(up), [box[3], box[1]]);
    let out = axes(x, y, box, ticks(...across, Math.max(2, width / 110)), ticks(...up, 5), chart.columns.slice(1));
    if (chart.joined) out += `<polyline class="curve thin" points="${[...chart.rows].sort((a, b) => a[1] - b[1]).map(r => `${x(r[1])},${y(r[2])}`).join(" ")}"/>`;
    chart.rows.forEach(r => {
      const words = chart.columns.map((c, j) => `${c} ${shown(r[j])}`).join("\n");
      const before = x(r[1]) > (box[0] + box[2]) / 2;
      out += `<g tabindex="0" data-tip="${escaped(words)}" aria-label="${escaped(words)}"><circle cx="${x(r[1])}" cy="${y(r[2])}" r="6" class="bar"/>`;
      out += text(x(r[1]) + (before ? -10 : 10), y(r[2]) - 8, r[0], before ? "end" : "start") + "</g>";
    });
    return [out, height];
  },
};

// Draws a chart into its place, and again when the width of the place changes.
function draw(place, chart) {
  const width = Math.max(260, Math.floor(place.clientWidth || 640));
  if (!place.querySelector("svg")) {
    place.innerHTML = (chart.title ? `<h3>${escaped(chart.title)}</h3>` : "") +
      `<svg role="group"></svg><button type="button" class="data">data (CSV)</button>`;
    place.querySelector("button").addEventListener("click", () => save(place.chart, place.id));
    new ResizeObserver(() => { if (place.drawn !== Math.floor(place.clientWidth)) draw(place, place.chart); }).observe(place);
  }
  place.chart = chart;
  place.drawn = Math.floor(place.clientWidth);
  const [content, height] = drawings[chart.kind](chart, width);
  const svg = place.querySelector("svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", place.dataset.label || chart.title);
  svg.innerHTML = content;
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
