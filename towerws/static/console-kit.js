// The functions that the views of the console share: elements of the page, foreign text, numbers, and requests to the daemon.

export const $ = (id) => document.getElementById(id);

// Text goes into the page as text only. Nothing here parses HTML.
export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

// Makes control characters and direction marks visible, so that they can't change how the text around them reads.
const ODD = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff]/g;
export const visible = (text) => String(text).replace(ODD, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

export const count = (value) => value >= 100000 ? `${short.format(value / 1000)}k` : whole.format(value);
export const rate = (value) => value === 0 ? "0" : value < 0.1 ? exact.format(value) : value < 100 ? short.format(value) : count(value);

export function bytes(value) {
  if (value < 1000) return [rate(value), "B"];
  if (value < 1e6) return [short.format(value / 1e3), "kB"];
  return value < 1e9 ? [short.format(value / 1e6), "MB"] : [short.format(value / 1e9), "GB"];
}

export function duration(seconds) {
  if (seconds < 1) return [seconds === 0 ? "0" : exact.format(seconds * 1000), "ms"];
  if (seconds < 120) return [short.format(seconds), "s"];
  return seconds < 7200 ? [short.format(seconds / 60), "min"] : [short.format(seconds / 3600), "h"];
}

export function age(seconds) {
  const [value, unit] = duration(Math.max(1, Math.round(seconds)));
  return `${value} ${unit}`;
}

export const clock = (date) => date.toLocaleTimeString([], { hour12: false });
export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

const TIMEOUT_MS = 8000;
const reachable = new EventTarget();
export const onReach = (listener) => reachable.addEventListener("reach", (event) => listener(event.detail));

// The daemon answers with an error. The message is the daemon's text.
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// Ask the daemon. Throws `Refused` for its errors, and `TypeError` or an `AbortError` when no answer comes.
export async function ask(path, { body, timeoutMs = TIMEOUT_MS } = {}) {
  let answer, found;
  const signal = AbortSignal.timeout(timeoutMs);
  try {
    answer = await fetch(path, body === undefined ? { signal } : { method: "POST", body, signal });
    found = await answer.json();
  } catch (error) {
    reachable.dispatchEvent(new CustomEvent("reach", { detail: false }));
    throw error;
  }
  reachable.dispatchEvent(new CustomEvent("reach", { detail: true }));
  if (!answer.ok) throw new Refused(answer.status, visible(found.error || `the daemon answers ${answer.status}`));
  return found;
}

// The text to show for a request that failed.
export const failure = (error) => error instanceof Refused ? error.message : "The daemon doesn't answer.";

// Runs `step` every `everyMs` while `wanted()` is true and the page is visible, never twice at once. Returns a function that runs `step` now.
export function repeat(everyMs, wanted, step) {
  let timer = 0, running = false, again = false;
  async function run() {
    clearTimeout(timer);
    if (running) {
      again = true;
      return;
    }
    if (wanted() && !document.hidden) {
      running = true;
      try {
        await step();
      } finally {
        running = false;
      }
    }
    timer = setTimeout(run, again ? 0 : everyMs);
    again = false;
  }
  document.addEventListener("visibilitychange", run);
  run();
  return run;
}

// Returns a function that calls `call` once, `ms` after the last of several calls.
export function debounced(ms, call) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(call, ms);
  };
}
