/**
 * One session of this proxy: two legs, two pumps, and what of it lies captured or adopted. Mechanics only; what to do
 * when, is decided by the workload's proxy.
 */
import assert from "node:assert/strict";
import type { LegSnapshot, SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import type { ProtocolFilter } from "#proxy/replay/protocol-filter.ts";
import type { Carrier } from "#proxy/replay/replay-host.ts";
import { canStep, nextState, type SessionState, type SessionStep } from "#proxy/session/session-state.ts";
import type { Leg, LegListener } from "#proxy/stream/leg.ts";
import { nullLeg } from "#proxy/stream/null-leg.ts";
import { Pump, type PumpOwner } from "#proxy/stream/pump.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { ClientCount } from "./admission.ts";

/** A leg that nobody watches: silent in the kernel, or (snapshot null) put aside because its application does not read. */
export interface DetachedLeg {
  fd: number;
  snapshot: LegSnapshot | null;
  /** the surgeon works on it: the descriptor stays open until that is over */
  inSurgery?: boolean;
  /** … and is closed then */
  isLetGo?: boolean;
}

/** Gets what the client sends in place of the pump, and passes on what the application is to have of it. */
export interface InboundTap {
  fromClient(chunk: Buffer): void;
  clientFin(): void;
}

/** Reads a client that waits, to see whether it is a health check. What it has read it gives back. */
export interface Peek extends InboundTap {
  giveBack(): void;
}

/** Reads what a load balancer says of a client, before the client's own bytes. */
export interface HeaderReader extends InboundTap {
  /** what there is of it: a copy */
  readonly bytes: Buffer;
  stop(): void;
}

/** By performance.now(). */
export interface DialShortage {
  sinceMs: number;
  /** 0: now */
  dialNotBeforeMs: number;
}

export interface SessionEvents {
  /** how long a client that was told to go may stay */
  readonly lingerMsMax: number;
  /** the application may be dumped already */
  readonly isMoving: boolean;
  /** The session is over on this node. `reason` is null after an orderly end. */
  onOver(session: LiveSession, reason: string | null): void;
  onLingering(session: LiveSession): void;
  /** It is `waiting` from now on, or no more. */
  onWaits(session: LiveSession, waits: boolean): void;
  /** Its code has thrown: a bug, or the kernel refused what it never refuses. It is to be ended. */
  onBroken(session: LiveSession, error: unknown): void;
}

export interface SessionOptions {
  id: string;
  number: number;
  port: number;
  anchor: string;
  client: string;
  acceptedAtMs: number;
  state: SessionState;
  events: SessionEvents;
}

/** In place of an upstream leg that could not be built: a socket that drops what comes for it, so that nothing answers with RST. */
export interface StandIn {
  fd: number;
  leg: LegSnapshot;
}

const NO_BYTES: Buffer = Buffer.alloc(0);
/** what a FIN counts among those not acknowledged */
const FIN_BYTES = 1;

export class LiveSession implements Carrier, PumpOwner {
  readonly id: string;
  /** of this proxy's sessions, in the order in which they came to it */
  readonly number: number;
  readonly port: number;
  readonly anchor: string;
  client: string;
  /** as whom the client is counted, where its socket is here */
  countedAs: ClientCount | null = null;
  readonly acceptedAtMs: number;
  readonly inbound = new Pump();
  readonly outbound = new Pump();
  downstream: TcpLeg | LinkLeg | null = null;
  upstream: TcpLeg | LinkLeg | null = null;
  /** dialled and not connected yet */
  dialling: TcpLeg | null = null;
  /** the client's address, where a header has named it */
  named = "";
  detachedUpstream: DetachedLeg | null = null;
  detachedDownstream: DetachedLeg | null = null;
  standIn: StandIn | null = null;
  /** target: what the session was at its source */
  adopted: SessionSnapshot | null = null;
  /** the application, or its owner, has had the session */
  wasConnected = false;
  /** anchor: dialled to an owner who has not said ACTIVE: the present one (new session) or the next one (move) */
  nextLink: LinkLeg | null = null;
  /** anchor: bytes still to come from the old owner before those of the new one */
  switchAt: { bytesOut: number; complete(): void } | null = null;
  /** a leg was reset while the session lay captured or adopted */
  lost: string | null = null;
  lingerSinceMs = 0;
  /** by performance.now() */
  waitingSinceMs = 0;
  /** of `IdleSessions`: what had passed when it looked, and since when (performance.now()) that is all */
  idleBytes = -1;
  idleSinceMs = 0;
  /** the node lacks what dialling takes */
  dialShortage: DialShortage | null = null;
  /** of the wait for a link: `link-wait.ts` */
  linkTimer: NodeJS.Timeout | null = null;

  readonly #events: SessionEvents;
  readonly #clientSide = new ClientSide(this);
  readonly #applicationSide = new ApplicationSide(this);
  #state: SessionState;
  /** it was told to go: when it is reset */
  #goTimer: NodeJS.Timeout | null = null;
  #header: HeaderReader | null = null;
  #peek: Peek | null = null;
  #filter: ProtocolFilter | null = null;
  /** the first of these that there is */
  #inboundTap: InboundTap | null = null;

  constructor(options: SessionOptions) {
    this.id = options.id;
    this.number = options.number;
    this.port = options.port;
    this.anchor = options.anchor;
    this.client = options.client;
    this.acceptedAtMs = options.acceptedAtMs;
    this.#state = options.state;
    this.#events = options.events;
    this.inbound.owner = this;
    this.outbound.owner = this;
  }

  get state(): SessionState {
    return this.#state;
  }

  step(step: SessionStep): void {
    const before = this.#state;
    this.#state = nextState(before, step);
    if (before === "waiting" || this.#state === "waiting")
      this.#events.onWaits(this, this.#state === "waiting");
    this.#assertState();
  }

  /** What the state says of the legs. A session of which it is not so is ended, and no other (`guard`). */
  #assertState(): void {
    const { upstream, inbound, outbound } = this;
    if (this.#state === "waiting")
      assert(
        upstream === null && this.dialling === null,
        "a session that waits has no way to its application",
      );
    else if (this.#state === "captured")
      assert(
        !(upstream instanceof TcpLeg && upstream.isOpen),
        "nobody writes to an application that is dumped",
      );
    else if (this.#state === "lingering")
      assert(inbound.finSent && outbound.finSent, "a session that lingers has said everything");
  }

  // ---- who reads the client's bytes, one after the other

  /** until it is complete the session is not begun */
  get header(): HeaderReader | null {
    return this.#header;
  }
  set header(header: HeaderReader | null) {
    this.#header = header;
    this.#setInboundTap();
  }
  get peek(): Peek | null {
    return this.#peek;
  }
  set peek(peek: Peek | null) {
    this.#peek = peek;
    this.#setInboundTap();
  }
  /** on the node that has, or is to have, the upstream leg; null where nothing is observed */
  get filter(): ProtocolFilter | null {
    return this.#filter;
  }
  set filter(filter: ProtocolFilter | null) {
    this.#filter = filter;
    this.#setInboundTap();
  }

  #setInboundTap(): void {
    this.#inboundTap = this.#header ?? this.#peek ?? this.#filter;
  }

  // ---- legs

  fromClient(chunk: Buffer): void {
    if (this.#inboundTap === null) this.inbound.receive(chunk);
    else this.#inboundTap.fromClient(chunk);
  }

  clientFin(): void {
    if (this.#inboundTap === null) this.inbound.receiveFin();
    else this.#inboundTap.clientFin();
  }

  fromApplication(chunk: Buffer): void {
    // While an old owner's link is read to its end: that owner has observed it.
    if (this.filter !== null && this.switchAt === null) this.filter.fromApplication(chunk);
    else this.outbound.receive(chunk);
    const { switchAt } = this;
    if (switchAt !== null && this.outbound.bytes >= switchAt.bytesOut) {
      this.switchAt = null;
      switchAt.complete();
    }
  }

  applicationFin(): void {
    if (!this.#isHidden("fin")) this.outbound.receiveFin();
  }

  applicationDrained(): void {
    this.inbound.drained();
    this.filter?.replay?.drained();
  }

  setDownstream(leg: TcpLeg | LinkLeg): void {
    this.downstream = leg;
    leg.listener = this.#clientSide;
    if (leg instanceof TcpLeg && this.inbound.finRead) leg.endedBefore();
    this.inbound.setSource(leg);
    if (leg instanceof LinkLeg) leg.startDelivering();
    if (this.downstream === leg) this.outbound.setSink(leg);
  }

  setUpstream(leg: TcpLeg | LinkLeg): void {
    this.upstream = leg;
    this.setUpstreamSink(leg);
    if (this.upstream === leg) this.setUpstreamSource(leg);
  }

  setUpstreamSink(leg: TcpLeg | LinkLeg): void {
    this.wasConnected = true;
    leg.listener = this.#applicationSide;
    this.inbound.setSink(leg);
  }

  setUpstreamSource(leg: TcpLeg | LinkLeg): void {
    this.outbound.setSource(leg);
    if (leg instanceof LinkLeg) leg.startDelivering();
  }

  // ---- without an application

  #isHidden(how: "fin" | "reset"): boolean {
    return this.#state === "open" && this.filter?.applicationGone(how) === true;
  }

  get isWaiting(): boolean {
    return this.#state === "waiting" || this.#state === "dialling";
  }

  /** An anchor's session that is new to its owner: what was said to an earlier one is not counted. */
  countAnew(): void {
    this.inbound.bytes = this.inbound.pendingBytes;
    this.outbound.bytes = 0;
  }

  /** Open → waiting. What waited for the application's end is dropped: the replay has it. */
  detach(): void {
    this.#dropUpstream()?.reset();
    this.inbound.finSent = false;
    this.step("renew");
  }

  /** Nobody listens to the leg any more, and what waited for it is gone. */
  #dropUpstream(): TcpLeg | LinkLeg | null {
    const leg = this.upstream;
    this.upstream = null;
    this.inbound.removeSink(NO_BYTES);
    this.inbound.clear();
    this.outbound.setSource(null);
    if (leg !== null) leg.listener = null;
    return leg;
  }

  endAfter(bytes: Buffer): void {
    this.filter?.stop();
    this.filter = null;
    this.dialling?.reset();
    this.dialling = null;
    if (this.#state === "waiting") this.step("dial");
    if (this.#state === "dialling") this.step("dialled");
    // An application that is being sent something again may not have read it, and would answer it behind our last bytes.
    this.#dropUpstream()?.reset();
    this.inbound.spooling = false;
    const { lingerMsMax } = this.#events;
    this.#goTimer ??= setTimeout(() => this.guard(() => this.reset("told to go")), lingerMsMax);
    if (bytes.length > 0) this.outbound.receive(bytes);
    this.outbound.receiveFin();
    this.inbound.setSink(nullLeg);
    this.inbound.unhold();
  }

  /** The application is on this node. */
  get hasUpstreamLeg(): boolean {
    return this.upstream instanceof TcpLeg || this.detachedUpstream !== null;
  }

  /** Takes the leg's descriptor; its unwritten bytes are first in the pump again. */
  detachUpstreamLeg(): void {
    const leg = this.upstream;
    if (!(leg instanceof TcpLeg) || !leg.isOpen) return;
    const { fd, pending } = leg.detach();
    this.upstream = null;
    this.inbound.removeSink(pending);
    this.outbound.setSource(null);
    this.detachedUpstream = { fd, snapshot: null };
  }

  detachDownstreamLeg(): void {
    const leg = this.downstream;
    if (!(leg instanceof TcpLeg) || !leg.isOpen) return;
    const { fd, pending } = leg.detach();
    this.downstream = null;
    this.outbound.removeSink(pending);
    this.inbound.setSource(null);
    this.detachedDownstream = { fd, snapshot: null };
  }

  /** The link stays open for what is in it; bytes that were not framed are first in the pump again. */
  takeBackFromDownstreamLink(): void {
    if (this.downstream instanceof LinkLeg) this.outbound.removeSink(this.downstream.takeUnsent());
  }

  /** The node that has the application looks at the bytes from now on. */
  dropWatch(): void {
    this.settleFilter();
    this.filter?.stop();
    this.filter = null;
  }

  // ---- what travels

  /** Everything the session has read is in its pumps, and nothing is read meanwhile. */
  settleFilter(): void {
    this.peek?.giveBack();
    this.filter?.settle();
  }

  snapshot(parts: { upstream: LegSnapshot | null; downstream: LegSnapshot | null }): SessionSnapshot {
    // A client's leg that stays here keeps its own pending bytes.
    const keepsOut = this.downstream instanceof TcpLeg;
    return {
      id: this.id,
      port: this.port,
      anchor: this.anchor,
      acceptedAtMs: this.acceptedAtMs,
      client: this.named,
      headerAwaited: this.header !== null,
      bytesIn: this.inbound.bytes,
      bytesOut: this.outbound.bytes,
      ...parts,
      pendingIn: this.header?.bytes ?? this.inbound.pending(),
      pendingOut: keepsOut ? NO_BYTES : this.outbound.pending(),
      finIn: finOf(this.inbound),
      finOut: finOf(this.outbound),
      filter: this.filter?.save() ?? NO_BYTES,
    };
  }

  // ---- endings

  /** A reset from one side is a reset on the other. */
  reset(reason: string): void {
    if (this.#state === "closed") return;
    this.downstream?.reset();
    this.upstream?.reset();
    this.dialling?.reset();
    this.nextLink?.reset();
    this.#over(reason);
  }

  /** Closes the legs, whose FINs are sent already. The descriptors of detached legs belong to the caller. */
  close(): void {
    if (this.#state === "closed") return;
    closeLeg(this.downstream);
    closeLeg(this.upstream);
    this.dialling?.close();
    this.nextLink?.release();
    this.#over(null);
  }

  /** The session goes on elsewhere. */
  forget(): void {
    if (this.#state === "closed") return;
    this.#over(null);
  }

  #over(reason: string | null): void {
    this.filter?.stop();
    this.header?.stop();
    if (this.linkTimer !== null) clearTimeout(this.linkTimer);
    this.linkTimer = null;
    if (this.#goTimer !== null) clearTimeout(this.#goTimer);
    this.#goTimer = null;
    if (canStep(this.#state, "close")) this.step("close");
    this.#detachPumps();
    this.#events.onOver(this, reason);
  }

  #detachPumps(): void {
    this.inbound.setSource(null);
    this.outbound.setSource(null);
    for (const leg of [this.downstream, this.upstream, this.dialling] as (Leg | null)[]) {
      if (leg !== null) leg.listener = null;
    }
    this.downstream = null;
    this.upstream = null;
    this.dialling = null;
    this.nextLink = null;
    this.switchAt = null;
  }

  /** Nobody has said anything for long: both ends get a FIN. */
  endIdle(): void {
    if (this.inbound.finRead && this.outbound.finRead) {
      this.reset("idle");
      return;
    }
    this.inbound.receiveFin();
    this.outbound.receiveFin();
  }

  /** Runs a part of this session that nobody is there to catch, as of a timer. */
  guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.onBroken(error);
    }
  }

  onBroken(error: unknown): void {
    this.#events.onBroken(this, error);
  }

  /** The client is reset; the application too, unless it may be dumped already and has to be told where it goes on. */
  breakOff(): void {
    if (this.#isHeld) {
      this.downstream?.reset();
      this.lose("downstream", "broken");
    } else this.reset("broken");
  }

  /**
   * From the hold on the application may be dumped already, so a client's end is told to its copy: on this node after a
   * rollback, else at the target.
   */
  get #isHeld(): boolean {
    return this.#events.isMoving && this.inbound.held && this.hasUpstreamLeg;
  }

  endReset(side: "downstream" | "upstream", reason: string): void {
    if (side === "upstream" && this.#isHidden("reset")) return;
    if ((side === "downstream" && this.#isHeld) || this.#state === "captured" || this.#state === "adopted") {
      this.lose(side, reason);
      return;
    }
    this.reset(`${side} ${reason}`);
  }

  /** Remembers that a leg has gone while the others are silent. */
  lose(side: "downstream" | "upstream", reason: string): void {
    this.lost ??= `${side} ${reason}`;
    if (side === "downstream") {
      this.outbound.removeSink(NO_BYTES);
      this.inbound.setSource(null);
      this.downstream = null;
    } else {
      this.inbound.removeSink(NO_BYTES);
      this.outbound.setSource(null);
      this.upstream = null;
    }
  }

  onFinSent(): void {
    this.clientGone();
    if (!this.inbound.finSent || !this.outbound.finSent || this.#state !== "open") return;
    this.startLingering();
  }

  /**
   * It may have reset its connection behind its FIN: that ends the session where the application is here and has all it had said. What
   * is on its way would be lost by the reset; then the client counts as one that only listens.
   */
  clientGone(): void {
    const { downstream, upstream } = this;
    if (!this.inbound.finSent || this.#state === "lingering" || !(upstream instanceof TcpLeg)) return;
    if (downstream instanceof TcpLeg && upstream.unackedBytes() <= FIN_BYTES) downstream.endIfReset();
  }

  /** Silent no more: captured → rolled back, or adopted → released. */
  wake(step: "resume" | "release"): void {
    this.step(step);
    this.onFinSent();
  }

  /** After a change of legs or state: perhaps both FINs had passed already. */
  settle(): void {
    this.onFinSent();
  }

  /** Gone without a word: every descriptor left is in repair mode, or lost its address. */
  silence(): void {
    this.dialling?.close();
    this.forget();
  }

  startLingering(): void {
    this.step("finish");
    this.nextLink?.release();
    this.nextLink = null;
    if (this.downstream instanceof LinkLeg) {
      this.downstream.release();
      this.downstream = null;
    }
    if (this.upstream instanceof LinkLeg) {
      this.upstream.release();
      this.upstream = null;
    }
    this.#events.onLingering(this);
  }
}

// Objects, not closures: a session at rest has ten of the latter otherwise.

class ClientSide implements LegListener {
  readonly #session: LiveSession;
  constructor(session: LiveSession) {
    this.#session = session;
  }
  onData(chunk: Buffer): void {
    this.#session.fromClient(chunk);
  }
  onFin(): void {
    this.#session.clientFin();
  }
  onDrain(): void {
    this.#session.outbound.drained();
  }
  onGone(): void {
    this.#session.clientGone();
  }
  onReset(reason: string): void {
    this.#session.endReset("downstream", reason);
  }
  onBroken(error: unknown): void {
    this.#session.onBroken(error);
  }
}

class ApplicationSide implements LegListener {
  readonly #session: LiveSession;
  constructor(session: LiveSession) {
    this.#session = session;
  }
  onData(chunk: Buffer): void {
    this.#session.fromApplication(chunk);
  }
  onFin(): void {
    this.#session.applicationFin();
  }
  onDrain(): void {
    this.#session.applicationDrained();
  }
  onReset(reason: string): void {
    this.#session.endReset("upstream", reason);
  }
  onBroken(error: unknown): void {
    this.#session.onBroken(error);
  }
}

function closeLeg(leg: TcpLeg | LinkLeg | null): void {
  if (leg instanceof TcpLeg) leg.close();
  else leg?.release();
}

function finOf(pump: Pump): "none" | "read" | "sent" {
  if (pump.finSent) return "sent";
  return pump.finRead ? "read" : "none";
}
