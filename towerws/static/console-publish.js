// Publishes one event through POST /publish.
import { $, Refused, ask, failure, setText, visible } from "./console-kit.js";

const TIMEOUT_MS = 30000;   // With a broker, the answer waits for the broker's confirm.

function say(text, kind) {
  $("publish-result").dataset.kind = kind;
  setText($("publish-result"), text);
}

// Returns the id of the bad input and what is wrong with it, or null. The daemon checks more, and answers with an error.
function wrong(topic, payload) {
  if (!/^[A-Za-z0-9_]+\../.test(topic)) return ["publish-topic", "A topic is a group, a dot and an event, such as orders.1042."];
  try {
    const value = JSON.parse(payload);
    if (value === null || typeof value !== "object" || Array.isArray(value)) return ["publish-payload", "The payload must be one JSON object: { … }."];
  } catch (error) {
    return ["publish-payload", `The payload is no JSON: ${visible(error.message)}`];
  }
  return null;
}

async function publish() {
  const topic = $("publish-topic").value.trim(), payload = $("publish-payload").value;
  for (const id of ["publish-topic", "publish-payload"]) $(id).removeAttribute("aria-invalid");
  const found = wrong(topic, payload);
  if (found) {
    $(found[0]).setAttribute("aria-invalid", "true");
    $(found[0]).focus();
    say(found[1], "bad");
    return;
  }
  $("publish-go").disabled = true;
  say("publishing …", "");
  try {
    // The payload is sent as the user wrote it, because `JSON.stringify` would round large numbers.
    const answer = await ask("publish", { body: `{"topic":${JSON.stringify(topic)},"payload":${payload}}`, timeoutMs: TIMEOUT_MS });
    const where = answer.position ? ` at position ${visible(answer.position)}` : "";
    say(`Published on ${visible(topic)}${where}.${answer.warning ? ` But: ${visible(answer.warning)}` : ""}`, answer.warning ? "bad" : "good");
  } catch (error) {
    say(error instanceof Refused ? error.message : `${failure(error)} The event may have been published or not.`, "bad");
  } finally {
    $("publish-go").disabled = false;
  }
}

export async function open() {
  const { topics } = await ask("console/topics").catch(() => ({ topics: [] }));
  $("publish-topics").replaceChildren(...topics.map(({ topic }) => new Option(topic, topic)));
}

export function start() {
  $("publish-go").addEventListener("click", publish);
  $("publish-topic").addEventListener("keydown", (key) => { if (key.key === "Enter") publish(); });
  $("publish-payload").addEventListener("keydown", (key) => { if (key.key === "Enter" && (key.ctrlKey || key.metaKey)) publish(); });
}
