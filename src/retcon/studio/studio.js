"use strict";
// The program of all pages. It asks the server, puts the server's own HTML into the page, and says
// how work is getting on. It asks nobody else.
const one = (query, within = document) => within.querySelector(query);
const all = (query, within = document) => [...within.querySelectorAll(query)];

async function ask(url, options = {}) {
  const answer = await fetch(url, {...options, headers: {accept: "application/json"}});
  const value = await answer.json().catch(() => ({problem: "The studio did not answer. Is it still running? Start it again: retcon studio."}));
  if (!answer.ok) throw new Error(value.problem);
  return value;
}
const post = (url, body) => ask(url, {method: "POST", body});
const problem = text => {
  const place = one("#problem");
  place.hidden = !text;
  place.textContent = text;
};
const told = error => problem(error instanceof TypeError ? "The studio does not answer. Start it again: retcon studio. What was written is kept." : error.message);
const say = text => { one("#said").textContent = text; };

// Jobs: the server tells which are under way; one that this page waits for and that is not among
// them any more has ended.
const awaited = new Map();
const shown = new Map();
async function settle(number) {
  const job = await ask(`/jobs/${number}`);
  if (!["done", "failed", "cancelled"].includes(job.state)) return;
  const then = awaited.get(number);
  awaited.delete(number);
  if (job.state === "failed") told(new Error(job.problem));
  if (job.state === "cancelled" && !job.quick) say("Cancelled. Nothing was changed.");
  then?.(job);
}
function show(job) {
  if (!shown.has(job.job)) {
    const box = one("#job").content.firstElementChild.cloneNode(true);
    one(".title", box).textContent = job.title;
    one("button", box).setAttribute("aria-label", `Cancel: ${job.title}`);
    one("progress", box).setAttribute("aria-label", job.title);
    one("button", box).addEventListener("click", () => post(`/jobs/${job.job}/cancel`).catch(told));
    one("#jobs").append(box);
    shown.set(job.job, box);
    say(job.title);
  }
  const box = shown.get(job.job), bar = one("progress", box);
  const count = job.total > 1 ? `: ${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}` : "";
  one(".step", box).textContent = job.state === "waiting" ? "waits for its turn" : `${job.step}${count} (${Math.round(job.seconds)} s)`;
  if (job.state === "running" && job.total) bar.value = Math.min(1, job.done / job.total);
  else bar.removeAttribute("value");
}
function news(told_) {
  if (told_.trouble) problem(told_.trouble);
  const under = new Map(told_.jobs.map(job => [job.job, job]));
  for (const job of under.values()) if (!job.quick || job.seconds > 1.5) show(job);
  for (const [number, box] of shown) if (!under.has(number)) { box.remove(); shown.delete(number); }
  for (const number of awaited.keys()) if (!under.has(number)) settle(number).catch(told);
}
let source = null;
function listen() {
  // A hidden page keeps no connection: a browser has few of them for all its tabs.
  if (document.hidden) { source?.close(); source = null; return; }
  if (source) return;
  source = new EventSource("/events");
  source.onmessage = event => news(JSON.parse(event.data));
}
async function start(url, body, then) {
  const {job} = await post(url, body);
  awaited.set(job, then);
  if (!source) listen();
}
const go = job => {
  if (job.state !== "done") return;
  const told_ = [...(job.answer.told || []), ...job.warned];
  if (told_.length) sessionStorage.setItem("told", told_.join("\n"));
  const there = new URL(job.answer.href, location);
  if (there.pathname + there.search === location.pathname + location.search) { location.hash = there.hash; location.reload(); }
  else location.assign(there);
};

// The form of a fact: its state is in the address; what the model says now is looked up as it is typed.
function editing(form) {
  const tab = crypto.randomUUID?.() || String(Math.random());
  const fields = () => Object.fromEntries([...new FormData(form)].filter(([, text]) => typeof text === "string"));
  const look = one("#look");
  let later, last = "";
  async function peek() {
    const values = fields();
    const address = new URLSearchParams(Object.entries(values).filter(([, text]) => text.trim()));
    history.replaceState(null, "", address.size ? `/edit?${address}` : "/edit");
    if (!values.prompt.trim() || !values.target.trim()) return;
    const {note, ...seen} = values;
    const key = JSON.stringify(seen);
    if (key === last) return;
    last = key;
    look.setAttribute("aria-busy", "true");
    try {
      await start("/looks", JSON.stringify({...seen, tab}), job => {
        if (last !== key) return;
        look.removeAttribute("aria-busy");
        if (job.state === "done") look.innerHTML = job.answer.html;
        if (one("#foresight")) start("/foresight", JSON.stringify({...seen, tab}), later_ => {
          if (last === key && later_.state === "done") one("#foresight").innerHTML = later_.answer.html;
        }).catch(told);
        problem(job.state === "failed" ? job.problem : job.warned?.join(" ") || "");
      });
      problem("");
    } catch (error) { look.removeAttribute("aria-busy"); told(error); }
  }
  form.addEventListener("input", () => { clearTimeout(later); later = setTimeout(peek, 600); });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    clearTimeout(later);
    problem("");
    const button = one("button.primary", form);
    button.disabled = true;
    try { await start("/edits", JSON.stringify(fields()), job => { button.disabled = false; go(job); }); }
    catch (error) { button.disabled = false; told(error); }
  });
  one("#mark").addEventListener("click", () => {
    const box = one("#prompt"), {selectionStart: from, selectionEnd: to} = box;
    const text = box.value.replace(/[{}]/g, (sign, at) => at < from || at >= to ? "" : sign);
    const moved = (box.value.slice(0, from).match(/[{}]/g) || []).length;
    const [a, b] = [from - moved, to - moved];
    if (a < b) box.value = `${text.slice(0, a)}{${text.slice(a, b).replace(/[{}]/g, "")}}${text.slice(b)}`;
    box.focus();
    if (a < b) box.setSelectionRange(a + 1, b + 1);
    else say("Select the subject in the text first.");
    form.dispatchEvent(new Event("input"));
  });
  one("#file").addEventListener("change", async event => {
    const [file] = event.target.files;
    if (!file) return;
    problem("");
    try { await start(`/files?name=${encodeURIComponent(file.name)}`, file, go); } catch (error) { told(error); }
    event.target.value = "";
  });
  peek();
}

if (one("#jobs")) {
  document.addEventListener("visibilitychange", listen);
  listen();
  const kept = sessionStorage.getItem("told");
  sessionStorage.removeItem("told");
  if (kept) problem(kept);
}
if (one("#fact")) editing(one("#fact"));
one("#export-form")?.addEventListener("submit", event => {
  event.preventDefault();
  problem("");
  start("/exports", JSON.stringify(Object.fromEntries(new FormData(event.target))), go).catch(told);
});
for (const button of all("button[data-post]")) button.addEventListener("click", () => {
  problem("");
  button.disabled = true;
  start(button.dataset.post, "", job => { button.disabled = false; go(job); }).catch(error => { button.disabled = false; told(error); });
});
