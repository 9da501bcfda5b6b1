/**
 * Runs the steps of a cutover on a connection of our own before a client's session depends on them: the first hundreds
 * of captures and adoptions of a process are several times slower (compilation, FFI set-up), and a target that
 * cannot adopt at all says so before anybody is held.
 */
import { once } from "node:events";
import net from "node:net";
import { setImmediate as nextTurn } from "node:timers/promises";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { LegSnapshot } from "#proxy/contract/snapshot.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import { TcpLeg } from "#proxy/relay/tcp-leg.ts";
import type { LegKernel } from "./leg-kernel.ts";

const ROUNDS = 150;
/** a snapshot has about 60 fields: too few rounds for V8 to optimize what writes and reads them */
const SESSIONS_ENCODED = 4_000;

/** @throws HoldfastError `PROXY_NOT_ABLE`: no capability, no loopback interface, or a kernel without TCP_REPAIR */
export async function warmUp(kernel: LegKernel): Promise<void> {
  const server = net.createServer();
  server.listen(0, "127.0.0.1");
  try {
    await once(server, "listening");
    const client = net.connect((server.address() as net.AddressInfo).port, "127.0.0.1");
    const [[peer]] = (await Promise.all([once(server, "connection"), once(client, "connect")])) as [
      [net.Socket],
      unknown,
    ];
    let fd = kernel.dup((client as unknown as { _handle: { fd: number } })._handle.fd);
    client.destroy();
    for (let round = 0; round < ROUNDS; round++) {
      const upstream = kernel.captureLeg(fd);
      kernel.close(fd);
      if (round === 0) warmUpCodec(upstream);
      fd = kernel.adoptLeg(upstream, { shielded: round % 2 === 0 });
      kernel.releaseLeg(fd, upstream, { probe: false });
      fd = TcpLeg.attach(kernel, fd).detach().fd;
      // Until Node has let go of its own descriptor the addresses are in use.
      await nextTurn();
    }
    kernel.close(fd);
    peer.destroy();
  } catch (cause) {
    throw new HoldfastError(`this node cannot adopt connections: ${messageOf(cause)}`, {
      code: "PROXY_NOT_ABLE",
      source: "kernel",
      cause,
    });
  } finally {
    server.close();
  }
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
  edge: "here",
  acceptedAtMs: 0,
  bytesIn: 0,
  bytesOut: 0,
  downstream: null,
  pendingIn: Buffer.alloc(0),
  pendingOut: Buffer.alloc(0),
  finIn: "none",
  finOut: "none",
  watch: Buffer.alloc(0),
} as const;
