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

const ROUNDS = 150;
/** about 1 ms: sessions have their turn */
const TURN_ROUNDS = 10;
/** for a handshake with ourselves */
const TURNS_MAX = 1_000;
/** a snapshot has about 60 fields: too few rounds for V8 to optimize what writes and reads them */
const SESSIONS_ENCODED = 4_000;

/** @throws HoldfastError `PROXY_NOT_ABLE`: no capability, no loopback interface, or a kernel without TCP_REPAIR */
export async function warmUp({ kernel, surgeon }: { kernel: LegKernel; surgeon: LegSurgeon }): Promise<void> {
  const here = { address: "127.0.0.1", port: 0 };
  let listener = -1;
  let peer = -1;
  let fd = -1;
  try {
    listener = kernel.listen({ fd: kernel.bindUpstream(here) }, 1);
    fd = kernel.dial({ ...here, port: kernel.localPort(listener) });
    if (fd < 0) throw new Error(kernel.errnoName(-fd));
    // On the loopback interface the handshake is over when connect(2) returns, unless the kernel puts it off.
    for (let turn = 0; peer < 0 && turn < TURNS_MAX; turn++) {
      peer = kernel.accept(listener);
      if (peer < 0) await nextTurn();
    }
    if (peer < 0) throw new Error(kernel.errnoName(-peer));
    for (let round = 0; round < ROUNDS; round++) {
      const upstream = only(await surgeon.capture([fd]));
      kernel.close(fd);
      fd = -1;
      if (round === 0) warmUpCodec(upstream);
      fd = only(await surgeon.adopt([upstream], { side: "upstream", shielded: round % 2 === 0 }));
      only(await surgeon.release([{ fd, snapshot: upstream, side: "upstream", probe: false }]));
      fd = TcpLeg.attach(kernel, fd).detach().fd;
      if (round % TURN_ROUNDS === 0) await nextTurn();
    }
  } catch (cause) {
    throw fail("PROXY_NOT_ABLE", `this node cannot adopt connections: ${messageOf(cause)}`, { cause });
  } finally {
    for (const each of [listener, peer, fd]) if (each >= 0) kernel.close(each);
  }
}

function only<T>([outcome]: Outcome<T>[]): T {
  if (outcome?.ok) return outcome.value;
  throw outcome?.error ?? new Error("no outcome");
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
