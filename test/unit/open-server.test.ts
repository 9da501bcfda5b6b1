import assert from "node:assert/strict";
import { createServer } from "node:net";
import { describe, it } from "node:test";
import { openServer } from "#proxy/contract/open-server.ts";

describe("a server that is opened", () => {
  it("goes on when a connection cannot be accepted, and says so each time", async () => {
    const server = createServer();
    const told: string[] = [];
    await openServer(server, { address: "127.0.0.1", port: 0 }, ({ message }) => told.push(message));
    for (const code of ["EMFILE", "ENFILE"]) server.emit("error", new Error(`accept ${code}`));
    assert.deepEqual(told, ["accept EMFILE", "accept ENFILE"]);
    assert.ok(server.listening);
    server.close();
  });

  it("throws where it cannot listen, and says that nowhere else", async () => {
    const [one, other] = [createServer(), createServer()];
    const never = ({ message }: Error): void => assert.fail(message);
    await openServer(one, { address: "127.0.0.1", port: 0 }, never);
    const { port } = one.address() as { port: number };
    await assert.rejects(openServer(other, { address: "127.0.0.1", port }, never), /EADDRINUSE/);
    one.close();
  });
});
