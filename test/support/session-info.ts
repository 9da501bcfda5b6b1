import type { SessionInfo } from "#proxy/contract/commands.ts";

/** A session as a proxy tells it, about which nothing is special but what is named. */
export function sessionInfo(id: string, more: Partial<SessionInfo> = {}): SessionInfo {
  return {
    id,
    port: 0,
    client: "10.0.0.1:1",
    anchor: "a",
    place: "here",
    state: "open",
    bytesIn: 0,
    bytesOut: 0,
    ageMs: 5,
    protocol: "tcp",
    continuity: "transplant",
    name: null,
    requestsInFlight: 0,
    requests: 0,
    ...more,
  };
}
