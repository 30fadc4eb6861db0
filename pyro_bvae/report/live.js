// The latents: sliders, the decoder, and what it makes beside a datum.
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
const packed = p => p && { uint8: bytes, uint16: t => new Uint16Array(bytes(t).buffer), float32: floats }[p.type](p.values);

const L = live.num_latents, D = live.features.length, N = live.rows.length;
const codes = floats(live.codes), draws = floats(live.draws), moments = floats(live.moments), spreads = packed(live.spread);
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

// The state: a code, the datum whose context holds, the decoded features, their spread over draws
// from the guide, and two codes to go between.
const state = { z: codes.slice(0, L), datum: 0, words: "", mean: null, spread: null, start: null, end: null };
const place = new Map(live.held.map((i, k) => [i, k]));
const known = i => place.has(i);
const row = (values, k) => values.subarray(k * D, (k + 1) * D);
const own = (values, i) => row(values, place.get(i));
const range = live.grey[1] - live.grey[0] || 1;
const pixels = mean => Uint8ClampedArray.from(mean, v => Math.round(255 * Math.min(1, Math.max(0, (v - live.grey[0]) / range))));

function paint(canvas, levels) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), [channels, height, width] = live.shape;
  const image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = levels ? levels[(channels === 3 ? c : 0) * height * width + i] : 128;
    image.data[4 * i + 3] = levels ? 255 : 40;
  }
  context.putImageData(image, 0, 0);
}

// The values of a pixel, under the pointer.
function pixel(e) {
  const [channels, height, width] = live.shape, box = e.target.getBoundingClientRect();
  const column = Math.floor(width * (e.clientX - box.left) / box.width), line = Math.floor(height * (e.clientY - box.top) / box.height);
  if (column < 0 || line < 0 || column >= width || line >= height) return;
  const at = (values, of) => values && Array.from({ length: channels }, (_, c) => shown(of(values[(c * height + line) * width + column]))).join(", ");
  const level = v => live.grey[0] + range * v / 255;
  const made = at(state.mean, live.decoder ? v => v : level), off = at(state.spread, v => range * v / 510), seen = at(known(state.datum) ? own(data, state.datum) : null, level);
  e.target.dataset.tip = `row ${line}, column ${column}` + (made ? `\ndecoded ${made}` : "") + (off ? ` ± ${off} over draws from the guide` : "") + (seen ? `\ndatum ${seen}` : "");
}

function profile() {
  const word = at("search").value.toLowerCase(), order = at("order").value, seen = known(state.datum) ? own(data, state.datum) : null;
  const finite = i => seen && Number.isFinite(seen[i]) ? seen[i] : null;
  let rows = live.features.map((name, i) => {
    const made = state.mean ? state.mean[i] : null, datum = finite(i);
    return [name, made, datum === null || made === null ? null : made - datum, datum, state.spread ? state.spread[i] : null, ...(moments ? [moments[i], moments[D + i]] : [])];
  });
  rows = rows.filter(r => r[0].toLowerCase().includes(word));
  const unit = r => r[6] ?? 1;
  const size = { size: r => Math.abs(((r[1] ?? r[3] ?? 0) - (r[5] ?? 0)) / unit(r)), change: r => Math.abs((r[2] ?? 0) / unit(r)) }[order];
  if (size) rows.sort((a, b) => size(b) - size(a));
  const columns = ["feature", "decoded mean", "mean − datum", "datum", "± over draws", ...(moments ? ["mean of the data", "standard deviation of the data"] : [])];
  draw(at("profile"), { kind: "profile", columns, rows: rows.slice(0, MOST), title: "" });
  at("made-title").textContent = rows.length > MOST ? `Decoded: ${MOST} of ${rows.length} features` : "Decoded";
}
const MOST = 24;

const labels = live.columns.find(c => c.name === "label" && c.classes);
const label = i => labels ? labels.classes[labels.values[i]] : "";
const named = i => `test datum ${live.rows[i]}` + (live.names[i] === String(live.rows[i]) ? "" : ` (${live.names[i]})`) + (labels ? `, label ${label(i)}` : "") +
  (live.evidence[i] === null ? "" : `, evidence ${shown(live.evidence[i])} nats`) +
  (live.pareto_k[i] === null ? "" : `, Pareto k ${shown(live.pareto_k[i])}`);

function show(words, spread = null) {
  state.words = words ?? state.words;
  state.spread = spread;
  if (live.decoder) state.mean = decode(state.z, state.datum);
  if (live.kind === "image") {
    paint(at("decoded"), live.decoder ? pixels(state.mean) : state.mean);
    paint(at("datum"), known(state.datum) ? own(data, state.datum) : null);
    const most = spread && Math.max(...spread);
    paint(at("spread"), spread && Uint8ClampedArray.from(spread, v => 255 * v / (most || 1)));
    at("spread-words").textContent = spread ? `spread over draws from the guide, white: ± ${shown(Number((range * most / 510).toPrecision(2)))}` : `spread over draws: computed beforehand for ${live.spread.count} data at their own codes`;
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
  show(`At ${named(i)}.`, place.get(i) < live.spread.count ? row(spreads, place.get(i)) : null);
}

// The way between two codes: a slider, and images at equal steps.
function between(t) {
  state.z = state.start.map((v, i) => (1 - t) * v + t * state.end[i]);
  at("share").value = t;
  show(`${Math.round(100 * t)}% of the way between the two codes.`);
}
function way() {
  const both = state.start && state.end;
  at("share").disabled = !both;
  at("about").textContent = both ? "Both ends are set: move the slider between them." : "Go to another code, and set the other end.";
  if (!both || live.kind !== "image") return;
  const [, height, width] = live.shape;
  at("strip").innerHTML = Array.from({ length: 7 }, () => `<canvas width="${width}" height="${height}"></canvas>`).join("");
  at("strip").querySelectorAll("canvas").forEach((c, k) => paint(c, pixels(decode(state.start.map((v, i) => v + k / 6 * (state.end[i] - v)), state.datum))));
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
  way();
});
at("share")?.addEventListener("input", () => between(at("share").valueAsNumber));
for (const id of ["decoded", "datum", "spread"]) at(id)?.addEventListener("pointermove", pixel);
for (const id of ["search", "order"]) at(id)?.addEventListener("input", profile);

