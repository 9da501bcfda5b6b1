/**
 * WebSocket clients that connect, exchange one message and then say nothing. From several addresses of 127/8, so that
 * ports do not run out.
 */
import { once } from "node:events";
import { WebSocket } from "ws";
import { serve } from "./program.ts";

export interface IdleClientsAsk {
  port: number;
  /** open so many in all */
  sessions: number;
}

const ADDRESSES = 8;
/** under way at a time: all of a listener's backlog is not taken */
const OPENING_MAX = 64;
const OPEN_MS_MAX = 20_000;

const clients: WebSocket[] = [];
let lost = 0;

async function openOne(port: number): Promise<void> {
  const localAddress = `127.0.0.${2 + (clients.length % ADDRESSES)}`;
  const client = new WebSocket(`ws://127.0.0.1:${port}/`, {
    localAddress,
    perMessageDeflate: false,
    handshakeTimeout: OPEN_MS_MAX,
  });
  clients.push(client);
  await once(client, "open");
  client.send("idle from here on");
  await once(client, "message", { signal: AbortSignal.timeout(OPEN_MS_MAX) });
  client.on("error", () => {}); // "close" follows
  client.once("close", () => lost++);
}

/** @returns how many it has, and how many of those it has opened are lost */
async function open({ port, sessions }: IdleClientsAsk): Promise<{ open: number; lost: number }> {
  const opener = async (): Promise<void> => {
    while (clients.length < sessions) await openOne(port);
  };
  await Promise.all(Array.from({ length: OPENING_MAX }, opener));
  return { open: clients.length - lost, lost };
}

serve(open);
