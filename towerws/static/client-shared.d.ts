import type { Client, Options } from "./client.js";

export { TowerwsError } from "./client.js";

export interface SharedOptions extends Options {
  /** Tabs with the same URL and the same name share a connection. Name the user, if another user may sign in on this origin. */
  name?: string;
  /** Where `shared.js` is, for a page whose bundler puts it elsewhere. It must be of the page's origin. */
  worker?: string | URL;
}

/** As `connect` of towerws.js, over one connection for all tabs. Without a SharedWorker the tab has a connection of its own. */
export function connect(url: string | URL, options?: SharedOptions): Client;
