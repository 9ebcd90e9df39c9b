/** Topics: each group with a list of its events. `42` and `"42"` are the same event. */
export type Groups = Record<string, ReadonlyArray<string | number>>;

/** One event of a topic. */
export interface TowerwsEvent<Payload = any> {
  type: "event";
  /** `job_events.42` */
  topic: string;
  /** `job_events` */
  group: string;
  /** `42`, always as text */
  event: string;
  /** What the producer sent. `NaN` and infinities in it are `null`. `undefined` if it can't be read as JSON even so. */
  payload: Payload;
  /** The event's place in the log. `null` while the server has no useful one. */
  position: string | null;
  /** The payload as text, only if it is not plain JSON (`NaN`). */
  text?: string;
}

/** From here on every event of these topics comes. `subscribed` is the first notice for a topic, `recovered` and `stale` follow a reconnect. */
export interface Subscribed {
  /**
   * - `subscribed`: the topics count from now. Fetch their state.
   * - `recovered`: every event since `position` follows. After a reconnect nothing was missed.
   * - `stale`: events were missed. Fetch the state.
   */
  type: "subscribed" | "recovered" | "stale";
  topics: string[];
  position: string | null;
}

/** Some events of these topics are missing here. Fetch their state. */
export interface Gap {
  type: "gap";
  topics: string[];
  from: string | null;
  to: string | null;
  /** `history`, `broker`: see the protocol. `slow`: this subscription's handler was too slow, and its queue was full. */
  reason: "history" | "broker" | "slow" | (string & {});
}

/** All topics of the subscription that the server does not send now. Told when the list changes. */
export interface Denied {
  type: "denied";
  topics: string[];
  /** `unavailable` is asked for again by the client. So are all others after a reconnect and with a new token. */
  denied: Array<{ topic: string; reason: string }>;
}

export type Item<Payload = any> = TowerwsEvent<Payload> | Subscribed | Gap | Denied;

/** A handler may return a promise. The next item of its subscription then waits for it. */
export type EventHandler<Payload = any> = (event: TowerwsEvent<Payload>) => unknown;

/** A handler for each kind of item. A `gap`, `stale` or `denied` without a handler goes to `onerror`. */
export interface Handlers<Payload = any> {
  event?(event: TowerwsEvent<Payload>): unknown;
  subscribed?(notice: Subscribed): unknown;
  recovered?(notice: Subscribed): unknown;
  stale?(notice: Subscribed): unknown;
  gap?(notice: Gap): unknown;
  denied?(notice: Denied): unknown;
}

export interface Subscription<Payload = any> extends AsyncIterable<Item<Payload>> {
  readonly topics: string[];
  /** Leave. Other subscriptions go on, with the same topics too. */
  close(): void;
}

/** What went wrong. README.md lists the codes. */
export class TowerwsError extends Error {
  constructor(code: string, message: string, more?: object);
  code: string;
  /** `handshake`: the HTTP status, 0 if it can't be found. */
  status?: number;
  /** `handler`, `gap`, `stale`, `denied`: the item that was being handled. */
  item?: Item;
}

export type State = "connecting" | "open" | "waiting" | "closed";

export interface StateChange {
  state: State;
  /** The user whom the server recognised, `null` for an anonymous one. */
  user: number | string | null;
  /** `waiting`, `closed`: why. A client that was closed by `close()` has none. */
  reason?: TowerwsError;
  /** `waiting`: milliseconds until the next attempt. */
  retryMs?: number;
}

/** Keeps the position, so that a reload of the page resumes. */
export interface Store {
  get(): string | null | undefined | Promise<string | null | undefined>;
  set(position: string): unknown;
}

/** The part of the WebSocket class that the client uses. */
export interface WebSocketClass {
  new (url: string, protocol: string): any;
}

/** README.md has the default and the unit of each. */
export interface Options {
  token?: () => Token | Promise<Token>;
  xrftoken?: () => string | undefined;
  store?: Store;
  onstate?: (change: StateChange) => unknown;
  onerror?: (error: TowerwsError) => unknown;
  WebSocket?: WebSocketClass;
  retryMinMs?: number;
  retryMaxMs?: number;
  connectMs?: number;
  answerMs?: number;
  pingMs?: number;
  pongMs?: number;
  saveMs?: number;
  queueBytes?: number;
}

/** A token, and the time at which it ends (milliseconds since 1970). The client reads that from a JSON Web Token itself. */
export type Token = string | null | undefined | { token: string; expiresAt?: number };

export interface Client {
  /** Subscribe with a handler, or without one to read the subscription with `for await`. Throws `TypeError` if a topic is malformed, and the reason if the client is closed. */
  subscribe<Payload = any>(groups: Groups, handler?: EventHandler<Payload> | Handlers<Payload>): Subscription<Payload>;
  /** End the connection and all subscriptions. */
  close(): void;
  readonly state: State;
  readonly user: number | string | null;
  /** The newest place in the log that was received. */
  readonly position: string | null;
}

/** Connect, and stay connected. Throws `TypeError` if the URL or an option is wrong. */
export function connect(url: string | URL, options?: Options): Client;
