/**
 * Malformed input in mid-move: each entry is sent half before the move, some more while it is under way, and the rest after
 * it, to an application that sends back every byte mixed with its number. So what a client reads says whether the
 * application has had exactly the bytes that were sent, once and in order, whatever the proxies believed of them.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MALFORMED, type Malformed } from "#test/support/malformed.ts";
import { lacking, type MovedProgram, withProgram } from "#test/support/moved-program.ts";
import { RawEnd } from "#test/support/raw-ends.ts";
import { nodeBinary, projectRoot } from "../lab/lab.ts";

const PORTS = [
  { listen: 8080, protocol: "auto", continuity: "transplant" },
  { listen: 8081, protocol: "http", continuity: "transplant" },
  { listen: 8082, protocol: "websocket", continuity: "transplant" },
];
/** every so many of the corpus on each port: a move carries some hundred sessions */
const STRIDE = 3;
const skip = lacking();

/** As test/apps/echo/server.js answers. */
function echoed(bytes: Buffer): Buffer {
  return Buffer.from(bytes.map((byte, at) => byte ^ ((at ^ (at >>> 8) ^ (at >>> 16)) & 0xff)));
}

interface Sender {
  entry: Malformed;
  end: RawEnd;
  port: number;
}

async function sendRest(senders: Sender[], from: number, to: number): Promise<void> {
  for (const { entry, end } of senders) {
    const { length } = entry.bytes;
    end.socket.write(entry.bytes.subarray(Math.floor(length * from), Math.floor(length * to)));
  }
}

async function allEchoed(senders: Sender[], upTo: number): Promise<void> {
  for (const { entry, end, port } of senders) {
    const what = `${entry.name} on ${port}`;
    const sent = entry.bytes.subarray(0, Math.floor(entry.bytes.length * upTo));
    await end.has(sent.length);
    assert.equal(end.over, null, what);
    assert.deepEqual(end.received, echoed(sent), what);
  }
}

async function moveWith(program: MovedProgram, to: string): Promise<void> {
  const entries = MALFORMED.filter(({ bytes }) => bytes.length > 1);
  const senders: Sender[] = [];
  for (const [lane, { listen }] of PORTS.entries())
    for (let at = lane; at < entries.length; at += STRIDE) {
      const entry = entries[at] as Malformed;
      senders.push({ entry, port: listen, end: new RawEnd(await program.connect(listen)) });
    }
  await sendRest(senders, 0, 0.5);
  await allEchoed(senders, 0.5);
  const moving = program.move(to);
  // Under way while the move is: held, in queues, or through before the hold.
  await sendRest(senders, 0.5, 0.75);
  const { sessions } = await moving;
  assert.ok(sessions >= senders.length, `${sessions} sessions moved of ${senders.length}`);
  await sendRest(senders, 0.75, 1);
  await allEchoed(senders, 1);
  for (const { end } of senders) end.socket.end();
  for (const { entry, end } of senders) assert.equal(await end.ending(), "end", entry.name);
}

for (const downstream of ["takeover", "forward"] as const)
  describe(`malformed input in mid-move, ${downstream}`, { timeout: 600_000, skip }, () => {
    it("reaches the application once, there and back", async () => {
      const workload = {
        container: {
          command: [nodeBinary, "server.js"],
          cwd: `${projectRoot}/test/apps/echo`,
          env: { PORT: "9000" },
          rootfs: "host",
        },
        ports: PORTS.map((port) => ({ ...port, upstream: "127.0.0.1:9000" })),
      };
      await withProgram({ downstream, workload }, async (program) => {
        await moveWith(program, "b");
        await moveWith(program, "a");
      });
    });
  });
