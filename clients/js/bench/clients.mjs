// Each client subscribes to one topic and calls `got` with each payload. `bench.mjs` bundles each function into a file of its own.
export const CLIENTS = {
  towerws: `
    import { connect } from "../towerws.js";
    export function start(url, got) { connect(url).subscribe({ jobs: ["status_changed"] }, ({ payload }) => got(payload)); }`,
  centrifuge: `
    import { Centrifuge } from "centrifuge";
    export function start(url, got) {
      const client = new Centrifuge(url);
      const subscription = client.newSubscription("jobs.status_changed", { recoverable: true, positioned: true });
      subscription.on("publication", ({ data }) => got(data));
      subscription.subscribe();
      client.connect();
    }`,
  stompjs: `
    import { Client } from "@stomp/stompjs";
    export function start(url, got) {
      const client = new Client({ brokerURL: url, heartbeatIncoming: 0, heartbeatOutgoing: 0 });
      client.onConnect = () => client.subscribe("/topic/jobs.status_changed", ({ body }) => got(JSON.parse(body)));
      client.activate();
    }`,
  // No client at all: the least that a page has to do. It reads the frames of towerws.v1.
  bare: `
    export function start(url, got) {
      const socket = new WebSocket(url, "towerws.v1");
      socket.onopen = () => socket.send(JSON.stringify({ groups: { jobs: ["status_changed"] }, id: 1 }));
      socket.onmessage = ({ data }) => { const frame = JSON.parse(data); if (frame.type === "event") got(frame.payload); };
    }`,
};

// Counts the events, and resolves with events a second, from the first to the last of them. A wrong one rejects.
export function measure(start, url, count) {
  return new Promise((done, fail) => {
    let next = 0, began;
    start(url, ({ n }) => {
      if (n !== next) return fail(new Error(`event ${n} in the place of ${next}`));
      if (next++ === 0) began = performance.now();
      if (next === count) done((count - 1) / ((performance.now() - began) / 1000));
    });
  });
}
