import type { Groups } from "towerws";

/**
 * AWX's `useWebsocket`: returns the newest message, null before the first. Each message is rendered before the next one comes.
 *
 * `refetch` is called when messages were missed, also because the first connection came late. Without it the window gets the event `towerws:missed`.
 */
export default function useWebsocket(subscribeGroups: Groups, refetch?: () => unknown): any;
