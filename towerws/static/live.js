"use strict";
// The live page: a client of towerws.v1 (docs/protocol.md) that shows jobs, their output, and the latest events of any group.
(() => {
  // A page may stay open for days, so everything that it keeps is bounded.
  const MAX_JOBS = 60;
  const MAX_FOLLOWED = 40;       // Jobs whose output is subscribed to.
  const MAX_LINES = 1500;        // Lines of output kept per job.
  const MAX_CHARACTERS = 2e6;    // Characters of output kept per job.
  const MAX_CHUNK = 2e5;         // Characters of one event's output.
  const MAX_EVENTS = 100;        // Rows of the latest events.
  const MAX_NOTICES = 20;
  const MAX_RAW = 20000;         // Characters of a frame that a row can show.
  const MAX_TEXT = 300;          // Characters of a row's text.
  const RATE_S = 5;              // Events per second are an average over this time.
  const SPARK_S = 60;            // Seconds in the curve.
  const CATCH_UP_S = 2;          // Within this time, a tab that was frozen gets the events that it missed meanwhile.

  // Deadlines. The daemon and the network may be silent at any time.
  const SILENT_MS = 20000;       // Silence after which the daemon is asked for an answer.
  const ANSWER_MS = 10000;       // Deadline for any frame after this question.
  const BUSY_MS = 20000;         // The same deadline while a request is unanswered: the daemon answers the request first, and AWX may be slow.
  const CONNECT_MS = 20000;      // Deadline for the handshake and the welcome.
  const GRACE_MS = 1000;         // Extra time after a deadline, for frames that a frozen tab has not handled yet.
  const RECENT_MS = 1000;        // A connection that got a frame within this time is alive.
  const FETCH_MS = 8000;         // Deadline for an answer of the admin port.

  const AGAIN_MS = 1000;         // After this time the page requests topics again that the daemon could not check.
  const TOPICS_MS = 2000;        // Interval of GET /live/topics.
  const SHOWN_TOPICS = 12;       // Names in the list of current topics.
  const MAX_REQUEST = 60000;     // Characters of a request's topics. The daemon's limit for a message is 64 KiB.
  const PORT = document.body.dataset.websocketPort;
  const MAX_TOPICS = Number(document.body.dataset.maxTopics);   // The daemon refuses a request for more topics as a whole.
  const TAKES_TOKENS = document.body.dataset.takesTokens === "yes";
  const METHODS = document.body.dataset.auth.split(" ");
  const GROUPS = new Map(Object.entries(JSON.parse(document.body.dataset.groups)));   // the configured groups, without AWX's
  const STORED = "towerws-token";
  const BASE = ["jobs.status_changed", "jobs.summary", "schedules.changed", "inventories.status_changed"];
  const OUTPUT = { job: "job_events", project_update: "project_update_events", inventory_update: "inventory_update_events",
    ad_hoc_command: "ad_hoc_command_events", workflow_job: "workflow_events", system_job: "system_job_events" };
  const AWX = new Set(["jobs", "schedules", "inventories", ...Object.values(OUTPUT)]);
  const MARK = { new: "○", pending: "○", waiting: "◔", running: "▶", successful: "✔", failed: "✘", error: "✘", canceled: "■" };
  const ENDED = new Set(["successful", "failed", "error", "canceled"]);
  const HEAD = /^\{"type": ?"event", ?"position": ?"([^"]+)", ?"group": ?"([^"]+)", ?"event": ?"([^"]+)"/;

  const $ = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  // A payload may have an object where text is expected, and an object may have a `toString` that can't be called.
  const asText = (value) => value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
  const clock = () => new Date().toLocaleTimeString([], { hour12: false });

  // ---- jobs and events

  const jobs = new Map();      // id -> job, in the order of their first event
  const byTopic = new Map();   // output topic -> job
  const recent = [];           // the newest events
  const seconds = () => Math.floor(performance.now() / 1000);
  const perSecond = new Array(SPARK_S + 1).fill(0);   // events in each second, the last one the present second
  let present = seconds(), frozenAt = 0, thawedAt = -Infinity;
  let total = 0, selected = null, paused = false, dirty = true, eventsDirty = true;

  function jobFor(id, type) {
    let job = jobs.get(id);
    if (!job) {
      job = { id, type, status: "", topic: null, chunks: [], lines: 0, characters: 0, trimmed: false, highest: 0, seen: 0, final: null, began: Date.now(), ended: null, late: false, row: null };
      jobs.set(id, job);
      if (jobs.size > MAX_JOBS) forget([...jobs.values()].find((old) => old.ended && old !== selected) || [...jobs.values()].find((old) => old !== selected));
    }
    return job;
  }

  function forget(job) {
    jobs.delete(job.id);
    if (job.topic) byTopic.delete(job.topic);
    if (job.row) job.row.parentNode.remove();
  }

  function onStatus(payload) {
    const type = typeof payload.type === "string" ? visible(payload.type.slice(0, 40)) : "system_job";
    const job = jobFor(payload.unified_job_id, type);
    job.type = type;
    const isNew = job.status === "";
    job.status = visible(payload.status.slice(0, 40));
    if (ENDED.has(job.status)) {
      job.late = job.late || isNew;
      job.ended = job.ended || Date.now();
      if (type === "workflow_job") job.final = 0;
      unfollowIfComplete(job);
    } else if (!job.topic && Object.hasOwn(OUTPUT, type)) {
      job.topic = `${OUTPUT[type]}.${job.id}`;
      byTopic.set(job.topic, job);
      while (byTopic.size > MAX_FOLLOWED) unfollow(byTopic.values().next().value);
    }
  }

  // The summary has the number of a job's output events. It may arrive before the last of them.
  function unfollowIfComplete(job) {
    if (job.topic && job.final !== null && (job.ended || job.highest >= job.final)) unfollow(job);
  }

  function unfollow(job) {
    byTopic.delete(job.topic);
  }

  function onOutput(job, payload) {
    const counter = Number.isInteger(payload.counter) ? payload.counter : job.highest + 1;
    const whole = typeof payload.stdout === "string" ? payload.stdout
      : payload.status ? `${asText(payload.type || "job").replaceAll("_", " ")} ${asText(payload.unified_job_id)} ${asText(payload.status)}` : "";
    const text = whole.length > MAX_CHUNK ? `${whole.slice(0, MAX_CHUNK)} … (${whole.length} characters)` : whole;
    let at = job.chunks.length;   // events may be out of order, but most belong at the end
    while (at > 0 && job.chunks[at - 1].counter >= counter) at--;
    if (at < job.chunks.length && job.chunks[at].counter === counter) return;
    const lines = text === "" ? 0 : text.split("\n").length;
    job.chunks.splice(at, 0, { counter, text, lines, element: null });
    job.highest = Math.max(job.highest, counter);
    job.seen++;
    job.lines += lines;
    job.characters += text.length;
    while ((job.lines > MAX_LINES || job.characters > MAX_CHARACTERS) && job.chunks.length > 1) {
      const old = job.chunks.shift();
      job.lines -= old.lines;
      job.characters -= old.text.length;
      job.trimmed = true;
      if (old.element) old.element.remove();
    }
    unfollowIfComplete(job);
  }

  // Moves the curve on to the present second. It uses the clock, because the browser delays the timers of a hidden page, and stops those of
  // a frozen one.
  function moveOn() {
    const now = seconds();
    if (now - present > RATE_S) [frozenAt, thawedAt] = [present, now];
    for (let empty = Math.min(now - present, perSecond.length); empty > 0; empty--) {
      perSecond.shift();
      perSecond.push(0);
    }
    present = now;
  }

  // A tab that was frozen gets all events of that time at once when it goes on. They count for the whole time.
  function countEvent() {
    moveOn();
    const slots = present - thawedAt <= CATCH_UP_S ? present - frozenAt : 1;
    for (let at = Math.max(0, perSecond.length - slots); at < perSecond.length; at++) perSecond[at] += 1 / slots;
  }

  function onEvent(topic, payload, raw) {
    total++;
    countEvent();
    recent.unshift({ at: clock(), topic, text: visible(describe(topic, payload).slice(0, MAX_TEXT)), raw: raw.length > MAX_RAW ? `${raw.slice(0, MAX_RAW)} … (${raw.length} characters)` : raw });
    if (recent.length > MAX_EVENTS) recent.pop();
    dirty = eventsDirty = true;
    if (payload === null || typeof payload !== "object" || !isAwx(topic)) return;
    const job = byTopic.get(topic);
    if (topic === "jobs.status_changed" && Number.isSafeInteger(payload.unified_job_id) && typeof payload.status === "string") onStatus(payload);
    else if (topic === "jobs.summary" && jobs.has(payload.unified_job_id)) {
      const ending = jobs.get(payload.unified_job_id);
      ending.final = Number.isInteger(payload.final_counter) ? payload.final_counter : 0;
      unfollowIfComplete(ending);
    } else if (job) onOutput(job, payload);
  }

  const shortened = (text, most) => text.length > most ? `${text.slice(0, most)} …` : text;
  const groupOf = (topic) => topic.slice(0, topic.indexOf("."));
  const isAwx = (topic) => AWX.has(groupOf(topic)) && !GROUPS.has(groupOf(topic));

  function describe(topic, payload) {
    if (payload === null || typeof payload !== "object") return "a payload that is not plain JSON";
    if (!isAwx(topic)) return shortened(JSON.stringify(payload), 160);
    if (typeof payload.stdout === "string") {
      const line = payload.stdout.replace(/\x1b\[[0-9;]*m/g, "").split("\n").map((part) => part.trim()).find((part) => part) || "";
      return `${asText(payload.event || "")} ${line.replace(/\s*\*{3,}$/, "").slice(0, 160)}`;
    }
    if (payload.status !== undefined) {
      const what = payload.unified_job_id !== undefined ? `${asText(payload.type || "system_job").replaceAll("_", " ")} ${asText(payload.unified_job_id)}`
        : payload.inventory_id !== undefined ? `inventory ${asText(payload.inventory_id)}` : "";
      return `${what} ${asText(payload.status)}`;
    }
    if (topic === "jobs.summary") return `job ${asText(payload.unified_job_id)} has made ${asText(payload.final_counter)} events`;
    return JSON.stringify(payload).slice(0, 160);
  }

  // ---- text from producers: colours become classes, other control characters become visible, nothing is parsed as HTML

  const visible = (text) => text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`);

  function paint(into, text) {
    let colour = "", bold = false, dim = false, italic = false, under = false;
    text.replace(/\r?\n$/, "").replaceAll("\r\n", "\n").split(/\x1b\[([0-9;]{0,64})m/).forEach((part, index) => {
      if (index % 2 === 0) {
        if (part === "") return;
        const className = [colour, bold && "bold", dim && "dim", italic && "italic", under && "under"].filter(Boolean).join(" ");
        into.append(className ? make("span", className, visible(part)) : document.createTextNode(visible(part)));
        return;
      }
      const codes = part.split(";").map(Number);
      for (let at = 0; at < codes.length; at++) {
        const code = codes[at];
        if (code === 0) { colour = ""; bold = dim = italic = under = false; }
        else if (code === 1) bold = true;
        else if (code === 2) dim = true;
        else if (code === 3) italic = true;
        else if (code === 4) under = true;
        else if (code === 22) bold = dim = false;
        else if (code === 23) italic = false;
        else if (code === 24) under = false;
        else if (code >= 30 && code <= 37) colour = `c${code - 30}`;
        else if (code >= 90 && code <= 97) colour = `c${code - 90}`;
        else if (code === 39) colour = "";
        else if (code === 38 || code === 48) {
          if (code === 38 && codes[at + 1] === 5 && codes[at + 2] < 16) colour = `c${codes[at + 2] % 8}`;
          at += codes[at + 1] === 5 ? 2 : 4;
        }
      }
    });
  }

  // ---- drawing, at most once per animation frame

  function select(job) {
    if (selected) for (const chunk of selected.chunks) chunk.element = null;
    selected = job;
    $("output").replaceChildren();
    dirty = true;
  }

  function showJobs() {
    let running = 0;
    for (const job of jobs.values()) {
      if (!job.ended) running++;
      if (!job.row) {
        job.row = make("button");
        job.row.type = "button";
        job.row.append(make("span", "mark"), make("span", "name"), make("span", "status"), make("span", "more"));
        job.row.firstChild.setAttribute("aria-hidden", "true");
        job.row.addEventListener("click", () => { $("auto").checked = false; select(job); });
        const item = make("li");
        item.append(job.row);
        $("jobs").prepend(item);
      }
      const [mark, name, status, more] = job.row.children;
      job.row.dataset.status = job.status;
      job.row.setAttribute("aria-pressed", String(job === selected));
      const seconds = Math.round(((job.ended || Date.now()) - job.began) / 1000);
      setText(mark, Object.hasOwn(MARK, job.status) ? MARK[job.status] : "·");
      setText(name, `${job.type.replaceAll("_", " ")} ${job.id}`);
      setText(status, job.status);
      setText(more, job.late ? "began before this page connected" : `${job.seen}${job.final ? ` of ${job.final}` : ""} event${job.seen === 1 && !job.final ? "" : "s"} · ${seconds} s`);
    }
    setText($("jobs-note"), `${running} under way, ${jobs.size - running} ended`);
    $("jobs-empty").hidden = jobs.size > 0;
    // With configured groups there may never be a job, so the panels of jobs appear with the first job.
    $("main").dataset.layout = GROUPS.size && !jobs.size ? "events" : "all";
  }

  const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };

  function showOutput() {
    const scroll = $("output-scroll");
    const atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;
    setText($("output-title"), selected ? `Output of ${selected.type.replaceAll("_", " ")} ${selected.id}` : "Output");
    if (!selected) {
      setText($("output-note"), "choose a job");
      return;
    }
    const first = selected.chunks.length ? selected.chunks[0].counter : 1;
    setText($("output-note"), selected.trimmed ? `the last ${selected.lines} lines` : first > 1 ? `from event ${first} on: earlier ones came before this page connected`
      : selected.chunks.length || !Object.hasOwn(OUTPUT, selected.type) ? selected.status : `${selected.status}, no output yet`);
    let next = null;
    for (let at = selected.chunks.length - 1; at >= 0; at--) {
      const chunk = selected.chunks[at];
      if (chunk.element) {
        next = chunk.element;
        continue;
      }
      chunk.element = make("div");
      paint(chunk.element, chunk.text);
      $("output").insertBefore(chunk.element, next);
      next = chunk.element;
    }
    if (atEnd) scroll.scrollTop = scroll.scrollHeight;
  }

  function showEvents() {
    setText($("events-note"), paused ? "paused" : "");
    $("events-empty").hidden = recent.length > 0;
    $("pause").setAttribute("aria-pressed", String(paused));
    setText($("pause"), paused ? "Go on" : "Pause");
    if (paused) return;
    const rows = $("events");
    const known = new Set();
    for (const event of recent) known.add(event.row);
    for (const row of [...rows.children]) if (!known.has(row)) row.remove();
    let before = rows.firstChild;
    for (const event of recent) {
      if (event.row) break;
      event.row = make("tr");
      const details = make("details"), cell = make("td");
      details.append(make("summary", "", event.text), make("pre"));
      details.addEventListener("toggle", () => {
        if (!details.open) return;
        details.lastChild.textContent = visible(event.raw);
        paused = eventsDirty = dirty = true;   // a row that the user reads must not move away
      });
      cell.append(details);
      event.row.append(make("td", "", event.at), make("td", "", event.topic), cell);
      rows.insertBefore(event.row, before);
    }
  }

  function show() {
    if (dirty) {
      dirty = false;
      showJobs();
      showOutput();
      setText($("total"), total.toLocaleString());
      setText($("position"), position === null ? "–" : position.split("-")[0]);
    }
    requestAnimationFrame(show);
  }

  setInterval(() => { if (eventsDirty) { eventsDirty = false; showEvents(); } }, 250);

  setInterval(() => {
    moveOn();
    const complete = perSecond.slice(0, -1);
    setText($("rate"), (complete.slice(-RATE_S).reduce((sum, count) => sum + count, 0) / RATE_S).toFixed(1));
    const most = Math.max(5, ...complete);
    $("spark").firstElementChild.setAttribute("points", complete.map((count, index) => `${index},${(25 - 23 * count / most).toFixed(1)}`).join(" "));
    if ($("auto").checked && (!selected || (selected.ended && Date.now() - selected.ended > 2500))) {
      const next = [...jobs.values()].reverse().find((job) => !job.ended && job.chunks.length) || null;
      if (next) select(next);
    }
    dirty = true;
  }, 1000);

  $("pause").addEventListener("click", () => { paused = !paused; eventsDirty = true; });

  function notice(text) {
    const list = $("notices");
    list.prepend(make("li", "", `${clock()}  ${text}`));
    while (list.children.length > MAX_NOTICES) list.lastChild.remove();
  }

  // A notice about a failed attempt isn't repeated with each attempt.
  function noticeOnce(text) {
    const newest = $("notices").firstChild;
    if (!newest || !newest.textContent.endsWith(text)) notice(text);
  }

  function state(name, text) {
    $("state").dataset.state = name;
    setText($("state"), text);
  }

  // ---- topics

  let recentTopics = [];       // The newest topics of groups with any event, from GET /live/topics.
  let lastHead = null;         // The position in the previous answer of GET /live/topics.
  let addSince = null;         // The position from which the topics that the next request adds are replayed.
  let sentSince = null;        // The position from which the topics that the newest request added are replayed.

  // The topics that the daemon sends, by its newest answer. `position` is valid for them.
  let held = new Set();

  // Whether the daemon could not check a topic, which is requested again.
  let unchecked = false;

  // The position from which to replay the topics that the daemon could not check, or whose request was lost with its connection. It is
  // older than `addSince`, and outlives a connection.
  let againSince = null;
  let user = null;

  // Wanted topics to which this user may not subscribe. The page doesn't request them again on this connection.
  let deniedTopics = new Set();
  let reported = deniedTopics;      // the denied topics of the previous connection, about which there is a notice already

  let leftOut = 0;                  // Wanted topics beyond the limit of one connection.

  const hasOpenGroups = () => [...GROUPS].some(([, group]) => !group.own && !Array.isArray(group.events));

  function allTopics() {
    const topics = new Set([...BASE, ...byTopic.keys(), ...recentTopics]);
    for (const [name, { events, own }] of GROUPS) {
      if (own && user !== null) topics.add(`${name}.${user}`);
      else if (Array.isArray(events)) for (const event of events) topics.add(`${name}.${event}`);
    }
    return topics;
  }

  // If there are too many topics, those of jobs and the newest ones come first.
  function wantedTopics() {
    const all = [...allTopics()].filter((topic) => !deniedTopics.has(topic));
    let characters = 0;
    const found = all.slice(0, MAX_TOPICS).filter((topic) => (characters += topic.length + 4) <= MAX_REQUEST);
    leftOut = all.length - found.length;
    return found;
  }

  function showListening(current) {
    const topics = current.filter((topic) => !byTopic.has(topic)).sort((one, other) => isAwx(one) - isAwx(other));
    const more = topics.length > SHOWN_TOPICS ? ` and ${topics.length - SHOWN_TOPICS} more` : "";
    const growing = [...GROUPS].filter(([, group]) => !group.own && !Array.isArray(group.events)).map(([name]) => name);
    setText($("listening"), `Listening to ${topics.slice(0, SHOWN_TOPICS).join(", ") || "nothing"}${more}`
      + (leftOut ? `; ${leftOut} more are too many for one connection` : "")
      + (growing.length ? `; topics of ${growing.join(", ")} are added with their first event` : ""));
  }

  // The page can't list the topics of a group that allows any event. The daemon has the newest ones.
  async function fetchTopics() {
    if (!hasOpenGroups() || !identified) return;
    let found;
    try {
      const answer = await fetch("live/topics", { signal: AbortSignal.timeout(FETCH_MS) });
      if (!answer.ok) return;
      found = await answer.json();
    } catch {
      return;   // if the daemon does not answer, `onClose` shows that
    }
    const since = lastHead;
    lastHead = found.position;
    recentTopics = found.topics.filter((topic) => GROUPS.has(groupOf(topic)) && !GROUPS.get(groupOf(topic)).own);
    addSince ??= since;
    if (identified) subscribe();
  }
  setInterval(fetchTopics, TOPICS_MS);

  // ---- the token

  let token = stored();
  let identified = false;      // the daemon sent its welcome on this connection
  let stopped = false;         // no new attempt until the user signs in

  function stored() {
    try {
      return sessionStorage.getItem(STORED);
    } catch {
      return null;   // the browser stores nothing
    }
  }

  function keepToken(value) {
    token = value;
    try {
      if (value === null) sessionStorage.removeItem(STORED);
      else sessionStorage.setItem(STORED, value);
    } catch { /* the token is kept until the page is left */ }
  }

  function askForToken(why) {
    $("sign-in").hidden = false;
    setText($("sign-in-text"), why);
    state("off", "a token is needed");
  }

  function signIn() {
    const value = $("token").value.trim().replace(/^bearer +/i, "");
    if (!/^[\x21-\x7e]+$/.test(value)) {
      setText($("sign-in-text"), value === "" ? "Enter a token first." : "This is no token: a token must be printable ASCII without spaces.");
      return;
    }
    $("token").value = "";
    setText($("sign-in-text"), "");
    token = value;   // stored for a reload when the daemon accepts it
    stopped = false;
    state("wait", "checking the token");
    if (socket && socket.readyState === WebSocket.OPEN) {
      socket.send(JSON.stringify({ token }));
      expectFrame(CONNECT_MS);
    } else connect();
  }

  function forgetToken() {
    keepToken(null);
    position = againSince = null;
    awaiting = false;
    const old = socket;
    socket = due = null;
    if (old) old.close();
    connect();
  }

  $("sign-in-go").addEventListener("click", signIn);
  $("token").addEventListener("keydown", (key) => { if (key.key === "Enter") signIn(); });
  $("forget").addEventListener("click", forgetToken);

  // ---- the connection: resumed at the position of the newest event

  let socket = null, position = null, asked = null, awaiting = false, resuming = false, backoffMs = 500, reconnectAfterMs = null, timer = 0, wasLive = false;
  let heardAt = 0, due = null, noAnswer = false;   // `due`: the deadline of the next frame

  function connect() {
    clearTimeout(timer);
    if (!/^[1-9][0-9]*$/.test(PORT)) {
      state("off", "the daemon's websocket has no TCP port");
      return;
    }
    state("wait", `${noAnswer ? "no answer; " : ""}${position === null ? "connecting" : "reconnecting"}`);
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const current = socket = new WebSocket(`${scheme}://${location.hostname}:${PORT}/websocket/`, "towerws.v1");
    let opened = false;
    if (awaiting) againSince = sentSince;
    asked = null;
    awaiting = identified = unchecked = false;
    expectFrame(CONNECT_MS);
    current.onopen = () => {
      opened = true;
      if (current !== socket || identified || !TAKES_TOKENS) return;
      if (token !== null) current.send(JSON.stringify({ token }));
      // With a valid cookie the welcome comes right after the handshake, and no token is needed.
      else {
        due = null;   // The user may take any time to enter a token.
        setTimeout(() => { if (current === socket && !identified && $("sign-in").hidden) askForToken(""); }, 300);
      }
    };
    current.onmessage = (message) => {
      if (current !== socket) return;
      heardAt = performance.now();
      due = null;
      onFrame(message.data);
    };
    current.onclose = ({ code, reason }) => { if (current === socket) onClose(`${code}${reason ? ` ${reason}` : ""}`, opened); };
  }

  function expectFrame(withinMs) {
    due = performance.now() + withinMs;
  }

  // A page can't see the pings of the websocket. So it asks a silent daemon for an answer.
  function watch() {
    if (!socket) return;
    const now = performance.now();
    if (due !== null && now > due) {
      const late = due;
      // After a freeze of the tab, its timers may run before it handles the frames that have arrived.
      setTimeout(() => { if (due === late) giveUp(); }, GRACE_MS);
    } else if (now - heardAt > SILENT_MS) ping();
  }
  setInterval(watch, 1000);

  function ping() {
    if (!identified || due !== null) return;
    socket.send('{"ping":1}');
    expectFrame(awaiting ? BUSY_MS : ANSWER_MS);
  }

  function giveUp() {
    const dead = socket;
    onClose("no answer", true, true);
    dead.close();
  }

  // The page or the network came back.
  function look() {
    if (document.hidden) return;
    if (performance.now() - heardAt > RECENT_MS) ping();
    watch();
  }

  function onClose(why, opened, isSilent = false) {
    socket = due = null;
    noAnswer = isSilent;
    identified = false;
    if (stopped) return;
    const delayMs = (reconnectAfterMs === null ? backoffMs : reconnectAfterMs) * (0.5 + Math.random() / 2);
    if (reconnectAfterMs === null) backoffMs = Math.min(2 * backoffMs, 15000);
    reconnectAfterMs = null;
    if (wasLive) notice(`connection lost (${why}); reconnecting, and then the missed events follow`);
    wasLive = false;
    state("off", `${noAnswer ? "no answer" : position === null ? "can't connect" : "disconnected"}; trying again`);
    if (!opened) explainRefusal();
    timer = setTimeout(connect, delayMs);
  }

  // A browser hides why a handshake failed. The admin port, where this page came from, tells whether the daemon runs.
  async function explainRefusal() {
    try {
      if (!(await fetch("healthz", { signal: AbortSignal.timeout(FETCH_MS) })).ok) return;
    } catch {
      return;
    }
    if (socket && identified) return;
    state("off", "refused; trying again");
    const session = METHODS.includes("tower") ? " It checks users with AWX: sign in to AWX in this browser, under the same host name as this page." : "";
    noticeOnce(`The daemon is up, but refuses this page. Its log has the reason.${session}`);
  }

  function subscribe() {
    // A new connection first resumes the topics of the previous connection. The others are replayed from a position of their own.
    const resumes = asked === null && resuming && held.size > 0;
    const topics = wantedTopics().filter((topic) => !resumes || held.has(topic));
    const key = [...topics].sort().join(" ");
    if (key === asked && !awaiting) {
      addSince = null;
      if (!unchecked) againSince = null;
    }
    if (awaiting || key === asked || !identified) return;
    const groups = Object.create(null);   // a group may be named `constructor`
    for (const topic of topics) (groups[groupOf(topic)] ||= []).push(topic.slice(topic.indexOf(".") + 1));
    const request = { groups };
    sentSince = againSince ?? addSince ?? position;
    if (resumes) request.since = position;
    else {
      if (asked !== null || resuming) request.since = sentSince;   // replay the events before this request
      addSince = againSince = null;
    }
    // With AWX's session cookie, this proves that the page may read the cookies of its host.
    const csrf = /(?:^|; )csrftoken=([^;]*)/.exec(document.cookie);
    if (csrf) request.xrftoken = csrf[1];
    asked = key;
    awaiting = true;
    socket.send(JSON.stringify(request));
  }

  // If AWX has not answered within 8 s, the daemon answers `unavailable` for the topics that it still has to check.
  function askAgainIfUnchecked(denied) {
    unchecked = denied.some((item) => item.reason === "unavailable");
    if (!unchecked) return;
    againSince = sentSince;
    const current = socket;
    setTimeout(() => {
      if (current !== socket || awaiting || !unchecked) return;
      asked = "";
      subscribe();
    }, AGAIN_MS);
  }

  // If the new position is null, the old one is still the best one to resume from.
  const keepPosition = (place) => { if (place !== null) position = place; };

  function onDenied(items) {
    const names = [];
    for (const item of items) {
      if (item.reason === "unavailable") continue;
      deniedTopics.add(item.topic);
      if (!reported.has(item.topic) && !byTopic.has(item.topic) && !recentTopics.includes(item.topic)) names.push(`${item.topic} (${item.reason})`);
    }
    const all = allTopics();
    for (const topic of deniedTopics) if (!all.has(topic)) deniedTopics.delete(topic);
    if (names.length) noticeOnce(`access denied: ${names.join(", ")}`);
  }

  function onFrame(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      // The daemon doesn't change payloads. AWX's payloads may contain NaN, which JSON.parse refuses.
      const head = HEAD.exec(text);
      if (head) {
        position = head[1];
        onEvent(`${head[2]}.${head[3]}`, null, text);
      }
      return;
    }
    if (frame.type === "event") {
      position = frame.position;
      onEvent(`${frame.group}.${frame.event}`, frame.payload, text);
      addSince ??= position;
      subscribe();
    } else if (frame.type === "pong") {
      keepPosition(frame.position);
    } else if (frame.type === "welcome") {
      identified = true;
      // The user may have got more permissions since the previous connection.
      reported = user === frame.user ? deniedTopics : new Set();
      deniedTopics = new Set();
      user = frame.user;
      if (token !== null) keepToken(token);
      $("sign-in").hidden = true;
      $("who").hidden = user === null;
      $("forget").hidden = token === null;
      setText($("user"), user === null ? "" : `as ${visible(String(user).slice(0, 60))}`);
      resuming = position !== null;
      if (!resuming) keepPosition(frame.position);
      lastHead = frame.position;
      subscribe();
      fetchTopics();
    } else if (frame.type === "subscribed") {
      awaiting = false;
      askAgainIfUnchecked(frame.denied);
      keepPosition(frame.position);
      held = new Set(frame.groups_current);
      if (resuming) {
        resuming = false;
        notice(frame.recovered ? "connected again; nothing was missed" : "connected again; events were missed, because the daemon no longer holds them");
      }
      onDenied(frame.denied);
      showListening(frame.groups_current);
      backoffMs = 500;
      wasLive = true;
      state("live", "live");
      subscribe();
    } else if (frame.type === "revoked") {
      keepPosition(frame.position);
      held = new Set(frame.groups_current);
      onDenied(frame.denied);
      showListening(frame.groups_current);
    } else if (frame.type === "gap") {
      keepPosition(frame.to);
      notice(`gap (${frame.reason}): events were lost on ${frame.topics.slice(0, 5).join(", ")}${frame.topics.length > 5 ? " …" : ""}`);
    } else if (frame.type === "error") {
      onError(frame);
    } else if (frame.type === "bye") {
      onBye(frame);
    }
  }

  function onError(frame) {
    if (frame.code === "token" || frame.code === "bad_token" || frame.code === "no_token") {
      keepToken(null);
      askForToken("The daemon refused this token: it has expired, or it isn't valid here. The daemon's log has the reason.");
    } else if (frame.code === "unavailable") {
      askForToken("The daemon can't check the token just now. Try again in a few seconds.");
    } else {
      awaiting = false;
      notice(`the daemon answers ${frame.code}: ${frame.message}`);
    }
  }

  function onBye(frame) {
    reconnectAfterMs = frame.reconnect_after_ms;
    if (frame.action === "stop") {
      stopped = true;
      state("off", `closed: ${frame.reason || "not allowed"}`);
    } else if (frame.action === "authenticate" && TAKES_TOKENS) {
      stopped = true;
      const hadToken = identified && token !== null;
      if (identified) keepToken(null);
      askForToken(hadToken ? "The token has expired, or was revoked. Enter a new one." : $("sign-in-text").textContent);
    }
  }

  addEventListener("online", () => { if (!socket && !stopped) connect(); else look(); });
  document.addEventListener("visibilitychange", look);
  connect();
  requestAnimationFrame(show);
})();
