// A fake WebSocket and helpers. The timers are those of node:test, so no test waits.
import { mock } from "node:test";
import { connect } from "../towerws.js";

export class FakeSocket {
  static all = [];

  constructor(url, protocol) {
    Object.assign(this, { url, protocol, sent: [], closed: false });
    FakeSocket.all.push(this);
  }

  send(text) { this.sent.push(JSON.parse(text)); }
  close() { this.closed = true; }
  open() { this.onopen?.(); }
  text(data) { this.onmessage?.({ data }); }
  frame(frame) { this.text(JSON.stringify(frame)); }
  lose(code = 1006, reason = "") { this.onclose?.({ code, reason }); }

  welcome(more) { this.frame({ type: "welcome", user: 7, position: "p0", ping_s: 20, ...more }); }
  // Answers the newest request: everything in it is subscribed, but what is denied.
  answer({ denied = [], ...more } = {}) {
    const { groups, id, since } = this.sent.findLast((message) => message.groups);
    const out = denied.map(({ topic }) => topic);
    const asked = Object.entries(groups).flatMap(([group, events]) => events.map((event) => `${group}.${event}`));
    this.frame({ type: "subscribed", id, groups_current: asked.filter((topic) => !out.includes(topic)), groups_joined: [], groups_left: [], denied, position: since ?? "p0", recovered: since ? true : null, ...more });
  }
  event(topic, n, position = `p${n}`) {
    const [group, event] = topic.split(".");
    this.frame({ type: "event", position, group, event, payload: { n } });
  }
  get requests() { return this.sent.filter((message) => message.groups); }
}

export const tick = () => new Promise((done) => { setImmediate(done); });
export const pass = async (ms) => { await tick(); mock.timers.tick(ms); await tick(); };

let clients = [];

export function reset() {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_700_000_000_000 });
  FakeSocket.all = [];
  clients = [];
  globalThis.fetch = async () => { throw new TypeError("fetch failed"); };
}

export function cleanUp() {
  for (const client of clients) client.close();
  mock.timers.reset();
  mock.restoreAll();
}

// A client with everything that it told.
export function client(options = {}, url = "ws://host/websocket/", connectTo = connect) {
  const told = { states: [], errors: [], reasons: [] };
  const made = connectTo(url, {
    ...(connectTo === connect && { WebSocket: FakeSocket }),
    onstate: ({ state, reason }) => { told.states.push(state); told.reasons.push(reason); },
    onerror: (error) => told.errors.push(error),
    ...options,
  });
  clients.push(made);
  return Object.assign(told, { client: made });
}

export const last = () => FakeSocket.all.at(-1);

// An open client with one subscription, and what that got.
export async function opened(groups = { jobs: ["a"] }, options = {}) {
  const told = client(options);
  const got = [];
  const sub = told.client.subscribe(groups, everything(got));
  await tick();
  last().open();
  last().welcome();
  last().answer();
  await tick();
  return { ...told, got, sub };
}

export function everything(got) {
  const keep = (item) => { got.push(item.type === "event" ? item.payload.n : item.type); };
  return { event: keep, subscribed: keep, recovered: keep, stale: keep, gap: keep, denied: keep };
}

// The newest connection ends, and the next one is open.
export async function reconnect(ms = 20_000) {
  last().lose();
  await pass(ms);
  last().open();
  last().welcome();
  await tick();
}
