/**
 * Who may come in: bounds on sessions of a port, on those of one client's address, and on descriptors, of which some are kept
 * back for what must go on when clients have taken the rest: the agent's commands, looking into the kernel, a cutover.
 *
 * An IPv6 client counts by its /64: that is what one subscriber is given (RFC 6177), so single addresses bound nothing.
 */
import { isIPv6 } from "node:net";
import type { Logger } from "pino";
import type { PortConfig } from "#proxy/contract/commands.ts";

/** kept back of the descriptors; of a smaller limit a part */
const RESERVE = 64;
const RESERVE_PART = 1 / 8;
/** a line in the log for all that are refused meanwhile */
const LOG_MS = 60_000;
const IPV6_PREFIX_GROUPS = 4;

export type Refusal = "sessionsMax" | "sessionsPerClientMax" | "descriptors";

interface Process {
  /** the number the next descriptor will have, which is how many there are at least; negative: none is free */
  lowestFreeDescriptor(): number;
  descriptorsMax(): number;
}

const CURES: Record<Refusal, string> = {
  sessionsMax: "raise ports[].sessionsMax if so many are meant to come",
  sessionsPerClientMax: "raise ports[].sessionsPerClientMax if these come through a proxy or NAT of yours",
  descriptors: "raise the agent's limit of open files (LimitNOFILE= of its unit): each session needs two",
};

/** Sessions of one client on one port. */
export interface ClientCount {
  readonly key: string;
  sessions: number;
}

export class Admission {
  readonly #ports: readonly PortConfig[];
  readonly #process: Process;
  readonly #log: Logger;
  readonly #perPort: number[];
  readonly #perClient: Map<string, ClientCount>[];
  #refusedSince = 0;
  #loggedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: { ports: readonly PortConfig[]; process: Process; log: Logger }) {
    this.#ports = options.ports;
    this.#process = options.process;
    this.#log = options.log;
    this.#perPort = options.ports.map(() => 0);
    this.#perClient = options.ports.map(() => new Map());
  }

  /**
   * Whether one more may come to this port. null: it may.
   * @param client "address:port", as `SocketKernel.peerOf` gives it
   * @param fd the descriptor it has already, else the next one is looked at
   */
  refuses(port: number, client: string, fd: number | null): Refusal | null {
    return this.refusesConnection(port, client, fd) ?? this.refusesClient(port, client);
  }

  /** As {@link refuses}, whoever it is from: its peer is a load balancer, which has not said yet. */
  refusesConnection(port: number, peer: string, fd: number | null): Refusal | null {
    const { sessionsMax } = this.#ports[port] as PortConfig;
    // a client of this node's takes two: its own, and the next one for its connection to the application
    if (!this.hasRoom(fd === null ? this.#process.lowestFreeDescriptor() : fd + 1))
      return this.#tell("descriptors", port, peer);
    return (this.#perPort[port] as number) >= sessionsMax ? this.#tell("sessionsMax", port, peer) : null;
  }

  refusesClient(port: number, client: string): Refusal | null {
    const { sessionsPerClientMax } = this.#ports[port] as PortConfig;
    const ofClient = this.#perClient[port]?.get(clientKey(client))?.sessions ?? 0;
    return ofClient >= sessionsPerClientMax ? this.#tell("sessionsPerClientMax", port, client) : null;
  }

  /** A descriptor of that number leaves the reserve alone. */
  hasRoom(fd: number): boolean {
    const most = this.#process.descriptorsMax();
    return fd >= 0 && fd < most - Math.min(RESERVE, Math.floor(most * RESERVE_PART));
  }

  enter(port: number): void {
    this.#perPort[port] = (this.#perPort[port] as number) + 1;
  }

  leave(port: number): void {
    this.#perPort[port] = (this.#perPort[port] as number) - 1;
  }

  /** Its socket is on this node. @returns what `clientLeaves` is to be given */
  clientEnters(port: number, client: string): ClientCount {
    const key = clientKey(client);
    const clients = this.#perClient[port] as Map<string, ClientCount>;
    const count = clients.get(key) ?? { key, sessions: 0 };
    if (count.sessions++ === 0) clients.set(key, count);
    return count;
  }

  clientLeaves(port: number, count: ClientCount): void {
    if (--count.sessions === 0) this.#perClient[port]?.delete(count.key);
  }

  #tell(refusal: Refusal, port: number, client: string): Refusal {
    this.#refusedSince++;
    const nowMs = performance.now();
    if (nowMs - this.#loggedAtMs < LOG_MS) return refusal;
    this.#loggedAtMs = nowMs;
    const { listen } = this.#ports[port] as PortConfig;
    this.#log.warn(
      { reason: refusal, port: listen, client, refused: this.#refusedSince, cure: CURES[refusal] },
      "clients are refused",
    );
    this.#refusedSince = 0;
    return refusal;
  }
}

/** "192.0.2.1:4000" → "192.0.2.1"; "[2001:db8:1:2:3::4]:4000" → "2001:db8:1:2" */
export function clientKey(client: string): string {
  const address = /^\[?(.*?)\]?:\d+$/.exec(client)?.[1] ?? client;
  if (!isIPv6(address)) return address;
  const [head = "", tail] = (address.split("%")[0] as string).split("::");
  const groups = head === "" ? [] : head.split(":");
  if (tail !== undefined) {
    const last = tail === "" ? [] : tail.split(":");
    // the last 32 bits may be written as IPv4
    const lastGroups = last.length + (tail.includes(".") ? 1 : 0);
    while (groups.length + lastGroups < 8) groups.push("0");
    groups.push(...last);
  }
  return groups
    .slice(0, IPV6_PREFIX_GROUPS)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(":");
}
