// "Why did this client not get it?": asks GET /console/explain, and shows the rule that decides above all others.
import { $, ask, failure, make, visible } from "./console-kit.js";

const TIMEOUT_MS = 120000;   // The daemon may ask the API about ten connections.
const WORDS = { yes: ["✓", "passes"], no: ["✗", "does not pass"], unknown: ["?", "can't be known"] };
const word = (passes) => passes === null ? "unknown" : passes ? "yes" : "no";

let generation = 0;

// A connection's rules. They are folded, unless this connection decides.
function fold(title, steps, open) {
  const panel = make("details", "panel steps");
  panel.open = open;
  panel.append(make("summary", "", title), rules(steps));
  return panel;
}

function list(title, steps) {
  const panel = make("div", "panel steps");
  panel.append(make("h3", "", title), rules(steps));
  return panel;
}

function rules(steps) {
  const items = make("ol", "list");
  for (const { rule, passes, text } of steps) {
    const item = make("li"), mark = make("span", "mark", WORDS[word(passes)][0]);
    item.dataset.passes = word(passes);
    mark.setAttribute("aria-hidden", "true");
    const name = make("span", "", visible(rule));
    name.append(make("span", "hidden", ` ${WORDS[word(passes)][1]}`));
    item.append(mark, name, make("span", "because", visible(text)));
    items.append(item);
  }
  return items;
}

function titleOf(connection, steps) {
  const stop = steps.find(({ passes }) => !passes);
  return `Connection ${connection}: ${stop ? visible(`does not pass: ${stop.rule}`) : "gets it"}`;
}

function show(found) {
  const { verdict } = found;
  const box = make("div", "verdict");
  box.dataset.passes = word(verdict.passes);
  const headline = verdict.passes ? "The client gets it." : verdict.passes === null ? `It can't be known: ${verdict.rule}?` : `Not so: ${verdict.rule}.`;
  const which = verdict.connection === undefined ? "" : `Connection ${verdict.connection}: `;
  box.append(make("strong", "", visible(headline)), make("p", "", which + visible(verdict.text)));
  const more = found.more_connections ? [make("p", "note", `And ${found.more_connections} more connections, which were not looked at.`)] : [];
  $("explain-answer").replaceChildren(box, list("Rules of the daemon", found.steps),
    ...found.connections.map(({ connection, steps }) => fold(titleOf(connection, steps), steps, connection === verdict.connection)), ...more);
}

async function explain() {
  const asked = ++generation;
  const topic = $("explain-topic").value.trim(), user = $("explain-user").value.trim();
  if (!topic) {
    $("explain-answer").replaceChildren(make("p", "callout", "Enter a topic first, such as job_events.42."));
    $("explain-topic").focus();
    return;
  }
  $("explain-answer").replaceChildren(make("p", "empty", "asking …"));
  let found;
  try {
    found = await ask(`console/explain?${new URLSearchParams({ user, topic })}`, { timeoutMs: TIMEOUT_MS });
  } catch (error) {
    if (asked === generation) $("explain-answer").replaceChildren(make("p", "callout", failure(error)));
    return;
  }
  if (asked === generation) show(found);
}

export function open(values) {
  if (values.has("topic")) $("explain-topic").value = values.get("topic");
  if (values.has("user")) $("explain-user").value = values.get("user");
  if (values.has("topic") && values.has("user")) explain();
}

export function start() {
  $("explain-go").addEventListener("click", explain);
  for (const id of ["explain-user", "explain-topic"]) $(id).addEventListener("keydown", (key) => { if (key.key === "Enter") explain(); });
}
