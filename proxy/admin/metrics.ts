/** Prometheus metrics of a process's proxies, summed from their counters at each scrape. No label names a connection or a client. */
import { Counter, Gauge, Registry } from "@prometheus-io/client";
import type { Counters } from "#proxy/workload/counters.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const COUNTERS: Record<keyof Counters, [name: string, help: string]> = {
  sessionsAccepted: ["sessions_accepted_total", "Sessions begun here."],
  sessionsRefused: [
    "sessions_refused_total",
    "Clients refused: too many are held, or have sessions, or no descriptor is left.",
  ],
  peersRefused: [
    "peers_refused_total",
    "Connections to a port behind a load balancer that came from somebody else.",
  ],
  headersRefused: [
    "headers_refused_total",
    "Connections of a load balancer that did not begin with a PROXY protocol header.",
  ],
  sessionsEnded: ["sessions_ended_total", "Sessions that ended in order, or went on at another node."],
  sessionsReset: ["sessions_reset_total", "Sessions ended by a reset, whoever began it."],
  sessionsBroken: ["sessions_broken_total", "Sessions ended because their own code failed: report it."],
  sessionsIdle: ["sessions_idle_total", "Sessions ended because nothing had passed for idleMsMax."],
  dialShortages: [
    "dial_shortages_total",
    "Connections to the application not made for want of descriptors, memory or ports.",
  ],
  dialFailures: ["dial_failures_total", "Connections to the application that failed."],
  linksAccepted: ["links_accepted_total", "Links of other nodes' proxies, authenticated."],
  linksRefused: ["links_refused_total", "Links that did not authenticate, or too many at a time."],
  linkFailures: ["link_failures_total", "Links that broke, or were refused."],
  linksInterrupted: ["links_interrupted_total", "Connections of links that broke with the session going on."],
  linksContinued: ["links_continued_total", "Links that went on over another connection."],
  linksLate: ["links_late_total", "Links given up: no other connection within linkResumeMsMax."],
  linkMismatches: [
    "link_mismatches_total",
    "Sessions reset because bytes were lost between anchor and owner.",
  ],
  lingerTimeouts: ["linger_timeouts_total", "Ended sessions whose last bytes were not acknowledged in time."],
  acceptErrors: ["accept_errors_total", "Failed accept(2) calls."],
  bytesIn: ["received_bytes_total", "Client to application, of sessions that are over."],
  bytesOut: ["sent_bytes_total", "Application to client, of sessions that are over."],
  holds: ["holds_total", "Times the workload was held."],
  rollbacks: ["rollbacks_total", "Moves given up with this proxy going on."],
  holdsLetGo: ["holds_let_go_total", "Holds ended by the proxy, as no agent did: nothing had been captured."],
  legsCaptured: ["legs_captured_total", "TCP legs captured."],
  legsAdopted: ["legs_adopted_total", "TCP legs adopted."],
  sessionsOpaque: [
    "sessions_opaque_total",
    "Sessions whose bytes could not be named any more: plain TCP from then on; opaque_total says why.",
  ],
  probesAnswered: ["probes_answered_total", "Health checks answered in the application's place."],
  sessionsUnavailable: [
    "sessions_unavailable_total",
    "Times a session outlived its connection to the application.",
  ],
  requestsReplayed: [
    "requests_replayed_total",
    "HTTP requests sent again to another instance of the application.",
  ],
  requestsRefused: ["requests_refused_total", "HTTP requests answered 503 in the application's place."],
  messagesReplayed: ["messages_replayed_total", "WebSocket messages sent again."],
  webSocketsRefused: ["websockets_refused_total", "WebSockets closed with 1012 or 1013 by the proxy."],
  heldRefused: ["held_refused_total", "Times a client's bytes were over the limits of what is held."],
  legFailures: ["leg_failures_total", "TCP legs that could not be captured, released or taken back."],
};

export function createMetrics(proxies: () => WorkloadProxy[], prefix = "holdfast_proxy"): Registry {
  const registry = new Registry();
  const registers = [registry];
  const sum = (of: (proxy: WorkloadProxy) => number): number =>
    proxies().reduce((all, proxy) => all + of(proxy), 0);
  for (const [key, [name, help]] of Object.entries(COUNTERS)) {
    new Counter({
      name: `${prefix}_${name}`,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(sum(({ counters }) => counters[key as keyof Counters]));
      },
    });
  }
  new Counter({
    name: `${prefix}_opaque_total`,
    help: "Sessions whose bytes could not be named any more, by reason (a closed list).",
    labelNames: ["reason"],
    registers,
    collect() {
      this.reset();
      for (const { filters } of proxies())
        for (const [reason, count] of filters.opaqueReasons) this.inc({ reason }, count);
    },
  });
  const gauge = (name: string, help: string, read: () => number): void => {
    new Gauge({
      name: `${prefix}_${name}`,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });
  };
  gauge("sessions", "Sessions here now.", () => sum(({ sessions }) => sessions.size));
  gauge("trunks", "Connections that the links of sessions share.", () => sum(({ trunks }) => trunks));
  gauge("epoch", "Highest epoch seen.", () => Math.max(0, ...proxies().map(({ epoch }) => epoch)));
  gauge("owner", "1 while the application runs behind this proxy.", () =>
    sum(({ role }) => (role === "owner" ? 1 : 0)),
  );
  gauge("held_bytes", "Bytes of clients held in memory.", () =>
    sum(({ filters }) => filters.budget.memoryBytes),
  );
  gauge("spilled_bytes", "Bytes of clients held on disk.", () =>
    sum(({ filters }) => filters.budget.spilledBytes),
  );
  gauge("resident_memory_bytes", "Resident memory of the process.", () => process.memoryUsage.rss());
  return registry;
}
