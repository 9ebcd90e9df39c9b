// One connection for all tabs of an origin. Each tab runs the client of towerws.js over a tunnel to a SharedWorker. The worker also runs this
// file, and has the only real connection. README.md describes this client, shared.d.ts has its types.
import { connect as connectAlone, TowerwsError } from "./towerws.js";

export { TowerwsError };

const HELLO_MS = 5000; // How long a worker may take to send its first message.
const TRIES = 3; // After so many failed attempts in a row, a tab uses no worker any more.
const BEAT_MS = 30_000; // Interval of the worker's messages to which a tab must answer.
const GONE_BEATS = 5; // A tab that has answered none of so many beats is closed or frozen. While the machine sleeps, there are none.
const WINDOW = 4 << 20; // Most characters that wait for a tab.
const ACK = 1 << 16; // A tab acknowledges events after so many characters.
const ASK_MS = 8000; // How long a tab may take to give a token. Then the worker asks another tab.
const SEEN = 100_000; // Most positions that are kept while a tab resumes.

// ---- in the tab

/** @param {any} options */
export function connect(url, options = {}) {
  const { worker = import.meta.url, name = "", ...rest } = options;
  if (rest.WebSocket || !globalThis.SharedWorker) return connectAlone(url, rest);
  let broken = false; // Whether no worker can be used, so that this tab has a connection of its own.
  let silent = 0; // attempts in a row without a message of the worker
  let number = 0; // Part of the worker's name. Chromium keeps the name of a worker that died, so the next one gets another name in all tabs.
  let shown = { state: "connecting", user: null };

  const report = async (error) => {
    try { await (rest.onerror ?? console.error)(error); } catch (broken) { console.error(broken); }
  };
  const show = async (change) => {
    shown = change;
    try { await rest.onstate?.(change); } catch (cause) { report(new TowerwsError("onstate", `the onstate failed: ${cause?.message ?? cause}`, { cause })); }
  };
  const revived = (error) => error && new TowerwsError(error.code, error.message, { status: error.status });

  /** The class for the client. @type {any} */
  const Tunnel = function (address, protocol) {
    if (broken) return new globalThis.WebSocket(address, protocol);
    let shared, late, read = 0;
    try {
      shared = new globalThis.SharedWorker(worker, { type: "module", name: `towerws ${number} ${name} ${address}` });
    } catch {
      broken = true;
      return new globalThis.WebSocket(address, protocol);
    }
    const { port } = shared;
    const post = (message) => port.postMessage(message);
    const end = ({ code, reason }) => {
      clearTimeout(late);
      globalThis.removeEventListener?.("pagehide", leave);
      port.onmessage = null;
      port.close();
      socket.onclose?.({ code, reason });
    };
    const without = () => {
      number++;
      broken = ++silent === TRIES;
      socket.onopen?.(); // The client then takes the end for a lost connection, and does not ask the daemon why a handshake failed.
      end({ code: 1006, reason: "no shared worker" });
    };
    const leave = () => post({ close: true });
    const socket = {
      protocol,
      onopen: undefined,
      onmessage: undefined,
      onclose: undefined,
      send: (text) => post({ text }),
      close() {
        leave();
        socket.onclose = undefined;
        end({ code: 1000, reason: "" });
      },
    };
    late = setTimeout(without, HELLO_MS);
    shared.onerror = without;
    globalThis.addEventListener?.("pagehide", leave);
    port.onmessage = ({ data }) => {
      clearTimeout(late);
      silent = 0;
      if (data.text !== undefined) {
        read += data.text.length;
        socket.onmessage?.({ data: data.text });
        if (read < ACK) return;
      } else if (data.open) socket.onopen?.();
      else if (data.closed) return end(data.closed);
      else if (data.error) report(revived(data.error));
      else if (data.state && inner.state === "open") show({ ...data.state, reason: revived(data.state.reason) });
      else if (data.ask) {
        const answer = (more) => post({ answer: data.ask, ...more });
        Promise.resolve().then(rest.token).then((value) => answer({ value }), (error) => answer({ error: String(error?.message ?? error) }));
      }
      post({ ack: read });
      read = 0;
    };
    const numbers = Object.entries(rest).filter(([, value]) => typeof value === "number");
    post({ join: address, options: Object.fromEntries(numbers), token: !!rest.token });
    return socket;
  };

  const inner = connectAlone(url, { ...rest, WebSocket: Tunnel, onstate: show });
  return {
    subscribe: inner.subscribe,
    close: inner.close,
    get state() { return inner.state === "open" ? shown.state : inner.state; },
    get user() { return inner.user; },
    get position() { return inner.position; },
  };
}

// ---- in the worker

function serve(scope) {
  const sessions = new Set(); // one for each tab
  const topics = new Map(); // topic -> { sub, sessions, held: the daemon sends it }
  let live, state, xrftoken, asks = 0;
  let address, shared; // how `live` connects

  const plain = (error) => error && { code: error.code, message: error.message, status: error.status };
  const groupsOf = (names) => {
    const groups = Object.create(null);
    for (const topic of names) {
      const [group, event] = topic.split(".");
      (groups[group] ??= []).push(event);
    }
    return groups;
  };
  const encoded = ({ position, group, event, payload, text }) => {
    const head = JSON.stringify({ type: "event", position, group, event });
    return `${head.slice(0, -1)},"payload":${text ?? JSON.stringify(payload)}}`;
  };

  function start({ join: url, options, token }) {
    address = url;
    shared = { ...options, token: token ? askForToken : undefined, xrftoken: () => xrftoken };
    const mine = connectAlone(address, {
      ...shared,
      onerror: (error) => { for (const session of sessions) session.post({ error: plain(error) }); },
      onstate: (change) => {
        if (mine !== live) return;
        state = { ...change, reason: plain(change.reason) };
        for (const session of [...sessions]) session.changed();
      },
    });
    live = mine;
  }

  // A function can't be sent to a worker, so the worker asks the tabs for a token, the newest tab first: it answers most probably.
  async function askForToken() {
    for (const session of [...sessions].reverse()) {
      const answer = await session.ask();
      if (answer?.error !== undefined) throw new Error(answer.error);
      if (answer) return answer.value;
    }
    throw new Error("no tab answers");
  }

  function join(topic, session) {
    let entry = topics.get(topic);
    if (!entry) {
      const all = new Set();
      const held = () => {
        entry.held = true;
        for (const one of [...all]) one.settle();
      };
      const lost = ({ from = null, to, position, reason = "history" }) => {
        for (const one of [...all]) one.lost(topic, { from, to: to ?? position, reason });
      };
      entry = { sessions: all, held: false };
      topics.set(topic, entry);
      entry.sub = live.subscribe(groupsOf([topic]), {
        event: (item) => {
          const text = encoded(item);
          for (const one of [...all]) one.deliver(item, text);
        },
        subscribed: held,
        recovered: held,
        stale: (item) => { lost(item); held(); },
        gap: lost,
        denied: ({ denied: [{ reason }] }) => {
          topics.delete(topic);
          entry.sub.close();
          for (const one of [...all]) one.deny(topic, reason);
        },
      });
    }
    entry.sessions.add(session);
  }

  function leave(topic, session) {
    const entry = topics.get(topic);
    if (!entry?.sessions.delete(session) || entry.sessions.size) return;
    topics.delete(topic);
    entry.sub.close();
  }

  scope.onconnect = ({ ports: [port] }) => {
    const current = new Set(); // the topics of this tab
    const waiting = new Map(); // number of a question -> its answer's callback
    let pending = null; // the request that waits for its answer
    let resumed = null; // a separate connection, which replays the events that the tab missed
    const seen = new Map(); // position -> topic of the events that came over `resumed`, but not yet over the shared connection
    let opened = false, over = false, unread = 0, beats = 0; // those without an answer
    const post = (message) => { if (!over) port.postMessage(message); };
    const text = (data) => {
      unread += data.length;
      post({ text: data });
      if (unread > WINDOW) end(1013, "the tab is too slow");
    };
    const frame = (message) => text(JSON.stringify(message));
    const has = (topic) => current.has(topic) && !pending?.joined.has(topic); // A topic counts from the answer to its request.
    const gap = (topics, { from = null, to, position: end, reason = "history" }) => {
      const ones = topics.filter(has);
      return ones.length && JSON.stringify({ type: "gap", topics: ones, from, to: to ?? end, reason });
    };
    const position = () => (resumed || seen.size ? null : live.position);

    const session = {
      post,
      ask: () => new Promise((done) => {
        const number = ++asks;
        waiting.set(number, done);
        post({ ask: number });
        setTimeout(() => { waiting.delete(number); done(undefined); }, ASK_MS);
      }),
      changed() {
        if (state?.state === "closed") {
          frame({ type: "bye", action: "stop", reconnect_after_ms: null, reason: state.reason ? `${state.reason.code}: ${state.reason.message}` : "closed" });
          return end(1008, "stopped");
        }
        if (opened) return post({ state });
        if (state?.state !== "open") return;
        opened = true;
        post({ open: true });
        frame({ type: "welcome", user: live.user, position: live.position, ping_s: 20 });
      },
      deliver(item, encodedItem) {
        if (!has(item.topic)) return;
        if (resumed) {
          wait(item.position, item.topic, encodedItem);
          meet(item.position);
        } else if (!seen.size) text(encodedItem);
        else if (seen.has(item.position)) through(seen, item.position);
      },
      lost(topic, item) {
        const data = gap([topic], item);
        if (!data) return;
        if (resumed) wait(item, topic, data);
        else if (!seen.size) text(data);
        else end(1013, "the tab resumes again"); // The gap may have the last event of `seen`.
      },
      deny(topic, reason) {
        current.delete(topic);
        without(topic);
        if (pending?.joined.has(topic)) {
          pending.denied.push({ topic, reason });
          session.settle();
        } else frame({ type: "revoked", groups_current: [...current], groups_left: [topic], denied: [{ topic, reason }], position: position() });
      },
      settle() {
        if (!pending || over) return;
        const { id, since, joined, denied } = pending;
        const granted = [...joined].filter((topic) => current.has(topic));
        if (!granted.every((topic) => topics.get(topic)?.held && (!resumed || resumed.told.has(topic)))) return;
        const recovered = since === undefined ? null : !!resumed?.recovered;
        pending = null;
        // From now on the shared connection gets every event of all topics. Before this, it did not get all of the new ones.
        if (resumed && joined.size) Object.assign(resumed, { buffer: new Map(), bytes: 0 });
        frame({ type: "subscribed", id, groups_current: [...current], groups_joined: granted, groups_left: [], denied, position: recovered ? since : position(), recovered });
        if (since !== undefined && !recovered) merge();
        for (const call of resumed?.late.splice(0) ?? []) call();
      },
    };

    // A tab that reconnects with a position gets a separate connection, which resumes there. The events and gaps of the shared connection wait
    // meanwhile. Both connections deliver in the order of the log. So at the first event that both have, the shared one takes over.
    function resume(since) {
      const mine = resumed = { buffer: new Map(), bytes: 0, subs: new Map(), told: new Set(), recovered: true, late: [], client: undefined, add: undefined };
      // The tab gets the items of this connection after the answer to its request.
      const then = (call) => (item) => {
        const now = () => { if (mine === resumed) call(item); };
        if (pending?.since === undefined) now();
        else mine.late.push(now);
      };
      const lost = then((item) => {
        const data = gap(item.topics, item);
        if (data) text(data);
      });
      const told = (item) => {
        if (mine !== resumed) return;
        if (item.type === "stale" && pending?.since === undefined) lost(item);
        else if (item.type !== "recovered" && pending?.since !== undefined) mine.recovered = false;
        for (const topic of item.topics) mine.told.add(topic);
        session.settle();
      };
      const handlers = {
        subscribed: told,
        recovered: told,
        stale: told,
        denied: ({ denied: [{ topic, reason }] }) => {
          if (mine !== resumed) return;
          leave(topic, session);
          session.deny(topic, reason); // So the tab knows that events are missing. It asks for the topic again.
        },
        event: then((item) => {
          if (!has(item.topic)) return;
          seen.set(item.position, item.topic);
          if (seen.size > SEEN) return end(1013, "the tab resumes too slowly");
          text(encoded(item));
          meet(item.position);
        }),
        gap: lost,
      };
      mine.client = connectAlone(address, {
        ...shared,
        store: { get: () => since, set() {} },
        onerror() {},
        onstate: ({ state: now }) => { if (now === "closed" && mine === resumed) end(1013, "could not resume"); },
      });
      mine.add = (topic) => mine.subs.set(topic, mine.client.subscribe(groupsOf([topic]), handlers));
    }

    // What comes over the shared connection waits by its position, a gap by itself.
    function wait(key, topic, data) {
      resumed.buffer.set(key, [topic, data]);
      resumed.bytes += data.length;
      if (resumed.bytes > WINDOW) end(1013, "the tab resumes too slowly");
    }

    const through = (map, last) => {
      for (const key of map.keys()) {
        map.delete(key);
        if (key === last) return;
      }
    };

    // If both connections have this event, the tab needs nothing of either up to it. Of `seen` remains what the shared connection still brings.
    function meet(at) {
      if (!resumed || pending || !seen.has(at) || !resumed.buffer.has(at)) return;
      through(seen, at);
      through(resumed.buffer, at);
      merge();
    }

    function merge() {
      if (!resumed) return;
      const { client, buffer } = resumed;
      resumed = null;
      client.close();
      for (const [topic, data] of buffer.values()) if (has(topic)) text(data);
    }

    // The tab has no longer this topic. If it was the last one, there is nothing to catch up with.
    function without(topic) {
      for (const [at, of] of seen) if (of === topic) seen.delete(at);
      if (!resumed) return;
      resumed.subs.get(topic)?.close();
      resumed.subs.delete(topic);
      resumed.told.delete(topic);
      if (!current.size) merge();
    }

    function request({ groups, since, id, xrftoken: fresh }) {
      xrftoken = fresh ?? xrftoken;
      const wanted = new Set(Object.entries(groups).flatMap(([group, events]) => events.map((event) => `${group}.${event}`)));
      for (const topic of [...current]) {
        if (wanted.has(topic)) continue;
        current.delete(topic);
        without(topic);
        leave(topic, session);
      }
      const joined = new Set([...wanted].filter((topic) => !current.has(topic)));
      pending = { id, since: joined.size ? since ?? undefined : undefined, joined, denied: [] };
      for (const topic of joined) current.add(topic);
      if (!resumed && pending.since !== undefined) resume(pending.since);
      for (const topic of joined) {
        resumed?.add(topic);
        join(topic, session);
      }
      session.settle();
    }

    function end(code, reason) {
      if (over) return;
      post({ closed: { code, reason } });
      over = true;
      clearInterval(beat);
      sessions.delete(session);
      for (const topic of current) leave(topic, session);
      for (const done of waiting.values()) done();
      const { client } = resumed ?? {};
      resumed = null;
      client?.close();
      if (sessions.size) return;
      const old = live;
      live = state = undefined;
      topics.clear();
      old?.close();
    }

    const beat = setInterval(() => {
      if (++beats > GONE_BEATS) end(1013, "the tab did not answer");
      else post({ beat: true });
    }, BEAT_MS);

    port.onmessage = ({ data }) => {
      beats = 0;
      if (over) return;
      if (data.ack !== undefined) unread -= data.ack;
      else if (data.close) end(1000, "");
      else if (data.answer) {
        waiting.get(data.answer)?.(data);
        waiting.delete(data.answer);
      } else if (data.join) {
        sessions.add(session);
        post({ hello: true });
        if (!live) start(data);
        session.changed();
      } else if (data.text) {
        const message = JSON.parse(data.text);
        if (message.groups) request(message);
        else if (message.ping) frame({ type: "pong", ping: message.ping, position: position() });
        else if (message.token) frame({ type: "renewed", id: "token", user: live.user });
      }
    };
  };
}

if ("onconnect" in globalThis) serve(globalThis);
