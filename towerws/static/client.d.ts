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
  /** The producer's payload. `NaN` and infinities in it are `null`. The whole payload is `undefined` if it can't be read as JSON even so. */
  payload: Payload;
  /** The event's place in the log. `null` while the server has no useful position. */
  position: string | null;
  /** The payload as text, only if it is not plain JSON (`NaN`). */
  text?: string;
}

/** The subscription gets every event of these topics after this item. A topic's first one is `subscribed`. `recovered` and `stale` follow a reconnect. */
export interface Subscribed {
  /**
   * - `subscribed`: the topics are new. Fetch their state.
   * - `recovered`: all events since the connection was lost follow. Nothing is missing.
   * - `stale`: some events are missing. Fetch the state.
   */
  type: "subscribed" | "recovered" | "stale";
  topics: string[];
  position: string | null;
}

/** Some events of these topics are missing at this point. Fetch their state. */
export interface Gap {
  type: "gap";
  topics: string[];
  from: string | null;
  to: string | null;
  /** `history`, `broker`: see the protocol. `slow`: this subscription's handler was too slow, and its queue was full. */
  reason: "history" | "broker" | "slow" | (string & {});
}

/** All topics of the subscription that the server does not send now. The subscription gets this item when the list changes and is not empty. */
export interface Denied {
  type: "denied";
  topics: string[];
  /** The client asks again: after some seconds if the reason is `unavailable`, otherwise after a reconnect and with a new token. */
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
  /** End the subscription. Other subscriptions go on, also those with the same topics. */
  close(): void;
}

/** An error of the client. README.md lists the codes. */
export class TowerwsError extends Error {
  constructor(code: string, message: string, more?: object);
  code: string;
  /** `handshake`: the HTTP status, 0 if it can't be found. */
  status?: number;
  /** `handler`, `gap`, `stale`, `denied`: the item whose handler failed or is missing. */
  item?: Item;
}

export type State = "connecting" | "open" | "waiting" | "closed";

export interface StateChange {
  state: State;
  /** The user whom the server recognised, `null` for an anonymous one. */
  user: number | string | null;
  /** Why the state is `waiting` or `closed`. `undefined` after a call of `close()`. */
  reason?: TowerwsError;
  /** Milliseconds until the next attempt, if the state is `waiting`. */
  retryMs?: number;
}

/** Keeps the position, so that the page resumes there after a reload. A call that takes longer than `connectMs` counts as failed. */
export interface Store {
  /** The text that `set` got, or nothing. Anything else goes to `onerror`, and counts as nothing. */
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

/** A token, and when it ends (milliseconds since 1970). For a JSON Web Token the client reads the end from the token. */
export type Token = string | null | undefined | { token: string; expiresAt?: number };

export interface Client {
  /** Subscribe with a handler, or without one to read the subscription with `for await`. Throws `TypeError` if a topic is malformed, and the reason if the client is closed. */
  subscribe<Payload = any>(groups: Groups, handler?: EventHandler<Payload> | Handlers<Payload>): Subscription<Payload>;
  /** End the connection and all subscriptions. */
  close(): void;
  readonly state: State;
  readonly user: number | string | null;
  /** The newest position that the server has sent. */
  readonly position: string | null;
}

/** Connect, and stay connected. Throws `TypeError` if the URL or an option is wrong. */
export function connect(url: string | URL, options?: Options): Client;
