// Takes the place of AWX's hooks/useWebsocket.js, with the same signature. README.md explains it, awx.d.ts has the types.

import { useEffect, useRef, useState } from "react";
import { connect } from "towerws";

/** If `subscribed` comes within this many milliseconds of the mount, the page's first fetch counts. */
const SOON_MS = 1000;

let client = null;
let users = 0;

/** The client that all hooks of the page share. It ends with the last of them. */
function enter() {
  users += 1;
  if (client === null || client.state === "closed") {
    const { protocol, host, pathname } = window.location;
    client = connect(`${protocol === "http:" ? "ws:" : "wss:"}//${host}${pathname}websocket/`);
  }
  return client;
}

function leave() {
  users -= 1;
  if (users === 0) {
    client.close();
    client = null;
  }
}

/** Returns the newest message, null before the first. `refetch` is called when messages were missed. */
export default function useWebsocket(subscribeGroups, refetch) {
  // A new object for each message, so that React renders even if a payload is the value that it has already.
  const [last, setLast] = useState({ payload: null });
  const missed = useRef(refetch);
  missed.current = refetch;
  // React may render once for several messages, and a page looks at the last one only. So each message waits for the effects of the
  // one before.
  const seen = useRef(() => {});
  useEffect(() => seen.current(), [last]);

  useEffect(() => {
    const mounted = performance.now();
    const lost = () => (missed.current ? missed.current() : window.dispatchEvent(new Event("towerws:missed")));
    const subscription = enter().subscribe(subscribeGroups, {
      event: ({ payload }) =>
        new Promise((done) => {
          seen.current = done;
          setLast({ payload });
        }),
      // The page fetched at its mount. After a failed attempt or a slow one, what came in between is missing. If this were called each
      // time, every page would fetch twice, and a page that reloads itself at `towerws:missed` would never end.
      subscribed: () => performance.now() - mounted > SOON_MS && lost(),
      stale: lost,
      gap: lost,
      denied: ({ denied }) => console.warn("towerws: not subscribed", denied),
    });
    return () => {
      subscription.close();
      seen.current();
      leave();
    };
  }, []); // the groups of the first render count, as in AWX's hook

  return last.payload;
}
