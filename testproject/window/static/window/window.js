"use strict";

// Whoever has written looks at it for a moment, as people do, and then clicks through some pages.
const TEN_VISITS = ["save", "read", "read", "read", "read", "phone", "read", "read", "login", "read"];
const VISITS = [...TEN_VISITS, ...TEN_VISITS];
const PAUSE_MS = { save: 1500, phone: 1500, login: 1500, read: 350 };
const AGAIN = `${VISITS.length} visits`;
const CHART_SECONDS = 60;
const CHART_TOPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600];
const STATES = {
  primary: "takes writes",
  replica: "replays",
  paused: "paused, replays nothing",
  cut: "cut off, receives nothing",
  waiting: "waits for the primary",
  promoted: "promoted, a primary of its own",
  down: "down",
};
// What each button does where its server is in the other state.
const OPPOSITES = {
  pause: { when: (server) => server.is_paused, action: "resume", text: "Resume" },
  cut: { when: (server) => server.is_cut, action: "reconnect", text: "Reconnect" },
  kill: { when: (server) => server.state === "down", action: "start", text: "Start" },
  promote: { when: (server) => server.state === "promoted", action: "rebuild", text: "Make it a replica again" },
};

const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const token = $("[name=csrfmiddlewaretoken]").value;
const tallies = {};
const histories = {};
let isVisiting = false;
let isStopped = false;

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(text) {
  $("#said").textContent = text;
}

async function post(path, values = {}) {
  const headers = { "X-CSRFToken": token };
  try {
    const answer = await fetch(path, { method: "POST", headers, body: new URLSearchParams(values) });
    const told = await answer.json();
    if (!answer.ok) say(told.said);
    return answer.ok ? told : null;
  } catch (error) {
    say("The demonstration does not answer. Was it stopped?");
    return null;
  }
}

/* 1. The stories */

async function visit(names) {
  if (isVisiting) {
    isStopped = true;
    return;
  }
  isVisiting = true;
  isStopped = false;
  say("");
  $("#again").textContent = names.length > 1 ? "Stop" : AGAIN;
  for (const [number, name] of names.entries()) {
    if (isStopped || !(await tell(name))) break;
    if (names.length > 1) say(`Visit ${number + 1} of ${names.length}`);
    if (number + 1 < names.length) await new Promise((resolve) => setTimeout(resolve, PAUSE_MS[name]));
  }
  if (names.length > 1) $("#heard").textContent = summary();
  $("#again").textContent = AGAIN;
  isVisiting = false;
}

async function tell(name) {
  const button = $(`[data-story=${name}]`);
  for (const other of $$("[data-story]")) other.setAttribute("aria-pressed", String(other === button));
  $("#told").textContent = button.dataset.told;
  const told = await post(`stories/${name}/`);
  if (!told) return false;
  told.sites.forEach(showSite);
  $("#heard").textContent = told.sites.map(sentence).join(" ");
  return true;
}

function titleOf(routing) {
  return $(`#title-${routing}`).textContent;
}

function sentence(site) {
  return `${titleOf(site.routing)}: ${site.headline.toLowerCase()}.`;
}

function summary() {
  return Object.entries(tallies)
    .map(([routing, tally]) => `${titleOf(routing)}: ${tally.pages - tally.good} bad of ${tally.pages}.`)
    .join(" ");
}

function showSite(site) {
  const card = $(`#site-${site.routing}`);
  card.dataset.outcome = site.outcome;
  $(".address", card).textContent = site.page.address + (site.page.status > 299 ? ` (${site.page.status})` : "");
  $(".heading", card).textContent = site.page.heading || "No page";
  $(".user", card).textContent = whoIsSignedIn(site.page);
  $(".headline", card).textContent = site.headline;
  $(".detail", card).textContent = site.detail;
  showTally(card, count(site));
  showQueries($(".queries", card), site.page.queries);
}

function whoIsSignedIn(page) {
  if (page.user) return `signed in as ${page.user}`;
  return page.status === 200 ? "nobody is signed in" : "";
}

function count(site) {
  const zero = { pages: 0, good: 0, stale: 0, "logged-out": 0, error: 0, queries: 0, onReplicas: 0 };
  const tally = (tallies[site.routing] ??= zero);
  tally.pages += 1;
  tally[site.outcome] += 1;
  tally.queries += site.page.queries.length;
  tally.onReplicas += site.page.queries.filter((query) => query.server !== "primary").length;
  return tally;
}

function showTally(card, tally) {
  for (const shown of $$("[data-count]", card)) {
    const name = shown.dataset.count;
    const share = tally.queries ? `${Math.round((100 * tally.onReplicas) / tally.queries)} %` : "–";
    shown.textContent = name === "share" ? share : tally[name];
    shown.classList.toggle("is-bad", !["pages", "share"].includes(name) && tally[name] > 0);
  }
}

function showQueries(list, queries) {
  list.replaceChildren();
  if (!queries.length) list.append(element("li", "why", "None was answered."));
  queries.forEach((query, number) => {
    const line = element("li", "", "");
    const kind = query.server === "primary" ? "primary" : "replica";
    line.append(element("span", `pill ${kind}`, query.server), element("span", "", query.statement));
    list.append(line);
    const next = queries[number + 1];
    // A reason that holds for several in a row is told once, below them.
    if (!next || next.sentence !== query.sentence) {
      const reason = query.reason ? `${query.reason}: ${query.sentence}` : query.sentence;
      list.append(element("li", "why", reason));
    }
  });
}

/* 2. The servers */

function showServers({ servers, doing }) {
  for (const server of servers) {
    const card = $(`#server-${server.name}`);
    card.dataset.state = server.state;
    const busy = doing[server.name];
    $(".state", card).textContent = busy ? `${busy} …` : STATES[server.state];
    $("code", card).textContent = server.lsn || "–";
    for (const button of $$("[data-action]", card)) showButton(button, server);
    if (server.name !== "primary") showReplica(card, server, busy);
  }
  const delays = new Set(servers.filter((server) => server.lag !== null).map((server) => server.delay_ms));
  checkDelay($(".stories .delay"), delays.size === 1 ? [...delays][0] : null);
}

function showButton(button, server) {
  button.dataset.text ??= button.textContent;
  const opposite = OPPOSITES[button.dataset.action];
  const isOpposite = Boolean(opposite && opposite.when(server));
  button.textContent = isOpposite ? opposite.text : button.dataset.text;
  button.dataset.does = isOpposite ? opposite.action : button.dataset.action;
  const isDown = server.state === "down" && button.dataset.action !== "kill";
  const isOwn = server.state === "promoted" && ["pause", "cut"].includes(button.dataset.action);
  // Not disabled: who works by keyboard would lose their place.
  button.setAttribute("aria-disabled", String(isDown || isOwn));
}

function showReplica(card, server, busy) {
  const lag = server.lag;
  $(".lag b", card).textContent = lag === null ? "–" : `${lag.toFixed(1)} s`;
  $(".lag small", card).textContent = lag === null ? "" : `behind, ${server.behind.toLocaleString("en")} bytes`;
  if (!busy) checkDelay($(".delay", card), lag === null ? null : server.delay_ms);
  const history = (histories[server.name] ??= []);
  const now = performance.now() / 1000;
  history.push({ at: now, lag });
  while (history[0].at < now - CHART_SECONDS - 1) history.shift();
  draw($(".chart", card), history, now);
}

function checkDelay(fieldset, ms) {
  if (fieldset.dataset.pending) return;
  for (const input of $$("input", fieldset)) input.checked = Number(input.value) === ms;
}

function draw(chart, history, now) {
  const highest = Math.max(0, ...history.map((point) => point.lag ?? 0));
  const top = CHART_TOPS.find((value) => value >= highest) ?? highest;
  let line = "";
  let area = "";
  let begun = null;
  let x = 0;
  const close = () => {
    if (begun !== null) area += `V60H${begun}Z`;
    begun = null;
  };
  for (const { at, lag } of history) {
    if (lag === null) {
      close();
      continue;
    }
    x = (300 * (1 - (now - at) / CHART_SECONDS)).toFixed(1);
    const y = (58 - (56 * lag) / top).toFixed(1);
    line += `${begun === null ? "M" : "L"}${x},${y}`;
    area += `${begun === null ? "M" : "L"}${x},${y}`;
    begun ??= x;
  }
  close();
  $(".line", chart).setAttribute("d", line);
  $(".area", chart).setAttribute("d", area);
  $(".top", chart).textContent = `${top} s`;
}

async function move(path, values) {
  say("");
  const told = await post(path, values);
  if (told) say(told.said);
}

/* 3. What the visitor does */

for (const button of $$("[data-story]")) button.addEventListener("click", () => visit([button.dataset.story]));
$("#again").addEventListener("click", () => visit(VISITS));
$("#reset").addEventListener("click", () => move("reset/"));
for (const button of $$("[data-action]")) {
  const name = button.closest(".server").id.replace("server-", "");
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") {
      move(`servers/${name}/${button.dataset.does ?? button.dataset.action}/`);
    }
  });
}
for (const fieldset of $$(".delay")) {
  fieldset.addEventListener("change", async (event) => {
    fieldset.dataset.pending = "yes";
    await move(`servers/${fieldset.dataset.server}/delay/`, { ms: event.target.value });
    delete fieldset.dataset.pending;
  });
}
// On a phone the three verdicts should be near each other.
if (matchMedia("(max-width: 60rem)").matches) for (const details of $$("details")) details.open = false;

const stream = new EventSource("events/");
const slowly = matchMedia("(prefers-reduced-motion: reduce)");
let shownAt = 0;
stream.onmessage = (event) => {
  if (slowly.matches && performance.now() - shownAt < 1000) return;
  shownAt = performance.now();
  showServers(JSON.parse(event.data));
};
stream.onerror = () => {
  for (const state of $$(".state")) state.textContent = "no news from the demonstration";
};
