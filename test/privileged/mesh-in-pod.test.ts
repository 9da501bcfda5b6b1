/** Rules in a pod's network beside a mesh's own: who has a client first, and who is kept out in a move. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createServer, type Server } from "node:http";
import { after, before, it } from "node:test";
import { closeDoor, openDoor } from "#control/runtime/cri/door.ts";
import { leadClients } from "#control/runtime/led-clients.ts";
import { listenAt } from "../envoy/in-network.ts";
import { createLab, type Lab, type LabProcess, type Place } from "../lab/lab.ts";

const APP_PORT = 9000;
const MESH_PORT = 15_006;
const PROXY_PORT = 15_900;
/** what Istio's sidecar and agent come from, over the loopback device */
const MESH = "127.0.0.6";
/** as Istio's init container makes them (tools/istio-nftables/pkg/capture) */
const MESH_RULES = `table inet mesh {
  chain prerouting { type nat hook prerouting priority dstnat; meta l4proto tcp redirect to :${MESH_PORT}; }
  chain output { type nat hook output priority -100; oifname "lo" ip saddr ${MESH} return; }
}`;
const NOBODY = 28;

let lab: Lab;
let pod: Place;
let inside: LabProcess;
const servers: Server[] = [];

before(async () => {
  lab = await createLab({ nodes: ["pod"], redis: false });
  pod = lab.place("pod");
  inside = lab.spawn("pod", ["sleep", "infinity"]);
  for (const [port, name] of [
    [APP_PORT, "application"],
    [MESH_PORT, "mesh"],
    [PROXY_PORT, "proxy"],
  ] as const) {
    const server = createServer((_, response) => response.end(name));
    server.listen({ fd: listenAt(pod, { address: "0.0.0.0", port }) });
    servers.push(server);
  }
});
after(async () => {
  for (const server of servers) server.close();
  await lab?.close();
});

/** Who answers at the application's port of the pod's address; "nobody": no connection comes about. */
async function whoAnswers(from: string, source?: string): Promise<string> {
  const bound = source === undefined ? [] : ["--interface", source];
  const url = `http://${pod.address}:${APP_PORT}/`;
  const { status, stdout } = await lab.run(from, ["curl", "-sS", "--max-time", "1", ...bound, url]);
  return status === NOBODY ? "nobody" : stdout;
}

const nft = (rules: string): void =>
  void execFileSync("nsenter", [`--net=/run/netns/${pod.netns}`, "--", "nft", "-f", "-"], { input: rules });

it("keeps a mesh's agent from the application while it is moved, as whoever else comes to the pod's address", async () => {
  assert.equal(await whoAnswers("pod", MESH), "application");
  await closeDoor(inside.pid, [APP_PORT]);
  assert.deepEqual(
    [await whoAnswers("pod", MESH), await whoAnswers("client"), await whoAnswers("pod", "127.0.0.1")],
    ["nobody", "nobody", "application"],
  );
  await openDoor(inside.pid);
  assert.equal(await whoAnswers("pod", MESH), "application");
});

it("leads clients to the proxy after a mesh's sidecar has had them, and straight where there is none", async () => {
  // the mesh's are there before the application; of rules with one priority the kernel asks the latest first
  nft(MESH_RULES);
  const lead = (): Promise<void> => leadClients(inside.pid, new Map([[APP_PORT, PROXY_PORT]]));
  await lead();
  const all = async (): Promise<string[]> => [
    await whoAnswers("client"),
    await whoAnswers("pod", MESH),
    await whoAnswers("pod", "127.0.0.1"),
  ];
  assert.deepEqual(await all(), ["mesh", "proxy", "application"]);
  // rules are replaced when the proxy is another
  await lead();
  assert.deepEqual(await all(), ["mesh", "proxy", "application"]);
  nft("delete table inet mesh");
  assert.deepEqual(await all(), ["proxy", "proxy", "application"]);
});
