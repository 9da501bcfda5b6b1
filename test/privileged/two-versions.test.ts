/** A node with this version and one with the version before, as in the middle of an upgrade: moves go both ways, in both modes. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { type Downstream, MoveStage, PORT } from "#test/support/move-stage.ts";
import { OddClients } from "#test/support/odd-clients.ts";

/** the first commit whose agents speak version 3: the oldest that this version is to work with */
const BEFORE = "9bf0e33844";
const MUCH = 4 * 1024 * 1024;
const skip = hasHistory() ? false : `needs commit ${BEFORE}: a clone with its history`;
const folder = mkdtempSync(join(tmpdir(), "holdfast-before-"));
after(() => rmSync(folder, { recursive: true }));

function hasHistory(): boolean {
  try {
    execFileSync("git", ["cat-file", "-e", `${BEFORE}^{commit}`], { cwd: projectRoot, stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

function versionBefore(): string {
  const archive = execFileSync(
    "git",
    ["archive", "--format=tar", BEFORE, "bin", "control", "proxy", "package.json"],
    {
      cwd: projectRoot,
      maxBuffer: 1 << 26,
    },
  );
  execFileSync("tar", ["-x", "-C", folder], { input: archive });
  symlinkSync(join(projectRoot, "node_modules"), join(folder, "node_modules"));
  return join(folder, "bin/holdfast");
}

describe("the version before, on one of two nodes", { skip, timeout: 300_000 }, () => {
  const program = skip === false ? versionBefore() : "";

  for (const downstream of ["takeover", "forward"] satisfies Downstream[])
    it(`is moved to and from, ${downstream}`, async () => {
      // its sockets are of IPv6, and serve both families, as Node's and Go's do where they are not told an address
      const container = {
        command: [nodeBinary, "server.js"],
        cwd: join(projectRoot, "test/apps/chat"),
        env: { PORT: "9000", HOST: "::" },
        rootfs: "host",
      };
      await using stage = await MoveStage.open({
        downstream,
        programOf: { b: program },
        workload: { container, ports: [{ listen: PORT, upstream: "127.0.0.1:9000" }] },
      });
      for (const to of ["b", "a"] as const) {
        const { end, reason } = await stage.migrate();
        assert.deepEqual({ end, reason }, { end: "moved", reason: "" }, stage.logs());
        await stage.assertStays(to);
      }
      for (const node of ["a", "b"] as const)
        assert.doesNotMatch(stage.agent(node).stderr, /link refused|another version/, node);
    });

  it("is moved to and from with more than one piece of what clients have not read", async () => {
    await using stage = await MoveStage.open({
      downstream: "takeover",
      load: "tcp",
      programOf: { b: program },
    });
    const clients = new OddClients(stage);
    const ids = Array.from({ length: 12 }, (_, index) => `many${index}`);
    for (const id of ids) {
      await clients.tell(id, "open");
      await clients.tell(id, "pause");
      await clients.tell(id, "send", MUCH);
    }
    for (const to of ["b", "a"] as const) {
      const { end, reason } = await stage.migrate();
      assert.deepEqual({ end, reason }, { end: "moved", reason: "" }, stage.logs());
      await stage.assertStays(to);
    }
    for (const id of ids) await clients.tell(id, "resume");
    for (const id of ids) assert.equal((await clients.exact(id)).over, null);
    await clients.close();
  });
});
