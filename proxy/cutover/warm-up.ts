/**
 * Runs the steps of a cutover on a connection of our own before a client's session depends on them: the first hundreds
 * of captures and adoptions of a process are several times slower (compilation, FFI set-up), and a target that
 * cannot adopt at all says so before anybody is held.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { LegSurgeon, Outcome } from "#proxy/contract/leg-surgeon.ts";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import { TcpLeg } from "#proxy/stream/tcp-leg.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";

const ROUNDS = 6;
/** at once: 2 ms or so, then sessions have their turn; and a surgeon that has to ask somebody asks once for all */
const LEGS = 25;
/** for a handshake with ourselves */
const TURNS_MAX = 1_000;
/** a snapshot has about 60 fields: too few rounds for V8 to optimize what writes and reads them */
const SESSIONS_ENCODED = 4_000;

/** @throws HoldfastError `PROXY_NOT_ABLE`: no capability, no loopback interface, or a kernel without TCP_REPAIR */
export async function warmUp({ kernel, surgeon }: { kernel: LegKernel; surgeon: LegSurgeon }): Promise<void> {
  const here = { address: "127.0.0.1", port: 0 };
  let listener = -1;
  const peers: number[] = [];
  let legs: number[] = [];
  try {
    listener = kernel.listen({ fd: kernel.bindUpstream(here) }, LEGS);
    for (let leg = 0; leg < LEGS; leg++) {
      const fd = kernel.dial({ ...here, port: kernel.localPort(listener) });
      if (fd < 0) throw new Error(kernel.errnoName(-fd));
      legs.push(fd);
      peers.push(await accepted(kernel, listener));
    }
    for (let round = 0; round < ROUNDS; round++) {
      const snapshots = all(await surgeon.capture(legs));
      for (const fd of legs.splice(0)) kernel.close(fd);
      if (round === 0) warmUpCodec(snapshots[0] as LegSnapshot);
      const adopted = await surgeon.adopt(snapshots, { side: "upstream", shielded: round % 2 === 0 });
      for (const outcome of adopted) if (outcome.ok) legs.push(outcome.value);
      all(adopted);
      const speaking = legs.map((fd, at) => {
        const snapshot = snapshots[at] as LegSnapshot;
        return { fd, snapshot, side: "upstream", probe: false } as const;
      });
      all(await surgeon.release(speaking));
      legs = legs.map((fd) => TcpLeg.attach(kernel, fd).detach().fd);
      await nextTurn();
    }
  } catch (cause) {
    throw fail("PROXY_NOT_ABLE", `this node cannot adopt connections: ${messageOf(cause)}`, { cause });
  } finally {
    for (const each of [listener, ...peers, ...legs]) if (each >= 0) kernel.close(each);
  }
}

/** On the loopback interface the handshake is over when connect(2) returns, unless the kernel puts it off. */
async function accepted(kernel: LegKernel, listener: number): Promise<number> {
  for (let turn = 0; ; turn++) {
    const peer = kernel.accept(listener);
    if (peer >= 0) return peer;
    if (turn === TURNS_MAX) throw new Error(kernel.errnoName(-peer));
    await nextTurn();
  }
}

function all<T>(outcomes: Outcome<T>[]): T[] {
  return outcomes.map((outcome) => {
    if (outcome.ok) return outcome.value;
    throw outcome.error;
  });
}

function warmUpCodec(upstream: LegSnapshot): void {
  const sessions = Array.from({ length: SESSIONS_ENCODED / 8 }, (_, id) => ({
    ...EMPTY,
    id: `${id}`,
    upstream,
  }));
  const limits = { sessionsMax: sessions.length, bytesMax: 1 << 24 };
  for (let round = 0; round < 8; round++) decodeSessions(encodeSessions(sessions), limits);
}

const EMPTY = {
  port: 0,
  anchor: "here",
  acceptedAtMs: 0,
  client: "",
  headerAwaited: false,
  bytesIn: 0,
  bytesOut: 0,
  downstream: null,
  pendingIn: Buffer.alloc(0),
  pendingOut: Buffer.alloc(0),
  finIn: "none",
  finOut: "none",
  filter: Buffer.alloc(0),
} as const;
