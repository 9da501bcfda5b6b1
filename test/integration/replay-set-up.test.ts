/**
 * Protocols that begin with something the client says once, over an application that is restarted: with their real clients, and
 * what each `setUp` gives to the next life.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { after, afterEach, before, describe, it } from "node:test";
import { GraphQLObjectType, GraphQLSchema, GraphQLString } from "graphql";
import { createClient } from "graphql-ws";
import { useServer } from "graphql-ws/use/ws";
import { Server as SocketServer } from "socket.io";
import { io } from "socket.io-client";
import { WebSocket, WebSocketServer } from "ws";
import { type PortShape, ReplayStage } from "#test/support/mortal-application.ts";
import type { RawEnd } from "#test/support/raw-ends.ts";

const SHAPES: PortShape[] = [
  { protocol: "websocket" },
  { protocol: "websocket", setUp: "close" },
  { protocol: "websocket", setUp: "none" },
  { protocol: "websocket", setUp: 2 },
  { protocol: "websocket", setUp: 2, delivery: "atLeastOnce" },
];
const [AUTO, CLOSE, NONE, TWO, TWO_AT_LEAST] = [0, 1, 2, 3, 4] as const;
const RESTART = 1012;
const KEY = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT = createHash("sha1").update(`${KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");

const handshake = (target: string, protocol = ""): string =>
  `GET ${target} HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ${KEY}\r\nSec-WebSocket-Version: 13\r\n${protocol === "" ? "" : `Sec-WebSocket-Protocol: ${protocol}\r\n`}\r\n`;
const agreement = (protocol = ""): string =>
  `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n${protocol === "" ? "" : `Sec-WebSocket-Protocol: ${protocol}\r\n`}\r\n`;

/** A client's text message in one masked frame. */
function message(text: string): Buffer {
  const mask = Buffer.from([9, 8, 7, 6]);
  const payload = Buffer.from(text).map((byte, index) => byte ^ (mask[index % 4] as number));
  return Buffer.concat([Buffer.from([0x81, 0x80 | payload.length]), mask, payload]);
}

describe("what a new life of the application is told first", { timeout: 300_000 }, () => {
  let stage: ReplayStage;
  before(async () => {
    stage = await ReplayStage.start(SHAPES, { stallMsMax: 20, pingMs: 50, lingerMsMax: 200 });
  });
  afterEach(() => stage.clear());
  after(() => stage.stop());

  const portOf = (shape: number): number => stage.ports[shape] as number;

  async function open(
    shape: number,
    target = "/chat",
    protocol = "",
  ): Promise<{ client: RawEnd; server: RawEnd }> {
    const { client, server } = await stage.pair(handshake(target, protocol), portOf(shape));
    server.socket.write(agreement(protocol));
    await client.has(agreement(protocol).length);
    return { client, server };
  }

  /** Sends them and waits until the application has them, and has answered. */
  async function tell(
    { client, server }: { client: RawEnd; server: RawEnd },
    texts: string[],
  ): Promise<void> {
    for (const text of texts) {
      const [had, got] = [server.receivedBytes, client.receivedBytes];
      client.socket.write(message(text));
      await server.has(had + message(text).length);
      server.socket.write(Buffer.from([0x81, 2, 0x6f, 0x6b]));
      await client.has(got + 4);
    }
  }

  async function closeCode(client: RawEnd): Promise<number> {
    assert.equal(await client.ending(), "end");
    const at = client.received.lastIndexOf(0x88);
    return client.received.readUInt16BE(at + 2);
  }

  /** What the next life gets behind the handshake, of so many bytes. */
  async function nextLife(target: string, bytes: number): Promise<Buffer> {
    const server = await stage.application.accept();
    await server.has(handshake(target).length);
    server.socket.write(agreement());
    await server.has(handshake(target).length + bytes);
    return server.received.subarray(handshake(target).length);
  }

  for (const [what, target, protocol, first] of [
    ["MQTT", "/mqtt", "mqtt", "CONNECT"],
    ["STOMP", "/stomp", "v12.stomp", "CONNECT"],
    ["WAMP", "/", "wamp.2.json", "[1]"],
    ["socket.io", "/socket.io/?EIO=4&transport=websocket", "", "40"],
    ["SignalR", "/hub?id=1", "", '{"protocol":"json","version":1}\x1e'],
  ] as const)
    it(`${what} is recognised, and its client told to begin anew`, async () => {
      const ends = await open(AUTO, target, protocol);
      await tell(ends, [first]);
      await stage.application.restart();
      assert.equal(await closeCode(ends.client), RESTART);
    });

  it("nothing is said to clients of other protocols, or where the port says that nothing is needed", async () => {
    for (const [shape, target] of [
      [AUTO, "/chat"],
      [NONE, "/socket.io/?EIO=4&transport=websocket"],
    ] as const) {
      const ends = await open(shape, target);
      await tell(ends, ["40", '{"protocol":1}']);
      await stage.application.restart();
      ends.client.socket.write(message("next"));
      assert.ok((await nextLife(target, message("next").length)).equals(message("next")));
      assert.equal(ends.client.over, null);
      ends.client.socket.resetAndDestroy();
    }
  });

  it("setUp: close ends the connection of any protocol, so that its client begins anew", async () => {
    const { client } = await open(CLOSE);
    await stage.application.restart();
    assert.equal(await closeCode(client), RESTART);
  });

  it("setUp: 2 gives the client's first two messages again, and then what it says next", async () => {
    const ends = await open(TWO);
    await tell(ends, ["who I am", "what I want", "a question"]);
    for (let life = 0; life < 2; life++) {
      await stage.application.restart();
      ends.client.socket.write(message("next"));
      const expected = Buffer.concat(["who I am", "what I want", "next"].map(message));
      assert.ok((await nextLife("/chat", expected.length)).equals(expected), `restart ${life + 1}`);
    }
  });

  it("a first message that is given again anyway is given once", async () => {
    const ends = await open(TWO_AT_LEAST);
    await tell(ends, ["who I am"]);
    ends.client.socket.write(message("unanswered"));
    await ends.server.has(
      handshake("/chat").length + message("who I am").length + message("unanswered").length,
    );
    await stage.application.restart();
    const expected = Buffer.concat(["who I am", "unanswered"].map(message));
    ends.client.socket.write(message("next"));
    const all = Buffer.concat([expected, message("next")]);
    assert.ok((await nextLife("/chat", all.length)).equals(all));
  });

  it("socket.io's own client is served by the next life", async () => {
    stage.application.serve = (socket, life) => {
      const http = createServer();
      new SocketServer(http).on("connection", (peer) => {
        peer.on("echo", (text: string, answer: (text: string) => void) => answer(`${life}: ${text}`));
      });
      http.emit("connection", socket);
    };
    const client = io(`http://127.0.0.1:${portOf(AUTO)}`, {
      transports: ["websocket"],
      reconnectionDelay: 20,
      reconnectionDelayMax: 50,
    });
    try {
      const ask = (): Promise<string> => client.timeout(10_000).emitWithAck("echo", "hello");
      assert.match(await ask(), /^\d+: hello$/);
      const over = new Promise<string>((resolve) => client.once("disconnect", resolve));
      await stage.application.restart();
      await over;
      assert.equal(await ask(), `${stage.application.life}: hello`);
    } finally {
      client.disconnect();
    }
  });

  it("graphql-ws' own client goes on with its subscription", async () => {
    const schema = (life: number): GraphQLSchema =>
      new GraphQLSchema({
        query: new GraphQLObjectType({ name: "Query", fields: { life: { type: GraphQLString } } }),
        subscription: new GraphQLObjectType({
          name: "Subscription",
          fields: {
            life: {
              type: GraphQLString,
              subscribe: async function* () {
                yield { life: String(life) };
                await new Promise(() => {});
              },
            },
          },
        }),
      });
    stage.application.serve = (socket, life) => {
      const http = createServer();
      useServer({ schema: schema(life) }, new WebSocketServer({ server: http }));
      http.emit("connection", socket);
    };
    const client = createClient({
      url: `ws://127.0.0.1:${portOf(AUTO)}/graphql`,
      webSocketImpl: WebSocket,
      retryAttempts: 20,
      retryWait: () => new Promise((resolve) => setTimeout(resolve, 20)),
      shouldRetry: () => true,
    });
    try {
      const heard: string[] = [];
      const over = Promise.withResolvers<void>();
      client.subscribe<{ life: string }>(
        { query: "subscription { life }" },
        {
          next: ({ data }) => {
            heard.push(data?.life ?? "nothing");
            if (heard.length === 2) over.resolve();
          },
          error: (error) => over.reject(error),
          complete: () => over.reject(new Error("it is over")),
        },
      );
      await stage.until(
        "the first life says something",
        async () => heard.length,
        (count) => count > 0,
      );
      await stage.application.restart();
      await over.promise;
      assert.equal(heard[1], String(stage.application.life));
    } finally {
      await client.dispose();
    }
  });
});
