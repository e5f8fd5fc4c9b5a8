// Draws the charts of a page, whose specifications are in #specs, as wide as there is room.
// Errors only: a panel without a dashed line is none.
const quiet = 1;
// Expressions are interpreted, not compiled, and no style is written: a strict policy holds.
const harmless = {ast: true, defaultStyle: false, tooltip: {disableDefaultStyle: true}};
const night = matchMedia("(prefers-color-scheme: dark)");
// Text, or lines of it, in lines that are not too long.
const words = (text, most) => [text].flat().flatMap(line => line.split(" ").reduce((lines, word) => {
  const last = lines.at(-1);
  if (last && (last + " " + word).length > most) lines.push(word);
  else lines[lines.length - 1] = last ? last + " " + word : word;
  return lines;
}, [""]));
// Legends of a narrow page have fewer columns.
function narrow(value, room) {
  if (!value || typeof value !== "object") return;
  if (value.legend?.columns) value.legend.columns = Math.max(1, Math.min(value.legend.columns, Math.floor(room / (value.legend.columns > 3 ? 62 : 250))));
  for (const [key, one] of Object.entries(value)) if (key !== "data") narrow(one, room);
}
function fitted(text, room) {
  if (night.matches) for (const [from, to] of Object.entries(dusk)) text = text.replaceAll(from, to);
  const spec = JSON.parse(text);
  spec.title.text = words(spec.title.text, room / 9.4);
  spec.title.subtitle = words(spec.title.subtitle, room / 6.2);
  if (spec.facet) {
    // 4, 2, 1 panels side by side, or 3, 2, 1: no row but the last is left with a gap.
    const axis = spec.resolve?.scale?.y === "independent" && !(spec.spacing > 40) ? 46 : 0;
    const wide = () => spec.columns * (spec.spec.width + axis + (spec.spacing || 0)) - (spec.spacing || 0) + 30;
    while (spec.columns > 1 && wide() > room) spec.columns = spec.columns > 2 ? 2 : 1;
    if (spec.columns === 1) spec.spec.width = Math.max(150, Math.min(spec.spec.width + 60, room - 124));
  } else for (const one of [spec, ...(spec.vconcat || [])]) if (one.width > room - 60) one.width = Math.max(160, room - 80);
  if (room < 900) narrow(spec, room);
  return spec;
}
const dusk = {"#22262b": "#e4e6ea", "#6b7280": "#a0a7b2", "#e8e6e1": "#2c3037", "#b9bcc2": "#4a505a", "#f1efe9": "#2a2e35",
  '"background":"white"': '"background":"#1d2025"', "[0.92,0.05]": "[1,0.3]", "#56B4E9": "#b9a6ff", "#0072B2": "#4aa8e0", "#4d4d4d": "#b8b8b8", "#00795a": "#19b088", "#b3430a": "#e8743a"};
const texts = Object.entries(JSON.parse(document.getElementById("specs").textContent)).map(([key, spec]) => [key, JSON.stringify(spec)]);
function draw() {
  for (const [key, text] of texts) {
    const place = document.getElementById("chart-" + key);
    if (place?.clientWidth) vegaEmbed(place, fitted(text, place.clientWidth), {mode: "vega-lite", actions: false, renderer: "svg", logLevel: quiet, ...harmless});
  }
}
let seen = 0, later;
const redraw = () => { clearTimeout(later); later = setTimeout(() => { seen = innerWidth; draw(); }, 150); };
seen = innerWidth; draw();
addEventListener("resize", () => { if (innerWidth !== seen) redraw(); });
night.addEventListener("change", redraw);
