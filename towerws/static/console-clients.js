// The connections: one page of rows at a time, so that ten thousand connections cost no more than fifty.
import { $, age, ask, count, debounced, failure, make, plural, setText, visible } from "./console-kit.js";

const ROWS = 50;
const MAX_QUESTIONS = 50;   // Requests of one search. The daemon looks at 2,000 connections for each request.
const TOPICS = 3;           // Topics that a row names.

const STAGES = { handshake: ["at the handshake", "off"], token: ["waits for a token", "warn"], open: ["live", "good"], closing: ["closing", "off"] };
let after = 0, next = null, generation = 0, instance = "";

function cell(className, text, sub) {
  const found = make("td", className, text);
  if (sub) found.append(make("div", "sub", sub));
  return found;
}

// `listedBy` is the process that gave the connection its number.
function rowFor(connection, listedBy) {
  const row = make("tr");
  const [stage, kind] = connection.behind ? ["behind", "warn"] : STAGES[connection.state] || [connection.state, "off"];
  const state = make("td"), tag = make("span", "tag", stage), actions = make("td");
  tag.dataset.kind = kind;
  state.append(tag);
  const isOpen = connection.state === "open";
  const who = !isOpen ? "–" : connection.user === null ? "anonymous" : visible(connection.user);
  const topics = (connection.topics || []).slice(0, TOPICS).map(visible);
  const rest = (connection.topic_count || 0) - topics.length;
  const end = make("button", "danger small", "End");
  end.type = "button";
  end.setAttribute("aria-label", `End connection ${connection.connection}`);
  end.addEventListener("click", () => confirmEnd(connection, who, listedBy));
  actions.append(end);
  row.append(cell("mono", String(connection.connection)),
    cell("name", who, connection.session ? `${connection.method} ${connection.session.slice(0, 8)}` : isOpen ? connection.method : ""),
    cell("mono", visible(connection.address)), cell("", connection.dialect || "–"),
    cell("mono", isOpen ? topics.join(", ") || "none" : "–", rest > 0 ? `and ${count(rest)} more` : ""),
    state, cell("", isOpen ? age(connection.age_s) : "–"), actions);
  return row;
}

async function load() {
  const asked = ++generation;
  const found = [];
  let from = after, present = 0;
  next = null;
  setText($("clients-note"), "loading …");
  try {
    for (let question = 0; question < MAX_QUESTIONS; question++) {
      const query = new URLSearchParams({ after: from, limit: ROWS - found.length, text: $("clients-search").value.trim(), behind: $("clients-behind").checked ? 1 : 0 });
      const answer = await ask(`console/connections?${query}`);
      if (asked !== generation) return;
      const isAnother = answer.instance !== instance;
      instance = answer.instance;
      if (isAnother && from > 0) {
        // Connections have other numbers in another process, so begin with its first page.
        after = from = found.length = 0;
        continue;
      }
      found.push(...answer.connections);
      present = answer.present;
      from = answer.next;
      if (from === null || found.length >= ROWS) break;
    }
  } catch (error) {
    if (asked !== generation) return;
    $("client-rows").replaceChildren();
    $("clients-empty").hidden = false;
    setText($("clients-empty"), failure(error));
    setText($("clients-note"), "");
    $("clients-pager").hidden = true;
    return;
  }
  next = from;
  $("client-rows").replaceChildren(...found.map((connection) => rowFor(connection, instance)));
  const filtered = $("clients-search").value.trim() || $("clients-behind").checked;
  $("clients-empty").hidden = found.length > 0;
  setText($("clients-empty"), !filtered && !present ? "Nobody is connected. A client appears here as soon as it connects." : "No connection matches.");
  setText($("clients-note"), `${plural(present, "connection")}${filtered || after || next !== null ? `, ${count(found.length)} shown` : ""}`);
  $("clients-pager").hidden = after === 0 && next === null;
  $("clients-first").disabled = after === 0;
  $("clients-next").disabled = next === null;
}

function restart() {
  after = 0;
  load();
}

// While a page is loading, its end is not known, and so the next page is not. Then a click does nothing.
function nextPage() {
  if (next === null) return;
  after = next;
  load();
}

function confirmEnd(connection, who, listedBy) {
  const dialog = $("confirm");
  const name = connection.state === "open" ? `${who === "anonymous" ? "an anonymous client" : `user ${who}`}, ` : "";
  setText($("confirm-text"), `Connection ${connection.connection}: ${name}${visible(connection.address)}`);
  $("confirm-yes").onclick = async () => {
    dialog.close();
    let said;
    try {
      await ask("console/connections/end", { body: JSON.stringify({ connection: connection.connection, instance: listedBy }) });
      said = `Connection ${connection.connection} was ended.`;
    } catch (error) {
      said = failure(error);
    }
    await load();
    setText($("clients-note"), said);
    $("clients-title").focus();
  };
  dialog.showModal();
  $("confirm-no").focus();
}

export const refresh = () => load();

export function start() {
  $("clients-search").addEventListener("input", debounced(250, restart));
  $("clients-behind").addEventListener("change", restart);
  $("clients-reload").addEventListener("click", load);
  $("clients-first").addEventListener("click", restart);
  $("clients-next").addEventListener("click", nextPage);
  $("confirm-no").addEventListener("click", () => $("confirm").close());
}
