// The scatter of test data: two axes and a colour of choice, a click, a drag from datum to datum, a
// drag around data.
const [centre, ...directions] = [0, 1, 2].map(k => floats(live.axes).subarray(k * L, (k + 1) * L));
const along = (z, d) => d.reduce((sum, v, i) => sum + v * (z[i] - centre[i]), 0);
const code = i => codes.subarray(i * L, (i + 1) * L);
const embedding = floats(live.embedding);
const places = [
  ...live.latents.map(l => ({ name: l.name, of: i => codes[i * L + l.index], here: () => state.z[l.index] })),
  ...directions.map((d, k) => ({ name: `principal component ${k + 1}`, of: i => along(code(i), d), here: () => along(state.z, d), pair: L + 1 - k })),
  ...(embedding ? [0, 1].map(k => ({ name: `t-SNE ${k + 1}`, of: i => embedding[2 * i + k], pair: L + 3 - k })) : []),
];
const feature = f => i => known(i) && Number.isFinite(own(data, i)[f]) ? own(data, i)[f] : null;
const colours = [
  { name: "nothing", group: "Data", of: () => null },
  ...live.columns.map(c => ({ ...c, group: "Data", of: i => c.values[i] })),
  ...live.latents.map(l => ({ name: l.name, group: "Latents", of: i => codes[i * L + l.index] })),
  ...(live.kind === "image" || live.held.length < Math.min(N, 100) ? [] : live.features.map((name, f) => ({ name, group: "Features", of: feature(f) }))),
];
const options = (own, start) => own.map((o, i) => `<option value="${start + i}">${escaped(o.name)}</option>`).join("");
for (const id of ["across", "up"]) at(id).innerHTML = options(places, 0);
at("colour").innerHTML = [...new Set(colours.map(c => c.group))].map(group =>
  `<optgroup label="${group}">${options(colours.filter(c => c.group === group), colours.findIndex(c => c.group === group))}</optgroup>`).join("");
at("up").value = Math.min(1, places.length - 1);
at("colour").value = Math.min(1, live.columns.length);
const SHAPES = [(x, y) => `<circle cx="${x}" cy="${y}" r="4"`, (x, y) => `<rect x="${x - 3.6}" y="${y - 3.6}" width="7.2" height="7.2"`,
  (x, y) => `<path d="M${x} ${y - 4.8}L${x + 4.6} ${y + 3.6}L${x - 4.6} ${y + 3.6}Z"`, (x, y) => `<path d="M${x} ${y - 5}L${x + 5} ${y}L${x} ${y + 5}L${x - 5} ${y}Z"`];
const scatter = at("scatter");
// The drawn points, the class that alone is shown, the chosen data, and the ends of a way.
let spots = [], only = null, chosen = new Set(), ends = null;

drawings.scatter = (chart, width, place) => {
  const [px, py] = ["across", "up"].map(id => places[at(id).value]), colour = colours[at("colour").value];
  const height = Math.min(460, Math.max(300, width * 0.8)), box = [46, 26, width - 12, height - 40];
  const xs = [], ys = [], values = [];
  for (let i = 0; i < N; i++) { xs.push(px.of(i)); ys.push(py.of(i)); values.push(colour.of(i)); }
  const { x, y, out, inside } = frame(place, box, [xs, ys].map(v => margin(extent(v), 0.04)), [px.name, py.name]);
  const sorted = colour.classes ? [] : values.filter(v => v !== null).sort((a, b) => a - b);
  const share = new Map(sorted.map((v, i) => [v, i / Math.max(1, sorted.length - 1)]).reverse());
  let marks = "";
  spots = [];
  for (let i = 0; i < N; i++) {
    const v = values[i];
    if (colour.classes && only !== null && only !== v) continue;
    const style = colour.classes ? `fill:var(--c${v % 12})` : colour.name === "nothing" ? "fill:var(--c0)" : v === null ? "fill:none;stroke:var(--soft)"
      : `fill:color-mix(in oklab, var(--low), var(--high) ${Math.round(100 * share.get(v))}%)`;
    const [cx, cy] = [x(xs[i]), y(ys[i])].map(p => Number(p.toFixed(1)));
    const words = named(i) + (colour.classes || v === null || colour.group === "Data" ? "" : `, ${colour.name} ${shown(v)}`);
    spots.push([cx, cy, i]);
    marks += SHAPES[colour.classes ? Math.floor(v / 12) % 4 : 0](cx, cy) + ` class="dot${chosen.size ? chosen.has(i) ? " chosen" : " other" : ""}" style="${style}" data-row="${i}" data-tip="${escaped(words.replaceAll(", ", "\n"))}"/>`;
  }
  return [out + inside(marks + `<g id="cross"></g>`), height];
};

// The code of the sliders, and the way between two data.
function cross() {
  const [px, py] = ["across", "up"].map(id => places[at(id).value]), { x, y } = scatter.map;
  let out = ends ? line(...ends.flatMap(i => [x(px.of(i)), y(py.of(i))]), "way") : "";
  if (px.here && py.here && live.decoder) {
    const [a, b] = [x(px.here()), y(py.here())];
    out += line(a - 9, b, a + 9, b, "cross") + line(a, b - 9, a, b + 9, "cross");
  }
  at("cross").innerHTML = out;
}

function table(rows) {
  const own = live.columns.filter(c => c !== labels && c.name !== "evidence" && c.name !== "Pareto k");
  const cell = (c, i) => c.classes ? c.classes[c.values[i]] : c.values[i];
  return {
    columns: ["datum", "label", "evidence", "Pareto k", ...own.map(c => c.name), ...live.latents.map(l => `z${l.index}`)],
    rows: rows.map(i => [live.names[i], label(i), live.evidence[i], live.pareto_k[i], ...own.map(c => cell(c, i)), ...live.latents.map(l => codes[i * L + l.index])]),
  };
}

function legend() {
  const colour = colours[at("colour").value], place = at("legend");
  const tsne = ["across", "up"].some(id => places[at(id).value].name.startsWith("t-SNE"));
  const made = tsne ? " <small>t-SNE of the codes (scikit-learn, 300 iterations, seed 0): near data have near codes; distances between groups mean nothing.</small>" : "";
  if (colour.classes) {
    const seen = [...new Set(colour.values)].sort((a, b) => a - b);
    place.innerHTML = seen.map(c => `<button type="button" aria-pressed="${only === c}" data-class="${c}"><svg viewBox="-6 -6 12 12" aria-hidden="true">${SHAPES[Math.floor(c / 12) % 4](0, 0)} style="fill:var(--c${c % 12})"/></svg>${escaped(colour.classes[c])}</button>`).join("") + made;
  } else if (colour.name === "nothing") place.innerHTML = made;
  else {
    const [low, high] = extent(Array.from({ length: N }, (_, i) => colour.of(i)));
    place.innerHTML = `<span>${shown(low)}</span> <i class="ramp"></i> <span>${shown(high)}</span> <small>${escaped(colour.name)}, by rank; open marks have no value here.</small>${made}`;
  }
}

// The chosen data, as a table.
function choose(rows) {
  chosen = new Set(rows);
  draw(scatter, scatter.chart);
  const { columns, rows: cells } = table(rows), most = 100, few = columns.length - L;
  const body = cells.slice(0, most).map((r, k) => `<tr><th scope="row"><button type="button" data-row="${rows[k]}">${escaped(r[0])}</button></th>${r.slice(1, few).map(c => `<td>${escaped(shown(c))}</td>`).join("")}</tr>`).join("");
  at("count").textContent = rows.length ? `${rows.length} of ${N} data chosen${rows.length > most ? `, the first ${most} are shown` : ""}` : "";
  at("chosen").innerHTML = rows.length ? `<p class="controls"><button type="button" id="chosen-csv">all of them (CSV)</button> <button type="button" id="none">choose none</button></p>
    <div class="numbers rows" tabindex="0" role="region" aria-label="Chosen data"><table><thead><tr>${columns.slice(0, few).map(c => `<th>${escaped(c)}</th>`).join("")}</tr></thead><tbody>${body}</tbody></table></div>` : "";
  at("chosen-csv")?.addEventListener("click", () => save(table(rows), "chosen"));
  at("none")?.addEventListener("click", () => choose([]));
}

// Whether a point lies inside a closed path: a line from it crosses the path an odd number of times.
const inside = ([x, y], path) => path.reduce((odd, [x0, y0], k) => {
  const [x1, y1] = path[(k + 1) % path.length];
  return (y0 > y) !== (y1 > y) && x < x0 + (y - y0) / (y1 - y0) * (x1 - x0) ? !odd : odd;
}, false);

scatter.gesture = {
  draw: (path, from) => from && live.decoder ? line(...path[0], ...path.at(-1), "way") : `<path d="M${path.map(p => p.map(v => v.toFixed(1)).join(" ")).join("L")}Z"/>`,
  done: (path, from) => {
    if (!from || !live.decoder) return choose(spots.filter(p => inside(p, path)).map(p => p[2]));
    const [x, y] = path.at(-1), off = p => Math.hypot(p[0] - x, p[1] - y);
    const near = spots.reduce((best, p) => off(p) < off(best) ? p : best);
    if (off(near) > 15) return;
    ends = [Number(from.dataset.row), near[2]];
    [state.start, state.end] = ends.map(i => codes.slice(i * L, (i + 1) * L));
    state.datum = ends[0];
    at("row").value = live.rows[ends[0]];
    way();
    between(0.5);
  },
};

scatter.redrawn = cross;
draw(scatter, { kind: "scatter", title: "", ...table([...Array(N).keys()]) });
scatter.insertAdjacentHTML("beforeend", ` <button type="button" id="seen">choose data in view</button><div id="legend"></div>`);
at("seen").addEventListener("click", () => {
  const [left, top, right, bottom] = scatter.map.box;
  choose(spots.filter(([x, y]) => x >= left && x <= right && y >= top && y <= bottom).map(p => p[2]));
});
for (const id of ["across", "up", "colour"]) at(id).addEventListener("change", () => {
  const [one, other] = id === "across" ? ["across", "up"] : ["up", "across"], { pair } = places[at(one).value];
  if (id !== "colour" && pair) at(other).value = pair;
  only = null;
  if (id !== "colour") scatter.view = null;
  draw(scatter, scatter.chart);
  legend();
});
at("legend").addEventListener("click", e => {
  const button = e.target.closest("button");
  if (!button) return;
  only = only === Number(button.dataset.class) ? null : Number(button.dataset.class);
  draw(scatter, scatter.chart);
  legend();
});
document.addEventListener("click", e => {
  const mark = e.target.closest("[data-row]");
  if (!mark) return;
  ends = null;
  take(Number(mark.dataset.row));
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
