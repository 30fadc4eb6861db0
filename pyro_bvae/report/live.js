// The latents: sliders, the decoder, and the scatter of test data.
const live = page.live;
const at = id => document.getElementById(id);

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const floats = text => text === null ? null : new Float32Array(bytes(text).buffer);

// Half precision, which not every browser reads by itself.
function halves(text) {
  const raw = new Uint16Array(bytes(text).buffer), out = new Float32Array(raw.length);
  for (let i = 0; i < raw.length; i++) {
    const sign = raw[i] & 0x8000 ? -1 : 1, power = (raw[i] >> 10) & 31, part = raw[i] & 1023;
    out[i] = sign * (power ? (1 + part / 1024) * 2 ** (power - 15) : part * 2 ** -24);
  }
  return out;
}
const packed = p => p && (p.type === "uint8" ? bytes(p.values) : floats(p.values));

const L = live.num_latents, D = live.features.length, N = live.rows.length;
const codes = floats(live.codes), axes2 = floats(live.axes), draws = floats(live.draws);
const sizes = floats(live.sizes), covariates = floats(live.covariates);
const C = covariates ? covariates.length / N : 0;
const data = packed(live.data), decoded = packed(live.decoded), sheets = live.sheets && packed(live.sheets);
const active = live.latents.filter(l => l.active);
const ordered = active.length ? active : live.latents;
const weights = live.decoder && (live.decoder.type === "float16" ? halves : floats)(live.decoder.weights);

const activations = {
  silu: v => v / (1 + Math.exp(-v)), relu: v => Math.max(0, v), tanh: Math.tanh, sigmoid: v => 1 / (1 + Math.exp(-v)),
};

function linear(step, h) {
  const [rows, columns] = step.w_shape, out = new Float64Array(rows);
  for (let i = 0; i < rows; i++) {
    let sum = step.b === undefined || step.b === null ? 0 : weights[step.b + i];
    const w = step.w + i * columns;
    for (let j = 0; j < columns; j++) sum += weights[w + j] * h[j];
    out[i] = sum;
  }
  return out;
}

// A transposed convolution of kernel 4, stride 2 and padding 1, which doubles an image.
function spread(step, h) {
  const [channels, height, width] = step.shape, others = step.w_shape[1];
  const tall = 2 * height, wide = 2 * width, out = new Float64Array(others * tall * wide);
  for (let o = 0; o < others; o++) out.fill(step.b === null ? 0 : weights[step.b + o], o * tall * wide, (o + 1) * tall * wide);
  for (let c = 0; c < channels; c++) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const v = h[(c * height + y) * width + x];
    for (let o = 0; o < others; o++) for (let i = 0; i < 4; i++) {
      const row = 2 * y - 1 + i;
      if (row < 0 || row >= tall) continue;
      const w = step.w + ((c * others + o) * 4 + i) * 4, place = (o * tall + row) * wide + 2 * x - 1;
      for (let j = 0; j < 4; j++) if (2 * x - 1 + j >= 0 && 2 * x - 1 + j < wide) out[place + j] += v * weights[w + j];
    }
  }
  return out;
}

const grey = v => Math.abs(v) < 1e-2 ? 0.5 + v / 12 : 1 / (1 - Math.exp(-v)) - 1 / v;
function softmax(h) {
  const most = Math.max(...h), e = Array.from(h, v => Math.exp(v - most)), sum = e.reduce((a, b) => a + b, 0);
  return e.map(v => v / sum);
}

// The decoder's mean at a code, in the context of a datum.
function decode(z, datum) {
  let h = Float64Array.from([...z, ...(C ? covariates.slice(datum * C, datum * C + C) : [])]);
  const kept = [];
  for (const step of live.decoder.steps) {
    if (step.do === "linear") h = linear(step, h);
    else if (step.do === "spread") h = spread(step, h);
    else if (step.do === "scale") h = h.slice(0, D).map((v, i) => v * weights[step.w + i] + weights[step.b + i]);
    else if (step.do === "keep") kept.push(h);
    else if (step.do === "add") { const other = kept.pop(); h = h.map((v, i) => v + other[i]); }
    else h = h.map(activations[step.do]);
  }
  const [name, gated] = [live.decoder.mean.replace("gated-", ""), live.decoder.mean.startsWith("gated-")];
  const own = h.slice(0, D), size = sizes ? sizes[datum] : 1;
  const mean = {
    identity: () => own, sigmoid: () => own.map(activations.sigmoid), grey: () => own.map(grey),
    softmax: () => softmax(own).map(v => size * v), exp: () => own.map(v => size * Math.exp(v)),
  }[name]();
  return gated ? mean.map((v, i) => v * activations.sigmoid(-h[h.length - D + i])) : mean;
}

// The state: a code, the datum whose context holds, and the decoded features.
const state = { z: codes.slice(0, L), datum: 0, words: "", mean: null, start: null, end: null };
const place = new Map(live.held.map((i, k) => [i, k]));
const known = i => place.has(i);
const row = (values, k) => values.subarray(k * D, (k + 1) * D);
const own = (values, i) => row(values, place.get(i));
const pixels = mean => Uint8ClampedArray.from(mean, v => Math.round(255 * Math.min(1, Math.max(0, (v - live.grey[0]) / (live.grey[1] - live.grey[0])))));

function paint(canvas, levels) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), [channels, height, width] = live.shape;
  const image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = levels ? levels[(channels === 3 ? c : 0) * height * width + i] : 128;
    image.data[4 * i + 3] = levels ? 255 : 40;
  }
  context.putImageData(image, 0, 0);
}

function profile() {
  const word = at("search").value.toLowerCase(), order = at("order").value, seen = known(state.datum) ? own(data, state.datum) : null;
  const finite = i => seen && Number.isFinite(seen[i]) ? seen[i] : null;
  let rows = live.features.map((name, i) => [name, state.mean ? state.mean[i] : null, finite(i) === null || !state.mean ? null : state.mean[i] - own[i], finite(i)]);
  rows = rows.filter(r => r[0].toLowerCase().includes(word));
  const size = { size: r => Math.abs(r[1] ?? r[3] ?? 0), change: r => Math.abs(r[2] ?? 0) }[order];
  if (size) rows.sort((a, b) => size(b) - size(a));
  const chart = { kind: "bars", marked: true, columns: ["feature", "decoded mean", "mean − datum", "datum"], rows: rows.slice(0, 24), title: "" };
  draw(at("profile"), chart);
  at("made-title").textContent = rows.length > 24 ? `Decoded: 24 of ${rows.length} features` : "Decoded";
}

const label = i => live.labels === null ? "" : live.label_names[live.labels[i]];
const named = i => `test datum ${live.rows[i]}` + (live.names[i] === String(live.rows[i]) ? "" : ` (${live.names[i]})`) + (live.labels === null ? "" : `, label ${label(i)}`) +
  (live.evidence[i] === null ? "" : `, evidence ${shown(live.evidence[i])} nats`) +
  (live.pareto_k[i] === null ? "" : `, Pareto k ${shown(live.pareto_k[i])}`);

function show(words) {
  state.words = words ?? state.words;
  if (live.decoder) state.mean = decode(state.z, state.datum);
  if (live.kind === "image") {
    paint(at("decoded"), live.decoder ? pixels(state.mean) : state.mean);
    paint(at("datum"), known(state.datum) ? own(data, state.datum) : null);
  } else profile();
  at("about").textContent = state.words + (known(state.datum) ? "" : " Its values are not in the page, which holds a part of the data.");
  for (const l of ordered) {
    const slider = at(`z${l.index}`);
    slider.value = sheets ? slider.value : state.z[l.index];
    const here = sheets ? l.low + (l.high - l.low) * slider.value / (live.sheets.nodes - 1) : state.z[l.index];
    slider.nextElementSibling.textContent = here.toFixed(2).replace("-", MINUS);
  }
  cross();
}

function take(i) {
  state.datum = i;
  state.z = codes.slice(i * L, (i + 1) * L);
  if (!live.decoder) state.mean = known(i) ? own(decoded, i) : null;
  at("row").value = live.rows[i];
  show(`At ${named(i)}.`);
}

// Sliders, one for each active latent, in the order of their KL.
ordered.forEach((l, place) => {
  if (!live.decoder && (!sheets || place >= sheets.length / D / live.sheets.nodes)) {
    l.hidden = true;
    return;
  }
  const label = document.createElement("label");
  label.innerHTML = `<span>${escaped(l.name)}${l.kl === null ? "" : ` <small>KL ${l.kl.toFixed(2)}</small>`}</span><input type="range" id="z${l.index}"><output></output>`;
  const slider = label.querySelector("input");
  Object.assign(slider, sheets ? { min: 0, max: live.sheets.nodes - 1, step: 1 } : { min: l.low, max: l.high, step: "any" });
  slider.addEventListener("input", () => {
    if (sheets) {
      state.datum = 0;
      state.mean = row(sheets, place * live.sheets.nodes + slider.valueAsNumber);
    } else state.z[l.index] = slider.valueAsNumber;
    show(`Moved from ${named(state.datum)}.`);
  });
  at("sliders").append(label);
});
for (let i = ordered.length - 1; i >= 0; i--) if (ordered[i].hidden) ordered.splice(i, 1);

at("row").addEventListener("change", () => {
  const i = live.rows.indexOf(at("row").valueAsNumber);
  if (i >= 0) take(i);
  else at("about").textContent = `The page holds ${N} of the test data, and not this one.`;
});
at("draw")?.addEventListener("click", () => {
  const i = Math.floor(Math.random() * draws.length / L);
  state.z = draws.slice(i * L, (i + 1) * L);
  show("A draw from the prior.");
});
for (const [id, end] of [["from", "start"], ["to", "end"]]) at(id)?.addEventListener("click", () => {
  state[end] = state.z.slice();
  at("share").disabled = !(state.start && state.end);
  at("about").textContent = state.start && state.end ? "Both ends are set: move the slider between them." : "Go to another code, and set the other end.";
});
at("share")?.addEventListener("input", () => {
  const t = at("share").valueAsNumber;
  state.z = state.start.map((v, i) => (1 - t) * v + t * state.end[i]);
  show(`${Math.round(100 * t)}% of the way between the two codes.`);
});
for (const id of ["search", "order"]) at(id)?.addEventListener("input", profile);

// The scatter.
const places = [...live.latents.map(l => ({ name: l.name, of: i => codes[i * L + l.index], here: () => state.z[l.index] })),
  ...[0, 1].map(k => ({ name: `principal component ${k + 1}`, of: i => axes2[2 * i + k], here: null }))];
const colours = [["none", "nothing"], ...(live.labels ? [["label", "label"]] : []),
  ...["evidence", "pareto_k"].filter(k => live[k].some(v => v !== null)).map(k => [k, k === "evidence" ? "evidence" : "Pareto k"])];
const options = (id, names) => { at(id).innerHTML = names.map(([v, n]) => `<option value="${escaped(v)}">${escaped(n)}</option>`).join(""); };
for (const id of ["across", "up"]) options(id, places.map((p, i) => [i, p.name]));
options("colour", colours);
at("up").value = Math.min(1, places.length - 1);
at("colour").value = live.labels ? "label" : colours[colours.length > 1 ? 1 : 0][0];
const classes = live.labels ? [...new Set(live.labels)].sort((a, b) => a - b) : [];
const classOf = new Map(classes.map((c, i) => [c, i]));
const SHAPES = [(x, y) => `<circle cx="${x}" cy="${y}" r="4"`, (x, y) => `<rect x="${x - 3.6}" y="${y - 3.6}" width="7.2" height="7.2"`,
  (x, y) => `<path d="M${x} ${y - 4.8}L${x + 4.6} ${y + 3.6}L${x - 4.6} ${y + 3.6}Z"`, (x, y) => `<path d="M${x} ${y - 5}L${x + 5} ${y}L${x} ${y + 5}L${x - 5} ${y}Z"`];
let map = null, only = null;

drawings.scatter = (chart, width) => {
  const [px, py] = ["across", "up"].map(id => places[at(id).value]), kind = at("colour").value;
  const height = Math.min(460, Math.max(300, width * 0.8)), box = [46, 26, width - 12, height - 40];
  const xs = [], ys = [];
  for (let i = 0; i < N; i++) { xs.push(px.of(i)); ys.push(py.of(i)); }
  const margin = ([a, b]) => [a - 0.04 * (b - a || 1), b + 0.04 * (b - a || 1)];
  const rx = margin(extent(xs)), ry = margin(extent(ys));
  const x = scale(rx, [box[0], box[2]]), y = scale(ry, [box[3], box[1]]);
  map = { x, y, px, py };
  let out = axes(x, y, box, ticks(...rx, 5), ticks(...ry, 5), [px.name, py.name]);
  const values = live[kind], sorted = kind === "label" || kind === "none" ? [] : values.filter(v => v !== null).sort((a, b) => a - b);
  const marks = [];
  for (let i = 0; i < N; i++) {
    let shape = 0, style = "fill:var(--c0)";
    if (kind === "label") {
      const c = classOf.get(live.labels[i]);
      if (only !== null && only !== c) continue;
      [shape, style] = [Math.floor(c / 12) % 4, `fill:var(--c${c % 12})`];
    } else if (kind !== "none") {
      const v = values[i], share = v === null ? null : sorted.findIndex(o => o >= v) / Math.max(1, sorted.length - 1);
      style = share === null ? "fill:none;stroke:var(--soft)" : `fill:color-mix(in oklab, var(--low), var(--high) ${Math.round(100 * share)}%)`;
    }
    marks.push(SHAPES[shape](x(xs[i]).toFixed(1) * 1, y(ys[i]).toFixed(1) * 1) + ` class="dot" style="${style}" data-row="${i}" data-tip="${escaped(named(i).replaceAll(", ", "\n"))}"/>`);
  }
  return [out + marks.join("") + `<g id="cross"></g>`, height];
};

function cross() {
  const place = at("cross");
  if (!place) return;
  const { x, y, px, py } = map;
  if (!px.here || !py.here || (sheets && !live.decoder)) { place.innerHTML = ""; return; }
  const [a, b] = [x(px.here()), y(py.here())];
  place.innerHTML = line(a - 9, b, a + 9, b, "cross") + line(a, b - 9, a, b + 9, "cross");
}

function table() {
  const columns = ["datum", "label", "evidence", "Pareto k", ...live.latents.map(l => `z${l.index}`)];
  const rows = live.rows.map((r, i) => [live.names[i], label(i), live.evidence[i], live.pareto_k[i], ...live.latents.map(l => codes[i * L + l.index])]);
  return { columns, rows };
}

function legend() {
  const kind = at("colour").value, place = at("legend");
  if (kind === "label") place.innerHTML = classes.map((c, i) => `<button type="button" aria-pressed="${only === i}" data-class="${i}"><svg viewBox="-6 -6 12 12" aria-hidden="true">${SHAPES[Math.floor(i / 12) % 4](0, 0)} style="fill:var(--c${i % 12})"/></svg>${escaped(live.label_names[c])}</button>`).join("");
  else if (kind === "none") place.innerHTML = "";
  else {
    const [low, high] = extent(live[kind]);
    place.innerHTML = `<span>${shown(low)}</span> <i class="ramp"></i> <span>${shown(high)}</span> <small>by rank; open marks were not measured</small>`;
  }
}

draw(at("scatter"), { kind: "scatter", title: "", ...table() });
at("scatter").insertAdjacentHTML("beforeend", `<div id="legend"></div>`);
at("scatter").redrawn = cross;
const redraw = () => { draw(at("scatter"), at("scatter").chart); legend(); };
for (const id of ["across", "up", "colour"]) at(id).addEventListener("change", () => { only = null; redraw(); });
at("legend").addEventListener("click", e => {
  const button = e.target.closest("button");
  if (!button) return;
  only = only === Number(button.dataset.class) ? null : Number(button.dataset.class);
  redraw();
});
document.addEventListener("click", e => {
  const mark = e.target.closest("[data-row]");
  if (mark) take(Number(mark.dataset.row));
});

// The data of least evidence: strange to the model.
const strange = live.evidence.map((v, i) => [v, i]).filter(([v]) => v !== null).sort((a, b) => a[0] - b[0]).slice(0, 8);
if (strange.length) {
  at("worst").innerHTML = `<h3>Strangest data: least evidence</h3><div class="strange">` + strange.map(([v, i]) =>
    `<button type="button" data-row="${i}" data-tip="${escaped(named(i).replaceAll(", ", "\n"))}">${live.kind === "image" && known(i) ? `<canvas width="${live.shape[2]}" height="${live.shape[1]}"></canvas>` : `<span>${escaped(live.names[i])}</span>`}<small>${shown(v)}</small></button>`).join("") + "</div>";
  at("worst").querySelectorAll("canvas").forEach(c => paint(c, own(data, Number(c.parentElement.dataset.row))));
}
legend();
take(0);
