// Compiled by tsc, never run: what a user of the types writes.
import { connect, TowerwsError, type Item, type StateChange } from "../towerws.js";
import { connect as connectShared } from "../shared.js";

interface Job { unified_job_id: number; status: string }

const client = connect("wss://example.com/websocket/", {
  token: async () => ({ token: "x", expiresAt: Date.now() + 1000 }),
  store: { get: () => sessionStorage.getItem("towerws"), set: (position) => sessionStorage.setItem("towerws", position) },
  onstate: ({ state, reason, retryMs }: StateChange) => console.log(state, reason?.code, retryMs?.toFixed()),
  onerror: (error) => console.error(error.code, error.status),
  WebSocket,
});
const all = client.subscribe<Job>({ jobs: ["status_changed"], job_events: [42] }, (event) => event.payload.status.trim());
client.subscribe<Job>({ jobs: ["summary"] }, {
  event: async ({ payload }) => payload.unified_job_id + 1,
  gap: ({ from, to, reason }) => `${from} ${to} ${reason}`,
  denied: ({ denied }) => denied.map(({ topic, reason }) => topic + reason),
  stale: ({ topics }) => topics.length,
});
for await (const item of client.subscribe<Job>({ jobs: ["summary"] }) satisfies AsyncIterable<Item>) {
  if (item.type === "event") console.log(item.payload.unified_job_id);
  else if (item.type === "gap") console.log(item.reason);
  // @ts-expect-error: a notice has no payload
  else console.log(item.payload);
}
all.close();
// @ts-expect-error: the value of a group is a list
client.subscribe({ job_events: 42 });
// @ts-expect-error: there is no such option
connect("wss://example.com/websocket/", { tokn: "x" });
const status: number | undefined = new TowerwsError("x", "y").status;
console.log(status, client.user, client.position);

const shared = connectShared("/websocket/", { name: "7", worker: new URL("https://example.com/shared.js"), retryMinMs: 100 });
shared.subscribe<Job>({ jobs: ["status_changed"] }, ({ payload }) => payload.status);
// @ts-expect-error a name is text
connectShared("/websocket/", { name: 7 });
