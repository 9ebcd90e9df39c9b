// The client of towerws.v1 for browsers and Node. README.md describes it, towerws.d.ts has its types.
const DEFAULTS = {
  token: undefined, xrftoken: undefined, store: undefined, onstate: undefined, onerror: undefined, WebSocket: undefined,
  retryMinMs: 500, retryMaxMs: 20_000, connectMs: 20_000, answerMs: 30_000, pingMs: 20_000, pongMs: 10_000, saveMs: 250, queueBytes: 4 << 20,
};
const STABLE_MS = 2000; // After a connection that lasted this long, the backoff begins at its shortest time again.
const MAX_TIMER_MS = 2e9; // A timer of 2 ** 31 ms or more would fire at once.
const MAX_REQUEST = 65_536; // The daemon closes a connection that sends a longer message.
const MAX_POSITION = 256; // A longer text is no position.
const ITEM_BYTES = 200; // What an item counts for in its queue, in addition to the characters of its frame.

export class TowerwsError extends Error {
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { name: "TowerwsError", code }, more);
  }
}

export function connect(url, options = {}) {
  const opt = { ...DEFAULTS, ...options };
  for (const name in opt) {
    if (!(name in DEFAULTS)) throw new TypeError(`unknown option "${name}": known are ${Object.keys(DEFAULTS).join(", ")}`);
    if (DEFAULTS[name] && !(opt[name] > 0)) throw new TypeError(`${name} is ${opt[name]}: it must be above 0`);
  }
  const Socket = opt.WebSocket ?? globalThis.WebSocket;
  if (!Socket) throw new TypeError("no WebSocket: pass the option WebSocket, or use Node 22+");
  const address = resolved(url);

  // Topic with a subscriber -> { subs, resume: whether it resumes at `position`, denied: the daemon's reason not to send it, ask: whether to
  // ask for it again }
  const topics = new Map();
  const subs = new Set();
  const timers = {};
  let state = "connecting", user = null, position = null, saved = null, unsaved = null, saving = false, last, stopped, unsure = false;
  let socket, opened, welcomedAt; // of the current connection
  let run = 0; // The number of the connection. Callbacks of an older connection do nothing.
  let held = new Set(); // The topics that the daemon sends on this connection.
  let asked = null; // The request that waits for its answer.
  let heard, badTokens, sentToken, token, endsAt; // of the current connection
  let refused, refusals = 0, tries = 0, failures = 0, ids = 0, settling, spread, welcomed = false;

  const arm = (name, ms, call) => {
    clearTimeout(timers[name]);
    timers[name] = call && setTimeout(() => { timers[name] = undefined; call(); }, Math.min(ms, MAX_TIMER_MS));
  };
  const late = (name, ms, code, what, fail = again) => arm(name, ms, () => fail(new TowerwsError(code, `no ${what} within ${ms} ms`)));
  // `answer`, or an error after `connectMs`. The timer runs on: the caller stops it, or uses its name again.
  const timely = (name, answer) => Promise.race([answer, new Promise((_, fail) => late(name, opt.connectMs, "timeout", "answer", fail))]);
  const report = async (error) => {
    try { await (opt.onerror ?? console.error)(error); } catch (broken) { console.error(broken); }
  };
  const failed = (code, cause, item) => report(new TowerwsError(code, `the ${code} failed: ${cause?.message ?? cause}`, { cause, item }));
  const change = async (to, more) => {
    state = to;
    try { await opt.onstate?.({ state, user, ...more }); } catch (error) { failed("onstate", error); }
  };
  const send = (message) => socket.send(JSON.stringify(message));

  // ---- the connection

  async function dial() {
    const mine = ++run;
    opened = false;
    badTokens = 0;
    sentToken = token = welcomedAt = undefined;
    change("connecting");
    if (mine !== run) return;
    late("connect", opt.connectMs, "timeout", "connection");
    if (opt.token) {
      try { sentToken = await readToken(); } catch (error) {
        return mine === run && again(new TowerwsError("token", `the token callback failed: ${error?.message}`, { cause: error }), true);
      }
      if (mine !== run) return;
      if (!sentToken.text) return stop(new TowerwsError("token", "the token callback gave no token"));
      if (sentToken.text === refused) return stop(new TowerwsError("token", "the token callback gave the refused token again"));
    }
    let made;
    try { made = new Socket(address, "towerws.v1"); } catch (error) {
      return stop(new TowerwsError("url", error.message)); // ws: from a page over https, for one
    }
    socket = made;
    made.onopen = () => {
      opened = true;
      if (made.protocol !== "towerws.v1") return stop(new TowerwsError("protocol", "the server speaks no towerws.v1"));
      if (sentToken) send({ token: sentToken.text, id: "token" });
    };
    made.onmessage = ({ data }) => {
      heard = true;
      arm("pong");
      let frame;
      try { frame = read(data); } catch { return again(new TowerwsError("frame", "a frame is not JSON"), true); }
      receive(frame);
    };
    // A close event follows at once, but not in Node 20.
    made.onerror = () => arm("error", 0, () => made.onclose?.({ code: 1006, reason: "" }));
    made.onclose = async ({ code, reason }) => {
      made.onclose = null;
      arm("error");
      if (opened) return again(new TowerwsError("lost", `connection lost (${code}${reason && ` ${reason}`})`));
      // A browser hides the status of a refused handshake. A request to the same URL gets the same status.
      let status = 0, why = "";
      try {
        const answer = await fetch(address.replace(/^ws/, "http"), { credentials: "include", cache: "no-store", redirect: "manual", signal: AbortSignal.timeout(DEFAULTS.connectMs) });
        status = answer.status;
        if (status > 399) why = (await answer.text()).split("<")[0].slice(0, 300).trim(); // The daemon's text, but no HTML page of a proxy.
        else answer.body?.cancel();
      } catch { /* There is no answer, or it is of another origin and can't be read. */ }
      if (mine !== run) return;
      const error = new TowerwsError("handshake", `no connection (HTTP status ${status || "unknown"}${why ? `: ${why}` : ""})`, { status });
      // A URL that has worked before is right: a proxy may answer 404 while the daemon restarts.
      if ((welcomed ? /^40[13]/ : /^(?!408|42[569])[2-4]/).test(`${status}`)) stop(error);
      else again(error, ++refusals === 3);
    };
  }

  function drop() {
    run++;
    for (const name in timers) if (name !== "save") arm(name);
    held = new Set();
    asked = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {}; // For the package ws an error without a handler is fatal.
    try { socket.close(); } catch { /* The socket is already closed. */ }
    socket = null;
  }

  function again(reason, tell, ms) {
    if (Date.now() - welcomedAt >= STABLE_MS) tries = 0;
    drop();
    if (tell) report(reason);
    if (state === "closed") return; // by the handler
    spread = ms != null;
    ms ??= Math.random() * Math.min(opt.retryMaxMs, opt.retryMinMs * 2 ** tries++);
    arm("retry", ms, dial);
    change("waiting", { reason, retryMs: ms });
  }

  function stop(reason) {
    if (state === "closed") return;
    drop();
    last = handled(); // Take it before the subscriptions end, since that removes the items that are not handled.
    save();
    listen("removeEventListener");
    change("closed", { reason: (stopped = reason) });
    if (reason) report(reason);
    for (const sub of [...subs]) sub.end(reason);
  }

  const listen = (how) => {
    globalThis[how]?.("online", nudge);
    globalThis[how]?.("pagehide", save);
    globalThis.document?.[how]("visibilitychange", nudge);
  };
  // The network or the page came back: check the connection. If there is none, don't wait for the backoff. A time that the daemon named stays.
  function nudge() {
    if (globalThis.document?.visibilityState === "hidden") return;
    if (state === "open") ping();
    else if (state === "waiting" && !spread) arm("retry", Math.random() * opt.retryMinMs, dial);
  }
  function watch() {
    arm("ping", opt.pingMs, () => {
      if (!heard) ping();
      heard = false;
      watch();
    });
  }
  function ping() {
    if (asked || timers.pong) return; // A request or a ping waits for its answer, and has its own deadline. A pong would come after it.
    send({ ping: 1 });
    late("pong", opt.pongMs, "dead", "answer to a ping");
  }

  // ---- tokens

  async function readToken() {
    const found = await opt.token();
    const text = found?.token ?? found;
    if (text && typeof text !== "string") throw new TypeError("the token callback must give a string, or { token, expiresAt }");
    return { text, leftMs: found?.expiresAt ? found.expiresAt - Date.now() : leftMs(text) };
  }

  // The daemon accepted `sentToken`. Schedule its renewal.
  function accepted() {
    token = sentToken;
    refused = undefined;
    failures = 0;
    endsAt = Date.now() + token.leftMs;
    if (token.leftMs > 0) arm("token", token.leftMs * (0.7 + 0.1 * Math.random()), refresh);
  }

  async function refresh() {
    const mine = run;
    let fresh;
    try { fresh = await timely("token", readToken()); } catch (error) { failed("token", error); }
    if (mine !== run) return;
    if (!fresh?.text || fresh.text === token.text) return refreshLater();
    sentToken = fresh;
    send({ token: fresh.text, id: "token" });
  }

  function refreshLater() {
    const left = endsAt - Date.now();
    if (left > 2000 && badTokens < 2) arm("token", left / 2, refresh); // The third bad token would end the connection.
  }

  function tokenFailed({ code, message }) {
    const error = new TowerwsError(code, `the token: ${message}`);
    if (state === "open") {
      if (code !== "unavailable") badTokens++; // With `unavailable`, the daemon could not check the token.
      report(error);
      return token && refreshLater();
    }
    if (code === "unavailable") return again(error);
    refused = sentToken.text;
    if (++failures < 3) again(error);
    else stop(error);
  }

  // ---- frames

  function receive(frame) {
    const before = position;
    // A pong has a position, too. Without it, the position of a client with quiet topics would soon be too old for the daemon's history.
    if (/^(event|subscribed|gap|revoked|pong)$/.test(frame.type)) position = frame.position ?? frame.to ?? position;
    switch (frame.type) {
      case "event": {
        const { group, event, payload, text } = frame;
        const topic = `${group}.${event}`;
        const item = { type: "event", topic, group, event, payload, position };
        if (text !== undefined) item.text = text;
        for (const sub of [...(topics.get(topic)?.subs ?? [])]) put(sub, item, before, frame.size);
        break;
      }
      case "welcome":
        user = frame.user;
        if (!welcomed && position !== null) {
          // The position is from the store, so an earlier page had these topics.
          topics.forEach((entry) => { entry.resume = true; });
          subs.forEach((sub) => { sub.told = sub.topics; });
        }
        welcomed = true;
        refusals = 0;
        welcomedAt = Date.now();
        arm("connect");
        if (sentToken) accepted();
        change("open");
        if (state !== "open") return;
        watch();
        forgive();
        break;
      case "subscribed":
        if (asked?.id === frame.id) answered(frame, before);
        break;
      case "gap":
        for (const sub of [...subs]) {
          const lost = frame.topics.filter((topic) => sub.topics.has(topic));
          if (lost.length) put(sub, { type: "gap", topics: lost, from: frame.from, to: frame.to, reason: frame.reason }, before);
        }
        break;
      case "revoked":
        held = new Set(frame.groups_current);
        for (const { topic, reason } of frame.denied) deny(topic, reason);
        doubt();
        if (!asked) tell(); // Otherwise `answered` does this.
        break;
      case "renewed":
        user = frame.user;
        badTokens = 0;
        accepted();
        forgive();
        break;
      case "error":
        if (frame.id === "token") tokenFailed(frame);
        else if (asked && frame.id === asked.id) requestFailed(frame.code, frame.message);
        else report(new TowerwsError(frame.code, frame.message));
        break;
      case "bye": {
        const reason = new TowerwsError(frame.action === "reconnect" ? "bye" : frame.action, `ended by the daemon: ${frame.reason}`);
        if (frame.action === "stop" || (frame.action === "authenticate" && !opt.token)) stop(reason);
        else again(reason, false, frame.reconnect_after_ms);
      }
    }
    keep();
  }

  // ---- requests: at most one waits for its answer, because a newer one would cut it short

  function request() {
    if (state !== "open" || asked) return;
    const fresh = [...topics.keys()].filter((topic) => !held.has(topic) && (topics.get(topic).ask || !topics.get(topic).denied));
    if (!fresh.length && [...held].every((topic) => topics.has(topic))) return;
    const resumed = fresh.filter((topic) => topics.get(topic).resume);
    const joined = new Set(resumed.length ? resumed : fresh); // The next request adds the other topics, without `since`.
    const groups = Object.create(null);
    for (const topic of [...held, ...joined]) {
      const [group, event] = topic.split(".");
      if (topics.has(topic)) (groups[group] ??= []).push(event);
    }
    asked = { id: ++ids, joined };
    const message = { groups, since: resumed.length ? position : undefined, id: ids };
    try { message.xrftoken = (opt.xrftoken ?? cookie)(); } catch (error) { failed("xrftoken", error); }
    if (JSON.stringify(message).length > MAX_REQUEST) return requestFailed("too_many_topics", `the topics have over ${MAX_REQUEST} bytes`);
    late("answer", opt.answerMs, "timeout", "answer to a request");
    send(message);
  }

  function answered(frame, before) {
    const { joined } = asked;
    asked = null;
    arm("answer");
    held = new Set(frame.groups_current);
    for (const topic of joined) if (!held.has(topic)) deny(topic, "left out");
    for (const { topic, reason } of frame.denied) deny(topic, reason);
    for (const topic of frame.groups_joined) joined.add(topic); // Also topics that were taken away while the request waited.
    mark();
    tell(joined, frame.recovered, before);
  }

  function requestFailed(code, message) {
    const { joined } = asked;
    asked = null;
    arm("answer");
    for (const topic of joined) deny(topic, code);
    held.forEach((topic) => topics.has(topic) || held.delete(topic)); // Without another request to leave these topics, which would fail, too.
    doubt();
    report(new TowerwsError(code, `a request failed: ${message}`));
    tell();
  }

  function deny(topic, reason) {
    const entry = topics.get(topic);
    if (!entry) return;
    Object.assign(entry, { denied: reason, ask: false, resume: false }); // The other topics go on, so its place in the log is lost. It will be `stale`.
    if (reason === "unavailable") arm("ask", 2000 + 4000 * Math.random(), () => forgive(reason));
  }
  const doubt = () => { unsure = [...topics].some(([, { denied }]) => denied === "unavailable"); };
  // A topic that is held now can be resumed. One that was left meanwhile can't, because the daemon did not send its events.
  const mark = () => {
    topics.forEach((entry, topic) => {
      entry.resume = held.has(topic);
      if (entry.resume) entry.denied = undefined;
    });
    doubt();
  };
  // Ask again for denied topics, all or those with this reason.
  const forgive = (reason) => {
    topics.forEach((entry) => { if (!reason || entry.denied === reason) entry.ask = true; });
    request();
  };

  // ---- subscribers

  // Give each subscriber the items that say what the newest answer means for its topics. Then ask for what is missing.
  function tell(joined, recovered, before = position) {
    for (const sub of [...subs]) {
      const news = { subscribed: [], recovered: [], stale: [] };
      for (const topic of sub.topics) {
        if (!held.has(topic)) continue;
        if (!sub.told.has(topic)) news.subscribed.push(topic);
        else if (joined?.has(topic)) news[recovered ? "recovered" : "stale"].push(topic);
        sub.told.add(topic);
      }
      for (const type in news) if (news[type].length) put(sub, { type, topics: news[type], position }, before);
      const denied = [...sub.topics].map((topic) => ({ topic, reason: topics.get(topic)?.denied })).filter((each) => each.reason);
      const text = JSON.stringify(denied);
      if (text === sub.denied) continue;
      sub.denied = text;
      if (denied.length) put(sub, { type: "denied", topics: denied.map(({ topic }) => topic), denied }, before);
    }
    request();
  }

  function settle() {
    if (settling) return;
    settling = true;
    queueMicrotask(() => {
      settling = false;
      if (state !== "open" || asked) return;
      mark(); // A topic that was left and joined again needs no request.
      tell();
    });
  }

  function put(sub, item, before, text = 0) {
    if (!subs.has(sub)) return;
    const { queue } = sub;
    const size = text + ITEM_BYTES;
    if (sub.bytes + size > opt.queueBytes && queue.length > sub.busy) {
      // The handler is too slow. One gap replaces all items that wait, except the newest `denied`.
      const lost = queue.splice(sub.busy);
      const denied = lost.findLast(({ item }) => item.denied);
      const gone = new Set(lost.flatMap(({ item }) => (item.denied ? [] : item.topics ?? item.topic)));
      // A `denied` without lost topics is no gap.
      if (gone.size) queue.push({ item: { type: "gap", topics: [...gone], from: lost[0].before, to: before, reason: "slow" }, before: lost[0].before, size: ITEM_BYTES, at: lost[0].at });
      if (denied) queue.push(denied);
      sub.bytes = 0;
      for (const { size } of queue) sub.bytes += size;
    }
    queue.push({ item, before, size, at: ++ids });
    sub.bytes += size;
    sub.wake();
  }

  function subscribe(groups, handler) {
    if (state === "closed") throw stopped ?? new TowerwsError("closed", "the client is closed");
    if (handler && !/function|object/.test(typeof handler)) throw new TypeError("the handler must be a function or an object");
    const sub = { topics: topicsOf(groups), told: new Set(), denied: "[]", queue: [], bytes: 0, busy: 0, wake, end };
    let more, why, iterated;

    function handle(item) {
      const all = typeof handler === "function" ? { event: handler } : handler;
      if (all[item.type]) return all[item.type](item);
      if (/gap|stale|denied/.test(item.type)) report(new TowerwsError(item.type, `${item.type}: ${item.topics}: no handler`, { item }));
    }
    function done() {
      sub.busy = 0;
      sub.bytes -= sub.queue.shift()?.size ?? 0; // The queue is empty if the subscription has been closed meanwhile.
    }
    function wake() {
      if (!handler) return more?.();
      while (!sub.busy && sub.queue.length) {
        sub.busy = 1;
        const { item } = sub.queue[0];
        const bad = (error) => failed("handler", error, item);
        let result;
        try { result = handle(item); } catch (error) { bad(error); }
        if (result?.then) return void Promise.resolve(result).catch(bad).then(() => { done(); wake(); keep(); });
        done();
      }
    }
    function end(reason) {
      if (!subs.delete(sub)) return;
      why = reason;
      for (const topic of sub.topics) {
        const entry = topics.get(topic);
        entry.subs.delete(sub);
        if (!entry.subs.size) topics.delete(topic);
      }
      if (handler || !reason) sub.queue.length = 0;
      more?.();
      settle();
    }
    async function* items() {
      if (handler || iterated) throw new TypeError("a subscription can be read once, and only without a handler");
      iterated = true;
      try {
        for (;;) {
          while (!sub.queue.length) {
            if (why) throw why;
            if (!subs.has(sub)) return;
            await new Promise((call) => (more = call));
          }
          sub.busy = 1;
          yield sub.queue[0].item;
          done(); // An item counts as handled when the next one is asked for.
          keep();
        }
      } finally { end(); }
    }

    subs.add(sub);
    for (const topic of sub.topics) {
      const entry = topics.get(topic) ?? { subs: new Set() };
      topics.set(topic, entry);
      entry.subs.add(sub);
    }
    settle();
    return { topics: [...sub.topics], close: () => end(), [Symbol.asyncIterator]: items };
  }

  // ---- the store

  // The position at which the page resumes after a reload: before the oldest item that a handler has not finished. It does not change while the
  // daemon can't check a topic, because the next page would use it for that topic, too.
  function handled() {
    if (state === "closed") return last;
    if (unsure) return saved;
    let oldest = { before: position };
    for (const { queue: [first] } of subs) if (first && !(first.at > oldest.at)) oldest = first;
    return oldest.before;
  }

  async function save() {
    const now = opt.store && handled();
    if (!now || now === saved || saving) return;
    saving = true;
    try {
      await timely("save", opt.store.set(now));
      saved = now;
      unsaved = null;
    } catch (error) {
      unsaved ?? failed("store", error);
      unsaved = now; // This position is tried again at the end only. A newer one is stored as usual.
    }
    saving = false;
    arm("save");
    keep();
  }
  const keep = () => opt.store && !timers.save && ![saved, unsaved].includes(handled()) && arm("save", opt.saveMs, save);

  async function start() {
    try {
      const found = opt.store && (await timely("connect", opt.store.get()));
      if (typeof (found ?? "") !== "string" || found?.length > MAX_POSITION) throw new TypeError(`get() gave ${typeof found}, not what set() got`);
      position = saved = found || null;
    } catch (error) {
      failed("store", error);
      unsaved = ""; // `save` then reports no further error.
    }
    if (state !== "closed") dial();
  }

  listen("addEventListener");
  queueMicrotask(start); // The caller's handlers may use what `connect` returns.
  return { subscribe, close: () => stop(), get state() { return state; }, get user() { return user; }, get position() { return position; } };
}

function resolved(url) {
  let found;
  try { found = new URL(url, globalThis.location?.href); } catch { /* below */ }
  if (!found || !/^(ws|http)s?:$/.test(found.protocol) || found.hash) throw new TypeError(`url is "${url}": it must be like wss://host/websocket/`);
  return found.href.replace(/^http/, "ws");
}

function topicsOf(groups) {
  const found = new Set();
  for (const [group, events] of Object.entries(groups)) {
    if (!Array.isArray(events)) throw new TypeError(`groups.${group} must be a list of events`);
    for (const event of events) {
      if (!/^\w{1,64}$/.test(group) || !["string", "number"].includes(typeof event) || !/^[^\x00-\x1f\x7f-\uffff.*#"\\]{1,128}$/.test(event)) {
        throw new TypeError(`${group}: ${JSON.stringify(event)}: a group has letters, digits and _, an event printable ASCII without . * # " \\`);
      }
      found.add(`${group}.${event}`);
    }
  }
  return found;
}

// Read a frame. A payload with NaN or Infinity is no JSON. They become null in `payload`, and `text` has the original.
function read(data) {
  let frame;
  try { frame = JSON.parse(data); } catch {
    const at = data.indexOf(',"payload":');
    frame = JSON.parse(`${data.slice(0, at)}}`);
    frame.text = data.slice(at + 11, -1);
    try { frame.payload = JSON.parse(frame.text.replace(/"[^"\\]*(?:\\.[^"\\]*)*"|-?Infinity|NaN/g, (word) => (word[0] === '"' ? word : "null"))); } catch { /* `payload` stays undefined. */ }
  }
  frame.size = data.length;
  return frame;
}

// For how many ms a JSON Web Token is still valid, NaN if it does not say. This machine's clock may be wrong. It is if the token seems to have
// ended, or to be valid for longer than from `iat` to `exp`. Then that lifetime is returned.
function leftMs(token) {
  try {
    const { exp, iat } = JSON.parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
    const left = exp * 1000 - Date.now();
    const life = (exp - iat) * 1000;
    return life > 0 && (left <= 0 || life < left) ? life : left;
  } catch { return NaN; }
}

const cookie = () => /(?:^|; )csrftoken=([^;]*)/.exec(globalThis.document?.cookie)?.[1];
