/** The unit for systemd: what of it keeps sessions alive when the agent is started again. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { test } from "node:test";

const root = resolve(import.meta.dirname, "../..");
const unit = readFileSync(join(root, "scripts/holdfast.service"), "utf8");

function value(key: string): string | undefined {
  return new RegExp(`^${key}=(.*)$`, "m").exec(unit)?.[1];
}

test("a restart of the agent ends nothing else of its unit", () => {
  assert.equal(value("KillMode"), "process", "control-group and mixed end proxies too (systemd.kill(5))");
  assert.equal(value("OOMPolicy"), "continue", "the default ends all when one is ended (systemd.service(5))");
  assert.equal(value("Restart"), "always");
});

test("containers may be made, and a proxy may have its sessions", () => {
  assert.equal(value("Delegate"), "yes");
  assert.ok(Number(value("LimitNOFILE")) >= 100_000);
});

test("it starts a command that exists", () => {
  const [program = "", command] = (value("ExecStart") ?? "").split(" ");
  assert.ok(existsSync(join(root, program.replace(/^\/opt\/holdfast\//, ""))), program);
  assert.equal(command, "agent");
});
