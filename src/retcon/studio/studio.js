"use strict";
// The program of all pages. It asks the server, puts the server's own HTML into the page, and says
// how work is getting on. It asks nobody else.
const one = (query, within = document) => within.querySelector(query);
const all = (query, within = document) => [...within.querySelectorAll(query)];

const GONE = "The studio does not answer. Start it again: retcon studio. What was written is kept.";
async function ask(url, options = {}) {
  const answer = await fetch(url, {...options, headers: {accept: "application/json"}});
  const text = await answer.text();
  let value;
  try { value = JSON.parse(text); } catch { value = {problem: answer.status === 403 ? text : GONE}; }
  if (!answer.ok) throw new Error(value.problem);
  return value;
}
const post = (url, body) => ask(url, {method: "POST", body});
const problem = text => {
  const place = one("#problem");
  if (place.textContent === text) return;
  place.hidden = !text;
  place.textContent = text;
};
const told = error => problem(error instanceof TypeError ? GONE : error.message);
const say = text => { one("#said").textContent = text; };
// What has become of something, where the page itself does not show it, and where to see it.
function notice(text, href) {
  const place = one("#notice");
  place.hidden = !text;
  place.textContent = text;
  if (!href) return;
  const link = document.createElement("a");
  link.href = href;
  link.textContent = "See it";
  place.append(" ", link);
}

// Jobs: the server tells which are under way; one that this tab waits for and that is not among
// them any more has ended. What was begun on an earlier page of this tab is told of on a later one.
const awaited = new Map();
const shown = new Map();
const begun = () => JSON.parse(sessionStorage.getItem("begun") || "[]");
const keep = numbers => sessionStorage.setItem("begun", JSON.stringify(numbers));
const forget = number => { awaited.delete(number); keep(begun().filter(other => other !== number)); };
const settling = new Set();
async function settle(number) {
  if (settling.has(number)) return;
  settling.add(number);
  let job;
  try { job = await ask(`/jobs/${number}`); }
  catch (error) { if (!(error instanceof TypeError)) forget(number); throw error; }
  finally { settling.delete(number); }
  const then = awaited.get(number);
  if (!["done", "failed", "cancelled"].includes(job.state) || !then) return;
  forget(number);
  if (job.state === "failed") problem([then === later ? `${job.title}: ${job.problem}` : job.problem, ...job.warned].join("\n"));
  if (job.state === "cancelled" && !job.quick) notice(`Cancelled: ${job.title}. Nothing was changed.`);
  then(job);
}
const remarks = job => [...(job.answer.told || []), ...job.warned].join("\n");
const later = job => { if (job.state === "done") notice([`Done: ${job.title}.`, remarks(job)].filter(Boolean).join("\n"), job.answer.href); };
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
let under = new Map();
// Also now and then, for a job that had ended before this page was told its number.
function sweep() { for (const number of awaited.keys()) if (!under.has(number)) settle(number).catch(told); }
function news(told_) {
  if (told_.trouble) problem(told_.trouble);
  under = new Map(told_.jobs.map(job => [job.job, job]));
  for (const job of under.values()) if (!job.quick || job.seconds > 1.5) show(job);
  for (const [number, box] of shown) if (!under.has(number)) { box.remove(); shown.delete(number); }
  sweep();
}
let source = null;
function listen() {
  // A hidden page keeps no connection: a browser has few of them for all its tabs.
  if (document.hidden) { source?.close(); source = null; return; }
  if (source) return;
  let gone = false;
  const opened = source = new EventSource("/events");
  opened.onmessage = event => news(JSON.parse(event.data));
  opened.onopen = () => { if (gone) { gone = false; problem(""); } };
  opened.onerror = () => setTimeout(() => {
    if (opened !== source || opened.readyState === EventSource.OPEN) return;
    gone = true;
    problem(GONE);
    if (opened.readyState === EventSource.CLOSED) { source = null; setTimeout(listen, 3000); }
  }, 1500);
}
async function start(url, body, then, quick = false) {
  const {job} = await post(url, body);
  awaited.set(job, then);
  if (!quick) keep([...begun(), job]);
  if (!source) listen();
}
const go = job => {
  if (job.state !== "done") return;
  if (remarks(job)) sessionStorage.setItem("told", `Done: ${job.title}.\n${remarks(job)}`);
  const there = new URL(job.answer.href, location);
  if (there.pathname + there.search === location.pathname + location.search) { location.hash = there.hash; location.reload(); }
  else location.assign(there);
};

// The form of a fact: its state is in the address; what the model says now is looked up as it is typed.
function editing(form) {
  const tab = crypto.randomUUID?.() || String(Math.random());
  const fields = () => Object.fromEntries([...new FormData(form)].filter(([, text]) => typeof text === "string"));
  const look = one("#look"), button = one("button.primary", form);
  let timer, last = "", sent = "";
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
        problem([job.problem, ...job.warned].filter(Boolean).join("\n"));
        if (job.state !== "done") return;
        look.innerHTML = job.answer.html;
        say(`The model says now: ${one(".says", look).textContent}`);
        if (one("#foresight")) start("/foresight", JSON.stringify({...seen, tab}), seen_ => {
          if (last !== key) return;
          if (seen_.state === "done") one("#foresight").innerHTML = seen_.answer.html;
          else one("#foresight").textContent = "This is not known.";
        }, true).catch(told);
      }, true);
      problem("");
    } catch (error) { last = ""; look.removeAttribute("aria-busy"); told(error); }
  }
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(peek, 600);
    button.disabled = sent === JSON.stringify(fields());
  });
  form.addEventListener("submit", async event => {
    event.preventDefault();
    clearTimeout(timer);
    problem("");
    notice("");
    const values = sent = JSON.stringify(fields());
    const again = () => { if (sent === values) { sent = ""; button.disabled = false; } };
    button.disabled = true;
    // Who has gone on to type another fact is not taken away from it.
    const ended = job => { again(); (JSON.stringify(fields()) === values ? go : later)(job); };
    try { await start("/edits", values, ended); } catch (error) { again(); told(error); }
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
    if (file.size > 64 * 2 ** 20) { problem(`${file.name} is larger than 64 MiB. Write so many facts with: retcon edit.`); return; }
    try { await start(`/files?name=${encodeURIComponent(file.name)}`, file, go); } catch (error) { told(error); }
    event.target.value = "";
  });
  peek();
}

if (one("#jobs")) {
  document.addEventListener("visibilitychange", listen);
  for (const number of begun()) awaited.set(number, later);
  listen();
  setInterval(sweep, 500);
  notice(sessionStorage.getItem("told") || "");
  sessionStorage.removeItem("told");
}
// A form that changes the stack shows its page again: at the same place, and with itself in focus.
const about = form => JSON.stringify([form.action.endsWith("/note"), ...["fact", "entry", "to"].map(name => form.elements[name]?.value)]);
for (const form of all("form[method=post]")) form.addEventListener("submit", () => {
  sessionStorage.setItem("place", JSON.stringify([location.pathname, scrollY, about(form)]));
});
const [path, height, which] = JSON.parse(sessionStorage.getItem("place") || "[]");
sessionStorage.removeItem("place");
if (path === location.pathname) {
  scrollTo(0, height);
  const same = all("form[method=post]").find(form => about(form) === which);
  if (same) one("button", same).focus({preventScroll: true});
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
