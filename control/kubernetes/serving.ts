/** What webhook and controller do alike as servers. */
import { once } from "node:events";
import type { Server } from "node:net";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { formatEndpoint } from "../config/endpoint.ts";

/** @throws HoldfastError `LISTEN_FAILED` */
export async function listenAt(server: Server, { address, port }: Endpoint): Promise<void> {
  server.listen(port, address);
  await once(server, "listening").catch((cause: unknown) => {
    throw fail(
      "LISTEN_FAILED",
      `cannot listen at ${formatEndpoint({ address, port })}: ${messageOf(cause)}`,
      { cause },
    );
  });
}

/** For `/readyz`. @param reason null: it is ready */
export function readiness(reason: string | null): { ready: true } | { ready: false; reason: string } {
  return reason === null ? { ready: true } : { ready: false, reason };
}
