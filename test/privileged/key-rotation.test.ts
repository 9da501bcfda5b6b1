/** The key that all nodes share is changed while they serve: in three steps, one node after the other. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { keyId } from "#proxy/contract/shared-keys.ts";
import type { MoveStage, NodeName } from "#test/support/move-stage.ts";
import { staged } from "#test/support/staged.ts";

const [before, added] = [randomBytes(32), randomBytes(32)];
const NODES: NodeName[] = ["a", "b"];

interface Shown {
  keys: { ids: string[]; problem: string | null };
  peers: { connected: boolean; reason?: string }[];
}

const fileOf = (dir: string, node: NodeName): string => join(dir, `${node}.key`);
const text = (keys: Buffer[]): string => keys.map((key) => `${key.toString("hex")}\n`).join("");

async function shown(stage: MoveStage, node: NodeName): Promise<Shown> {
  return (await stage.status(node)) as Shown;
}

/** In place at a, as another file of that name at b; resolves when the agent uses them. */
async function change(stage: MoveStage, node: NodeName, keys: Buffer[]): Promise<void> {
  const file = fileOf(stage.lab.dir, node);
  if (node === "a") writeFileSync(file, text(keys));
  else {
    writeFileSync(`${file}.new`, text(keys), { mode: 0o600 });
    renameSync(`${file}.new`, file);
  }
  const ids = keys.map(keyId).join();
  await stage.until(async () => {
    const { keys: used } = await shown(stage, node);
    return used.ids.join() === ids && used.problem === null;
  });
}

async function moved(stage: MoveStage): Promise<void> {
  const { end, reason } = await stage.migrate();
  assert.deepEqual({ end, reason }, { end: "moved", reason: "" }, stage.logs());
  await stage.assertStays(stage.other);
}

describe("the key that all nodes share", { timeout: 300_000 }, () => {
  const on = staged({
    downstream: "forward",
    agentOf(node, { dir }) {
      const file = fileOf(dir, node);
      if (!existsSync(file)) writeFileSync(file, before, { mode: 0o600 });
      return { key: `file:${file}` };
    },
  });

  it(
    "is changed in three steps on one node after the other, and sessions and moves go on in between",
    on(async (stage) => {
      for (const keys of [[before, added], [added, before], [added]]) {
        await change(stage, "a", keys);
        await moved(stage);
        await change(stage, "b", keys);
      }
      await stage.assertWell();
      for (const node of NODES)
        assert.doesNotMatch(stage.agent(node).stderr, /link refused|"refused /, "nobody was refused");
    }),
  );

  it(
    "is not shown to the application when its file is replaced",
    on(async (stage) => {
      const node = stage.owner;
      const file = fileOf(stage.lab.dir, node);
      stage.shell(
        `${stage.enter(node)}\nnsenter --target $INIT --mount --root -- sh -c 'test -e ${file} && ! cat ${file} 2>/dev/null | grep -q .'`,
      );
    }),
  );

  it(
    "is what it was where the file is damaged, and status says so",
    on(async (stage) => {
      writeFileSync(fileOf(stage.lab.dir, "b"), "not a key\n");
      await stage.until(async () => /64 hex digits/.test((await shown(stage, "b")).keys.problem ?? ""));
      assert.match(
        (await stage.lab.cli("b", ["status"])).stdout,
        /^keys [0-9a-f]{8} .*b\.key cannot be used/m,
      );
      assert.match(stage.agent("b").stderr, /"level":50.*cannot be used/);
      assert.equal((await shown(stage, "b")).peers[0]?.connected, true);
      await change(stage, "b", [added]);
    }),
  );

  it(
    "opens nothing any more when it was removed: a node that has no other is refused, and told why",
    on(async (stage) => {
      await change(stage, "a", [added]);
      await change(stage, "b", [before]);
      const [peer] = (await shown(stage, "b")).peers;
      assert.equal(peer?.connected, false);
      assert.match(peer?.reason ?? "", /refused our key: is the same key file on both nodes/);
      const line = `it says that it is node b, and its key ${keyId(before)} is not in our key file (there are: ${keyId(added)})`;
      await stage.until(() => stage.agent("a").stderr.includes(line));
      await change(stage, "b", [added]);
      await stage.assertWell();
    }),
  );
});
