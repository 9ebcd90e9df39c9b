// The topic explorer: the newest events in the daemon's history, of any group, with search and pause.
import { $, Refused, age, ask, bytes, clock, count, debounced, failure, make, plural, repeat, setText, visible } from "./console-kit.js";

const POLL_MS = 1000;
const TOPICS_MS = 5000;
const MAX_EVENTS = 200;       // Rows in the list.
const MAX_TEXT = 160;         // Characters of a payload in its row.
const MAX_SHOWN = 200000;     // Characters of an open payload.
const MAX_COLOURED = 30000;   // Longer payloads are shown without colours.

let rows = [], newest = -1, instance = "", paused = false, skipped = false, problem = "", generation = 0, shownGroups = "";
let pollNow = () => {}, topicsNow = () => {};

const search = () => $("events-search").value;

// Adds newlines and indents to JSON, and changes nothing else: it rounds no number, and still shows a payload that is no plain JSON.
// The pattern takes a string without an end up to the end of the text. Otherwise it would try each `\"` in it as a beginning: quadratic time.
export function pretty(text) {
  let out = "", depth = 0;
  const line = () => `\n${"  ".repeat(Math.min(depth, 40))}`;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*(?:"|\\?$)|[{}[\],:]|\s+|[^\s{}[\],:"]+/gs)) {
    if (/^\s/.test(token)) continue;
    if (token === "{" || token === "[") {
      depth++;
      out += token + line();
    } else if (token === "}" || token === "]") {
      depth = Math.max(0, depth - 1);
      out = /[{[]\s*$/.test(out.slice(-90)) ? out.trimEnd() + token : out + line() + token;
    } else out += token === "," ? token + line() : token === ":" ? ": " : token;
  }
  return out;
}

function paint(into, text) {
  if (text.length > MAX_COLOURED) {
    into.textContent = visible(text);
    return;
  }
  for (const [token, key, string, number] of text.matchAll(/("(?:[^"\\]|\\.)*")(?=: )|("(?:[^"\\]|\\.)*(?:"|\\?$))|(-?\b\d[\d.eE+-]*|\btrue\b|\bfalse\b|\bnull\b)|[^"\d]+|./gs)) {
    const className = key ? "key" : string ? "string" : number ? "number" : "";
    into.append(className ? make("span", className, visible(token)) : document.createTextNode(visible(token)));
  }
}

function summaryOf(event) {
  const flat = event.preview.slice(0, 4 * MAX_TEXT).replace(/\s+/g, " ").slice(0, MAX_TEXT);
  return visible(flat) + (event.bytes > flat.length ? " …" : "");
}

function rowFor(event) {
  const listedBy = instance;   // The process that listed the event. `seq` and `offset` are its numbers.
  const item = make("li"), details = make("details"), summary = make("summary"), at = new Date(Date.now() - 1000 * event.age_s);
  const time = make("time", "", clock(at));
  time.dateTime = at.toISOString();
  summary.append(time, make("span", "name", visible(event.topic)), make("span", "text", summaryOf(event)), make("span", "size", bytes(event.bytes).join(" ")));
  details.append(summary);
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) open(details, event, listedBy); });
  item.append(details);
  return item;
}

async function open(details, event, listedBy) {
  pause(true);   // a row that the user reads must not move away
  const box = make("div", "payload");
  box.append(make("p", "note", "loading …"));
  details.append(box);
  try {
    const found = await ask(`console/event?offset=${event.offset}`);
    if (found.instance !== listedBy) throw new Refused(404, "This row is from before a restart of the daemon. Press Go on to see the events that it has now.");
    if (found.seq !== event.seq) throw new Refused(404, "The daemon's history no longer has this event.");
    const facts = make("dl"), text = make("pre"), actions = make("div", "row");
    for (const [name, value] of [["position", found.position ?? "–"], ["size", `${found.bytes.toLocaleString("en")} bytes`], ["message id", found.message_id]]) {
      if (value === null) continue;
      const pair = make("div");
      pair.append(make("dt", "", name), make("dd", "", visible(value)));
      facts.append(pair);
    }
    const shown = found.payload.slice(0, MAX_SHOWN);
    paint(text, pretty(shown));
    text.tabIndex = 0;
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `Payload of ${visible(event.topic)}`);
    if (shown.length < found.payload.length) actions.append(make("p", "note", `The first ${shown.length.toLocaleString("en")} of ${found.payload.length.toLocaleString("en")} characters.`));
    const who = make("a", "", "Who gets this topic?");
    who.href = `#explain?topic=${encodeURIComponent(event.topic)}`;
    const copy = make("button", "small", "Copy payload");
    copy.type = "button";
    copy.addEventListener("click", () => navigator.clipboard.writeText(found.payload).then(() => setText(copy, "Copied"), () => setText(copy, "The browser does not allow it")));
    actions.append(copy, who);
    box.replaceChildren(facts, text, actions);
  } catch (error) {
    box.replaceChildren(make("p", "note", failure(error)));
  }
}

function pause(value) {
  paused = value;
  $("events-pause").setAttribute("aria-pressed", String(paused));
  setText($("events-pause"), paused ? "Go on" : "Pause");
  show();
  if (!paused) pollNow();
}

function show() {
  setText($("events-note"), problem ? "" : paused ? "paused" : skipped ? "too many events for a page: some are left out" : "");
  $("events-empty").hidden = rows.length > 0;
  const filtered = search() || $("events-group").value;
  setText($("events-empty"), problem || (filtered ? "No event in history matches." : "No events yet. Publish one, and it appears here."));
  setText($("list-title"), rows.length ? `Newest first, ${plural(rows.length, "event")}` : "Newest first");
}

function restart() {
  generation++;
  rows = [];
  newest = -1;
  skipped = false;
  $("event-list").replaceChildren();
  markTopic();
  if (paused) pause(false);
  else pollNow();
}

async function poll() {
  const asked = generation;
  const query = new URLSearchParams({ after: newest, instance, group: $("events-group").value, text: search() });
  let found;
  try {
    found = await ask(`console/events?${query}`);
  } catch (error) {
    if (error instanceof Refused) problem = error.message;
    show();
    return;
  }
  if (asked !== generation || paused) return;
  problem = "";
  if (found.instance !== instance) {
    rows = [];
    $("event-list").replaceChildren();
    instance = found.instance;
  }
  skipped = !found.complete && newest >= 0;
  newest = found.newest;
  const fresh = found.events.map(rowFor);
  $("event-list").prepend(...fresh);
  rows = [...fresh, ...rows];
  for (const old of rows.splice(MAX_EVENTS)) old.remove();
  show();
}

// ---- topics

function markTopic() {
  for (const button of document.querySelectorAll(".topic")) button.setAttribute("aria-pressed", String(button.dataset.topic === search()));
}

function choose(topic) {
  $("events-search").value = search() === topic ? "" : topic;
  restart();
}

async function pollTopics() {
  let found;
  try {
    found = await ask("console/topics");
  } catch {
    return;   // `poll` shows the error
  }
  const known = new Map([...$("topics").children].map((item) => [item.firstChild.dataset.topic, item]));
  const items = found.topics.map(({ topic, events, age_s: ageS, subscribers }) => {
    let item = known.get(topic);
    if (!item) {
      item = make("li");
      const button = make("button", "topic");
      button.type = "button";
      button.dataset.topic = topic;
      button.append(make("span", "name", visible(topic)), make("span", "count"), make("span", "about"));
      button.addEventListener("click", () => choose(topic));
      item.append(button);
    }
    const [, number, about] = item.firstChild.children;
    setText(number, count(events));
    setText(about, `${age(ageS)} ago, ${subscribers ? plural(subscribers, "subscriber") : "no subscriber"}`);
    return item;
  });
  // An unchanged list keeps its elements, so that the keyboard's focus stays.
  if (items.length !== $("topics").children.length || items.some((item, index) => $("topics").children[index] !== item)) {
    const focused = document.activeElement;
    $("topics").replaceChildren(...items);
    if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }
  $("topics-empty").hidden = items.length > 0;
  markTopic();
  showGroups(found.groups);
}

// A reload of the daemon may change the groups. Unchanged groups keep their elements, so that an open list and the keyboard's focus stay.
function showGroups(groups) {
  const text = JSON.stringify(groups), choice = $("events-group"), chosen = choice.value;
  if (text === shownGroups) return;
  shownGroups = text;
  choice.replaceChildren(choice.options[0], ...groups.map(({ group }) => new Option(group, group, false, group === chosen)));
  if (choice.value !== chosen) restart();   // The chosen group is gone.
  $("groups").replaceChildren(...groups.flatMap(({ group, events, policy }) => {
    const who = { authenticated: "everyone who may connect", own: "only the user of this id", never: "no client" }[policy] || policy;
    return [make("dt", "", group), make("dd", "", `${events} · ${who}`)];
  }));
}

export function refresh() {
  pollNow();
  topicsNow();
}

export function start(wanted) {
  $("events-pause").addEventListener("click", () => pause(!paused));
  $("events-search").addEventListener("input", debounced(250, restart));
  $("events-group").addEventListener("change", restart);
  show();
  pollNow = repeat(POLL_MS, () => wanted() && !paused, poll);
  topicsNow = repeat(TOPICS_MS, wanted, pollTopics);
}
