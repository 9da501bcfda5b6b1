/** A port of a pod by kubectl, which is a script here: what is said of one that does not lead there, and that none goes on after its use. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { forwarded } from "#control/cli/port-forward.ts";
import type { Pod } from "#control/kubernetes/client/objects.ts";
import { until } from "../support/moved-program.ts";

const POD = { metadata: { name: "chat-0", namespace: "games" } } as Pod;
const READY = "Forwarding from 127.0.0.1:41234 -> 15000";

describe("a port of a pod", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "hf-port-forward-"));
  });
  after(() => rmSync(folder, { recursive: true }));

  /** @param does in sh */
  function options(does: string, name = "kubectl") {
    writeFileSync(join(folder, name), `#!/bin/sh\n${does}\n`, { mode: 0o755 });
    const env = { PATH: `${folder}:/usr/bin:/bin` };
    return { port: 15_000, access: ["--context", "there"], env };
  }

  it("is at the URL that kubectl says, for as long as it is used", async () => {
    const file = join(folder, "said");
    const asked = options(`echo "$$ $*" > ${file}; echo '${READY}'; exec sleep 60`);
    const url = await forwarded(POD, asked, async (at) => at);
    assert.equal(url, "http://127.0.0.1:41234");
    const [pid, ...argv] = readFileSync(file, "utf8").trim().split(" ");
    assert.equal(
      argv.join(" "),
      "--context there port-forward --namespace games pod/chat-0 :15000 --address 127.0.0.1",
    );
    assert.throws(() => process.kill(Number(pid), 0), { code: "ESRCH" });
  });

  it("ends with what fails over it", async () => {
    const failing = forwarded(POD, options(`echo '${READY}'; exec sleep 60`), async () => {
      throw new Error("over it");
    });
    await assert.rejects(failing, /over it/);
  });

  it("has what kubectl says of a connection that comes to nothing beside what failed over it", async () => {
    const words =
      'E1129 17:00:00.000001 7 portforward.go:424] "Unhandled Error" err="an error occurred forwarding 41234 -> 15000: error forwarding port 15000 to pod 1: dial tcp4 127.0.0.1:15000: connect: connection refused"';
    const file = join(folder, "closed");
    const asked = options(`echo '${READY}'; echo '${words}' >&2; : > ${file}; exec sleep 60`);
    const failing = forwarded(POD, asked, async () => {
      // kubectl closes a connection after it has said what is wrong with it (client-go tools/portforward)
      await until("the connection is closed", () => existsSync(file));
      throw new Error("over it");
    });
    await assert.rejects(failing, {
      code: "ENVOY_UNREACHABLE",
      message:
        "over it: kubectl: error forwarding port 15000 to pod 1: dial tcp4 127.0.0.1:15000: connect: connection refused",
    });
  });

  it("is none where kubectl ends first: what it said of it is the reason", async () => {
    const asked = options("echo 'error: pods \"chat-0\" not found' >&2; exit 1");
    await assert.rejects(
      forwarded(POD, asked, async () => null),
      { code: "ENVOY_UNREACHABLE", message: 'no port of pod games/chat-0: error: pods "chat-0" not found' },
    );
  });

  it("says that kubectl is to be installed where there is none", async () => {
    const asked = { ...options(""), env: { PATH: join(folder, "nowhere") } };
    await assert.rejects(
      forwarded(POD, asked, async () => null),
      { code: "KUBECTL_MISSING" },
    );
  });
});
