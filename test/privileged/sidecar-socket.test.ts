/** The socket of a proxy in a pod, as an agent comes to it: clients' bytes are parsed there, so whatever is in its place leads nowhere outside. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { after, before, describe, it } from "node:test";
import { ProxyClient } from "#control/workload/proxy-client.ts";
import { SIDECAR_SOCKET } from "#proxy/contract/commands.ts";
import { endContained, startContained } from "./sidecar-stage.ts";
import { lacking } from "./tcp-stage.ts";

/** a socket of the node's, and of nobody else's */
const OF_NODE = `/run/hf-node-${process.pid}.sock`;

const STAYS = "sleep 1000";

describe("a proxy in a container", { skip: lacking() }, () => {
  let node: Server;
  let asked = 0;

  before(async () => {
    node = createServer((socket) => {
      asked++;
      socket.destroy();
    }).listen(OF_NODE);
    await once(node, "listening");
  });
  after(() => {
    endContained();
    node.close();
    rmSync(OF_NODE, { force: true });
  });

  it("is found by its socket", async () => {
    const listen = `require("net").createServer().listen("${SIDECAR_SOCKET}", () => console.log("listens"))`;
    const said = "until grep -q listens /run/said 2>/dev/null; do sleep 0.01; done";
    const there = await startContained(
      `{ ${process.execPath} -e '${listen}' >/run/said & } && ${said}`,
      STAYS,
    );
    const found = await ProxyClient.of({ process: there, address: "192.0.2.1" });
    assert.ok(found?.isOpen);
    found.disconnect();
  });

  it("leads to nothing of the node where its socket is a link", async () => {
    for (const link of [OF_NODE, `../../../../..${OF_NODE}`, "/proc/self/root/proc/1/root/run/x"]) {
      const there = await startContained(`ln -s ${link} ${SIDECAR_SOCKET}`, STAYS);
      assert.equal(await ProxyClient.of({ process: there, address: "192.0.2.1" }), null, link);
    }
    assert.equal(asked, 0);
  });
});
