// SPDX-License-Identifier: Apache-2.0
// What a page does by itself: parts that refresh, times that go on, keys, the theme.
// Everything else is plain HTML, and works without this.

const SIGNED_OUT = 401;
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// -- theme ---------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const themeSwitch = document.querySelector("[data-theme-switch]");

function storedTheme() {
  try { return localStorage.getItem("federation-theme") ?? "auto"; } catch { return "auto"; }
}

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  if (themeSwitch) themeSwitch.textContent = `Theme: ${theme}`;
}

showTheme(storedTheme());
if (themeSwitch) {
  themeSwitch.hidden = false;
  themeSwitch.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
    try { localStorage.setItem("federation-theme", next); } catch { /* only this page */ }
    showTheme(next);
  });
}

// -- times: as render.py says them ---------------------------------------------------

const UNITS = [[86400e3, "d", 3], [3600e3, "h", 6], [60e3, "min", 10], [1e3, "s", 0]];
// How far this machine's clock is from the homeserver's.
const skew = Number(document.body.dataset.now || Date.now()) - Date.now();
const now = () => Date.now() + skew;

function duration(ms) {
  for (let i = 0; i < UNITS.length; i++) {
    const [unit, word, plainFrom] = UNITS[i];
    const amount = Math.floor(ms / unit);
    if (amount < 1) continue;
    const [nextUnit, nextWord] = UNITS[i + 1] ?? [1, ""];
    const rest = Math.floor((ms % unit) / nextUnit);
    return amount < plainFrom && rest ? `${amount} ${word} ${rest} ${nextWord}` : `${amount} ${word}`;
  }
  return "1 s";
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

// -- parts that refresh --------------------------------------------------------------

const parts = new Map();

function selectsText() {
  const selection = document.getSelection();
  return selection !== null && !selection.isCollapsed;
}

function isBusy(part) {
  // A field in which somebody writes, or a list that is open, stays as it is.
  const active = document.activeElement;
  return part.contains(active) && active.matches("input:not([type=checkbox]), select, textarea");
}

function keepState(old, fresh) {
  for (const box of all("input[type=checkbox][value]", old)) {
    const same = all("input[type=checkbox]", fresh).find(
      (other) => other.name === box.name && other.value === box.value);
    if (same) same.checked = box.checked;
  }
  const open = new Set(all("details[open][id]", old).map((each) => each.id));
  for (const each of all("details[id]", fresh)) if (open.has(each.id)) each.open = true;
}

function placeOf(element, part) {
  if (!part.contains(element)) return null;
  const row = element.closest("[data-row]");
  const key = element.id || element.getAttribute("href") || element.value || element.textContent;
  return { tag: element.tagName, key, row: row?.dataset.row };
}

function find(place, part) {
  return all(place.tag, part).find((element) => {
    const key = element.id || element.getAttribute("href") || element.value || element.textContent;
    const row = element.closest("[data-row]");
    return key === place.key && row?.dataset.row === place.row;
  }) ?? all("[data-row]", part).find((row) => place.row && row.dataset.row === place.row);
}

function mark(old, fresh) {
  const before = new Set(all("tr, dd, li, h1, p", old).map((each) => each.textContent));
  for (const each of all("tr, dd, li, h1, p", fresh)) {
    if (!before.has(each.textContent) && !each.querySelector("time")) each.classList.add("changed");
  }
}

function replace(part, fresh) {
  fresh = document.importNode(fresh, true);
  keepState(part, fresh);
  if (fresh.isEqualNode(part)) return part;
  const place = placeOf(document.activeElement, part);
  const top = part.getBoundingClientRect().top;
  const anchor = all("[data-row]", part).find((row) => row.getBoundingClientRect().top >= 0);
  const anchorTop = anchor?.getBoundingClientRect().top;
  mark(part, fresh);
  part.replaceWith(fresh);
  if (place) find(place, fresh)?.focus({ preventScroll: true });
  // What somebody reads stays where it is.
  const again = anchor && all("[data-row]", fresh).find((row) => row.dataset.row === anchor.dataset.row);
  if (top < 0 && again) window.scrollBy(0, again.getBoundingClientRect().top - anchorTop);
  return fresh;
}

function tell(text, isBad) {
  const told = document.querySelector("[data-updated]");
  if (!told) return;
  told.textContent = text;
  told.classList.toggle("bad", isBad);
}

let fetchedAt = Date.now();
let failedSince = null;
let isFetching = false;

async function refresh(due) {
  isFetching = true;
  try {
    const answer = await fetch(location.href, {
      headers: { Accept: "text/html" }, credentials: "same-origin", signal: AbortSignal.timeout(30e3),
    });
    if (answer.status === SIGNED_OUT) {
      failedSince = "You are signed out: load this page again";
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (document.hidden || selectsText()) return;
    for (const id of due) {
      const [part, next] = [document.getElementById(id), fresh.getElementById(id)];
      if (part && next && !isBusy(part)) replace(part, next);
      // A run that has ended is not asked for any more.
      if (!next?.dataset.live) parts.delete(id);
    }
    fetchedAt = Date.now();
    failedSince = null;
    tellTimes();
  } catch {
    failedSince ??= Date.now();
  } finally {
    isFetching = false;
    const later = Date.now();
    for (const id of due) if (parts.has(id)) parts.get(id).next = later + parts.get(id).every;
  }
}

function tick() {
  if (document.hidden) return;
  if (!selectsText()) tellTimes();
  if (parts.size === 0) return;
  const due = [...parts].filter(([, part]) => part.next <= Date.now()).map(([id]) => id);
  if (due.length && !isFetching && !selectsText()) refresh(due);
  const told = typeof failedSince === "number"
    ? `not updated for ${duration(Math.max(Date.now() - fetchedAt, 1000))}: the homeserver does not answer`
    : failedSince ?? `updated ${duration(Math.max(Date.now() - fetchedAt, 1000))} ago`;
  tell(told, failedSince !== null);
}

for (const part of all("[data-live][id]")) {
  const every = Math.max(Number(part.dataset.live) || 10, 1) * 1000;
  parts.set(part.id, { every, next: Date.now() + every });
}
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);

// A page that could not be had looks again.
if ("retry" in document.body.dataset) {
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (answer.status < 500) location.reload();
    } catch { /* the homeserver itself is away: again */ }
  }, 5000);
}

// -- the session of an authentication service ---------------------------------------

const session = document.querySelector("form[data-renew]");

async function renew() {
  // One tab does it; the others find the cookie renewed.
  await navigator.locks.request("federation-session", async () => {
    const known = Number(sessionStorageGet("federation-expires") ?? 0);
    if (known > now() + 60e3) return;
    const answer = await fetch(session.action, {
      method: "POST", body: new URLSearchParams(new FormData(session)), credentials: "same-origin",
    });
    if (answer.ok) sessionStorageSet("federation-expires", (await answer.json()).expires_ts);
  });
}

function sessionStorageGet(key) { try { return localStorage.getItem(key); } catch { return null; } }
function sessionStorageSet(key, value) { try { localStorage.setItem(key, value); } catch { /* none */ } }

if (session && navigator.locks) {
  sessionStorageSet("federation-expires", session.dataset.renew);
  // Who comes after the access token has ended is let in by what renews it.
  if (session.dataset.back && Number(session.dataset.renew) < now()) {
    renew().then(() => {
      if (Number(sessionStorageGet("federation-expires")) > now()) location.replace(session.dataset.back);
    }).catch(() => {});
  }
  setInterval(() => {
    const ends = Number(sessionStorageGet("federation-expires"));
    if (ends - now() < 90e3) renew().catch(() => {});
  }, 15e3);
}

// -- forms ---------------------------------------------------------------------------

// What signing in has brought goes on by itself; with a number, after so many seconds.
for (const form of all("form[data-submit]")) {
  setTimeout(() => form.requestSubmit(), Number(form.dataset.submit) * 1000);
}

// Pressed twice, a button does its work once.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  if (form.dataset.sent) { event.preventDefault(); return; }
  form.dataset.sent = "yes";
  setTimeout(() => delete form.dataset.sent, 3000);
});

for (const box of all("[data-select-all]")) {
  box.hidden = false;
  box.addEventListener("change", () => {
    for (const each of all("[data-row] input[type=checkbox]", box.closest("form, table"))) each.checked = box.checked;
    countSelected();
  });
}

function countSelected() {
  const selected = all("[data-row] input[type=checkbox]:checked").length;
  for (const each of all("[data-selected]")) each.textContent = selected ? `${selected} selected` : "";
}
document.addEventListener("change", countSelected);

for (const button of all("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try { await navigator.clipboard.writeText(source.value ?? source.textContent); } catch {
      source.focus(); source.select?.(); document.execCommand("copy");
    }
    button.textContent = "Copied";
  });
}

// -- keys ----------------------------------------------------------------------------

let afterG = 0;

function rowNow() {
  return document.activeElement?.closest("[data-row]");
}

function move(step) {
  const rows = all("[data-row]").filter((row) => row.offsetParent !== null);
  if (!rows.length) return;
  const at = rows.indexOf(rowNow());
  const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + step, 0), rows.length - 1)];
  row.tabIndex = -1;
  row.focus();
  row.scrollIntoView({ block: "nearest" });
}

function press(key) {
  // That of the row, or else that of the page.
  const button = rowNow()?.querySelector(`[data-key="${key}"]`)
    ?? all(`[data-key="${key}"]`).find((each) => !each.closest("[data-row]"));
  button?.click();
  return Boolean(button);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const target = event.target;
  if (target.matches("input:not([type=checkbox]):not([type=radio]), select, textarea, [contenteditable]")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const key = event.key;
  let isOurs = true;
  if (afterG > Date.now() - 2000 && /^[a-z]$/.test(key)) {
    const link = document.querySelector(`[data-go="${key}"]`);
    link?.click();
    isOurs = Boolean(link);
    afterG = 0;
  } else if (key === "g") afterG = Date.now();
  else if (key === "j") move(1);
  else if (key === "k") move(-1);
  else if (key === "/") document.querySelector("[data-filter], main input[type=search]")?.focus();
  else if (key === "?") document.querySelector("[data-help]")?.click();
  else if (key === "Enter" && target.matches("[data-row]")) (target.querySelector("[data-open]") ?? target.querySelector("a[href]"))?.click();
  else if (key === "x" && rowNow()) rowNow().querySelector("input[type=checkbox]")?.click();
  else if (/^[a-z]$/.test(key)) isOurs = press(key);
  else isOurs = false;
  if (isOurs) event.preventDefault();
});
