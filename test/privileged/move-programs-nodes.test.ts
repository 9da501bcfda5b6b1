/** Three nodes, forward: the clients' sockets stay where they came in, and every link goes straight to the owner. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { startLoad } from "../load/load.ts";
import { lacking, type MovedProgram, withProgram } from "../support/moved-program.ts";

const port = 8080;
const sessions = 20;

/** Who holds which clients, as each node's `sessions` says: "here", "anchor" or "owner", with the anchor's name. */
async function places(program: MovedProgram): Promise<Record<string, Record<string, number>>> {
  const all: Record<string, Record<string, number>> = {};
  for (const node of program.nodes) {
    const counts: Record<string, number> = {};
    for (const { place, anchor } of await program.sessions(node)) {
      const name = `${place} ${anchor}`;
      counts[name] = (counts[name] ?? 0) + 1;
    }
    all[node] = counts;
  }
  return all;
}

test("A→B→C→A with clients that come in at every stage, at every node", { skip: lacking() }, async () => {
  const workload = {
    container: {
      command: [nodeBinary, "server.js"],
      cwd: `${projectRoot}/test/apps/chat`,
      env: { PORT: "9000" },
      rootfs: "host",
    },
    ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
  };
  await withProgram({ downstream: "forward", workload, nodes: ["a", "b", "c"] }, async (program) => {
    const { lab } = program;
    const join = (node: string) =>
      startLoad(lab, "ws", { target: { address: lab.place(node).address, port }, sessions });
    const loads = [await join("a")];
    const check = async (): Promise<void> => {
      for (const load of loads) {
        const report = await load.report();
        const { alive, lost, repeated, corrupt, resets, problems } = report;
        assert.deepEqual(
          { alive, lost, repeated, corrupt, resets, problems },
          { alive: sessions, lost: 0, repeated: 0, corrupt: 0, resets: 0, problems: [] },
        );
      }
    };
    await program.move("b");
    loads.push(await join("b"));
    await check();
    assert.deepEqual(await places(program), {
      a: { "anchor a": sessions },
      b: { "owner a": sessions, "here b": sessions },
      c: {},
    });
    await program.move("c");
    loads.push(await join("c"));
    await check();
    assert.deepEqual(await places(program), {
      a: { "anchor a": sessions },
      b: { "anchor b": sessions },
      c: { "owner a": sessions, "owner b": sessions, "here c": sessions },
    });
    await program.move("a");
    await check();
    assert.deepEqual(await places(program), {
      a: { "here a": sessions, "owner b": sessions, "owner c": sessions },
      b: { "anchor b": sessions },
      c: { "anchor c": sessions },
    });
    for (const load of loads) await load.stop();
  });
});
