import { createElement as h, useState } from "react";
import { connect } from "towerws";
import { useTowerws } from "towerws-react";

const url = new URLSearchParams(location.search).get("url") ?? "ws://localhost:8051/websocket/";
let showState = () => {};
const live = connect(url, { onstate: ({ state }) => showState(state) });

function Jobs() {
  const [jobs, setJobs] = useState({});
  const [state, setState] = useState(live.state);
  showState = setState;
  const forget = () => setJobs({});
  useTowerws(live, { jobs: ["status_changed"] }, {
    event: ({ payload }) => setJobs((known) => ({ ...known, [payload.unified_job_id]: payload.status })),
    stale: forget, // a page with a server would fetch the state here
    gap: forget,
  });
  return [
    h("h1", { key: "title" }, "Jobs"),
    h("p", { key: "state" }, "Connection: ", h("output", { id: "state" }, state)),
    h("ul", { key: "jobs", id: "jobs" }, Object.entries(jobs).map(([id, status]) => h("li", { key: id }, `${id}: ${status}`))),
  ];
}

globalThis.ReactDOM.createRoot(document.getElementById("root")).render(h(Jobs));
