/** Two ends of a link over a real connection, from the first byte on. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { after, test } from "node:test";
import { LINK_WINDOW_BYTES } from "#proxy/link/link-flow.ts";
import { acceptLink, dialLink } from "#proxy/link/link-greeting.ts";
import type { LinkListener } from "#proxy/link/link-leg.ts";

const key = Buffer.alloc(32, 7);
const greeting = {
  session: "0123456789abcdef01234567",
  port: 0,
  epoch: 2,
  anchor: "a",
  client: "10.99.0.100:40000",
  acceptedAtMs: 1,
  fresh: false,
};
const sockets: Socket[] = [];
const server = createServer((socket) => sockets.push(socket));
server.listen(0, "127.0.0.1");
after(() => {
  for (const socket of sockets) socket.destroy();
  server.close();
});

function listener(over: (code: number) => void, more: Partial<LinkListener> = {}): LinkListener {
  return {
    onActive: () => {},
    onHold: () => {},
    onResume: () => {},
    onHeld: () => {},
    onOver: (_, code) => over(code),
    onBroken: (_, error) => {
      throw error;
    },
    ...more,
  };
}

async function serverEnd(): Promise<Socket> {
  const [socket] = (await once(server, "connection")) as [Socket];
  return socket;
}

test("an owner that says at once all that it has is heard: the welcome and a window of bytes in one piece", async () => {
  await (server.listening || once(server, "listening"));
  const { port } = server.address() as AddressInfo;
  const bytes = Buffer.alloc(LINK_WINDOW_BYTES, "x");
  const accepted = serverEnd();
  const received = Promise.withResolvers<number>();
  const dialled = dialLink({
    keys: [key],
    to: { address: "127.0.0.1", port },
    greeting,
    onReady: () => {},
    listener: listener((code) => received.reject(new Error(`the link is over: ${code}`)), {
      onActive(link) {
        let count = 0;
        link.listener = {
          onData(part: Buffer) {
            count += part.length;
            if (count === bytes.length) received.resolve(count);
          },
          onFin: () => {},
          onDrain: () => {},
          onReset: () => {},
          onBroken: (error) => received.reject(error),
        };
        link.startDelivering();
      },
    }),
  });
  const owner = acceptLink(await accepted, {
    keys: [key],
    onReady(link) {
      link.sendActive({ epoch: 2, bytesIn: 0, bytesOut: 0 });
      link.write(bytes);
    },
    onRefused: (reason) => received.reject(new Error(reason)),
    listener: listener(() => {}),
  });
  assert.equal(await received.promise, bytes.length);
  dialled.reset();
  owner.reset();
});

test("somebody who greets without end is not listened to", async () => {
  const { port } = server.address() as AddressInfo;
  const accepted = serverEnd();
  const stranger = connect(port, "127.0.0.1");
  const refused = Promise.withResolvers<string>();
  acceptLink(await accepted, {
    keys: [key],
    onReady: () => refused.reject(new Error("it was let in")),
    onRefused: refused.resolve,
    listener: listener(() => {}),
  });
  stranger.on("error", () => {});
  stranger.write(Buffer.alloc(64 * 1024));
  assert.match(await refused.promise, /cut off/);
  stranger.destroy();
});
