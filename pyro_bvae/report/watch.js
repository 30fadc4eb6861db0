// A run in training: its charts are drawn again as its metrics grow.
async function refresh() {
  let news;
  try {
    news = await (await fetch("news.json", { cache: "no-store" })).json();
  } catch {
    document.getElementById("state").textContent = "The watch has ended; these are its last numbers.";
    return;
  }
  document.getElementById("state").textContent = news.state;
  const place = document.getElementById("watched");
  Object.entries(news.charts).forEach(([name, chart]) => {
    if (!document.getElementById(name)) place.insertAdjacentHTML("beforeend", `<div class="chart" id="${name}" data-label="${escaped(chart.title)} against the epochs"></div>`);
    draw(document.getElementById(name), chart);
  });
  document.getElementById("pictures").innerHTML = news.pictures.map(p => `<figure><img alt="${escaped(p.name)}" src="${p.src}"><figcaption>${escaped(p.name)}</figcaption></figure>`).join("");
  if (!news.ended) setTimeout(refresh, 2000);
}
refresh();
