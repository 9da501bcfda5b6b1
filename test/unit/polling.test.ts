import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { test } from "node:test";
import { eventfd } from "#proxy/kernel/descriptors.ts";
import { POLLIN, pollNow } from "#proxy/kernel/polling.ts";

const LOOK_MS = 1_000;
/** Ends by itself: libuv reads signals until none waits, and lets nobody else on while they come faster than it reads. */
const SIGNALS = 300_000;

test("a look at a descriptor tells how it is while signals come in", async () => {
  const fd = eventfd(0, 0);
  const taken = once(process, "SIGWINCH");
  const sender = spawn(
    "sh",
    ["-c", `i=0; while [ $i -lt ${SIGNALS} ] && kill -WINCH ${process.pid}; do i=$((i+1)); done`],
    { stdio: "ignore" },
  );
  try {
    const late = performance.now() + LOOK_MS;
    while (performance.now() < late) assert.equal(pollNow(fd, POLLIN), 0);
  } finally {
    // its end is not waited for: libuv may have had no room for the SIGCHLD
    sender.kill("SIGKILL");
    closeSync(fd);
  }
  await taken;
});
