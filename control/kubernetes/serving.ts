/** What webhook and controller do alike as servers. */
import type { Server } from "node:net";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { openServer } from "#proxy/contract/open-server.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { formatEndpoint } from "../config/endpoint.ts";

/** @param onError a connection could not be accepted; the server goes on @throws HoldfastError `LISTEN_FAILED` */
export async function listenAt(
  server: Server,
  endpoint: Endpoint,
  onError: (error: Error) => void,
): Promise<void> {
  await openServer(server, endpoint, onError).catch((cause: unknown) => {
    throw fail("LISTEN_FAILED", `cannot listen at ${formatEndpoint(endpoint)}: ${messageOf(cause)}`, {
      cause,
    });
  });
}

/** For `/readyz`. @param reason null: it is ready */
export function readiness(reason: string | null): { ready: true } | { ready: false; reason: string } {
  return reason === null ? { ready: true } : { ready: false, reason };
}
