// A model of the daemon for random runs, and a reader that checks what a subscription gets.
import assert from "node:assert/strict";
import { mock } from "node:test";
import { FakeSocket, pass, tick } from "./fake.js";

export const TOPICS = ["jobs.a", "jobs.b", "jobs.c", "jobs.d"];
const STEPS = 120;
export const SEED = Number(process.env.MODEL_SEED ?? Date.now() % 1e6);

// A small generator of pseudo-random numbers (mulberry32), so that a seed repeats a run.
export const generator = (seed) => () => {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};

// The log, and the connections. Frames wait in `out` until they are delivered: a lost connection loses them.
export class Model {
  log = [];
  floor = 0; // Positions before this have left history.
  denies = 0; // The probability that a topic can't be checked.

  constructor(random) {
    this.random = random;
    const model = this;
    this.Socket = class extends FakeSocket {
      held = new Set();
      out = [];
      dead = false;
      send(text) { super.send(text); model.request(this, this.sent.at(-1)); }
    };
  }

  get open() { return FakeSocket.all.filter(({ dead, closed }) => !dead && !closed); }
  get one() { return this.open[Math.floor(this.random() * this.open.length)]; }

  get position() { return `${this.log.length}`; }

  publish(topic) {
    const n = this.log.filter((entry) => entry.topic === topic).length;
    this.log.push({ topic, n });
    for (const socket of this.open) if (socket.held.has(topic)) socket.out.push(this.event(this.log.length - 1));
  }

  event(at) {
    const { topic, n } = this.log[at];
    const [group, event] = topic.split(".");
    return { type: "event", position: `${at + 1}`, group, event, payload: { n } };
  }

  request(socket, message) {
    if (message.ping) return socket.out.push({ type: "pong", ping: 1, position: null });
    const wanted = Object.entries(message.groups).flatMap(([group, events]) => events.map((event) => `${group}.${event}`));
    const joined = wanted.filter((topic) => !socket.held.has(topic));
    const denied = joined.filter(() => this.random() < this.denies).map((topic) => ({ topic, reason: "unavailable" }));
    const left = new Set(denied.map(({ topic }) => topic));
    socket.held = new Set(wanted.filter((topic) => !left.has(topic)));
    const since = message.since == null ? null : Number(message.since);
    const recovered = since === null ? null : since >= this.floor;
    const position = recovered ? message.since : this.position;
    socket.out.push({ type: "subscribed", id: message.id, groups_current: [...socket.held], groups_joined: joined.filter((topic) => !left.has(topic)), denied, position, recovered });
    const fresh = new Set(joined.filter((topic) => !left.has(topic)));
    if (recovered) for (let at = since; at < this.log.length; at++) if (fresh.has(this.log[at].topic)) socket.out.push(this.event(at));
  }

  // Deliver up to this many frames of a connection.
  deliver(count, socket = this.one) {
    if (!socket) return;
    if (!socket.opened) {
      socket.opened = true;
      socket.open();
      socket.welcome({ position: this.position });
    }
    while (count-- && socket.out.length && !socket.closed) socket.frame(socket.out.shift());
  }

  lose(socket = this.one) {
    if (!socket) return;
    socket.dead = true;
    socket.lose();
  }

  // The oldest frames that have not been sent are replaced by a gap, or those of one topic by gaps.
  gap() {
    const socket = this.one;
    const end = socket?.out.findIndex(({ type }) => type !== "event");
    const first = socket?.out.splice(0, end < 0 ? socket.out.length : end) ?? [];
    if (!first.length) return;
    const instead = (lost) => ({ type: "gap", topics: [...new Set(lost.map(topicOf))], from: null, to: lost.at(-1).position, reason: "history" });
    const topic = topicOf(first[0]);
    socket.out.unshift(...(this.random() < 0.5 ? [instead(first)] : first.map((frame) => (topicOf(frame) === topic ? instead([frame]) : frame))));
  }
}

const topicOf = ({ group, event }) => `${group}.${event}`;

// Checks what one subscription gets.
export class Reader {
  last = new Map(); // By topic the number of its last event.
  jumps = new Set(); // Topics that may miss events now.

  constructor(made, topics, random, quiet) {
    Object.assign(this, { made, topics });
    this.heard = new Set(); // Topics of which it was told something.
    this.slow = !quiet && random() < 0.3;
    this.releases = [];
    const notice = (item) => {
      for (const topic of item.topics) {
        if (item.type !== "recovered") this.jumps.add(topic);
        else assert.ok(this.heard.has(topic), `${topic}: recovered, but it was never subscribed`);
        this.heard.add(topic);
      }
      if (quiet) assert.doesNotMatch(item.type, /stale|gap/, `${item.topics}: nothing was lost`);
      return this.pause();
    };
    const groups = { jobs: topics.map((topic) => topic.split(".")[1]) };
    this.sub = made.subscribe(groups, {
      event: (item) => { this.event(item); return this.pause(); },
      subscribed: notice, recovered: notice, stale: notice, gap: notice, denied() {},
    });
  }

  pause() { return this.slow ? new Promise((done) => { this.releases.push(done); }) : undefined; }

  event({ topic, payload: { n } }) {
    assert.ok(this.topics.includes(topic), `${topic} is not its own`);
    const last = this.last.get(topic);
    if (last !== undefined) {
      assert.ok(n > last, `${topic}: ${n} after ${last}`);
      assert.ok(n === last + 1 || this.jumps.has(topic), `${topic}: ${n} after ${last}, and nothing was told`);
    }
    this.last.set(topic, n);
    this.jumps.delete(topic);
  }
}

// In a calm run only connections break, and nothing may be lost.
export const calm = (seed) => seed % 3 === 0;

// One random run. `clients` are what `client` of fake.js returns, `more` are steps of the test.
export async function play(seed, { random, model, clients, more = {} }) {
  mock.method(Math, "random", random); // for the backoff of the clients
  const pick = (list) => list[Math.floor(random() * list.length)];
  const readers = new Set();
  const add = (made, topics) => {
    const reader = new Reader(made, topics, random, calm(seed));
    readers.add(reader);
    return reader;
  };
  const close = (reader) => {
    reader.sub.close();
    readers.delete(reader);
  };
  const steps = {
    publish: () => { for (let at = 0; at < 5; at++) model.publish(pick(TOPICS)); },
    more: () => { for (let at = 0; at < 3; at++) model.publish(pick(TOPICS)); },
    deliver: () => model.deliver(Math.ceil(random() * 6)),
    all: () => model.deliver(100),
    join: () => { if (readers.size < 6) add(pick(clients).client, TOPICS.filter(() => random() < 0.5)); },
    leave: () => { const reader = pick([...readers]); if (reader && random() < 0.5) close(reader); },
    swap: () => {
      const reader = pick([...readers]);
      if (!reader) return;
      if (random() < 0.5) reader.sub.close();
      add(reader.made, reader.topics);
      close(reader);
    },
    lose: () => model.lose(),
    wait: () => pass(random() * 3000),
    release: () => { for (const { releases } of readers) releases.shift()?.(); },
    gap: () => model.gap(),
    forget: () => { if (random() < 0.3) model.floor = Math.floor(random() * (model.log.length + 1)); },
    unsure: () => { model.denies = random() < 0.3 ? 0.5 : 0; },
    ...more,
  };
  if (calm(seed)) for (const name of ["gap", "forget", "unsure"]) delete steps[name];
  try {
    for (let step = 0; step < STEPS; step++) {
      await pick(Object.values(steps))();
      await tick();
    }
    // When all is well again, every reader gets the last event of each of its topics.
    model.denies = 0;
    const settle = async () => {
      for (let at = 0; at < 25; at++) {
        for (const socket of model.open) model.deliver(1000, socket);
        await pass(3000);
        for (const { releases } of readers) while (releases.length) { releases.shift()(); await tick(); }
      }
    };
    await settle();
    for (const topic of TOPICS) model.publish(topic);
    await settle();
    for (const reader of readers) {
      for (const topic of reader.topics) assert.equal(reader.last.get(topic), model.log.filter((entry) => entry.topic === topic).length - 1, `the end of ${topic}`);
    }
    assert.equal(model.open.length, 1, "the connections at the end");
    const bad = clients.flatMap(({ errors }) => errors).filter(({ code }) => code === "handler");
    if (bad.length) throw bad[0].cause;
  } catch (error) {
    error.message = `MODEL_RUNS=1 MODEL_SEED=${seed}: ${error.message}`;
    throw error;
  } finally {
    for (const { client } of clients) client.close();
    await tick();
  }
}
