/**
 * Puts into a pod what its container starts with (the init that waits, and what the application is started by), and waits until its proxy is there:
 * `node proxy/bring-inside.ts FOLDER [PORT]`. Of a sidecar it is the hook `postStart`, which the application's container is started after; without
 * a port it is an init container.
 */
import { chmodSync, copyFileSync, existsSync, readdirSync, renameSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/** of an image, where `charts/images/contents.ts` has put it */
const INSIDE = resolve(import.meta.dirname, "../inside");
const WAIT_MS_MAX = 120_000;
const AGAIN_MS = 20;

/** What is there already stays: it may run. */
function bring(folder: string): void {
  for (const name of readdirSync(INSIDE)) {
    const [to, made] = [join(folder, name), join(folder, `.${name}.${process.pid}`)];
    if (existsSync(to)) continue;
    copyFileSync(join(INSIDE, name), made);
    chmodSync(made, 0o755);
    renameSync(made, to);
  }
  for (const name of readdirSync(folder))
    if (name.startsWith(".")) rmSync(join(folder, name), { force: true }); // of one that was killed
}

function isThere(port: number): Promise<boolean> {
  return new Promise((done) => {
    const socket = connect(port, "127.0.0.1", () => end(true)).on("error", () => end(false));
    const end = (isOpen: boolean): void => {
      socket.destroy();
      done(isOpen);
    };
  });
}

const [folder, port] = process.argv.slice(2);
if (folder === undefined) throw new Error("usage: node proxy/bring-inside.ts FOLDER [PORT]");
bring(folder);
const untilMs = performance.now() + WAIT_MS_MAX;
while (port !== undefined && !(await isThere(Number(port)))) {
  if (performance.now() > untilMs)
    throw new Error(`nobody listens at port ${port} within ${WAIT_MS_MAX / 1000} s`);
  await delay(AGAIN_MS);
}
