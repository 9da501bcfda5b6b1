/**
 * Capture at the source. The application is frozen: what it sent is in our receive queues, or still in its own.
 *
 * What is not read here (the client is slow, or the time is over) travels in the leg's receive queue, so the drain is
 * only a courtesy to clients: their answers arrive before the pause, not after it, and there is less to carry.
 */
import { setTimeout as delay, setImmediate as nextTurn } from "node:timers/promises";
import { endpointIn } from "#proxy/contract/address.ts";
import type { CaptureResult } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Outcome } from "#proxy/contract/leg-surgeon.ts";
import { closedLeg, type LegSnapshot, type SessionSnapshot } from "#proxy/contract/snapshot.ts";
import { LinkLeg } from "#proxy/link/link-leg.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { DetachedLeg, LiveSession } from "#proxy/workload/live-session.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { isOfNode } from "./adopt.ts";
import { askCounts } from "./gateways.ts";
import { checkTotal, queuedBytes } from "./pieces.ts";
import { operate, sameCount } from "./surgery.ts";

const POLL_MS = 1;
/** after how many the drain is asked whether it is worth its time, and how fast the other way is, all of its steps together */
const DRAIN_LOOK_POLLS = 5;
const CARRIED_BYTES_PER_MS = 100_000;
/** read at once: what their queues hold is counted before more are read */
const BATCH_LEGS = 256;
const NO_BYTES = Buffer.alloc(0);

export interface Captured {
  result: Omit<CaptureResult, "left">;
  sessions: SessionSnapshot[];
}

export async function captureUpstream(proxy: WorkloadProxy): Promise<Captured> {
  await drain(proxy);
  const meter = new Meter();
  const patients: Patient[] = [];
  for (const session of proxy.sessions.values()) {
    // Its anchor believes it open and may have sent bytes: it travels without a leg.
    const isUndialled = session.state === "waiting" && session.downstream instanceof LinkLeg;
    if (!isUndialled && session.state !== "open" && session.state !== "lingering") continue;
    // The application's frozen end gets our RST, and is dumped as the connection that it no longer is.
    if (isUndialled || (proxy.portOf(session).moveBy === "replay" && session.filter?.cut() === true)) {
      session.settleFilter();
      session.step("capture");
      session.takeBackFromDownstreamLink();
      meter.add(session.snapshot({ upstream: null, downstream: null }));
      continue;
    }
    session.settleFilter();
    session.detachUpstreamLeg();
    const still = session.detachedUpstream;
    if (still === null) continue;
    session.step("capture");
    session.takeBackFromDownstreamLink();
    patients.push({ session, still, snapshot: session.snapshot({ upstream: null, downstream: null }) });
  }
  // The application is frozen, its kernel is not: what that still sends is sent again where it is restored.
  const outcomes = await captureAll(proxy, patients, meter, () => {
    // Repair mode does not hold back a delayed acknowledgement; it would change the send queue that CRIU is about to read.
    for (const { still } of patients) proxy.kernel.acknowledge(still.fd);
  });
  const failures: unknown[] = [];
  for (const [index, outcome] of outcomes.entries()) {
    const { session, still, snapshot } = patients[index] as Patient;
    let leg: LegSnapshot;
    if (outcome.ok) leg = outcome.value;
    else if (isPassing(outcome.error)) throw outcome.error;
    else if (session.state === "closed") continue;
    else {
      leg = uncapturedLeg(proxy, still.fd);
      failures.push(outcome.error);
      proxy.log.warn(
        { session: session.id, client: session.client, err: outcome.error },
        "a connection to the application cannot be captured: its session is lost if the move goes on",
      );
    }
    meter.add({ ...snapshot, upstream: leg });
  }
  if (failures.length > 1 && meter.legs === 0) throw failures[0];
  proxy.counters.legsCaptured += meter.legs;
  if (proxy.config.downstream === "gateway") askCounts(proxy);
  await flushLinks(proxy);
  return meter.captured();
}

/** What anchors were sent is counted as theirs: it must not end with this process. */
async function flushLinks(proxy: WorkloadProxy): Promise<void> {
  const links = [...proxy.sessions.values()].map(({ downstream }) => downstream);
  links.push(...proxy.ownerLinks.released);
  const flushed = links.map((link) => (link instanceof LinkLeg ? link.flushed() : null));
  await Promise.race([
    Promise.all(flushed),
    delay(proxy.config.limits.drainMsMax, undefined, { ref: false }),
  ]);
}

/**
 * Takeover. Clients are alive: a segment that arrived after its leg was read would be acknowledged and lost, so each leg
 * is shielded first, and the listener refuses new handshakes and finishes those under way.
 */
export async function captureDownstream(proxy: WorkloadProxy): Promise<Captured> {
  const { kernel, config, listeners } = proxy;
  const deadlineMs = performance.now() + config.limits.holdMsMax;
  for (const listener of listeners) kernel.shieldListener(listener.fd);
  for (;;) {
    let underWay = 0;
    for (const port of config.ports) {
      underWay += await kernel.countSynRecv(port.listen);
      underWay += await kernel.listenBacklog(
        { address: config.listenAddress, port: port.listen },
        "downstream",
      );
    }
    if (underWay === 0 || performance.now() >= deadlineMs) break;
    await delay(POLL_MS);
  }
  const meter = new Meter();
  const patients: Patient[] = [];
  for (const session of proxy.sessions.values()) {
    if (session.state === "waiting") session.settleFilter();
    session.detachDownstreamLeg();
    const still = session.detachedDownstream;
    if (session.state !== "captured") {
      if (still === null) continue;
      session.step("capture");
    }
    const snapshot = session.snapshot({ upstream: null, downstream: null });
    if (still === null) meter.add(snapshot);
    else patients.push({ session, still, snapshot });
  }
  // Whatever arrives before the shield is in the receive queue and travels with it.
  const outcomes = await captureAll(proxy, patients, meter, () => {});
  // Against the shield the client seems gone, and the kernel would say so with RST.
  for (const { still } of patients)
    if (!still.isLetGo) kernel.setPeerTimeouts(still.fd, { keepAliveMs: 0, userTimeoutMs: 0 });
  for (const [index, outcome] of outcomes.entries()) {
    if (!outcome.ok) throw outcome.error;
    meter.add({ ...(patients[index] as Patient).snapshot, downstream: outcome.value });
  }
  proxy.counters.legsCaptured += meter.legs;
  return meter.captured();
}

/** Detached, silent, and described at that moment: what else happens while the surgeon works changes none of it. */
interface Patient {
  session: LiveSession;
  still: DetachedLeg;
  /** all but the leg */
  snapshot: SessionSnapshot;
}

/**
 * All legs are out of the pumps before the first is shielded, and all are shielded before the first is read. Every leg that was
 * captured has its snapshot noted before a failure is looked at: a rollback gives back all of them. Failures are
 * `PROXY_CAPTURE`.
 */
async function captureAll(
  proxy: WorkloadProxy,
  patients: Patient[],
  meter: Meter,
  beforeReading: () => void,
): Promise<Outcome<LegSnapshot>[]> {
  const legs = patients.map(({ still }) => still);
  const fds = legs.map(({ fd }) => fd);
  return await operate(proxy, legs, async () => {
    for (const shielded of sameCount(await proxy.surgeon.shield(fds), fds.length))
      if (!shielded.ok) throw shielded.error;
    beforeReading();
    const outcomes: Outcome<LegSnapshot>[] = [];
    let bytes = 0;
    for (let from = 0; from < fds.length; from += BATCH_LEGS) {
      const batch = fds.slice(from, from + BATCH_LEGS);
      const captured = await meter.measure(() => proxy.surgeon.capture(batch));
      for (const outcome of sameCount(captured, batch.length)) {
        const { session, still } = patients[outcomes.length] as Patient;
        if (outcome.ok) {
          meter.legs++;
          bytes += outcome.value.receive.bytes.length + outcome.value.send.bytes.length;
          still.snapshot = withoutBytes(outcome.value);
          outcomes.push(outcome);
        } else outcomes.push({ ok: false, error: notCaptured(proxy, session, outcome.error) });
      }
      checkTotal(bytes);
    }
    return outcomes;
  });
}

/** A rollback asks for no bytes: they are still in the kernel. */
function withoutBytes(leg: LegSnapshot): LegSnapshot {
  const { receive, send } = leg;
  return {
    ...leg,
    receive: { ...receive, bytes: NO_BYTES },
    send: { ...send, bytes: NO_BYTES, unsentBytes: 0 },
  };
}

function notCaptured(proxy: WorkloadProxy, session: LiveSession, cause: unknown): HoldfastError {
  proxy.counters.legFailures++;
  return fail(
    "PROXY_CAPTURE",
    `a leg of session ${session.id} (client ${session.client}) could not be captured: ${String(cause)}`,
    { cause },
  );
}

/** What may go well the next time, or is the node's, is the move's to fail for. */
function isPassing(error: unknown): boolean {
  const { cause } = error as { cause?: unknown };
  return isOfNode(cause) || (cause instanceof HoldfastError && cause.retryable);
}

/** Between our end and the application's, which is dumped all the same: only whose ends they are, which a leg that was reset does not know. */
function uncapturedLeg({ kernel }: WorkloadProxy, fd: number): LegSnapshot {
  return closedLeg(kernel.localOf(fd), endpointIn(kernel.peerOf(fd)) ?? { address: "", port: 0 });
}

/** Clients that read at full speed empty their queues in less time than it takes to carry them. */
async function drain(proxy: WorkloadProxy): Promise<void> {
  const deadlineMs = performance.now() + proxy.config.limits.drainMsMax;
  let left = [...proxy.sessions.values()];
  let looked = left;
  let bytes = passedOn(looked);
  for (let polls = 1; ; ) {
    left = left.filter(
      ({ upstream, outbound }) =>
        upstream instanceof TcpLeg &&
        (outbound.isBlocked || (!outbound.finRead && upstream.unreadBytes() > 0)),
    );
    if (left.length === 0 || performance.now() >= deadlineMs) return;
    if (left.some(({ outbound }) => !outbound.isBlocked)) {
      await nextTurn();
      continue;
    }
    await delay(POLL_MS);
    if (polls++ % DRAIN_LOOK_POLLS !== 0) continue;
    // also of those that have ended since
    if (passedOn(looked) - bytes < DRAIN_LOOK_POLLS * POLL_MS * CARRIED_BYTES_PER_MS) return;
    looked = left;
    bytes = passedOn(looked);
  }
}

/** … of what was read for clients */
function passedOn(sessions: Iterable<LiveSession>): number {
  let bytes = 0;
  for (const { outbound } of sessions) bytes += outbound.bytes - outbound.pendingBytes;
  return bytes;
}

class Meter {
  legs = 0;
  #us = 0;
  #bytes = 0;
  readonly #sessions: SessionSnapshot[] = [];

  async measure<T>(work: () => Promise<T>): Promise<T> {
    const start = process.hrtime.bigint();
    const result = await work();
    this.#us += Number(process.hrtime.bigint() - start) / 1000;
    return result;
  }

  /** @throws HoldfastError `PROXY_CAPTURE` when it is more than the proxy keeps */
  add(snapshot: SessionSnapshot): void {
    this.#bytes += queuedBytes(snapshot);
    checkTotal(this.#bytes);
    this.#sessions.push(snapshot);
  }

  captured(): Captured {
    const sessions = this.#sessions;
    const result = { sessions: sessions.length, legs: this.legs, captureUs: Math.round(this.#us) };
    return { result, sessions };
  }
}
