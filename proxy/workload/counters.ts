/** What a workload's proxy counts from its start on; `proxy/admin/metrics.ts` has the names that people see. */
import type { ReplayCounters } from "#proxy/replay/replay-host.ts";

export interface Counters extends ReplayCounters {
  sessionsAccepted: number;
  sessionsRefused: number;
  /** on ports with `proxyProtocol`: from somebody else than the load balancer; without its header */
  peersRefused: number;
  headersRefused: number;
  sessionsEnded: number;
  sessionsReset: number;
  sessionsBroken: number;
  sessionsIdle: number;
  dialFailures: number;
  dialShortages: number;
  linksAccepted: number;
  linksRefused: number;
  linkFailures: number;
  linksInterrupted: number;
  linksContinued: number;
  linksLate: number;
  linkMismatches: number;
  lingerTimeouts: number;
  acceptErrors: number;
  bytesIn: number;
  bytesOut: number;
  holds: number;
  rollbacks: number;
  holdsLetGo: number;
  legsCaptured: number;
  legsAdopted: number;
  legFailures: number;
  sessionsOpaque: number;
  probesAnswered: number;
}

export function newCounters(): Counters {
  return {
    sessionsAccepted: 0,
    sessionsRefused: 0,
    peersRefused: 0,
    headersRefused: 0,
    sessionsEnded: 0,
    sessionsReset: 0,
    sessionsBroken: 0,
    sessionsIdle: 0,
    dialFailures: 0,
    dialShortages: 0,
    linksAccepted: 0,
    linksRefused: 0,
    linkFailures: 0,
    linksInterrupted: 0,
    linksContinued: 0,
    linksLate: 0,
    linkMismatches: 0,
    lingerTimeouts: 0,
    acceptErrors: 0,
    bytesIn: 0,
    bytesOut: 0,
    holds: 0,
    rollbacks: 0,
    holdsLetGo: 0,
    legsCaptured: 0,
    legsAdopted: 0,
    legFailures: 0,
    sessionsOpaque: 0,
    probesAnswered: 0,
    sessionsUnavailable: 0,
    requestsReplayed: 0,
    requestsRefused: 0,
    messagesReplayed: 0,
    webSocketsRefused: 0,
    heldRefused: 0,
  };
}
