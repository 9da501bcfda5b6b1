import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { test } from "node:test";
import { eventfd } from "#proxy/kernel/descriptors.ts";
import { POLLIN, pollNow } from "#proxy/kernel/polling.ts";

const LOOK_MS = 1_000;

test("a look at a descriptor tells how it is while signals come in", async () => {
  const fd = eventfd(0, 0);
  const taken = once(process, "SIGWINCH");
  process.on("SIGWINCH", () => {});
  const sender = spawn("sh", ["-c", `while kill -WINCH ${process.pid}; do :; done`], {
    stdio: "ignore",
  });
  try {
    await taken;
    const late = performance.now() + LOOK_MS;
    while (performance.now() < late) assert.equal(pollNow(fd, POLLIN), 0);
  } finally {
    sender.kill("SIGKILL");
    await once(sender, "exit");
    process.removeAllListeners("SIGWINCH");
    closeSync(fd);
  }
});
