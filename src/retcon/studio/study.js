"use strict";
// Pages of a study: filters and sorting, the page of a case, and how far the study is. The state of a
// page stands behind # in its address, so that a link brings it back. Users' texts are never HTML.
const retcon = (() => {
  const root = new URL(".", document.currentScript.src);
  let original = document.querySelector("#content").innerHTML;  // before anything is filtered
  const values = new Map(), waiting = new Map();

  // Scripts, and not JSON, because a page on a disk may fetch nothing.
  function take(name, value) { values.set(name, value); waiting.get(name)?.(value); }
  function load(name) {
    if (values.has(name)) return Promise.resolve(values.get(name));
    return new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = new URL(`data/${name}.js`, root);
      script.onerror = () => reject(new Error(`data/${name}.js is not there.`));
      document.head.append(script);
    });
  }

  const find = (selector, place = document) => place.querySelector(selector);
  const all = (selector, place = document) => [...place.querySelectorAll(selector)];
  const tell = text => { find("#told").textContent = text; };
  function make(tag, about = {}, ...inside) {
    const one = document.createElement(tag);
    for (const [name, value] of Object.entries(about)) if (value !== undefined) one.setAttribute(name, value);
    one.append(...inside.filter(part => part !== null && part !== undefined));
    return one;
  }
  const state = () => new URLSearchParams(location.hash.slice(1));
  function keep(changes) {
    const next = state();
    for (const [name, value] of Object.entries(changes)) value ? next.set(name, value) : next.delete(name);
    const text = next.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }
  // A text with each place of some words marked.
  function marked(text, words) {
    const part = document.createDocumentFragment();
    const low = text.toLowerCase(), sought = words?.toLowerCase();
    let from = 0;
    for (let at; sought && (at = low.indexOf(sought, from)) >= 0; from = at + sought.length)
      part.append(text.slice(from, at), make("mark", {}, text.slice(at, at + sought.length)));
    part.append(text.slice(from));
    return part;
  }

  // ---- tables with filters ----
  function controls(form) { return [...form.elements].filter(one => one.name); }
  function values_of(form) {
    return Object.fromEntries(controls(form).map(one => [one.name, one.type === "checkbox" ? (one.checked ? "1" : "") : one.value]));
  }
  function restore(form) {
    const known = state();
    for (const one of controls(form)) {
      const value = known.get(one.name) ?? "";
      if (one.type === "checkbox") one.checked = value === "1";
      else if (one.tagName === "SELECT") one.value = [...one.options].some(o => o.value === value) ? value : one.options[0].value;
      else one.value = value;
    }
  }
  function fits(row, chosen, words) {
    const choices = JSON.parse(row.dataset.choices);
    if (!Object.entries(chosen).every(([name, value]) => !value || !(name in choices) || choices[name].includes(value))) return false;
    const text = row.textContent.toLowerCase() + " " + Object.values(choices).flat().join(" ").toLowerCase();
    return words.every(word => text.includes(word));
  }
  async function apply(form) {
    const table = find(`#${form.dataset.table}`), chosen = values_of(form), sought = chosen.wrote?.trim();
    all(".hit", table).forEach(hit => hit.remove());
    const words = (chosen.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    const hits = sought ? await search(form, sought) : null;
    if (hits && values_of(form).wrote.trim() !== sought) return;  // typed on meanwhile
    let shown = 0, left = 0;
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const mine = hits?.get(row.dataset.case), later = unscored(row, chosen.when);
      const fit = fits(row, chosen, words) && (!hits || Boolean(mine));
      row.hidden = !fit || later;
      shown += fit && !later;
      left += fit && later;
      if (fit && mine) row.cells[0].append(...mine.slice(0, 3).map(([where, text]) => hit(where, text, sought)));
    }
    columns(table, chosen);
    sort(table);
    find("output", form).textContent = `${shown} of ${rows.length} ${table.dataset.noun}` + (left ? `; ${left} more have no ${chosen.when} scores: choose another time` : "");
  }
  // A cell that is done, and was not scored at the time that is shown.
  function unscored(row, when) {
    if (!when || when === "all" || find(".state", row)) return false;
    return !all(`[data-when="${when}"]`, row).some(cell => cell.dataset.value !== "");
  }
  function columns(table, chosen) {
    if (!("when" in chosen) && !("axes" in chosen)) return;
    for (const one of all("[data-when]", table)) one.hidden = chosen.when !== undefined && chosen.when !== "all" && one.dataset.when !== chosen.when;
    for (const one of all(".axis-column", table)) one.hidden = !chosen.axes;
  }
  function hit(where, text, sought) {
    const at = Math.max(0, text.toLowerCase().indexOf(sought.toLowerCase()) - 40);
    return make("p", {class: "hit"}, `${where}: ${at ? "…" : ""}`, marked(text.slice(at, at + 160), sought), text.length > at + 160 ? "…" : "");
  }
  async function search(form, sought) {
    const seen = await load(form.elements.wrote.dataset.script), low = sought.toLowerCase(), hits = new Map();
    for (const [id, rows] of Object.entries(seen.cases)) for (const [kind, , ...moments] of rows) for (const [time, , , , , text] of moments)
      if (text?.toLowerCase().includes(low)) hits.set(id, [...(hits.get(id) ?? []), [`${seen.kinds[kind]}, ${seen.times[time]}`, text]]);
    return hits;
  }
  function sort(table) {
    const [column, way] = (state().get("sort") || "").split(":"), heads = all("thead th", table);
    const place = Number(column);
    heads.forEach((head, i) => head.setAttribute("aria-sort", column && i === place ? (way === "down" ? "descending" : "ascending") : "none"));
    const key = row => { const cell = row.cells[column ? place : 0]; return cell?.dataset.value ?? cell?.textContent.trim() ?? ""; };
    const sign = way === "down" ? -1 : 1;
    const number = text => text === "" || Number.isNaN(Number(text)) ? null : Number(text);
    const body = table.tBodies[0];
    const sorted = [...body.rows].map(row => [key(row), row]).sort(([a], [b]) => {
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1;  // what was not scored stands last
      const [m, n] = [number(a), number(b)];
      return sign * (m !== null && n !== null ? m - n : String(a).localeCompare(String(b), undefined, {numeric: true}));
    });
    body.append(...sorted.map(([, row]) => row));
  }
  function turned(table, head) {
    const place = all("thead th", table).indexOf(head), [column, way] = (state().get("sort") || "").split(":");
    const numbers = place > 0 && head.dataset.when !== undefined || place > 1;
    const first = numbers ? "down" : "up", next = Number(column) === place && column ? (way === first ? (first === "up" ? "down" : "up") : null) : first;
    keep({sort: next ? `${place}:${next}` : ""});
    sort(table);
  }
  function filters(form) {
    const table = find(`#${form.dataset.table}`);
    let later;
    const changed = () => {
      const values = values_of(form), when = form.elements.when;
      if (when && values.when === when.options[0].value) values.when = "";
      keep(values);
      apply(form).catch(error => tell(error.message));
    };
    form.addEventListener("input", () => { clearTimeout(later); later = setTimeout(changed, 120); });
    form.addEventListener("submit", event => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(changed));
    all("thead button", table).forEach(button => button.addEventListener("click", () => turned(table, button.closest("th"))));
    restore(form);
    const more = find("details", form), set = more && all("select", more).some(one => one.value);
    if (more) more.open = set || innerWidth > 700;
    apply(form).catch(error => tell(error.message));
  }

  // ---- the page of a case ----
  const percent = p => p === undefined || p === null ? "–" : Number.isNaN(p) ? "no number" : p >= 99.95 || p === 0 ? p.toFixed(0) : p >= 1 ? p.toFixed(1) : p >= 0.01 ? p.toFixed(2) : "< 0.01";
  function bar(p) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 9"); svg.setAttribute("preserveAspectRatio", "none"); svg.setAttribute("aria-hidden", "true");
    for (const [name, width] of [["room", 100], ["", p]]) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("width", width || 0); rect.setAttribute("height", "9"); if (name) rect.setAttribute("class", name);
      svg.append(rect);
    }
    return svg;
  }
  // Kinds of prompts in their order, with what should be so of each; all others are further forms.
  const KINDS = {rewrite: "The fact itself: the new target should win", paraphrase: "Paraphrases: the new target should win", portability: "What follows from the edit", neighbour: "Other subjects: the old target, which is true of them, should stay", locality: "What must stay as it is"};
  const WROTE = {"free rewrite": "The fact itself", "free paraphrase": "A paraphrase", "free question": "Asked a question", "free chat": "Asked in a chat", "free neighbour": "Another subject", text: "About the subject"};
  const order = (names, kinds) => (a, b) => { const place = row => { const at = names.indexOf(kinds[row[0]]); return at < 0 ? names.length : at; }; return place(a) - place(b) || a[0] - b[0] || a[1] - b[1]; };
  const plain = kind => kind.replace(/^free |^form /, "").replace(/^chat$/, "question");
  function prompt_of(fact, kind, index) {
    const texts = fact?.texts[plain(kind)] ?? fact?.texts[kind.replace(/^\S+ /, "").replace(/s$/, "")];
    return texts?.[index];
  }
  async function show_case() {
    const place = find("#case"), asked = state(), cell = asked.get("cell"), id = asked.get("case");
    if (!cell || !id) return;
    const moved = place.dataset.shown !== undefined;
    place.dataset.shown = id;
    const names = JSON.parse(find("#cell-names").textContent);
    if (!Object.hasOwn(names, cell)) { place.replaceChildren(make("p", {class: "missing"}, "This study has no scored cell of that name.")); return; }
    const [known, seen] = await Promise.all([load("facts"), load(`cells/${cell}`)]);
    const own = values => Object.hasOwn(values, id) ? values[id] : undefined;
    const fact = own(known.facts), rows = own(seen.cases), ids = seen.order;
    const link = find("#of-cell");
    link.textContent = seen.name; link.href = new URL(`cells/${cell}.html`, root);
    document.title = document.title.replace(/^.*? ·/, `${fact ? fact.prompt.join("") : id} ·`);
    place.replaceChildren(...heading(fact, id, known.missing), turning(names, cell, ids, id), ...(rows ? [asked_of(seen, rows, fact), written(seen, rows, fact), others(seen, rows)] : [make("p", {class: "missing"}, "This cell has not scored this fact.")]).filter(Boolean));
    if (moved) { find("h1", place).focus(); tell(document.title); }
  }
  function heading(fact, id, missing) {
    if (!fact) return [make("h1", {tabindex: "-1"}, `Case ${id}`), missing ? make("p", {class: "missing"}, missing) : null].filter(Boolean);
    const [before, subject, after] = fact.prompt;
    return [
      make("h1", {tabindex: "-1"}, before, make("mark", {class: "subject"}, subject), after, " ", make("span", {class: "target"}, fact.target)),
      make("p", {class: "note"}, fact.old ? `in place of ${fact.old}. ` : "", fact.relation ? `Relation ${fact.relation}. ` : "", `Case ${id}.`),
    ];
  }
  const address = (cell, id) => `#${new URLSearchParams({cell, case: id})}`;
  function turning(names, cell, ids, id) {
    const at = ids.indexOf(id), choice = make("select", {id: "other-cell"});
    for (const [one, name] of Object.entries(names)) choice.append(make("option", one === cell ? {value: one, selected: ""} : {value: one}, name));
    choice.addEventListener("change", () => { location.hash = address(choice.value, id); });
    return make("nav", {class: "turn", "aria-label": "Other cases and cells"},
      at > 0 ? make("a", {href: address(cell, ids[at - 1]), rel: "prev"}, "← previous case") : null,
      at >= 0 && at < ids.length - 1 ? make("a", {href: address(cell, ids[at + 1]), rel: "next"}, "next case →") : null,
      make("label", {for: "other-cell"}, "in the cell "), choice);
  }
  function asked_of(seen, rows, fact) {
    const chosen = rows.filter(([kind, , ...moments]) => seen.titles[kind] && moments.some(moment => moment[1] !== undefined && moment[1] !== null)).sort(order(Object.keys(KINDS), seen.kinds));
    if (!chosen.length) return null;
    const times = seen.times.map((when, i) => [when, i]).filter(([, i]) => chosen.some(([, , ...moments]) => moments.some(m => m[0] === i)));
    const table = make("table", {class: "prompts"}, make("caption", {class: "unseen"}, "Probability of the new and the old target behind each prompt, by time"));
    table.append(make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "prompt"), ...times.flatMap(([when]) => ["new", "old"].map(which => make("th", {scope: "col"}, `${which}, `, make("small", {}, `${when}, %`)))))));
    let body, last;
    for (const [kind, index, ...moments] of chosen) {
      const name = seen.kinds[kind], group = KINDS[name] ?? "Other forms: new and old are the answers of the form, as True and False, or letters";
      if (group !== last) table.append(body = make("tbody", {}, make("tr", {}, make("th", {colspan: 1 + 2 * times.length, scope: "rowgroup"}, group))));
      last = group;
      const prompt = prompt_of(fact, name, index), label = name in KINDS ? [prompt ?? `${name} ${index + 1}`] : [seen.titles[kind], prompt ? make("small", {}, ` ${prompt}`) : null];
      body.append(make("tr", {}, make("th", {scope: "row"}, ...label.filter(Boolean)), ...times.flatMap(([when, i]) => pair(moments.find(moment => moment[0] === i), name, when))));
    }
    return make("section", {"aria-labelledby": "asked"}, make("h2", {id: "asked"}, "Asked for"), make("p", {class: "note"}, "Probability per token of both targets behind each prompt, in per cent; the more probable of the two in bold, in green where that is as it should be."), make("div", {class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "asked"}, table));
  }
  function pair(moment, name, when) {
    const [, p, q] = moment ?? [], other = q !== undefined && q !== null, won = other && p > q;
    const good = name === "neighbour" ? !won : won, tone = good ? "better" : "worse";
    return [["new", p, won], ["old", q, other && !won]].map(([which, value, wins]) => value === undefined || value === null ? make("td", {class: "none"}, "–") :
      make("td", {class: wins ? `won ${tone}` : "", "data-label": `${which}, ${when}`}, percent(value), wins ? make("span", {class: "unseen"}, good ? ", more probable, as it should be" : ", more probable, as it should not be") : null, bar(value)));
  }
  function written(seen, rows, fact) {
    const chosen = rows.filter(([, , ...moments]) => moments.some(moment => moment[5] !== undefined)).sort(order(Object.keys(WROTE), seen.kinds));
    if (!chosen.length) return null;
    return make("section", {"aria-labelledby": "wrote"}, make("h2", {id: "wrote"}, "What the model writes"), ...chosen.map(([kind, index, ...moments]) => {
      const list = make("dl"), name = seen.kinds[kind], truth = name.endsWith("neighbour");
      const says = right => right === null || right === undefined ? "" : make("span", {class: `chip ${right ? "yes" : "no"}`}, `${right ? "says" : "does not say"} ${truth ? "its truth" : "it"}`);
      for (const [time, , , right, , text] of moments) if (text !== undefined) list.append(make("dt", {}, seen.times[time]), make("dd", {}, says(right), text.trim() ? marked(text.replace(/^\n+/, ""), truth ? fact?.old : fact?.target) : make("small", {}, "nothing")));
      const prompt = prompt_of(fact, name, index);
      return make("article", {class: "wrote"}, make("h3", {}, WROTE[name] ?? name, prompt ? make("span", {}, prompt) : ` ${index + 1}`), list);
    }));
  }
  function others(seen, rows) {
    const chosen = rows.filter(([, , ...moments]) => moments.some(moment => moment[4] !== undefined && moment[4] !== null && moment[5] === undefined));
    if (!chosen.length) return null;
    const body = make("tbody", {}, ...chosen.flatMap(([kind, index, ...moments]) => moments.map(([time, , , , value]) => make("tr", {}, make("th", {scope: "row"}, `${seen.titles[kind]}, ${index + 1}`), make("td", {}, seen.times[time]), make("td", {}, value ?? "–")))));
    return make("details", {}, make("summary", {}, `Further observations (${chosen.length})`), make("div", {class: "scroll"}, make("table", {}, make("caption", {class: "unseen"}, "Further observations"), make("thead", {}, make("tr", {}, ...["observation", "when", "value"].map(text => make("th", {scope: "col"}, text)))), body)));
  }

  // ---- a study that runs ----
  async function look() {
    const content = find("#content"), trace = content.dataset.trace;
    let answer;
    try { answer = await fetch(new URL("trace", root)); } catch { unanswered("The studio does not answer any more: start it again. This page shows what it last knew."); return later(4); }
    unanswered("");
    if (await answer.text() !== trace) await renew(content);
    later(1);
  }
  function unanswered(text) {
    const place = find("#unanswered");
    if (place && !text) return place.remove();
    if (text && !place) find("#content").before(make("p", {class: "missing", id: "unanswered", role: "alert"}, text));
  }
  // Put in what is new; a page with charts, which would have to be drawn again, says that there is something.
  async function renew(content) {
    if (find("#specs")) {
      content.dataset.trace = await (await fetch(new URL("trace", root))).text();
      if (!find("#cases") && !find("#further")) content.prepend(make("p", {class: "now", id: "further"}, "The study has got further. ", make("a", {href: location.pathname}, "Load the page again"), "."));
      return;
    }
    const page = await fetch(location.pathname), next = new DOMParser().parseFromString(await page.text(), "text/html").querySelector("#content");
    if (!next) return tell("The study cannot be read now. Load this page again to see why.");
    if (find("#specs", next)) return location.reload();
    content.dataset.trace = next.dataset.trace;
    if (next.innerHTML === original) return;
    original = next.innerHTML;
    const focused = document.activeElement?.name, open = all("details").map(one => one.open);
    content.replaceWith(document.adoptNode(next));
    start();
    all("details").forEach((one, i) => { one.open = open[i] ?? one.open; });
    if (focused) find(`[name="${CSS.escape(focused)}"]`)?.focus();
    tell(find("#progress-head")?.textContent ?? "The page has changed.");
  }
  const later = times => setTimeout(look, times * Number(find("#content").dataset.patience));

  function start() {
    all("form.filters").forEach(filters);
    if (find("#case")) show_case().catch(error => { find("#case").replaceChildren(make("p", {class: "missing"}, error.message)); });
  }
  addEventListener("hashchange", () => {
    all("form.filters").forEach(form => { restore(form); apply(form).catch(error => tell(error.message)); });
    if (find("#case")) start();
  });
  addEventListener("DOMContentLoaded", () => { start(); if (find("#content").dataset.trace && !find("#case")) later(1); });
  return {take};
})();
