/**
 * Malformed and ambiguous input to real servers, directly and through the proxy: the server sees the same requests on as
 * many connections, the client gets the same answers. So whatever the server makes of it, the proxy has made nothing more.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, it } from "node:test";
import { WebSocketServer } from "ws";
import { MALFORMED, type Malformed } from "#test/support/malformed.ts";
import { MalformedStage, type PortShape } from "#test/support/malformed-stage.ts";
import { until } from "#test/support/moved-program.ts";
import { RawEnd } from "#test/support/raw-ends.ts";
import { type RealServer, startNginx, startNodeServer, startPython } from "#test/support/real-servers.ts";

const SHAPES: PortShape[] = [
  { protocol: "auto", continuity: "transplant" },
  { protocol: "http", continuity: "transplant" },
];

/** What a client got, by the entry's name: the bytes, and how it ended. */
type Answers = Map<string, { text: string; over: string }>;

const DATE = /^date: .*$/gim;

const ofClients = (protocol: "http" | "websocket"): Malformed[] =>
  MALFORMED.filter((entry) => entry.side === "client" && entry.protocol === protocol);

/** Each entry on a connection of its own, all at once. */
async function sendAll(entries: Malformed[], port: number, clientEnds: boolean): Promise<Answers> {
  const answers: Answers = new Map();
  await Promise.all(
    entries.map(async (entry) => {
      const end = await RawEnd.dial(port);
      const { bytes, handshakeBytes } = entry;
      if (handshakeBytes > 0) {
        end.socket.write(bytes.subarray(0, handshakeBytes));
        await end.until(
          "the handshake's answer",
          () => end.received.includes("\r\n\r\n") || end.over !== null,
        );
      }
      end.socket.write(bytes.subarray(handshakeBytes));
      if (clientEnds) end.socket.end();
      const over = await end.ending();
      end.socket.end();
      answers.set(entry.name, { text: end.received.toString("latin1").replaceAll(DATE, "Date"), over });
    }),
  );
  return answers;
}

/** An answer that a reset has cut short is as much of the other one as had arrived. */
function assertSame(through: Answers, direct: Answers): void {
  for (const [name, { text, over }] of through) {
    const other = direct.get(name);
    assert.ok(other !== undefined);
    if (over === "end" && other.over === "end") assert.equal(text, other.text, name);
    else
      assert.ok(
        text.startsWith(other.text) || other.text.startsWith(text),
        `${name}: ${text} against ${other.text}`,
      );
  }
  assert.equal(through.size, direct.size);
}

async function compare(
  entries: Malformed[],
  server: { port: number; waitsForEnd: boolean; settled?(): Promise<void>; seen(): string[] },
  shapes: PortShape[],
): Promise<void> {
  const direct = await sendAll(entries, server.port, server.waitsForEnd);
  await server.settled?.();
  const directly = server.seen();
  assert.ok(directly.length > entries.length / 2, `only ${directly.length} connections had anything to tell`);
  const stage = await MalformedStage.start(shapes.map((shape) => ({ port: server.port, shape })));
  try {
    for (const [at, shape] of shapes.entries()) {
      const through = await sendAll(entries, stage.ports[at] as number, server.waitsForEnd);
      await server.settled?.();
      assert.deepEqual(server.seen(), directly, `what the server saw, ${JSON.stringify(shape)}`);
      assertSame(through, direct);
    }
    await stage.proxy.untilSessions(0);
    assert.ok(stage.isAlive);
  } finally {
    await stage.stop();
  }
}

describe("malformed requests to a real server, directly and through the proxy", { timeout: 300_000 }, () => {
  const servers: [name: string, start: () => Promise<RealServer>][] = [
    ["node:http", startNodeServer],
    ["nginx", startNginx],
    ["Python's http.server", startPython],
  ];
  for (const [name, start] of servers)
    it(`${name} sees the same requests and answers the same`, async () => {
      const server = await start();
      try {
        await compare(ofClients("http"), server, SHAPES);
      } finally {
        await server.stop();
      }
    });
});

describe("malformed frames to a real WebSocket server, directly and through the proxy", {
  timeout: 300_000,
}, () => {
  it("ws sees the same messages and failures, and closes with the same codes", async () => {
    let lines: string[][] = [];
    let open = 0;
    const http = createServer((_, response) => response.writeHead(426).end());
    // With its bound on pongs (60) ws destroys a connection in the middle of what it reads at once: how much that is, is the kernel's
    // matter. @types/ws does not know the option yet.
    const unbounded = { maxPendingAutoPongs: 0 };
    const sockets = new WebSocketServer({ server: http, maxPayload: 1024 * 1024, ...unbounded });
    http.on("connection", (socket) => socket.on("error", () => {}));
    sockets.on("connection", (socket) => {
      const seen: string[] = [];
      lines.push(seen);
      open++;
      socket.on("message", (data, isBinary) =>
        seen.push(`message ${isBinary} ${String(data).slice(0, 20)} ${String(data).length}`),
      );
      socket.on("ping", (data) => seen.push(`ping ${data.length}`));
      socket.on("error", (error: NodeJS.ErrnoException) => seen.push(`${error.code} ${error.message}`));
      socket.on("close", (code, reason) => {
        seen.push(`close ${code} ${reason}`);
        open--;
      });
    });
    http.listen(0, "127.0.0.1");
    await once(http, "listening");
    const server = {
      port: (http.address() as AddressInfo).port,
      waitsForEnd: true,
      // a client's end may be seen before the server's own event of it
      settled: () => until("all are closed", () => open === 0),
      seen() {
        const all = lines.map((each) => each.join("; ")).sort();
        lines = [];
        return all;
      },
    };
    try {
      await compare(ofClients("websocket"), server, [
        { protocol: "auto", continuity: "transplant" },
        { protocol: "websocket", continuity: "transplant" },
      ]);
    } finally {
      sockets.close();
      http.closeAllConnections();
      http.close();
    }
  });
});
