import type { Client, EventHandler, Groups, Handlers, TowerwsEvent } from "towerws";

/**
 * Subscribe while the component is mounted. Returns the newest event of these groups, null before the first.
 *
 * React may render once for several events. `handlers` gets each one, and the notices of a loss. Its functions may change at each render.
 * After the client has stopped, the hook returns null.
 */
export function useTowerws<Payload = any>(
  client: Client,
  groups: Groups,
  handlers?: EventHandler<Payload> | Handlers<Payload>,
): TowerwsEvent<Payload> | null;
