/** Which route a connection takes, however its first bytes are cut. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import type { GatewayRoute } from "#proxy/contract/gateway.ts";
import { ROUTE_BYTES_MAX, RouteChooser } from "#proxy/protocol/route.ts";

function route(to: string, named: Partial<GatewayRoute> = {}): GatewayRoute {
  return { sni: null, host: null, path: null, session: null, workloads: [to], port: 1, ...named };
}

const ROUTES = [
  route("tls", { sni: ["chat.example", "*.chat.example"] }),
  route("ws", { host: ["chat.example"], path: "/ws" }),
  route("chat", { host: ["chat.example", "::1"] }),
  route("assets", { path: "/assets/" }),
];
const ALL = [...ROUTES, route("rest")];

/** of a ClientHello of TLS 1.3 that names a host, or none */
function clientHello(name: string | null): Buffer {
  const u16 = (value: number): Buffer => Buffer.of(value >> 8, value & 0xff);
  const vector = (bytes: Buffer): Buffer => Buffer.concat([u16(bytes.length), bytes]);
  const host = Buffer.from(name ?? "");
  const sni = Buffer.concat([u16(0), vector(vector(Buffer.concat([Buffer.of(0), vector(host)])))]);
  const extensions = vector(name === null ? Buffer.alloc(0) : sni);
  const body = Buffer.concat([
    u16(0x303),
    Buffer.alloc(32),
    Buffer.of(0),
    vector(u16(0x1301)),
    Buffer.of(1, 0),
    extensions,
  ]);
  const message = Buffer.concat([Buffer.of(1, 0), vector(body)]);
  return Buffer.concat([Buffer.of(22, 3, 1), vector(message)]);
}

function choose(bytes: Buffer | string, routes: readonly GatewayRoute[] = ALL, done = false): string {
  const choice = new RouteChooser(routes).choose(Buffer.from(bytes as string), done);
  return choice.is === "route" ? (choice.route.workloads[0] as string) : choice.is;
}

const get = (target: string, ...fields: string[]): string =>
  `GET ${target} HTTP/1.1\r\n${fields.join("\r\n")}\r\n\r\n`;

describe("a gateway's routes", () => {
  it("go by the name in a ClientHello", () => {
    assert.equal(choose(clientHello("chat.example")), "tls");
    assert.equal(choose(clientHello("CHAT.example.")), "tls");
    assert.equal(choose(clientHello("a.b.chat.example")), "tls");
    assert.equal(choose(clientHello("notchat.example")), "rest");
    assert.equal(choose(clientHello(null)), "rest");
    assert.equal(choose(clientHello("other.example"), ROUTES), "none");
  });

  it("go by the host and path of the first request", () => {
    assert.equal(choose(get("/ws", "Host: chat.example")), "ws");
    assert.equal(choose(get("/ws/room?x=1", "Host: Chat.Example:8080")), "ws");
    assert.equal(choose(get("/wsx", "Host: chat.example")), "chat");
    assert.equal(choose(get("/", "Host: [::1]:80")), "chat");
    assert.equal(choose(get("/assets/a.js", "Host: other")), "assets");
    assert.equal(choose(get("/assets", "Host: other")), "rest");
    assert.equal(choose(get("http://chat.example/ws", "Host: other")), "ws", "the target comes first");
    assert.equal(choose(get("http://chat.example", "Host: other")), "chat");
    assert.equal(choose(get("/")), "rest");
    assert.equal(choose(get("/", "Host: other"), ROUTES), "none");
  });

  it("that name something are not for what cannot be read for certain", () => {
    assert.equal(choose(get("/ws", "Host: chat.example", "Host: other")), "rest");
    assert.equal(choose(get("/ws", "Host: chat.example", " folded: x")), "rest");
    assert.equal(choose("PING\r\n"), "rest");
    assert.equal(choose("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "rest");
    assert.equal(choose("PING\r\n", ROUTES), "none");
  });

  it("wait for what is not complete, within bounds", () => {
    assert.equal(choose("GET /ws HT"), "incomplete");
    assert.equal(choose("GET /ws HTTP/1.1\r\nHost: chat.exam"), "incomplete");
    assert.equal(choose(clientHello("chat.example").subarray(0, 50)), "incomplete");
    assert.equal(choose(""), "incomplete");
    assert.equal(choose("", ALL, true), "rest");
    assert.equal(choose("GET /ws HTTP/1.1\r\nHost: chat.exam", ALL, true), "rest");
    assert.equal(choose(`GET / HTTP/1.1\r\nHost: chat.example\r\nx: ${"y".repeat(ROUTE_BYTES_MAX)}`), "rest");
  });

  it("are the same however the bytes are cut", () => {
    const streams = [
      clientHello("a.chat.example"),
      Buffer.from(`${get("/ws", "Host: chat.example")}more`),
      Buffer.from(get("/assets/x", "Host: a", "X: y")),
    ];
    fc.assert(
      fc.property(fc.constantFrom(...streams), fc.array(fc.integer({ min: 1, max: 40 })), (stream, cuts) => {
        const chooser = new RouteChooser(ALL);
        for (let at = 0, i = 0; at < stream.length; i++) {
          at += cuts.length === 0 ? 1 : (cuts[i % cuts.length] as number);
          const choice = chooser.choose(stream.subarray(0, at), false);
          if (choice.is === "incomplete") continue;
          assert.equal(choice.is === "route" ? choice.route.workloads[0] : choice.is, choose(stream));
          return;
        }
        assert.fail("it was never known");
      }),
    );
  });
});
