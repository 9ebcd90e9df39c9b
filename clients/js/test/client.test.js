import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { connect, TowerwsError } from "../towerws.js";
import { cleanUp, client, everything, FakeSocket, last, opened, pass, reconnect, reset, tick } from "./fake.js";

beforeEach(reset);
afterEach(cleanUp);

const codes = (errors) => errors.map(({ code }) => code);

// ---- subscribing

test("the first event", async () => {
  const told = client();
  const events = [];
  told.client.subscribe({ jobs: ["a"], job_events: [42] }, (event) => { events.push(event); });
  await tick();
  assert.equal(last().url, "ws://host/websocket/");
  assert.equal(last().protocol, "towerws.v1");
  last().open();
  last().welcome();
  assert.deepEqual(last().sent, [{ groups: { jobs: ["a"], job_events: ["42"] }, id: 1 }]);
  last().answer();
  last().event("job_events.42", 1);
  assert.deepEqual(events, [{ type: "event", topic: "job_events.42", group: "job_events", event: "42", payload: { n: 1 }, position: "p1" }]);
  assert.deepEqual(told.states, ["connecting", "open"]);
  assert.deepEqual([told.client.state, told.client.user, told.client.position], ["open", 7, "p1"]);
  assert.deepEqual(told.errors, []);
});

test("handlers may use the client at once", async () => {
  const made = connect("ws://host/websocket/", { WebSocket: FakeSocket, onstate: ({ state }) => { assert.equal(made.state, state); } });
  await tick();
  made.close();
});

test("subscribers share a connection, and leave without each other", async () => {
  const { client: made, got, sub } = await opened({ jobs: ["a", "b"] });
  const other = [];
  const second = made.subscribe({ jobs: ["b", "c"] }, everything(other));
  await tick();
  assert.deepEqual(other, ["subscribed"], "jobs.b is there already");
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a", "b", "c"] });
  last().answer();
  assert.deepEqual(other, ["subscribed", "subscribed"]);
  for (const [n, topic] of ["jobs.a", "jobs.b", "jobs.c"].entries()) last().event(topic, n);
  assert.deepEqual(got, ["subscribed", 0, 1]);
  assert.deepEqual(other, ["subscribed", "subscribed", 1, 2]);
  sub.close();
  await tick();
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["b", "c"] });
  last().answer();
  last().event("jobs.b", 3);
  assert.deepEqual([got.at(-1), other.at(-1)], [1, 3]);
  second.close();
  sub.close();
  await tick();
  assert.deepEqual(last().requests.at(-1).groups, {});
  assert.equal(FakeSocket.all.length, 1);
});

test("leaving and joining in the same moment asks for nothing", async () => {
  const { client: made, sub } = await opened();
  const other = [];
  sub.close();
  made.subscribe({ jobs: ["a"] }, everything(other));
  await tick();
  assert.equal(last().requests.length, 1);
  last().event("jobs.a", 1);
  assert.deepEqual(other, ["subscribed", 1]);
});

test("one request at a time", async () => {
  const { client: made } = await opened();
  made.subscribe({ jobs: ["b"] }, () => {});
  await tick();
  const got = [];
  made.subscribe({ jobs: ["c"] }, everything(got));
  await tick();
  assert.equal(last().requests.length, 2);
  last().answer();
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a", "b", "c"] });
  assert.deepEqual(got, []);
  last().answer();
  assert.deepEqual(got, ["subscribed"]);
});

test("a topic that is left and joined again while a request waits", async () => {
  const { client: made, sub } = await opened({ jobs: ["a", "b"] });
  sub.close();
  made.subscribe({ jobs: ["b"] }, () => {});
  await tick();
  const got = [];
  made.subscribe({ jobs: ["a"] }, everything(got));
  await tick();
  assert.deepEqual(got, [], "the daemon is about to leave it");
  last().answer();
  last().answer();
  assert.deepEqual(got, ["subscribed"]);
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["b", "a"] });
});

// Each way to be left and joined again. The topic then survives the loss of the connection like any other.
const leaveAndJoin = {
  "left, then joined, in one tick": (made, sub, again) => { sub.close(); again(); },
  "joined, then left, in one tick": (made, sub, again) => { again(); sub.close(); },
  "left, joined, left and joined, in one tick": (made, sub, again) => { sub.close(); made.subscribe({ jobs: ["a"] }, () => {}).close(); again(); },
  "one of two subscribers leaves": (made, sub, again) => { again(); made.subscribe({ jobs: ["a"] }, () => {}).close(); sub.close(); },
  "left and joined while another request waits": async (made, sub, again) => {
    made.subscribe({ jobs: ["b"] }, () => {});
    await tick();
    sub.close();
    again();
    await tick();
    last().answer();
  },
  "left, and joined while the request to leave waits": async (made, sub, again) => {
    sub.close();
    await tick();
    again();
    await tick();
    last().answer();
    last().answer();
  },
  "left, and joined by two while the request to leave waits and topics are taken away": async (made, sub, again) => {
    made.subscribe({ jobs: ["b"] }, () => {});
    await tick();
    last().answer();
    sub.close();
    await tick();
    again();
    last().frame({ type: "revoked", groups_current: ["jobs.a"], groups_left: ["jobs.b"], denied: [{ topic: "jobs.b", reason: "not allowed" }], position: "p0" });
    last().answer();
    assert.equal(last().requests.at(-1).since, undefined, "events between the two requests were not sent: it can't be resumed");
    last().answer();
  },
};
for (const [name, steps] of Object.entries(leaveAndJoin)) {
  test(`a topic resumes after a reconnect: ${name}`, async () => {
    const { client: made, sub, errors } = await opened();
    const got = [];
    await steps(made, sub, () => made.subscribe({ jobs: ["a"] }, everything(got)));
    await tick();
    assert.equal(got[0], "subscribed");
    last().event("jobs.a", 5);
    await reconnect();
    assert.equal(last().requests[0].since, "p5");
    last().answer();
    last().event("jobs.a", 6);
    assert.deepEqual(got.slice(-3), [5, "recovered", 6]);
    assert.deepEqual(codes(errors).filter((code) => code !== "denied"), []);
  });
}

test("left and joined again while the connection is lost: it counts from now", async () => {
  const { client: made, sub } = await opened({ jobs: ["a", "b"] });
  const other = [];
  const stays = made.subscribe({ jobs: ["b"] }, everything(other));
  await tick();
  last().event("jobs.b", 5);
  last().lose();
  sub.close();
  const got = [];
  made.subscribe({ jobs: ["a", "b"] }, everything(got));
  await pass(20_000);
  last().open();
  last().welcome();
  assert.deepEqual([last().requests.at(-1).groups, last().requests.at(-1).since], [{ jobs: ["b"] }, "p5"]);
  last().answer();
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["b", "a"] });
  last().answer();
  assert.deepEqual([got, other], [["subscribed", "subscribed"], ["subscribed", 5, "recovered"]], "a new subscriber has no state yet");
  stays.close();
  await tick();
  assert.equal(last().requests.length, 2);
});

test("a topic that is taken away while a request waits, and that this request brings back, is stale", async () => {
  const { client: made, got } = await opened();
  const other = [];
  made.subscribe({ jobs: ["b"] }, everything(other));
  await tick();
  last().frame({ type: "revoked", groups_current: [], groups_left: ["jobs.a"], denied: [{ topic: "jobs.a", reason: "unavailable" }], position: "p3" });
  last().answer({ groups_joined: ["jobs.a", "jobs.b"] });
  assert.deepEqual([got, other], [["subscribed", "stale"], ["subscribed"]]);
});

test("left and joined again while the request to resume waits", async () => {
  const { client: made, sub } = await opened();
  last().event("jobs.a", 5);
  await reconnect();
  assert.equal(last().requests[0].since, "p5");
  const got = [];
  sub.close();
  made.subscribe({ jobs: ["a"] }, everything(got));
  await tick();
  last().answer();
  assert.deepEqual(got, ["subscribed"]);
  await reconnect();
  last().answer();
  assert.deepEqual(got, ["subscribed", "recovered"]);
});

test("a handler that subscribes, leaves and closes", async () => {
  const { client: made, got } = await opened();
  const other = [];
  const once = made.subscribe({ jobs: ["a"] }, () => {
    once.close();
    made.subscribe({ jobs: ["a"] }, (event) => { other.push(event.payload.n); made.close(); });
  });
  await tick();
  last().event("jobs.a", 1);
  await tick();
  last().event("jobs.a", 2);
  last().event("jobs.a", 3);
  assert.deepEqual([got, other], [["subscribed", 1, 2], [2]]);
});

// ---- reconnecting

test("it resumes where it was, and later topics count from now", async () => {
  const { client: made, got } = await opened();
  last().event("jobs.a", 5);
  last().lose();
  const other = [];
  made.subscribe({ jobs: ["b"] }, everything(other));
  await pass(500);
  last().open();
  last().welcome({ position: "p9" });
  assert.deepEqual(last().sent, [{ groups: { jobs: ["a"] }, since: "p5", id: last().sent[0].id }]);
  last().answer();
  assert.deepEqual([last().requests.at(-1).groups, last().requests.at(-1).since], [{ jobs: ["a", "b"] }, undefined]);
  last().answer({ position: "p5" });
  last().event("jobs.a", 6);
  assert.deepEqual(got, ["subscribed", 5, "recovered", 6]);
  assert.deepEqual(other, ["subscribed"]);
});

test("an old connection is heard no more", async () => {
  const { got } = await opened();
  const old = last();
  old.lose();
  await tick();
  old.event("jobs.a", 1);
  old.lose();
  assert.deepEqual(got, ["subscribed"]);
  assert.ok(old.closed);
});

for (const [name, answer] of [["the position is too old", { recovered: false }], ["there was no position", { recovered: null }]]) {
  test(`stale: ${name}`, async () => {
    const { got, errors, client: made } = await opened();
    const plain = [];
    made.subscribe({ jobs: ["a"] }, (event) => { plain.push(event); });
    await tick();
    await reconnect();
    last().answer({ ...answer, position: "q1" });
    assert.deepEqual(got, ["subscribed", "stale"]);
    assert.equal(made.position, "q1");
    assert.deepEqual(codes(errors), ["stale"], "a function handles events only, and is not silent about the rest");
  });
}

test("full jitter between 0.5 and 20 s", async () => {
  const random = mock.method(Math, "random", () => 0.999999);
  const waits = [];
  client({ onstate: ({ state, retryMs }) => { if (state === "waiting") waits.push(Math.round(retryMs)); } });
  for (let at = 0; at < 8; at++) {
    await tick();
    last().lose();
    await pass(0);
    await pass(20_000);
  }
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16000, 20000, 20000]);
  random.mock.mockImplementation(() => 0);
  last().lose();
  await tick();
  assert.equal(waits.at(-1), 0);
});

test("only a connection that lasts starts the backoff again", async () => {
  mock.method(Math, "random", () => 0.999999);
  const { client: made, reasons } = await opened();
  const waits = [];
  made.subscribe({ jobs: ["a"] }, () => {});
  const wait = async (lasts) => {
    await pass(lasts);
    last().lose();
    let ms = 0;
    for (const before = FakeSocket.all.length; FakeSocket.all.length === before; ms += 500) await pass(500);
    waits.push(ms);
    last().open();
    last().welcome();
    last().answer();
  };
  for (const lasts of [0, 100, 100, 2000, 0]) await wait(lasts);
  assert.deepEqual(waits, [500, 1000, 2000, 500, 1000]);
  assert.equal(reasons.find(Boolean).code, "lost");
});

test("bye: the daemon's time", async () => {
  const { reasons, states } = await opened();
  last().frame({ type: "bye", action: "reconnect", reconnect_after_ms: 7000, reason: "restart" });
  assert.ok(last().closed);
  assert.match(reasons.at(-1).message, /restart/);
  await pass(6999);
  assert.equal(FakeSocket.all.length, 1);
  await pass(1);
  assert.equal(FakeSocket.all.length, 2);
  assert.deepEqual(states, ["connecting", "open", "waiting", "connecting"]);
});

for (const [action, token, expected] of [["stop", "t", "closed"], ["authenticate", undefined, "closed"], ["authenticate", "t", "waiting"], ["new word", undefined, "waiting"]]) {
  test(`bye: ${action} with${token ? "" : "out"} a token callback`, async () => {
    const { client: made, reasons, errors } = await opened(undefined, token && { token: () => token });
    last().frame({ type: "bye", action, reconnect_after_ms: action === "stop" ? null : 10, reason: "policy" });
    assert.equal(made.state, expected);
    assert.equal(reasons.at(-1).code, action);
    assert.deepEqual(codes(errors), expected === "closed" ? [action] : []);
    if (expected === "closed") assert.throws(() => made.subscribe({ jobs: ["a"] }), { code: action });
  });
}

test("no connection in time, no answer in time", async () => {
  const { reasons } = client();
  await pass(20_000);
  assert.match(reasons.at(-1).message, /no connection within 20000 ms/);
  await pass(500);
  last().open();
  await pass(20_000);
  assert.equal(reasons.at(-1).code, "timeout", "open, but without a welcome");
  const second = client();
  second.client.subscribe({ jobs: ["a"] }, () => {});
  await tick();
  last().open();
  last().welcome();
  await pass(30_000);
  assert.match(second.reasons.at(-1).message, /no answer to a request within 30000 ms/);
});

// ---- a dead link

test("a silent connection is asked, and given up", async () => {
  const { client: made, reasons } = await opened();
  await pass(20_000);
  assert.equal(last().sent.at(-1).ping, undefined, "something was heard");
  await pass(20_000);
  assert.deepEqual(last().sent.at(-1), { ping: 1 });
  last().frame({ type: "pong", ping: 1, position: "p0" });
  await pass(20_000);
  await pass(20_000);
  assert.equal(last().sent.filter(({ ping }) => ping).length, 2);
  await pass(9_000);
  assert.equal(made.state, "open");
  await pass(1_000);
  assert.equal(made.state, "waiting");
  assert.equal(reasons.at(-1).code, "dead");
});

test("a pong's position: a quiet topic resumes where the log was, and not where its last event was", async () => {
  const { client: made } = await opened();
  last().event("jobs.a", 1);
  await pass(20_000);
  await pass(20_000);
  assert.deepEqual(last().sent.at(-1), { ping: 1 });
  last().frame({ type: "pong", ping: 1, position: "p900" });
  assert.equal(made.position, "p900");
  last().frame({ type: "pong", ping: 1, position: null });
  await reconnect();
  assert.equal(last().requests[0].since, "p900");
});

test("no ping behind a request: its answer may wait for long", async () => {
  const { client: made } = await opened();
  await pass(19_000);
  made.subscribe({ jobs: ["b"] }, () => {});
  await pass(25_000);
  assert.equal(made.state, "open");
  assert.equal(last().sent.at(-1).ping, undefined);
});

test("the page or the network comes back", async (context) => {
  const page = new EventTarget();
  page.visibilityState = "visible";
  const before = [globalThis.addEventListener, globalThis.removeEventListener];
  const world = new EventTarget();
  globalThis.document = page;
  globalThis.addEventListener = world.addEventListener.bind(world);
  globalThis.removeEventListener = world.removeEventListener.bind(world);
  context.after(() => {
    delete globalThis.document;
    [globalThis.addEventListener, globalThis.removeEventListener] = before;
  });
  mock.method(Math, "random", () => 0.999999);
  const { client: made } = await opened();
  page.visibilityState = "hidden";
  page.dispatchEvent(new Event("visibilitychange"));
  assert.equal(last().sent.length, 1);
  page.visibilityState = "visible";
  page.dispatchEvent(new Event("visibilitychange"));
  assert.deepEqual(last().sent.at(-1), { ping: 1 });
  world.dispatchEvent(new Event("online"));
  assert.equal(last().sent.length, 2, "one ping at a time");
  await pass(10_000);
  assert.equal(made.state, "waiting");
  for (let at = 0; at < 6; at++) {
    await pass(20_000);
    last().lose();
    await tick();
  }
  assert.equal(made.state, "waiting");
  const count = FakeSocket.all.length;
  world.dispatchEvent(new Event("online"));
  await pass(500);
  assert.equal(FakeSocket.all.length, count + 1, "without the 20 s of the backoff");
  last().open();
  last().welcome();
  last().frame({ type: "bye", action: "reconnect", reconnect_after_ms: 15_000, reason: "restart" });
  world.dispatchEvent(new Event("online"));
  await pass(14_999);
  assert.equal(FakeSocket.all.length, count + 1, "the daemon spreads its clients");
  made.close();
  world.dispatchEvent(new Event("online"));
  page.dispatchEvent(new Event("visibilitychange"));
});

// ---- what the daemon tells

test("gap: to those whom it concerns", async () => {
  const { client: made, got, errors } = await opened({ jobs: ["a", "b"] });
  const gaps = [];
  made.subscribe({ jobs: ["b", "c"] }, { gap: (gap) => { gaps.push(gap); } });
  made.subscribe({ jobs: ["d"] }, () => assert.fail());
  await tick();
  last().answer();
  last().frame({ type: "gap", topics: ["jobs.a", "jobs.c"], from: "p1", to: "p7", reason: "history" });
  assert.deepEqual(gaps, [{ type: "gap", topics: ["jobs.c"], from: "p1", to: "p7", reason: "history" }]);
  assert.deepEqual(got, ["subscribed", "gap"]);
  assert.equal(made.position, "p7");
  assert.deepEqual(errors, []);
});

test("denied: told when it changes, and asked again where that helps", async () => {
  const { client: made, errors } = await opened();
  const told = [];
  const sub = made.subscribe({ jobs: ["b", "c"] }, { denied: ({ denied }) => { told.push(denied); }, subscribed: ({ topics }) => { told.push(topics); } });
  await tick();
  last().answer({ denied: [{ topic: "jobs.b", reason: "not allowed" }, { topic: "jobs.c", reason: "unavailable" }] });
  assert.deepEqual(told, [[{ topic: "jobs.b", reason: "not allowed" }, { topic: "jobs.c", reason: "unavailable" }]]);
  assert.equal(last().requests.length, 2);
  await pass(6000);
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a", "c"] });
  last().answer();
  assert.deepEqual(told.slice(1), [["jobs.c"], [{ topic: "jobs.b", reason: "not allowed" }]]);
  await reconnect();
  last().answer();
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a", "c", "b"] }, "a new connection may have other rights");
  last().answer({ denied: [{ topic: "jobs.b", reason: "not allowed" }] });
  assert.equal(told.length, 3, "that is known");
  sub.close();
  made.subscribe({ jobs: ["b"] }, () => {});
  await tick();
  last().answer({ denied: [{ topic: "jobs.b", reason: "not allowed" }] });
  assert.deepEqual(codes(errors), ["denied"]);
});

test("revoked, and granted by a new token", async () => {
  const { got, client: made } = await opened({ jobs: ["a", "b"] }, { token: () => ({ token: `${Date.now()}`, expiresAt: Date.now() + 10_000 }) });
  last().frame({ type: "revoked", groups_current: ["jobs.b"], groups_left: ["jobs.a"], denied: [{ topic: "jobs.a", reason: "not allowed" }], position: "p3" });
  assert.deepEqual(got, ["subscribed", "denied"]);
  assert.equal(made.position, "p3");
  await pass(8000);
  assert.equal(last().sent.at(-1).id, "token");
  last().frame({ type: "renewed", id: "token", user: 7 });
  last().answer();
  assert.deepEqual(got, ["subscribed", "denied", "stale"]);
});

test("revoked while a request is open: its topics are told once, by the answer", async () => {
  const { client: made } = await opened({ jobs: ["a", "b"] });
  const other = [];
  made.subscribe({ jobs: ["c", "d"] }, everything(other));
  await tick();
  last().frame({ type: "revoked", groups_current: ["jobs.a", "jobs.c"], groups_left: ["jobs.b"], denied: [{ topic: "jobs.b", reason: "not allowed" }], position: "p3" });
  assert.deepEqual(other, []);
  last().answer({ groups_current: ["jobs.a", "jobs.c", "jobs.d"], denied: [{ topic: "jobs.b", reason: "not allowed" }] });
  assert.deepEqual(other, ["subscribed"]);
});

test("an error of a whole request leaves the other topics alone", async () => {
  const { client: made, got, errors } = await opened();
  const other = [];
  made.subscribe({ jobs: ["b"] }, everything(other));
  await tick();
  last().frame({ type: "error", code: "too_many_topics", message: "more than 1000 topics", id: last().requests.at(-1).id });
  last().event("jobs.a", 1);
  assert.deepEqual([got, other], [["subscribed", 1], ["denied"]]);
  made.subscribe({ jobs: Array.from({ length: 700 }, (_, n) => `${"x".repeat(100)}${n}`) }, everything(other));
  await tick();
  assert.equal(last().requests.length, 2, "a message that is too long would end the connection");
  last().frame({ type: "error", code: "surprise", message: "of a later version", id: null });
  assert.deepEqual(codes(errors), ["too_many_topics", "too_many_topics", "surprise"]);
  assert.equal(made.state, "open");
});

test("unknown frames and keys are ignored", async () => {
  const { got, errors } = await opened();
  last().frame({ type: "news", position: "p99" });
  last().frame({ type: "event", position: "p1", group: "jobs", event: "a", payload: { n: 1 }, more: true });
  last().event("jobs.unwanted", 2);
  assert.deepEqual([got, errors], [["subscribed", 1], []]);
});

// ---- payloads

test("payloads that are not plain JSON", async () => {
  const { client: made } = await opened();
  const events = [];
  made.subscribe({ jobs: ["a"] }, (event) => { events.push(event); });
  const long = "x\\\\\\\"NaN".repeat(200_000);
  const payloads = [
    ['{"a": NaN, "b": [-Infinity, Infinity], "c": "NaN, \\" Infinity \\\\"}', { a: null, b: [null, null], c: 'NaN, " Infinity \\' }],
    ['{"payload":1,"x":NaN,"y":",\\"payload\\":"}', { payload: 1, x: null, y: ',"payload":' }],
    ['{"a": "\\ud800"}', { a: "\ud800" }],
    [`{"a": NaN, "b": "${long}"}`, { a: null, b: JSON.parse(`"${long}"`) }],
    ["{nonsense}", undefined],
  ];
  for (const [at, [text]] of payloads.entries()) last().text(`{"type":"event","position":"p${at}","group":"jobs","event":"a","payload":${text}}`);
  assert.deepEqual(events.map(({ payload }) => payload), payloads.map(([, payload]) => payload));
  assert.equal(events[0].text, payloads[0][0]);
  assert.ok(!("text" in events[2]));
  assert.equal(made.position, "p4");
});

for (const data of ["nonsense", "", "null", '{"type":"ev', new ArrayBuffer(3)]) {
  test(`a frame that can't be read: ${String(data)}`, async () => {
    const { client: made, errors } = await opened();
    last().text(data);
    assert.equal(made.state, "waiting");
    assert.deepEqual(codes(errors), ["frame"]);
  });
}

// ---- handlers

test("a handler that throws or rejects", async () => {
  const { client: made, got, errors } = await opened();
  made.subscribe({ jobs: ["a"] }, () => { throw new RangeError("mine"); });
  made.subscribe({ jobs: ["a"] }, async () => { throw undefined; });
  made.subscribe({ jobs: ["a"] }, () => { throw Object.freeze(new Error("frozen")); });
  await tick();
  last().event("jobs.a", 1);
  last().event("jobs.a", 2);
  await tick();
  assert.deepEqual(got, ["subscribed", 1, 2]);
  assert.deepEqual(codes(errors), Array(6).fill("handler"));
  assert.ok(errors[0] instanceof TowerwsError);
  assert.ok(errors[0].cause instanceof RangeError);
  assert.equal(errors[0].item.payload.n, 1);
});

test("onerror and onstate that throw, and the default of onerror", async () => {
  const shown = mock.method(console, "error", () => {});
  const { got } = await opened(undefined, { onerror: () => { throw new Error("onerror"); }, onstate: () => { throw new Error("onstate"); } });
  assert.ok(shown.mock.callCount() > 0);
  assert.deepEqual(got, ["subscribed"]);
  const silent = connect("ws://host/websocket/", { WebSocket: FakeSocket });
  await tick();
  last().open();
  const before = shown.mock.callCount();
  last().frame({ type: "bye", action: "stop", reconnect_after_ms: null, reason: "policy" });
  assert.equal(shown.mock.callCount(), before + 1);
  assert.equal(silent.state, "closed");
});

test("onerror and onstate that reject", async () => {
  const shown = mock.method(console, "error", () => {});
  const { errors } = await opened(undefined, { onstate: async () => { throw new RangeError("state"); } });
  assert.deepEqual(errors.map(({ code, cause }) => [code, cause.name]), [["onstate", "RangeError"], ["onstate", "RangeError"]]);
  await opened(undefined, { store: { get: () => 5, set() {} }, onerror: async () => { throw new Error("onerror"); } });
  assert.match(String(shown.mock.calls[0]?.arguments[0]), /onerror/);
});

test("an asynchronous handler gets one item at a time", async () => {
  const { client: made } = await opened();
  const log = [];
  let release;
  made.subscribe({ jobs: ["a"] }, (event) => { log.push(event.payload.n); return new Promise((done) => { release = done; }); });
  await tick();
  for (const n of [1, 2, 3]) last().event("jobs.a", n);
  assert.deepEqual(log, [1]);
  release();
  await tick();
  release();
  await tick();
  assert.deepEqual(log, [1, 2, 3]);
});

test("a slow handler: the queue is bounded, and the loss is told", async () => {
  const { client: made, got } = await opened(undefined, { queueBytes: 5000 });
  const log = [];
  let release;
  const slow = () => new Promise((done) => { release = done; });
  made.subscribe({ jobs: ["a"] }, {
    event: ({ payload }) => { log.push(payload.n); return slow(); },
    gap: ({ from, to, reason, topics }) => { log.push([from, to, reason, ...topics]); },
  });
  await tick();
  for (let n = 1; n <= 50; n++) last().event("jobs.a", n);
  for (let at = 0; at < 60; at++) { release(); await tick(); }
  assert.equal(got.length, 51, "others are not slower");
  const gap = log.findIndex(Array.isArray);
  const [from, to, reason, topic] = log[gap];
  assert.deepEqual([log.slice(0, gap), from, reason, topic], [[1], "p1", "slow", "jobs.a"]);
  const first = Number(to.slice(1)) + 1;
  assert.deepEqual(log.slice(gap + 1), Array.from({ length: 51 - first }, (_, at) => first + at));
});

test("a slow handler keeps the newest list of denied topics", async () => {
  const { client: made } = await opened(undefined, { queueBytes: 2000 });
  const log = [];
  let release;
  made.subscribe({ jobs: ["a", "b"] }, {
    event: ({ payload }) => { log.push(payload.n); return new Promise((done) => { release = done; }); },
    denied: ({ topics }) => { log.push(topics); },
    gap: () => { log.push("gap"); },
  });
  await tick();
  last().event("jobs.a", 1);
  last().answer({ denied: [{ topic: "jobs.b", reason: "not allowed" }] });
  for (let n = 2; n <= 10; n++) last().event("jobs.a", n);
  for (let at = 0; at < 20; at++) { release(); await tick(); }
  assert.deepEqual(log.slice(0, 3), [1, "gap", ["jobs.b"]]);
  assert.equal(log.at(-1), 10);
});

test("a slow handler that misses no event gets no gap", async () => {
  const { client: made } = await opened(undefined, { queueBytes: 500 });
  const log = [];
  let release;
  made.subscribe({ jobs: ["a", "b"] }, {
    event: ({ payload }) => { log.push(payload.n); return new Promise((done) => { release = done; }); },
    denied: ({ topics }) => { log.push(topics); },
    gap: ({ topics }) => { log.push({ topics }); },
  });
  await tick();
  last().event("jobs.a", 1);
  last().answer({ denied: [{ topic: "jobs.b", reason: "not allowed" }] });
  last().event("jobs.a", 2);
  for (let at = 0; at < 5; at++) { release(); await tick(); }
  assert.deepEqual(log.slice(0, 3), [1, ["jobs.b"], 2]);
});

// ---- iterators

test("an iterator: in order, and break leaves", async () => {
  const { client: made } = await opened();
  const sub = made.subscribe({ jobs: ["b"] });
  await tick();
  last().answer();
  for (const n of [1, 2, 3]) last().event("jobs.b", n);
  const got = [];
  for await (const item of sub) {
    got.push(item.type === "event" ? item.payload.n : item.type);
    if (got.length === 3) break;
  }
  assert.deepEqual(got, ["subscribed", 1, 2]);
  await tick();
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a"] });
  await assert.rejects(async () => { for await (const _ of sub) assert.fail(); }, TypeError);
  await assert.rejects(async () => { for await (const _ of made.subscribe({ jobs: ["a"] }, () => {})) assert.fail(); }, TypeError);
});

test("an iterator ends with its subscription, and throws when the client is stopped", async () => {
  const { client: made } = await opened();
  const read = async (sub) => { const got = []; for await (const item of sub) got.push(item.type); return got; };
  const sub = made.subscribe({ jobs: ["a"] });
  const reading = read(sub);
  await tick();
  sub.close();
  assert.deepEqual(await reading, ["subscribed"]);
  const stopped = read(made.subscribe({ jobs: ["a"] }));
  await tick();
  last().frame({ type: "bye", action: "stop", reconnect_after_ms: null, reason: "policy" });
  await assert.rejects(stopped, { code: "stop" });
});

test("an iterator that nobody reads is bounded", async () => {
  const { client: made } = await opened(undefined, { queueBytes: 3000 });
  const sub = made.subscribe({ jobs: ["a"] });
  await tick();
  for (let n = 1; n <= 1000; n++) last().event("jobs.a", n);
  const got = [];
  for await (const item of sub) {
    got.push(item);
    if (item.payload?.n === 1000) break;
  }
  assert.ok(got.length < 20);
  assert.equal(got.filter(({ type }) => type === "gap").length, 1);
});

// ---- the store

const shelf = (start) => ({ kept: start, sets: 0, get() { return this.kept; }, set(position) { this.kept = position; this.sets++; } });

test("a reload resumes", async () => {
  const store = shelf(null);
  const first = await opened(undefined, { store });
  last().event("jobs.a", 1);
  await pass(250);
  assert.equal(store.kept, "p1");
  last().event("jobs.a", 2);
  first.client.close();
  assert.equal(store.kept, "p2");
  const second = await opened(undefined, { store });
  assert.equal(last().requests[0].since, "p2");
  assert.deepEqual(second.got, ["recovered"]);
});

test("the position is stored after a slow handler, though nothing more comes", async () => {
  const store = shelf("p0");
  const { client: made } = client({ store });
  let release;
  made.subscribe({ jobs: ["a"] }, { recovered: () => new Promise((done) => { release = done; }), event() {} });
  await tick();
  last().open();
  last().welcome();
  await tick();
  last().answer();
  for (const n of [1, 2]) last().event("jobs.a", n);
  await tick();
  release();
  await pass(1000);
  assert.equal(store.kept, "p2");
});

test("the kept position is that of the slowest handler, and few writes are made", async () => {
  const store = shelf(null);
  const { client: made } = await opened(undefined, { store });
  let release;
  made.subscribe({ jobs: ["a"] }, ({ payload }) => (payload.n === 2 ? new Promise((done) => { release = done; }) : undefined));
  await tick();
  for (let n = 1; n <= 100; n++) last().event("jobs.a", n);
  await pass(250);
  assert.equal(store.kept, "p1");
  await pass(5000);
  release();
  await pass(250);
  assert.equal(store.kept, "p100");
  assert.ok(store.sets <= 3, `${store.sets} writes`);
});

test("no position is kept past a topic that could not be checked", async () => {
  for (const leaves of [false, true]) {
    const store = shelf(null);
    const { client: made } = await opened(undefined, { store });
    const sub = made.subscribe({ jobs: ["b"] }, { denied() {}, stale() {} });
    await tick();
    last().answer();
    last().event("jobs.a", 1);
    await pass(250);
    assert.equal(store.kept, "p1");
    await reconnect();
    last().answer({ denied: [{ topic: "jobs.b", reason: "unavailable" }] });
    last().event("jobs.a", 2);
    await pass(250);
    assert.equal(made.position, "p2");
    assert.equal(store.kept, "p1", "another page would resume jobs.b there");
    if (leaves) sub.close();
    else await pass(6000);
    await tick();
    if (!leaves) last().answer();
    last().event("jobs.a", 3);
    await pass(250);
    assert.equal(store.kept, "p3");
    made.close();
  }
});

test("a request that fails does not end the questions about another topic, and no wait for ever", async () => {
  const store = shelf(null);
  const { client: made } = await opened(undefined, { store, onerror() {} });
  made.subscribe({ jobs: ["b"] }, { denied() {}, stale() {} });
  await tick();
  last().answer({ denied: [{ topic: "jobs.b", reason: "unavailable" }] });
  made.subscribe({ jobs: ["c"] }, { denied() {} });
  await tick();
  await pass(6000); // It is time to ask for jobs.b, but the request for jobs.c waits.
  last().frame({ type: "error", code: "bad_request", message: "no", id: last().requests.at(-1).id });
  assert.deepEqual(last().requests.at(-1).groups, { jobs: ["a", "b"] });
  last().frame({ type: "error", code: "bad_request", message: "no", id: last().requests.at(-1).id });
  last().event("jobs.a", 1);
  await pass(250);
  assert.equal(store.kept, "p1", "nothing waits for jobs.b any more");
});

test("a store that is full, fails, or holds nonsense", async () => {
  const full = { get: () => "x".repeat(300), set: () => { throw new Error("quota"); } };
  const { errors, got } = await opened(undefined, { store: full });
  assert.equal(last().requests[0].since, undefined);
  for (let n = 1; n <= 5; n++) {
    last().event("jobs.a", n);
    await pass(1000);
  }
  assert.deepEqual(codes(errors), ["store"], "once, until it works");
  assert.equal(got.length, 6);
  const broken = await opened(undefined, { store: { get: () => Promise.reject(new Error("no")), set: async () => { throw new Error("quota"); } } });
  last().event("jobs.a", 1);
  await pass(250);
  assert.deepEqual(codes(broken.errors), ["store"]);
});

test("a store whose get never answers: after connectMs the client connects without a position", async () => {
  const { client: made, errors } = client({ connectMs: 3000, store: { get: () => new Promise(() => {}), set() {} } });
  made.subscribe({ jobs: ["a"] }, () => {});
  await pass(2999);
  assert.deepEqual([FakeSocket.all.length, errors], [0, []]);
  await pass(1);
  last().open();
  last().welcome();
  assert.equal(last().requests[0].since, undefined);
  assert.deepEqual(errors.map(({ message }) => message), ["the store failed: no answer within 3000 ms"]);
});

test("a store whose get answers after the end is told to nobody", async () => {
  const { client: made, errors, states } = client({ store: { get: () => new Promise(() => {}), set() {} } });
  await tick();
  made.close();
  await pass(100_000);
  assert.deepEqual([errors, states], [[], ["closed"]]);
});

test("a store whose set does not answer gets the next position, also over a lost connection", async () => {
  const store = slowShelf();
  const { client: made, errors } = await opened(undefined, { store, connectMs: 3000 });
  for (const n of [1, 2]) {
    last().event("jobs.a", n);
    await pass(250);
  }
  await reconnect(2000);
  assert.deepEqual(positions(store), ["p1"]);
  await pass(1000);
  await pass(250);
  assert.deepEqual(positions(store), ["p1", "p2"]);
  store.calls[1].resolve();
  await tick();
  last().event("jobs.a", 3);
  await pass(250);
  last().event("jobs.a", 4);
  made.close();
  await pass(3000);
  await pass(250);
  assert.deepEqual(positions(store), ["p1", "p2", "p3", "p4"]);
  assert.deepEqual(codes(errors), ["store", "store"]);
});

test("what a store gives that is no position is told", async () => {
  for (const found of [7, 0, false, {}, ["p1"], "x".repeat(257)]) {
    const { client: made, errors } = await opened(undefined, { store: { get: () => found, set() {} } });
    assert.equal(last().requests[0].since, undefined);
    assert.match(errors[0]?.message ?? "", /^the store failed: get\(\) gave/, JSON.stringify(found));
    made.close();
  }
  for (const found of [null, undefined, ""]) assert.deepEqual((await opened(undefined, { store: shelf(found) })).errors, []);
});

// A store whose answers the test gives.
const slowShelf = () => {
  const calls = [];
  return { calls, get: () => null, set: (position) => new Promise((resolve, reject) => { calls.push({ position, resolve, reject }); }) };
};
const positions = ({ calls }) => calls.map(({ position }) => position);

test("a slow store gets one position at a time, and the newest last", async () => {
  const store = slowShelf();
  const { client: made } = await opened(undefined, { store });
  last().event("jobs.a", 1);
  await pass(250);
  for (const n of [2, 3]) {
    last().event("jobs.a", n);
    await pass(250);
  }
  assert.deepEqual(positions(store), ["p1"]);
  store.calls[0].resolve();
  await pass(250);
  assert.deepEqual(positions(store), ["p1", "p3"]);
  last().event("jobs.a", 4);
  made.close();
  assert.deepEqual(positions(store), ["p1", "p3"]);
  store.calls[1].resolve();
  await pass(250);
  assert.deepEqual(positions(store), ["p1", "p3", "p4"], "the last position is kept after the end");
});

test("what handlers have not finished at the end is not skipped, also behind a slow store", async () => {
  const store = slowShelf();
  const made = client({ store }).client;
  made.subscribe({ jobs: ["a"] }, ({ payload }) => (payload.n === 3 ? new Promise(() => {}) : undefined));
  await tick();
  last().open();
  last().welcome();
  last().answer();
  last().event("jobs.a", 1);
  await pass(250);
  for (const n of [2, 3, 4]) last().event("jobs.a", n);
  await tick();
  made.close();
  store.calls[0].resolve();
  await pass(250);
  assert.deepEqual(positions(store), ["p1", "p2"]);
});

test("a position that could not be kept is tried again with the next one, or at the end", async () => {
  const store = slowShelf();
  const { client: made } = await opened(undefined, { store, onerror() {} });
  last().event("jobs.a", 1);
  await pass(250);
  store.calls[0].reject(new Error("quota"));
  await pass(10_000);
  assert.deepEqual(positions(store), ["p1"]);
  made.close();
  assert.deepEqual(positions(store), ["p1", "p1"]);
  store.calls[1].reject(new Error("quota"));
  await pass(10_000);
  assert.deepEqual(positions(store), ["p1", "p1"]);
});

// ---- tokens

const jwt = (claims) => `e30.${Buffer.from(JSON.stringify(claims)).toString("base64url")}.sig`;
const now = () => Date.now() / 1000;

test("the token is the first message, and a new one goes out before it ends", async () => {
  mock.method(Math, "random", () => 0);
  let count = 0;
  const { client: made } = client({ token: async () => jwt({ sub: "ännä", exp: now() + 100, n: ++count }) });
  made.subscribe({ jobs: ["a"] }, () => {});
  await tick();
  last().open();
  assert.equal(last().sent.length, 1);
  last().welcome();
  last().answer();
  await pass(69_999);
  assert.equal(count, 1);
  await pass(1);
  assert.equal(last().sent.at(-1).id, "token");
  last().frame({ type: "renewed", id: "token", user: "ännä" });
  await pass(70_000);
  assert.equal(count, 3);
  assert.equal(FakeSocket.all.length, 1);
});

for (const [name, claims, ms] of [
  ["a clock that is an hour slow", () => ({ exp: now() + 3700, iat: now() + 3600 }), 70_000],
  ["a clock that is an hour fast", () => ({ exp: now() - 3500, iat: now() - 3600 }), 70_000],
  ["a token that is half used", () => ({ exp: now() + 50, iat: now() - 50 }), 35_000],
]) {
  test(`the time of a refresh: ${name}`, async () => {
    mock.method(Math, "random", () => 0);
    let count = 0;
    await opened(undefined, { token: () => jwt({ ...claims(), n: ++count }) });
    await pass(ms - 1);
    assert.equal(count, 1);
    await pass(1);
    assert.equal(count, 2);
  });
}

test("a refresh that fails is tried again, but not too often", async () => {
  mock.method(Math, "random", () => 0);
  let count = 0;
  const { errors, client: made } = await opened(undefined, {
    pingMs: 1_000_000,
    token: () => { count++; if (count === 2) throw new Error("offline"); return { token: `t${count}`, expiresAt: Date.now() + 100_000 }; },
  });
  await pass(70_000);
  assert.deepEqual(codes(errors), ["token"]);
  for (let at = 0; at < 20; at++) {
    const sent = last().sent.at(-1);
    await pass(5000);
    if (last().sent.at(-1) !== sent) last().frame({ type: "error", code: "token", message: "refused", id: "token" });
  }
  assert.equal(count, 4, "the third bad token would end the connection");
  assert.equal(made.state, "open");
});

test("a refresh that never answers is told, and tried again", async () => {
  mock.method(Math, "random", () => 0);
  let count = 0;
  const { errors, client: made } = await opened(undefined, {
    pingMs: 1_000_000,
    connectMs: 3000,
    token: () => (++count === 2 ? new Promise(() => {}) : { token: `t${count}`, expiresAt: Date.now() + 100_000 }),
  });
  await pass(70_000);
  await pass(3000);
  assert.deepEqual(errors.map(({ message }) => message), ["the token failed: no answer within 3000 ms"]);
  await pass(15_000);
  assert.deepEqual([made.state, last().sent.at(-1)], ["open", { token: "t3", id: "token" }]);
});

test("a new token that can't be checked is sent again until the old one ends", async () => {
  mock.method(Math, "random", () => 0);
  let count = 0;
  await opened(undefined, { pingMs: 1_000_000, token: () => ({ token: `t${++count}`, expiresAt: Date.now() + 100_000 }) });
  await pass(69_000);
  for (let at = 0; at < 30; at++) {
    const sent = last().sent.at(-1);
    await pass(1000);
    if (last().sent.at(-1) !== sent) last().frame({ type: "error", code: "unavailable", message: "later", id: "token" });
  }
  assert.ok(count > 4, `${count} tokens`);
});

test("refused tokens stop it", async () => {
  mock.method(Math, "random", () => 0);
  let count = 0;
  const told = client({ token: () => `t${++count}` });
  for (let at = 0; at < 3; at++) {
    await pass(1);
    last().open();
    last().frame({ type: "error", code: "token", message: "the token was refused", id: "token" });
  }
  assert.equal(told.client.state, "closed");
  assert.deepEqual([FakeSocket.all.length, told.reasons.at(-1).code, codes(told.errors)], [3, "token", ["token"]]);
});

test("the same refused token is not sent twice", async () => {
  const told = client({ token: () => "stale" });
  await tick();
  last().open();
  last().frame({ type: "error", code: "token", message: "the token was refused", id: "token" });
  await pass(500);
  assert.deepEqual([told.client.state, FakeSocket.all.length], ["closed", 1]);
  assert.match(told.reasons.at(-1).message, /again/);
});

test("a token that can't be checked now, or had now, is tried again", async () => {
  const answers = ["t", () => { throw new Error("offline"); }, "t", { nonsense: 1 }, ""];
  const told = client({ token: () => { const next = answers.shift(); return typeof next === "function" ? next() : next; } });
  await tick();
  last().open();
  last().frame({ type: "error", code: "unavailable", message: "later", id: "token" });
  await pass(500);
  assert.equal(told.client.state, "waiting");
  assert.match(told.errors[0].message, /offline/);
  await pass(1000);
  last().lose();
  await pass(20_000);
  assert.match(told.errors[1].message, /string/);
  await pass(20_000);
  assert.deepEqual([told.client.state, told.reasons.at(-1).message], ["closed", "the token callback gave no token"]);
});

test("a token callback that never answers", async () => {
  const told = client({ token: () => new Promise(() => {}) });
  await pass(20_000);
  assert.equal(told.reasons.at(-1).code, "timeout");
});

// ---- refused handshakes

for (const [status, once, later] of [[404, "closed", "waiting"], [200, "closed", "waiting"], [302, "closed", "waiting"], [401, "closed", "closed"], [403, "closed", "closed"], [426, "waiting", "waiting"], [429, "waiting", "waiting"], [503, "waiting", "waiting"], [0, "waiting", "waiting"]]) {
  test(`a handshake that fails, with status ${status}`, async () => {
    const asked = [];
    globalThis.fetch = async (url) => { asked.push(url); if (!status) throw new TypeError(); return { status }; };
    const { client: made, reasons } = client({}, "wss://host/websocket/?x=1");
    await tick();
    last().lose();
    await tick();
    assert.deepEqual(asked, ["https://host/websocket/?x=1"]);
    assert.equal(made.state, once);
    assert.deepEqual([reasons.at(-1).code, reasons.at(-1).status], ["handshake", status]);
    made.close();
    const second = await opened();
    last().lose();
    await pass(500);
    last().lose();
    await tick();
    assert.equal(second.client.state, later, "a URL that has worked is not wrong");
  });
}

test("any connectMs: the status of a refused handshake is found", async () => {
  globalThis.fetch = async () => ({ status: 403, text: async () => "" });
  for (const connectMs of [Infinity, 1e12, 1500.5, 0.1]) {
    const { reasons } = client({ connectMs });
    await tick();
    last().lose();
    await tick();
    assert.equal(reasons.at(-1).status, 403, `${connectMs}`);
  }
});

test("the daemon's reason is told, and a proxy's page is not", async () => {
  for (const [text, message] of [["the credential was refused\n", "no connection (HTTP status 403: the credential was refused)"], ["<html>", "no connection (HTTP status 403)"]]) {
    globalThis.fetch = async () => ({ status: 403, text: async () => text });
    const { reasons } = client();
    await tick();
    last().lose();
    await tick();
    assert.equal(reasons.at(-1).message, message);
  }
});

for (const status of [426, 503, 0]) {
  test(`handshakes that go on to fail are told once, at the third: status ${status}`, async () => {
    globalThis.fetch = async () => { if (!status) throw new TypeError(); return { status, text: async () => "" }; };
    const { errors, client: made } = client();
    const fail = async (times) => {
      for (let at = 0; at < times; at++) {
        await pass(20_000);
        last().lose();
        await tick();
      }
    };
    await fail(2);
    assert.deepEqual(errors, []);
    await fail(4);
    assert.equal(made.state, "waiting");
    assert.deepEqual(errors.map((error) => [error.code, error.status]), [["handshake", status]]);
    await pass(20_000);
    last().open();
    last().welcome();
    last().lose();
    await fail(3);
    assert.equal(errors.length, 2, "again after a connection");
  });
}

test("an error without a close, as in Node 20", async () => {
  let asked = 0;
  globalThis.fetch = async () => { asked++; throw new TypeError(); };
  const { states, reasons } = client();
  await tick();
  last().onerror();
  await pass(0);
  assert.deepEqual([asked, states, reasons.at(-1).code], [1, ["connecting", "waiting"], "handshake"]);
  await pass(500);
  last().onerror();
  last().lose(1006);
  await pass(0);
  assert.equal(asked, 2, "with a close it counts once");
  await pass(1000);
  last().open();
  last().welcome();
  last().onerror();
  await pass(0);
  assert.equal(reasons.at(-1).code, "lost");
});

test("a server that is not towerws, and a constructor that throws", async () => {
  const { client: made, reasons } = client();
  await tick();
  last().protocol = "";
  last().open();
  assert.deepEqual([made.state, reasons.at(-1).code], ["closed", "protocol"]);
  const mixed = client({ WebSocket: class { constructor() { throw new Error("insecure"); } } });
  await tick();
  assert.deepEqual([mixed.client.state, mixed.reasons.at(-1).code], ["closed", "url"]);
});

// ---- bad input

test("wrong URLs, options and topics", () => {
  for (const url of ["", "host", "ftp://host/", "ws://", "ws://host/#x", undefined, null, {}]) assert.throws(() => connect(url, { WebSocket: FakeSocket }), TypeError, String(url));
  assert.throws(() => connect("ws://host/", { WebSocket: FakeSocket, tokn: 1 }), /unknown option "tokn"/);
  for (const value of [0, -1, NaN, "x", null]) assert.throws(() => connect("ws://host/", { WebSocket: FakeSocket, pingMs: value }), /pingMs/);
  const { client: made } = client({}, "https://host/websocket/");
  for (const groups of [{ jobs: "a" }, { jobs: [null] }, { jobs: ["a.b"] }, { jobs: ["*"] }, { jobs: ["é"] }, { jobs: [1.5] }, { jobs: [""] }, { "a-b": ["x"] }, { "": [1] }, { jobs: ["\ud800"] }, { jobs: ["x".repeat(129)] }, null]) {
    assert.throws(() => made.subscribe(groups, () => {}), TypeError, JSON.stringify(groups));
  }
  for (const handler of ["x", 5, true]) assert.throws(() => made.subscribe({ jobs: ["a"] }, handler), TypeError);
});

test("group names that JavaScript knows", async () => {
  const { client: made } = await opened();
  const got = [];
  made.subscribe(JSON.parse('{"__proto__": ["constructor"], "constructor": ["__proto__"]}'), everything(got));
  await tick();
  last().answer();
  last().event("__proto__.constructor", 1);
  last().event("constructor.__proto__", 2);
  assert.deepEqual(got, ["subscribed", 1, 2]);
  assert.equal({}.push, undefined);
});

test("xrftoken comes from the cookie or the option", async (context) => {
  globalThis.document = { cookie: "a=b; csrftoken=c%20d; e=f", addEventListener() {}, removeEventListener() {} };
  context.after(() => delete globalThis.document);
  await opened();
  assert.equal(last().requests[0].xrftoken, "c%20d");
  await opened(undefined, { xrftoken: () => "mine" });
  assert.equal(last().requests[0].xrftoken, "mine");
});

test("a request to leave that fails is not repeated, since the third wrong xrftoken stops the client", async () => {
  const { client: made, got, sub, errors } = await opened();
  const other = [];
  made.subscribe({ jobs: ["b"] }, everything(other));
  await tick();
  last().answer();
  sub.close();
  await tick();
  last().frame({ type: "error", code: "xrftoken", message: "access denied to channel", id: last().requests.at(-1).id });
  await tick();
  assert.deepEqual([last().requests.length, codes(errors)], [3, ["xrftoken"]]);
  for (const topic of ["jobs.a", "jobs.b"]) last().event(topic, 1);
  assert.deepEqual([got, other], [["subscribed"], ["subscribed", 1]]);
  made.subscribe({ jobs: ["a"] }, everything(got));
  await tick();
  last().answer();
  last().event("jobs.a", 2);
  assert.deepEqual(got, ["subscribed", "subscribed", 2]);
});

test("an xrftoken that throws is told, and the request goes out without it", async () => {
  const { errors, got } = await opened(undefined, { xrftoken: () => { throw new Error("no cookie"); } });
  assert.deepEqual(errors.map(({ message }) => message), ["the xrftoken failed: no cookie"]);
  assert.deepEqual([last().requests[0].groups, got], [{ jobs: ["a"] }, ["subscribed"]]);
});

test("no WebSocket", (context) => {
  const before = globalThis.WebSocket;
  globalThis.WebSocket = undefined;
  context.after(() => { globalThis.WebSocket = before; });
  assert.throws(() => connect("ws://host/"), /option WebSocket/);
});

test("close() in every state leaves nothing behind", async () => {
  const timers = mock.method(globalThis, "setTimeout");
  const cleared = mock.method(globalThis, "clearTimeout");
  const steps = [
    () => {},
    () => last().open(),
    () => last().welcome(),
    () => last().answer(),
    () => pass(20_000),
    () => last().lose(),
  ];
  for (let at = 0; at <= steps.length; at++) {
    const { client: made, states } = client({ store: shelf("p1") });
    made.subscribe({ jobs: ["a"] }, () => {});
    if (at) await tick();
    for (const step of steps.slice(0, at)) await step();
    made.close();
    made.close();
    await tick();
    const sockets = FakeSocket.all.length;
    await pass(100_000);
    assert.equal(FakeSocket.all.length, sockets);
    assert.equal(states.at(-1), "closed");
    if (at) assert.ok(last().closed || last().onmessage === null);
  }
  const running = new Set(timers.mock.calls.map(({ result }) => result));
  for (const { arguments: [timer] } of cleared.mock.calls) running.delete(timer);
  assert.ok(running.size < timers.mock.callCount());
});
