/**
 * Connections whose route, or workload, is not known yet: read until the route is, within bounds, and handed on with what was read when the
 * workload is. Nothing is sent. Of too many the oldest is reset: one that says nothing, or whose session is looked up for long, must not keep
 * others out.
 */
import type { ProxyProtocol } from "#proxy/contract/commands.ts";
import type { GatewayRoute } from "#proxy/contract/gateway.ts";
import type { HttpHead } from "#proxy/protocol/http-head.ts";
import { PartialBytes } from "#proxy/protocol/partial-bytes.ts";
import { HEADER_BYTES_MAX, readProxyHeader } from "#proxy/protocol/proxy-header.ts";
import { type RouteChoice, RouteChooser } from "#proxy/protocol/route.ts";
import type { LegListener } from "#proxy/stream/leg.ts";
import type { TcpLeg } from "#proxy/stream/tcp-leg.ts";

/** at a time; each may hold `ROUTE_BYTES_MAX`, and what one turn of reading gives */
const UNDECIDED_MAX = 1_024;
/** until what there is has to do; who says nothing at all takes a route that names nothing */
const UNDECIDED_MS_MAX = 5_000;

export interface Chosen {
  route: GatewayRoute;
  workload: string;
  leg: TcpLeg;
  /** everything that was read, a load balancer's header included; and whether the FIN was */
  read: { bytes: Buffer; ended: boolean };
}

export interface UndecidedOptions {
  routes: readonly GatewayRoute[];
  /** each connection begins with a header, which stays in what is handed on */
  proxyProtocol: ProxyProtocol | null;
  /**
   * @param head of its first request, where that was read; good until this returns
   * @param isThere whether the connection still waits for the answer
   */
  workloadOf(route: GatewayRoute, head: HttpHead | null, isThere: () => boolean): string | Promise<string>;
  onChosen(chosen: Chosen): void;
  /** The connection is reset already. */
  onNone(peer: string, why: string): void;
  onBroken(error: unknown): void;
}

/** Of all listeners. */
export class UndecidedConnections {
  readonly #max: number;
  readonly #msMax: number;
  readonly #all = new Set<Undecided>();

  constructor(bounds: { max?: number; msMax?: number } = {}) {
    this.#max = bounds.max ?? UNDECIDED_MAX;
    this.#msMax = bounds.msMax ?? UNDECIDED_MS_MAX;
  }

  get size(): number {
    return this.#all.size;
  }

  add(leg: TcpLeg, options: UndecidedOptions): void {
    const [oldest] = this.#all;
    if (this.#all.size >= this.#max) oldest?.refuse("others came, and it is not known yet where it goes");
    const undecided = new Undecided(leg, options, this.#msMax, () => this.#all.delete(undecided));
    this.#all.add(undecided);
    leg.resumeReading();
  }

  stop(): void {
    for (const undecided of [...this.#all]) undecided.refuse("the gateway ends");
  }
}

class Undecided implements LegListener {
  readonly #leg: TcpLeg;
  readonly #options: UndecidedOptions;
  readonly #over: () => void;
  readonly #chooser: RouteChooser;
  readonly #bytes = new PartialBytes();
  readonly #timer: NodeJS.Timeout;
  #ended = false;
  /** its route is known, and its workload is being looked up */
  #isRouted = false;
  #isOver = false;

  constructor(leg: TcpLeg, options: UndecidedOptions, msMax: number, over: () => void) {
    this.#leg = leg;
    this.#options = options;
    this.#over = over;
    this.#chooser = new RouteChooser(options.routes);
    this.#timer = setTimeout(() => {
      try {
        this.#choose(true);
      } catch (error) {
        this.onBroken(error);
      }
    }, msMax).unref();
    leg.listener = this;
  }

  onData(chunk: Buffer): void {
    this.#bytes.append(chunk, 0, chunk.length);
    this.#choose(false);
  }

  onFin(): void {
    this.#ended = true;
    if (this.#bytes.length > 0) this.#choose(true);
    else {
      // somebody who only looks whether the port is open
      this.#finish();
      this.#leg.close();
    }
  }

  onDrain(): void {}

  onReset(): void {
    this.#finish();
  }

  onBroken(error: unknown): void {
    this.#finish();
    this.#leg.reset();
    this.#options.onBroken(error);
  }

  refuse(why: string): void {
    if (this.#isOver) return;
    const { peer } = this.#leg;
    this.#finish();
    this.#leg.reset();
    this.#options.onNone(peer, why);
  }

  #choose(done: boolean): void {
    if (this.#isOver || this.#isRouted) return;
    const choice = this.#look(done);
    if (choice.is === "incomplete") return;
    if (choice.is === "none") {
      this.refuse(choice.why);
      return;
    }
    this.#isRouted = true;
    clearTimeout(this.#timer);
    this.#leg.pauseReading();
    const { route, head } = choice;
    const workload = this.#options.workloadOf(route, head, () => !this.#isOver);
    if (typeof workload === "string") this.#hand(route, workload);
    else workload.then((found) => this.#hand(route, found)).catch((error: unknown) => this.onBroken(error));
  }

  #hand(route: GatewayRoute, workload: string): void {
    if (this.#isOver) return;
    this.#finish();
    const read = { bytes: this.#bytes.bytes, ended: this.#ended };
    this.#options.onChosen({ route, workload, leg: this.#leg, read });
  }

  #look(done: boolean): RouteChoice {
    const from = this.#headerBytes();
    if (from === "invalid") return { is: "none", why: "it has no header of the PROXY protocol" };
    if (from !== null) return this.#chooser.choose(this.#bytes.bytes.subarray(from), done);
    return done
      ? { is: "none", why: "its header of the PROXY protocol is not complete" }
      : { is: "incomplete" };
  }

  /** null: it is not complete */
  #headerBytes(): number | null | "invalid" {
    if (this.#options.proxyProtocol === null) return 0;
    const header = readProxyHeader(this.#bytes.bytes.subarray(0, HEADER_BYTES_MAX));
    if (header.is === "complete") return header.bytes;
    return header.is === "incomplete" ? null : "invalid";
  }

  #finish(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    this.#leg.listener = null;
    this.#over();
  }
}
