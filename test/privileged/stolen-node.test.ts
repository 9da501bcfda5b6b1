/** Node c is stolen, with all its files: it is revoked and the shared key changed while the others serve; then its files are worth nothing. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { issueCertificate, makeAuthority } from "#control/cli/keys.ts";
import { keyId } from "#proxy/contract/shared-keys.ts";
import type { AgentConfig, Lab } from "#test/lab/lab.ts";
import { type MoveStage, type NodeName, WORKLOAD } from "#test/support/move-stage.ts";
import { staged } from "#test/support/staged.ts";

const [before, added] = [randomBytes(32), randomBytes(32)];
const silent = { out: { write: () => true }, err: { write: () => true } } as unknown as Parameters<
  typeof makeAuthority
>[1];
const PASSWORD = "changed";

interface Shown {
  keys: { ids: string[]; revoked: string[] };
  peers: { node: string; connected: boolean; reason?: string }[];
}

/** What node c has, a thief has too. */
function agentOf(node: string, { dir }: Lab): AgentConfig {
  const ca = join(dir, "ca");
  const options = { folder: ca, days: 1 };
  if (!existsSync(ca)) {
    makeAuthority(options, silent);
    for (const each of ["a", "b", "c"]) issueCertificate(each, options, silent);
  }
  const [key, revoked] = [join(dir, `${node}.key`), join(dir, `${node}.revoked`)];
  if (!existsSync(key)) writeFileSync(key, `${before.toString("hex")}\n`, { mode: 0o600 });
  if (!existsSync(revoked)) writeFileSync(revoked, "");
  return {
    key: `file:${key}`,
    identity: {
      certificate: join(ca, `${node}.pem`),
      key: join(ca, `${node}.key`),
      authorities: join(ca, "authority.pem"),
    },
    revoked,
  };
}

const shown = async (stage: MoveStage, node: string): Promise<Shown> =>
  (await stage.status(node as NodeName)) as Shown;

async function change(stage: MoveStage, keys: Buffer[]): Promise<void> {
  for (const node of ["a", "b"]) {
    const text = keys.map((key) => `${key.toString("hex")}\n`).join("");
    writeFileSync(join(stage.lab.dir, `${node}.key`), text);
  }
  for (const node of ["a", "b"])
    await stage.until(async () => (await shown(stage, node)).keys.ids.join() === keys.map(keyId).join());
}

async function moved(stage: MoveStage): Promise<void> {
  const { end, reason } = await stage.migrate();
  assert.deepEqual({ end, reason }, { end: "moved", reason: "" }, stage.logs());
  await stage.assertStays(stage.other);
}

describe("a node that is stolen", { timeout: 300_000 }, () => {
  const on = staged({ downstream: "forward", withC: true, agentOf });
  after(() => delete process.env.REDISCLI_AUTH);

  it(
    "is revoked, and the key changed, while the others serve and move",
    on(async (stage) => {
      await stage.until(async () => (await shown(stage, "c")).peers.every(({ connected }) => connected));
      for (const node of ["a", "b"]) writeFileSync(join(stage.lab.dir, `${node}.revoked`), "c\n");
      for (const node of ["a", "b"]) {
        await stage.until(async () => (await shown(stage, node)).keys.revoked.includes("c"));
        // its stream, if it has one just now: on a busy machine that may have timed out, and it dials again each second
        await stage.until(() =>
          /(ended the stream of node c|refused [\d.]+): node c is revoked/.test(
            stage.agent(node as NodeName).stderr,
          ),
        );
      }
      await change(stage, [before, added]);
      await change(stage, [added, before]);
      await moved(stage);
      await change(stage, [added]);
      stage.redisCli("CONFIG", "SET", "requirepass", PASSWORD);
      process.env.REDISCLI_AUTH = PASSWORD;
    }),
  );

  it(
    "can do nothing with its files: it is refused by the others, takes no workload and ends none",
    on(async (stage) => {
      const { lab } = stage;
      const thief = agentOf("c", lab);
      const workloads = lab.agents.get("c")?.config.workloads;
      const others = (["a", "b"] as const).map((node) => stage.agent(node));
      for (const { config, refused, told } of [
        { config: thief, refused: /refused .*: node c is revoked/, told: /connection to agent \w is closed/ },
        // it has no certificate to send, and they take nothing else
        {
          config: { key: thief.key },
          refused: /refused .*: it left before the TLS handshake was done/,
          told: /it refused our key/,
        },
      ]) {
        await lab.agents.get("c")?.stop();
        const said = others.map(({ stderr }) => stderr.length);
        await lab.startAgent("c", { ...config, workloads });
        // it dials each of them to say this
        const { peers } = await shown(stage, "c");
        assert.deepEqual(
          peers.map(({ node, connected }) => [node, connected]),
          [
            ["a", false],
            ["b", false],
          ],
        );
        for (const { reason = "" } of peers) assert.match(reason, told);
        for (const [at, agent] of others.entries())
          await stage.until(() => refused.test(agent.stderr.slice(said[at])));
        const forced = await lab.cli("c", ["start", WORKLOAD, "--force"], { timeoutMs: 15_000 });
        assert.notEqual(forced.status, 0, forced.stdout);
        assert.match(forced.stderr, /Redis at [\d.:]+ cannot be used, .*NOAUTH/);
        for (const verb of [
          ["migrate", WORKLOAD, "--to", "a"],
          ["sessions", WORKLOAD],
        ])
          assert.doesNotMatch((await lab.cli("c", verb)).stdout, /moved|10\.99\./);
      }
      await stage.assertWell();
    }),
  );
});
