/**
 * Clients of test/apps/echo (counted) that do as they are told, one JSON command a line on standard input, each answered
 * with one line: the state of the client concerned. Started by test/support/odd-clients.ts in the clients' namespace.
 */
import { connect } from "node:net";
import { CountedClient } from "#test/support/counted-client.ts";
import { readLines } from "./protocol.ts";

export interface OddCommand {
  id: string;
  /**
   * open: connect; send: so many bytes; pause, resume: stop reading, and start; end: FIN, still reading; reset: RST;
   * settle: wait until everything sent was answered; until-over: wait for the application's end, or the connection's;
   * look: only tell
   */
  do: "open" | "send" | "pause" | "resume" | "end" | "reset" | "settle" | "until-over" | "look";
  bytes?: number;
  timeoutMs?: number;
}

export interface OddState {
  id: string;
  sentBytes: number;
  answeredBytes: number;
  over: string | null;
  corruptAt: number;
}

const target = JSON.parse(process.argv[2] ?? "{}") as { address: string; port: number };
const clients = new Map<string, CountedClient>();
const SETTLE_MS_MAX = 8_000;

async function obey(command: OddCommand): Promise<void> {
  let client = clients.get(command.id);
  if (client === undefined) {
    const socket = connect({ host: target.address, port: target.port, noDelay: true, allowHalfOpen: true });
    client = new CountedClient(socket, { seed: clients.size });
    clients.set(command.id, client);
  }
  const { socket } = client;
  if (command.do === "send") client.send(command.bytes ?? 0);
  else if (command.do === "pause") socket.pause();
  else if (command.do === "resume") socket.resume();
  else if (command.do === "end") socket.end();
  else if (command.do === "reset") socket.resetAndDestroy();
  else if (command.do === "settle" || command.do === "until-over") {
    const late = setTimeout(() => socket.destroy(new Error("late")), command.timeoutMs ?? SETTLE_MS_MAX);
    if (command.do === "until-over") await client.untilOver();
    else await client.settled().catch(() => {}); // the state tells
    clearTimeout(late);
  }
  const { sentBytes, answeredBytes, over, corruptAt } = client;
  const state: OddState = { id: command.id, sentBytes, answeredBytes, over, corruptAt };
  process.stdout.write(`${JSON.stringify(state)}\n`);
}

let queue: Promise<void> = Promise.resolve();
readLines<OddCommand>(process.stdin, (command) => {
  queue = queue.then(() => obey(command));
});
process.stdin.once("end", () => {
  for (const { socket } of clients.values()) socket.destroy();
});
