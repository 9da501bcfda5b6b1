/** The laboratory itself: what it builds works, what it measures is true, and it leaves nothing behind. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLab, type Lab, type LabProcess, nodeBinary, projectRoot } from "../lab/lab.ts";
import { findLeftovers, isClean, sweepDeadLabs } from "../lab/sweep.ts";
import { startLoad } from "../load/load.ts";
import { until } from "../support/moved-program.ts";

async function startApp(lab: Lab, at: string, app: "chat" | "echo"): Promise<LabProcess> {
  const started = lab.spawn(at, [nodeBinary, join(projectRoot, `test/apps/${app}/server.js`)], {
    name: app,
    env: { ...process.env, HOST: "::", PORT: "9000" },
  });
  await started.waitFor(/listening/);
  return started;
}

describe("a laboratory", () => {
  let lab: Lab;
  before(async () => {
    lab = await createLab({ nodes: ["a", "b"], prefix: "hflab" });
  });
  after(() => lab.close());

  it("has nodes, clients and Redis on one network, over IPv4 and IPv6", async () => {
    const code = `
      const { connect } = require("node:net");
      for (const host of ["10.99.0.1", "fd99::1"])
        connect(6379, host, function () { this.end("PING\\r\\n"); }).on("data", (d) => console.log(host, String(d).trim()));`;
    for (const at of ["a", "b", "client"]) {
      const { status, stdout, stderr } = await lab.run(at, [nodeBinary, "-e", code]);
      assert.equal(status, 0, stderr);
      assert.deepEqual(stdout.trim().split("\n").sort(), ["10.99.0.1 +PONG", "fd99::1 +PONG"]);
    }
  });

  it("shows its processes no proxy of the machine's", async () => {
    const names = ["https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "no_proxy"];
    const proxies = Object.fromEntries(names.map((name) => [name, "http://192.0.2.1:3128"]));
    const { stdout } = await lab.run("a", ["env"], { env: { ...process.env, ...proxies, OWN: "own" } });
    assert.match(stdout, /^OWN=own$/m);
    assert.doesNotMatch(stdout, /_proxy=/i);
  });

  it("stops, starts, pauses and resumes Redis", async () => {
    const redis = async (...args: string[]) => {
      const argv = ["timeout", "0.3", "redis-cli", "-h", lab.switch.address, ...args];
      return (await lab.run("a", argv)).stdout.trim();
    };
    assert.equal(await redis("set", "k", "v"), "OK");
    lab.redis.pause();
    assert.equal(await redis("get", "k"), "");
    lab.redis.resume();
    assert.equal(await redis("get", "k"), "v");
    await lab.redis.stop();
    assert.equal(lab.redis.pid, null);
    assert.equal(await redis("get", "k"), "");
    await lab.redis.start();
    assert.equal(await redis("ping"), "PONG");
  });

  it("finds no fault with a chat that nothing happens to", async () => {
    const app = await startApp(lab, "a", "chat");
    const load = await startLoad(lab, "ws", { target: { address: "10.99.0.2", port: 9000 }, sessions: 20 });
    const markedMs = performance.now();
    await load.mark();
    await sleep(500);
    const report = await load.report();
    const lookedMs = performance.now() - markedMs;
    const { lost, repeated, corrupt, resets, alive, problems } = report;
    assert.deepEqual(
      { lost, repeated, corrupt, resets, alive, problems },
      { lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: 20, problems: [] },
    );
    assert.ok(report.messages > 100, `${report.messages} messages`);
    assert.ok(report.blackoutMs.max < lookedMs, JSON.stringify(report.blackoutMs));
    await load.stop();
    await app.stop();
  });

  it("sees an application that stood still, as long as it stood still", async () => {
    const app = await startApp(lab, "a", "chat");
    const load = await startLoad(lab, "ws", { target: { address: "fd99::2", port: 9000 }, sessions: 10 });
    const markedMs = performance.now();
    await load.mark();
    await sleep(100);
    app.child.kill("SIGSTOP");
    await sleep(300);
    app.child.kill("SIGCONT");
    await sleep(100);
    const { blackoutMs, lost } = await load.report();
    const lookedMs = performance.now() - markedMs;
    assert.equal(lost, 0);
    assert.ok(blackoutMs.p50 >= 290 && blackoutMs.max < lookedMs, JSON.stringify(blackoutMs));
    await load.stop();
    await app.stop();
  });

  it("sees every client of an application that died as reset", async () => {
    const app = await startApp(lab, "a", "echo");
    const load = await startLoad(lab, "tcp", { target: { address: "10.99.0.2", port: 9000 }, sessions: 10 });
    await load.mark();
    await sleep(200);
    const calm = await load.report();
    assert.deepEqual(
      [calm.lost, calm.repeated, calm.corrupt, calm.resets],
      [0, 0, 0, 0],
      calm.problems.join("; "),
    );
    assert.ok(calm.messages > 20);
    await app.stop("SIGKILL");
    await sleep(100);
    const report = await load.report();
    assert.equal(report.resets, 10);
    assert.equal(report.alive, 0);
    await load.stop();
  });

  it("sees an application that forgot its state", async () => {
    // The proxy in between keeps the client's connection and dials a new server that knows nothing.
    const echo = await startApp(lab, "a", "echo");
    const forwarder = lab.spawn("b", [
      nodeBinary,
      "-e",
      `const net = require("node:net");
       net.createServer((client) => {
         let up;
         const dial = () => { up = net.connect(9000, "10.99.0.2"); up.on("data", (d) => client.write(d)); };
         client.on("data", (d) => up.write(d)).on("error", () => {}).on("close", () => up.destroy());
         dial();
         setTimeout(() => { up.end(); up.removeAllListeners("data"); dial(); }, 600);
       }).listen(8000, () => console.log("listening"));`,
    ]);
    await forwarder.waitFor(/listening/);
    const load = await startLoad(lab, "tcp", {
      target: { address: "10.99.0.3", port: 8000 },
      sessions: 3,
      drainMsMax: 500,
    });
    await load.mark();
    await sleep(1_000);
    const report = await load.report();
    assert.equal(report.corrupt, 3, JSON.stringify(report));
    assert.equal(report.resets, 0);
    await load.stop();
    await forwarder.stop("SIGKILL");
    await echo.stop();
  });

  it("pulls a node's cable and plugs it in again", async () => {
    const reaches = async () =>
      (
        await lab.run("b", ["timeout", "0.5", "redis-cli", "-h", lab.switch.address, "ping"])
      ).stdout.trim() === "PONG";
    assert.equal(await reaches(), true);
    lab.setLink("b", "down");
    assert.equal(await reaches(), false);
    lab.setLink("b", "up");
    for (let tries = 0; tries < 20 && !(await reaches()); tries++) await sleep(50);
    assert.equal(await reaches(), true);
  });

  it("says why an agent did not start", async () => {
    await assert.rejects(lab.startAgent("a", { store: 42 }), /agent of node a ended|store/);
  });

  it("leaves nothing behind, even of processes that ignore signals or left their parent", async () => {
    lab.spawn("a", ["sh", "-c", "trap '' TERM INT; (setsid sleep 60 &) ; sleep 60"]);
    lab.spawn("b", ["unshare", "-n", "env", "-i", "sleep", "60"]);
    lab.spawn("b", ["sh", "-c", "mkdir -p b/images && mount -t tmpfs tmpfs b/images && sleep 60"]);
    await sleep(100);
    assert.ok(lab.leftovers().processes.length >= 4);
    assert.equal(lab.leftovers().mounts.length, 1);
    await lab.close();
    assert.ok(isClean(lab.leftovers()), JSON.stringify(lab.leftovers()));
    await lab.close();
  });
});

describe("a laboratory whose owner", () => {
  const script = `
    import { createLab } from ${JSON.stringify(join(projectRoot, "test/lab/lab.ts"))};
    const lab = await createLab({ prefix: "hfdead" });
    lab.spawn("a", ["sleep", "60"]);
    console.log(lab.id);
    setInterval(() => {}, 1000);
    process.on("message", () => { throw new Error("as asked"); });`;

  async function startOwner() {
    const owner = spawn(nodeBinary, ["--input-type=module", "-e", script], {
      stdio: ["ignore", "pipe", "ignore", "ipc"],
    });
    const [id] = await once(createInterface({ input: owner.stdout as NodeJS.ReadableStream }), "line");
    assert.ok(!isClean(findLeftovers(id)));
    return { owner, id: String(id) };
  }

  it("is ended by a signal is closed first", async () => {
    const { owner, id } = await startOwner();
    owner.kill("SIGINT");
    const [, signal] = await once(owner, "exit");
    assert.equal(signal, "SIGINT");
    assert.ok(isClean(findLeftovers(id)), JSON.stringify(findLeftovers(id)));
  });

  it("is a test that is interrupted with its run is gone with it", async () => {
    const folder = mkdtempSync(join(tmpdir(), "holdfast-interrupted-"));
    const [file, made] = [join(folder, "some.test.ts"), join(folder, "made")];
    writeFileSync(
      file,
      `import { renameSync, writeFileSync } from "node:fs";
       import { test } from "node:test";
       import { createLab } from ${JSON.stringify(join(projectRoot, "test/lab/lab.ts"))};
       test("has a laboratory", async () => {
         const lab = await createLab();
         lab.spawn("a", ["sleep", "60"]);
         writeFileSync(${JSON.stringify(`${made}.new`)}, lab.id);
         renameSync(${JSON.stringify(`${made}.new`)}, ${JSON.stringify(made)});
         await new Promise((resolve) => setTimeout(resolve, 60_000));
       });`,
    );
    const { NODE_TEST_CONTEXT: _, ...env } = process.env;
    const runner = spawn(nodeBinary, ["scripts/test.ts", file], { cwd: projectRoot, env, stdio: "ignore" });
    try {
      await until("it has one", () => existsSync(made));
      const id = readFileSync(made, "utf8");
      assert.ok(!isClean(findLeftovers(id)));
      runner.kill("SIGINT");
      assert.deepEqual(await once(runner, "exit"), [1, null]);
      assert.ok(isClean(findLeftovers(id)), JSON.stringify(findLeftovers(id)));
    } finally {
      runner.kill("SIGKILL");
      rmSync(folder, { recursive: true });
    }
  });

  it("throws is closed first", async () => {
    const { owner, id } = await startOwner();
    owner.send("throw");
    await once(owner, "exit");
    assert.ok(isClean(findLeftovers(id)), JSON.stringify(findLeftovers(id)));
  });

  it("is killed is swept by the next one", async () => {
    const { owner, id } = await startOwner();
    owner.kill("SIGKILL");
    await once(owner, "exit");
    assert.ok(!isClean(findLeftovers(id)));
    assert.deepEqual(sweepDeadLabs("hfdead"), [id]);
    assert.ok(isClean(findLeftovers(id)), JSON.stringify(findLeftovers(id)));
  });
});
