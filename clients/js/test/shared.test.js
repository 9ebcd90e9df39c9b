// Tests of shared.js: its worker and its tabs over fake ports, and the worker's connections over fake sockets.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { cleanUp, client, FakeSocket, last, pass, reset, tick } from "./fake.js";
import { calm, generator, Model, play, SEED, TOPICS } from "./model.js";

globalThis.onconnect = null; // So shared.js takes this for a worker.
const { connect } = await import("../shared.js");

const RUNS = Number(process.env.MODEL_RUNS ?? 150);
const URL = "ws://host/websocket/";

// The port of a tab, and its other end in the worker.
function ports() {
  const [tab, worker] = [0, 0].map(() => ({ onmessage: null, close() {} }));
  const joined = (from, to) => { from.postMessage = (data) => setImmediate(() => to.onmessage?.({ data })); };
  joined(tab, worker);
  joined(worker, tab);
  return { tab, worker };
}

class FakeSharedWorker {
  static all = [];

  constructor() {
    const { tab, worker } = ports();
    this.port = tab;
    FakeSharedWorker.all.push(this);
    globalThis.onconnect({ ports: [worker] });
  }

  // The worker ends the tab, as one that was frozen.
  cut() {
    this.port.postMessage({ close: true });
    this.port.onmessage?.({ data: { closed: { code: 1006, reason: "" } } });
  }
}

beforeEach(() => {
  reset();
  globalThis.WebSocket = FakeSocket;
  globalThis.SharedWorker = FakeSharedWorker;
  FakeSharedWorker.all = [];
});
afterEach(async () => {
  for (const say of tabs.splice(0)) say({ close: true });
  await tick();
  cleanUp();
});

const tabs = [];

// The worker's end of a tab, which the test plays.
function tab() {
  const got = [];
  const port = { postMessage: (message) => { got.push(message.text ? JSON.parse(message.text) : message); }, onmessage: null };
  globalThis.onconnect({ ports: [port] });
  const say = (data) => port.onmessage({ data });
  tabs.push(say);
  say({ join: URL, options: {}, token: false });
  return {
    got,
    say,
    request: async (groups, id, since) => {
      say({ text: JSON.stringify({ groups, since, id }) });
      await tick();
    },
    // What the tab got since `subscribed`, events as their position.
    get frames() {
      const frames = got.filter(({ type }) => /event|gap|subscribed|revoked/.test(type));
      return frames.map(({ type, position, topics, reason, recovered }) => (type === "event" ? position : type === "gap" ? `gap ${topics} ${reason}` : `${type} ${recovered}`));
    },
  };
}

const open = async (socket, answer) => {
  socket.open();
  socket.welcome();
  await tick();
  if (answer) socket.answer(answer);
  await tick();
};

// A tab that comes back with a position, and the two connections.
async function resuming(groups) {
  const made = tab();
  await tick();
  const live = last();
  await open(live);
  await made.request(groups, 1, "p10");
  live.answer();
  await tick();
  const second = last();
  await open(second, {});
  return { ...made, made, live, second };
}

test(`${RUNS} random runs with three tabs from seed ${SEED}`, async () => {
  for (let seed = SEED; seed < SEED + RUNS; seed++) {
    FakeSocket.all = [];
    FakeSharedWorker.all = [];
    const random = generator(seed);
    const model = new Model(random);
    const pick = (list) => list[Math.floor(random() * list.length)];
    globalThis.WebSocket = model.Socket;
    const clients = [1, 2, 3].map(() => client({ queueBytes: 3000, pingMs: 1e8 }, URL, connect));
    const more = {
      cut: () => { for (const worker of FakeSharedWorker.all) if (random() < 0.4) worker.cut(); },
      restart: () => { for (const socket of model.open) model.lose(socket); },
      one: () => model.deliver(1),
      few: () => model.deliver(3),
      later: () => { for (const socket of model.open) model.deliver(Math.ceil(random() * 4), socket); },
      return: async () => { // Tabs come back and both connections are open, but not at the same place.
        pick(FakeSharedWorker.all)?.cut();
        await pass(1000);
        for (let at = 0; at < 3; at++) {
          for (const socket of model.open) model.deliver(2, socket);
          await tick();
          await tick();
        }
        for (let at = 0; at < 4; at++) model.publish(pick(TOPICS));
        model.deliver(random() * 4);
        if (!calm(seed)) model.gap();
        model.publish(pick(TOPICS));
      },
    };
    await play(seed, { random, model, clients, more });
  }
});

test("both connections of a tab come back without history: it gets a gap, and one connection remains", async () => {
  const { made, live, second } = await resuming({ jobs: ["a"] });
  live.lose();
  second.lose();
  await pass(20_000);
  const back = FakeSocket.all.slice(-2);
  for (const socket of back) await open(socket, { recovered: false, position: "q5" });
  for (const socket of back) socket.event("jobs.a", 6, "q6");
  await tick();
  assert.deepEqual(made.frames, ["subscribed true", "gap jobs.a history", "q6"]);
  assert.equal(back.filter(({ closed }) => !closed).length, 1);
});

test("the second connection comes back without history: the tab gets a gap", async () => {
  const { made, live, second } = await resuming({ jobs: ["a"] });
  second.event("jobs.a", 11);
  second.lose();
  live.event("jobs.a", 90);
  await pass(20_000);
  await open(last(), { recovered: false, position: "p95" });
  for (const socket of [live, last()]) socket.event("jobs.a", 96);
  await tick();
  assert.deepEqual(made.frames, ["subscribed true", "p11", "gap jobs.a history", "p96"]);
  assert.ok(last().closed);
});

test("a gap of the shared connection waits for the tab that catches up", async () => {
  const { made, live, second } = await resuming({ jobs: ["a"] });
  live.event("jobs.a", 20);
  live.frame({ type: "gap", topics: ["jobs.a"], from: "p20", to: "p30", reason: "broker" });
  live.event("jobs.a", 31);
  second.event("jobs.a", 11);
  second.event("jobs.a", 20);
  assert.ok(second.closed);
  assert.deepEqual(made.frames, ["subscribed true", "p11", "p20", "gap jobs.a broker", "p31"]);
});

test("a gap for one topic ends the replay of no other one", async () => {
  const { made, live, second } = await resuming({ jobs: ["a", "b"] });
  live.event("jobs.b", 90);
  second.event("jobs.a", 11);
  second.frame({ type: "gap", topics: ["jobs.a"], from: "p11", to: "p50", reason: "history" });
  for (const n of [60, 61, 90]) second.event("jobs.b", n);
  assert.ok(second.closed);
  assert.deepEqual(made.frames, ["subscribed true", "p11", "gap jobs.a history", "p60", "p61", "p90"]);
});

test("a topic that is left and joined again during the replay comes once", async () => {
  const { made, live, second } = await resuming({ jobs: ["a", "b"] });
  for (const [id, events] of [[2, ["b"]], [3, ["a", "b"]]]) {
    await made.request({ jobs: events }, id);
    for (const socket of [live, second]) if (socket.requests.length === id) socket.answer();
    await tick();
  }
  for (const n of [11, 12]) second.event("jobs.a", n);
  live.event("jobs.a", 12);
  assert.deepEqual(made.frames.filter((frame) => frame.startsWith("p")), ["p11", "p12"]);
});

test("the second connection is ahead when both meet: nothing comes twice", async () => {
  const { made, live, second } = await resuming({ jobs: ["a", "b"] });
  for (const n of [11, 12]) second.event("jobs.a", n);
  second.frame({ type: "gap", topics: ["jobs.a"], from: "p12", to: "p13", reason: "history" });
  for (const n of [14, 15]) second.event("jobs.a", n);
  live.event("jobs.b", 10);
  live.event("jobs.a", 12);
  assert.ok(second.closed);
  made.say({ text: JSON.stringify({ ping: 1 }) });
  assert.equal(made.got.at(-1).position, null, "the shared connection's position is older than the tab's");
  for (const n of [13, 14, 15, 16]) live.event("jobs.a", n);
  assert.deepEqual(made.frames, ["subscribed true", "p11", "p12", "gap jobs.a history", "p14", "p15", "p16"]);
});

test("a gap of the shared connection while the second one was ahead: the tab resumes at its own position", async () => {
  const { made, live, second } = await resuming({ jobs: ["a"] });
  for (const n of [11, 12, 13]) second.event("jobs.a", n);
  live.event("jobs.a", 11);
  live.frame({ type: "gap", topics: ["jobs.a"], from: "p11", to: "p20", reason: "slow" });
  assert.deepEqual(made.got.at(-1).closed?.code, 1013);
});

test("the second connection can't check a topic after the answer: the tab loses it, and asks again", async () => {
  const { made, live, second } = await resuming({ jobs: ["a", "b"] });
  second.lose();
  await pass(20_000);
  await open(last(), { denied: [{ topic: "jobs.a", reason: "unavailable" }] });
  last().event("jobs.b", 12);
  live.event("jobs.b", 12);
  live.event("jobs.a", 13);
  assert.deepEqual(made.frames, ["subscribed true", "revoked undefined", "p12"]);
});

test("a tab that catches up leaves all topics: one connection remains", async () => {
  const { made, live, second } = await resuming({ jobs: ["a"] });
  await made.request({}, 2);
  assert.deepEqual([live.closed, second.closed], [false, true]);
});

test("a tab that left a topic gets no event of it that waited", async () => {
  const { made, live, second } = await resuming({ jobs: ["a", "b"] });
  for (const [topic, n] of [["jobs.a", 11], ["jobs.b", 12], ["jobs.a", 13], ["jobs.b", 14]]) live.event(topic, n);
  await made.request({ jobs: ["b"] }, 2);
  second.event("jobs.b", 12);
  assert.deepEqual(made.frames.filter((frame) => frame.startsWith("p")), ["p12", "p14"]);
});

test("the machine sleeps: its tabs are kept. A tab that answers no beat for 150 s is not", async () => {
  const { made, live } = await resuming({ jobs: ["a"] });
  await pass(30_000);
  made.say({ ack: 0 });
  const later = Date.now() + 600_000; // Timers stand still meanwhile.
  mock.method(Date, "now", () => later);
  await pass(30_000);
  assert.equal(made.got.find(({ closed }) => closed), undefined);
  for (let at = 0; at < 6; at++) await pass(30_000);
  assert.equal(made.got.at(-1).closed?.code, 1013);
  assert.ok(live.closed);
});

test("onstate and onerror that throw or reject in a tab", async () => {
  const shown = mock.method(console, "error", () => {});
  const errors = [];
  const fail = (name) => { throw new Error(name); };
  const made = client({ onstate: ({ state }) => (state === "waiting" ? fail("throws") : Promise.reject(new Error("rejects"))), onerror: (error) => { errors.push(error.message); fail("onerror"); } }, URL, connect);
  await tick();
  await tick();
  await open(last());
  await tick();
  last().lose();
  await tick();
  await tick();
  assert.deepEqual(errors, ["rejects", "rejects", "throws"].map((text) => `the onstate failed: ${text}`));
  assert.equal(shown.mock.callCount(), 3);
  made.client.close();
  await tick();
});
