// SPDX-License-Identifier: Apache-2.0
// What a page does by itself: parts that refresh, times that go on, keys, the theme.
// Everything else is plain HTML, and works without this.

const [SIGNED_OUT, TOO_MANY] = [401, 429];
const data = document.body.dataset;
const find = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];

// -- theme ---------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];

// Where nothing can be stored, it holds for this page only.
function stored(key) { try { return localStorage.getItem(key); } catch { return null; } }
function store(key, value) { try { localStorage.setItem(key, value); } catch { /* none */ } }

const themeSwitch = find("[data-theme-switch]");
function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  themeSwitch.textContent = `Theme: ${theme}`;
  themeSwitch.onclick = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    store("federation-theme", next);
    showTheme(next);
  };
}
themeSwitch.hidden = false;
showTheme(stored("federation-theme") ?? "auto");

// -- times: as render.py says them ---------------------------------------------------

const UNITS = [[86400e3, "d", 3], [3600e3, "h", 6], [60e3, "min", 10], [1e3, "s", 0], [1, "", 0]];
// How far this machine's clock is from the homeserver's.
const skew = Number(data.now) - Date.now();
const now = () => Date.now() + skew;

function duration(ms) {
  const at = UNITS.findIndex(([unit]) => ms >= unit);
  const [[unit, word, plainFrom], [nextUnit, nextWord]] = UNITS.slice(at, at + 2);
  const [amount, rest] = [Math.floor(ms / unit), Math.floor((ms % unit) / nextUnit)];
  return amount < plainFrom && rest ? `${amount} ${word} ${rest} ${nextWord}` : `${amount} ${word}`;
}

function tellTimes() {
  for (const time of all("time[data-ago], time[data-since], time[data-until]")) {
    const apart = now() - Date.parse(time.dateTime);
    let text = duration(Math.max(apart, 1000));
    if ("ago" in time.dataset) text += " ago";
    if ("until" in time.dataset) text = apart < -1000 ? `in ${duration(-apart)}` : "now";
    if (time.textContent !== text) time.textContent = text;
  }
}

// -- parts that are live -------------------------------------------------------------

// It is asked what has changed; the page is read anew if that is shown on it, and after
// a longer time also for the sake of what no change tells, such as what waits.
const ASK_MS = 5e3;
const SLOW_MS = 120e3;
const MANY_S = 30;
// What somebody who looks at the page has set, or this script has.
const KEPT = new Set(["hidden", "open", "tabindex", "aria-busy"]);

const parse = (text) => new DOMParser().parseFromString(text, "text/html");
const isBlank = (node) => node?.nodeType === Node.TEXT_NODE && !node.data.trim();
// The row of a server is told from others by where its name leads.
const keyOf = (node) => node.id || (node.dataset?.row === "" ? node.querySelector("a").pathname : node.dataset?.row) || "";

// Make what is there like what is new, and leave alone what is the same: so focus, what is
// selected and what is open stay. Where it differs is added to `changed`.
function morph(old, fresh, changed) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data === fresh.data) return;
    old.data = fresh.data;
    changed.add(old.parentElement);
    return;
  }
  if (old.tagName === "TIME" && old.dateTime === fresh.dateTime) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.tagName === "TIME") {
    old.textContent = fresh.textContent;
    return;
  }
  const known = new Map([...old.childNodes].map((node) => [keyOf(node), node]));
  const keys = new Set([...fresh.childNodes].map(keyOf));
  let at = old.firstChild;
  const drop = () => {
    const [gone, space] = [at, at.nextSibling];
    at = isBlank(space) ? space.nextSibling : space;
    if (isBlank(space)) space.remove();
    gone.remove();
  };
  for (const next of [...fresh.childNodes]) {
    while (at && !keys.has(keyOf(at))) drop();
    const key = keyOf(next);
    const same = key ? known.get(key) : at && !keyOf(at) ? at : null;
    if (same?.nodeName !== next.nodeName) {
      const added = old.insertBefore(document.importNode(next, true), at);
      if (!isBlank(added)) changed.add(added.nodeType === Node.TEXT_NODE ? old : added);
      continue;
    }
    if (same === at) at = at.nextSibling;
    else old.insertBefore(same, at);
    morph(same, next, changed);
  }
  while (at) drop();
}

function update(pairs) {
  const changed = new Set();
  const active = document.activeElement;
  const isSeen = (each) => each.getBoundingClientRect().top >= -1 && each.offsetParent !== null;
  // What somebody looks at stays where it is on the screen.
  const anchor = active.closest("main") && active.id !== "main" && isSeen(active)
    ? active : all("main [data-row], main h1, main h2, main p").find(isSeen);
  const top = anchor?.getBoundingClientRect().top;
  for (const [old, fresh] of pairs) morph(old, fresh, changed);
  if (active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true });
  if (anchor?.isConnected) window.scrollBy(0, anchor.getBoundingClientRect().top - top);
  tellTimes();
  const places = new Set([...changed].filter((each) => !each.closest("[data-quiet]"))
    .map((each) => each.closest("tr, dd, li, h1, h2, p") ?? each));
  for (const each of places) each.classList.add("changed");
  setTimeout(() => places.forEach((each) => each.classList.remove("changed")), 2500);
}

// A tab that nobody looks at, or in which text is selected, stays as it is.
const isLeftAlone = () => document.hidden || document.getSelection()?.isCollapsed === false;

// `failed:30 runs:5`: where it has changed, read it, but so many seconds after the last
// time at the soonest; `30` is every 30 seconds.
const findParts = () => all("[data-live][id]").map((element) => ({
  element,
  about: element.dataset.about,
  every: element.dataset.live.split(" ").map((each) => each.split(":").reverse()),
}));
let parts = findParts();
const channel = parts.length && "BroadcastChannel" in window ? new BroadcastChannel("federation-changes") : null;
let since = Number(data.now);
let processes;
let [nextAsk, nextRead, readAt, currentAt] = [Date.now() + ASK_MS, 0, 0, Date.now()];
let [isAsking, isOver, trouble] = [false, false, ""];

function plan() {
  const paces = parts.flatMap((part) => part.every).filter(([, kind]) => !kind).map(([s]) => s * 1e3);
  [readAt, nextRead] = [Date.now(), Date.now() + Math.min(SLOW_MS, ...paces)];
}

function hear(changes) {
  // Others who look at this homeserver in this browser ask later, too.
  [since, nextAsk] = [changes.as_of_ts, Date.now() + ASK_MS + Math.random() * 1e3];
  const before = processes;
  processes = String(changes.processes);
  for (const { every, about } of parts) {
    const paces = every.filter(([, kind]) => kind && (!changes.is_complete || (kind === "processes"
      ? before !== undefined && before !== processes
      : changes[kind].some((each) => !about || each === about))));
    // Where more has changed than is told, a slow pace will do.
    const pace = changes.is_complete ? Math.min(...paces.map(([seconds]) => seconds)) : MANY_S;
    if (paces.length) nextRead = Math.min(nextRead, readAt + pace * 1e3);
  }
  if (nextRead > Date.now()) currentAt = Date.now();
}

async function get(url) {
  const answer = await fetch(url, { signal: AbortSignal.timeout(30e3) });
  if (answer.ok) return answer;
  const said = parse(await answer.text()).querySelector("main h1")?.textContent;
  const told = said
    ? (answer.status === SIGNED_OUT ? "You are signed out." : `${said}.`)
    : `A proxy answers HTTP ${answer.status}: the homeserver behind it does not.`;
  // Where it lies with who asks, nothing is expected of asking again.
  throw Object.assign(new Error(told), { told, isFinal: Boolean(said) && answer.status < 500 });
}

async function look() {
  isAsking = true;
  try {
    if (nextAsk <= Date.now()) {
      const asked = since;
      const changes = await (await get(`${data.changes}?since=${asked}`)).json();
      hear(changes);
      channel?.postMessage({ asked, changes });
    }
    if (nextRead <= Date.now() && !isLeftAlone()) {
      const fresh = parse(await (await get(location.href)).text());
      if (isLeftAlone()) return;
      const pairs = parts.map(({ element }) => [element, fresh.getElementById(element.id)]);
      update(pairs.filter((pair) => pair[1]));
      // A run that has ended is not asked for any more.
      parts = findParts();
      plan();
      currentAt = readAt;
    }
    trouble = "";
  } catch (error) {
    trouble = error.told ?? "The homeserver does not answer.";
    isOver = Boolean(error.isFinal);
    nextAsk = Date.now() + ASK_MS;
  } finally {
    isAsking = false;
    tell();
  }
}

function tell() {
  if (!parts.length) return;
  const [why, again, when] = all("[data-told] > *");
  const ago = duration(Math.max(Date.now() - currentAt, 1000));
  when.textContent = trouble ? `Not updated for ${ago}.` : `updated ${ago} ago`;
  why.parentElement.classList.toggle("bad", Boolean(trouble));
  again.hidden = !isOver;
  // It is read aloud once, so it is written once.
  if (why.textContent !== trouble) why.textContent = trouble;
}

function tick() {
  if (!isLeftAlone()) {
    tellTimes();
    const next = trouble ? nextAsk : Math.min(nextAsk, nextRead);
    if (parts.length && !isAsking && !isOver && next <= Date.now()) look();
  }
  if (!document.hidden) tell();
}

if (channel) {
  channel.onmessage = ({ data: { asked, changes } }) => {
    // Another tab has an answer: whoever is signed in, this one is, too.
    if (isOver || trouble) [isOver, trouble] = [false, ""];
    if (asked <= since) hear(changes);
  };
}
plan();
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);
tick();

// A page that could not be had looks again.
async function retry() {
  const answer = document.hidden ? null : await fetch(location.href).catch(() => null);
  if (answer?.status < 500) location.reload();
}
if ("retry" in data) setInterval(retry, ASK_MS);

// -- the session of an authentication service ---------------------------------------

const session = find("form[data-renew]");

// Where the service refuses to renew, it is not asked again before somebody signs in.
let refused = null;

async function renew() {
  // One tab does it; the others find the cookie renewed.
  await navigator.locks.request("federation-session", async () => {
    const known = stored("federation-expires") ?? "";
    if (Number(known) > now() + 60e3 || known === refused) return;
    const answer = await fetch(session.action, {
      method: "POST", body: new URLSearchParams(new FormData(session)),
    });
    if (answer.ok) store("federation-expires", (await answer.json()).expires_ts);
    else if (answer.status < TOO_MANY) refused = known;
    if (!parts.length) {
      find("[data-told] > [role=status]").textContent = answer.status < TOO_MANY ? ""
        : "The authentication service does not answer. The session stays, and is renewed once it does.";
    }
  });
  // Who comes after the access token has ended is let in once it is renewed, by whichever tab.
  const isNew = Number(stored("federation-expires")) > Number(session.dataset.renew);
  if (session.dataset.back && isNew) location.replace(session.dataset.back);
}

function renewInTime() {
  if (Number(stored("federation-expires")) - now() < 90e3) renew().catch(() => {});
}
if (session && navigator.locks) {
  store("federation-expires", session.dataset.renew);
  renewInTime();
  setInterval(renewInTime, 15e3);
}

// -- forms ---------------------------------------------------------------------------

// What signing in has brought goes on by itself; with a number, after so many seconds.
for (const form of all("form[data-submit]")) {
  setTimeout(() => form.requestSubmit(), Number(form.dataset.submit) * 1000);
}

// Pressed twice, a button does its work once; until there is an answer it is shown as busy.
const sent = new Set();
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (sent.has(form)) event.preventDefault();
  sent.add(form);
  setTimeout(() => sent.delete(form), 3000);
  if (event.submitter) event.submitter.ariaBusy = "true";
});
// Who comes back finds it as it was.
window.addEventListener("pageshow", () => all("[aria-busy]").forEach((each) => each.removeAttribute("aria-busy")));

const selectAll = find("[data-select-all]");
if (selectAll) selectAll.hidden = false;
document.addEventListener("change", ({ target }) => {
  const boxes = all("[data-row] input[type=checkbox]");
  if (target === selectAll) for (const box of boxes) box.checked = selectAll.checked;
  const selected = boxes.filter((box) => box.checked).length;
  const told = find("[data-selected]");
  if (told) told.textContent = selected ? `${selected} selected` : "what is selected";
});

for (const button of all("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    document.getElementById(button.dataset.copy).select();
    // What is newer is not there over http.
    if (document.execCommand("copy")) button.textContent = "Copied";
    button.focus();
  });
}

// -- keys ----------------------------------------------------------------------------

const TYPED = "input:not([type=checkbox]), select, textarea";
const rowNow = () => document.activeElement.closest("[data-row]");

function move(step) {
  const rows = all("[data-row]").filter((row) => row.offsetParent !== null);
  const at = rows.indexOf(rowNow());
  const row = rows.at(at < 0 ? Math.min(step, 0) : Math.min(Math.max(at + step, 0), rows.length - 1));
  if (!row) return;
  row.tabIndex = -1;
  row.focus();
  row.scrollIntoView({ block: "nearest" });
}

function press(key) {
  // That of the row, or else that of the page, which is for what is selected.
  const row = rowNow();
  const own = row?.querySelector(`[data-key="${key}"]`);
  const form = find(`form[data-of-row="${key}"]`);
  if (form && row) {
    form.action = `${row.querySelector("a[href]").href}/diagnose`;
    form.requestSubmit();
    return true;
  }
  const button = own ?? all(`[data-key="${key}"]`).find((each) => !each.closest("[data-row]"));
  if (button && !own && !find("[data-row] input:checked")) row?.querySelector("input")?.click();
  button?.click();
  return Boolean(button);
}

const help = find("[data-help]");
let beforeHelp = null;

// The keys are listed beside the page, which goes on.
function showHelp(isOpen) {
  if (isOpen) beforeHelp = document.activeElement;
  help.open = isOpen;
  (isOpen ? help.querySelector("summary") : beforeHelp)?.focus({ preventScroll: true });
}

let afterG = 0;
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (target.matches(TYPED)) {
    if (key === "Escape") target.blur();
    return;
  }
  let isOurs = true;
  if (afterG > Date.now() - 2000 && /^[a-z]$/.test(key)) {
    const link = find(`[data-go="${key}"]`);
    link?.click();
    isOurs = Boolean(link);
    afterG = 0;
  } else if (key === "g") afterG = Date.now();
  else if (key === "j") move(1);
  else if (key === "k") move(-1);
  else if (key === "/") find("[data-filter]")?.focus();
  else if (key === "?" && help) showHelp(!help.open);
  else if (key === "Escape" && help?.open) showHelp(false);
  else if (key === "Enter" && target.matches("[data-row]")) target.querySelector("a[href]")?.click();
  else if (key === "x" && rowNow()) rowNow().querySelector("input")?.click();
  else if (/^[a-z]$/.test(key)) isOurs = press(key);
  else isOurs = false;
  if (isOurs) event.preventDefault();
});
