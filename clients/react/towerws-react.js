// A React hook over the client of clients/js. README.md explains it, towerws-react.d.ts has the types.

import { useEffect, useRef, useState } from "react";

/** Subscribe while the component is mounted. Returns the newest event of these groups, null before the first. */
export function useTowerws(client, groups, handlers) {
  const [newest, setNewest] = useState(null);
  const current = useRef(handlers);
  current.current = handlers;
  // Groups are compared by value: a component writes them as a literal, which is a new object at each render.
  const key = JSON.stringify(groups);
  useEffect(() => {
    // `subscribe` would throw, and an error in an effect makes React remove the whole page. `onerror` has got the reason.
    if (client.state === "closed") return undefined;
    const tell = (name) => (item) => {
      const found = current.current;
      const handler = typeof found === "function" ? name === "event" && found : found?.[name];
      return handler ? handler(item) : undefined;
    };
    const subscription = client.subscribe(JSON.parse(key), {
      event: (item) => {
        setNewest({ client, key, item });
        return tell("event")(item);
      },
      // The client reports a loss that has no handler to `onerror`. So only the component's own handlers are passed on.
      ...Object.fromEntries(
        ["subscribed", "recovered", "stale", "gap", "denied"]
          .filter((name) => typeof current.current === "object" && current.current?.[name])
          .map((name) => [name, tell(name)]),
      ),
    });
    return () => subscription.close();
  }, [client, key]);
  // After a change of the groups, the first render still has an event of the groups before.
  return newest?.client === client && newest.key === key ? newest.item : null;
}
