/**
 * CRI-O in containerd's place, with runc and with crun: the chart with its socket, and drains and moves as `npm run demo:kube` shows them.
 * `scripts/setup.sh kube` and `scripts/setup.sh crio` make what it needs.
 *
 *   HOLDFAST_CHAOS=1 npm test -- test/kube/crio.test.ts
 *   HOLDFAST_CRI=cri-o npm test -- test/kube/move.test.ts      # … and any other test of a cluster
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { APPLICATIONS, type Application, EDGE, GAMES, Stage, SYSTEM } from "../../scripts/kube-stage.ts";
import { projectRoot } from "../lab/lab.ts";
import { findLeftovers } from "../lab/sweep.ts";
import { type Load, startLoad } from "../load/load.ts";
import { type Cluster, createCluster, type KubeObject } from "./cluster.ts";
import { AGENT, APPS, INSIDE, REDIS } from "./images.ts";
import { findCrio } from "./kube-tools.ts";

const SESSIONS: Record<string, number> = { chat: 20, echo: 5 };
/** answers that each client has had before and after a move */
const ANSWERS = 5;
const [CHAT] = APPLICATIONS as [Application, ...Application[]];

for (const program of ["runc", "crun"] as const)
  describe(`pods of CRI-O with ${program}`, { skip: process.env.HOLDFAST_CHAOS !== "1" }, () => {
    let cluster: Cluster;
    let stage: Stage;
    const loads = new Map<Application, Load>();

    before(async () => {
      const images = [AGENT, APPS, INSIDE, REDIS];
      const nodes = ["a", "b", EDGE];
      const runtime = { runtime: "cri-o", ociRuntime: program } as const;
      cluster = await createCluster({ nodes, images, redis: false, ...runtime });
      stage = new Stage(cluster);
      await stage.install();
      await stage.deploy("a").catch(failed);
      const { address } = cluster.lab.place(EDGE);
      for (const application of APPLICATIONS) {
        const target = { address, port: application.nodePort };
        const sessions = SESSIONS[application.name] as number;
        const load = await startLoad(cluster.lab, application.kind, {
          target,
          sessions,
          intervalMs: 20,
          restMs: 200,
        });
        loads.set(application, load);
      }
    });
    after(async () => {
      await cluster?.close();
      if (cluster !== undefined)
        for (const left of Object.values(findLeftovers(cluster.lab.id))) assert.deepEqual(left, []);
    });

    async function failed(what: unknown): Promise<never> {
      return assert.fail(`${String(what)}\n${await stage.state().catch(String)}`);
    }

    async function answered(): Promise<void> {
      for (const [{ name }, load] of loads) {
        const wanted = load.messages + ANSWERS * (SESSIONS[name] as number);
        await cluster
          .until(`clients of ${name} are answered`, async () => load.messages >= wanted)
          .catch(failed);
      }
    }

    async function marked(): Promise<void> {
      for (const load of loads.values()) await load.mark();
      await answered();
    }

    async function nobodyIsLost(): Promise<void> {
      await answered();
      for (const [{ name }, load] of loads) {
        const { lost, repeated, corrupt, resets, alive, problems } = await load.report();
        assert.deepEqual(
          { name, lost, repeated, corrupt, resets, alive, problems },
          { name, lost: 0, repeated: 0, corrupt: 0, resets: 0, alive: SESSIONS[name], problems: [] },
        );
      }
    }

    function holdfast(...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
      return cluster.run([join(projectRoot, "bin/holdfast"), ...args]);
    }

    async function agentOn(node: string): Promise<string> {
      const path = `/api/v1/namespaces/${SYSTEM}/pods?labelSelector=app.kubernetes.io/component=agent`;
      const agents = (await cluster.api("GET", path)).items as KubeObject[];
      return agents.find(({ spec }) => spec.nodeName === node)?.metadata.name ?? "";
    }

    /** Of its application's container, as kubelet counts them. */
    async function restartsOf(pod: string): Promise<number | null> {
      const found = await cluster.find(`/api/v1/namespaces/${GAMES}/pods/${pod}`);
      const statuses = (found?.status.containerStatuses ?? []) as { name: string; restartCount: number }[];
      return statuses.find(({ name }) => name === "app")?.restartCount ?? null;
    }

    it("are movable, says a check", async () => {
      const { items } = await cluster.api("GET", "/api/v1/nodes");
      const runtimes = (items as KubeObject[]).map(({ status }) => status.nodeInfo.containerRuntimeVersion);
      assert.deepEqual([...new Set(runtimes)], [`cri-o://${findCrio().version}`]);
      const whole = await holdfast("check", "--cluster");
      assert.equal(whole.status, 0, whole.stdout + whole.stderr);
      const { metadata } = await stage.servingPod(CHAT.name, "a");
      const pod = await holdfast("check", `pod/${metadata.name}`, "-n", GAMES, "--to", "b");
      assert.equal(pod.status, 0, pod.stdout + pod.stderr);
    });

    for (const [from, to] of [
      ["a", "b"],
      ["b", "a"],
    ] as const)
      it(`go from ${from} to ${to} when their node is drained, and clients lose nothing`, async () => {
        await marked();
        const sources = new Map<Application, KubeObject>();
        for (const application of APPLICATIONS)
          sources.set(application, await stage.servingPod(application.name, from));
        const printed: string[] = [];
        const status = await stage.ended(stage.drain(from), (line) => printed.push(line));
        if (status !== 0) await failed(printed.join("\n"));
        for (const { application, status: move } of await stage.movesOf(sources)) {
          if (move.phase !== "Succeeded") await failed(`${application.name}: ${move.phase} ${move.message}`);
          await stage.servingPod(application.name, to);
        }
        await nobodyIsLost();
        await cluster.kubectl(["uncordon", from]);
      });

    it("go on while kubelet and CRI-O are away, and move when they are back", async () => {
      await marked();
      const start = cluster.killDaemons("a");
      await answered();
      start();
      await cluster.until("CRI-O answers again", async () => {
        const { stdout } = await holdfast("check", "--cluster", "-o", "json");
        return !/"node.not-ready"/.test(stdout);
      });
      const { metadata } = await stage.servingPod(CHAT.name, "a");
      const status = await stage.ended(stage.migrate(metadata.name, "b"), () => {});
      if (status !== 0) await failed("holdfast migrate");
      await stage.servingPod(CHAT.name, "b");
      await nobodyIsLost();
    });

    it("have their application back when the container has ended, and move again", async () => {
      for (const load of loads.values()) await load.stop();
      loads.clear();
      const { metadata } = await stage.servingPod(CHAT.name, "b");
      // from outside: in its own namespace PID 1 takes no SIGKILL
      const program = `const fs = require("fs");
        for (const pid of fs.readdirSync("/proc").filter(Number))
          if (fs.readFileSync("/proc/" + pid + "/cmdline", "utf8").startsWith("/.holdfast/init\\0"))
            process.kill(Number(pid), "SIGKILL");`;
      const node = "/holdfast/node_modules/node/bin/node";
      await cluster.kubectl(["-n", SYSTEM, "exec", await agentOn("b"), "--", node, "-e", program]);
      await cluster
        .until("kubelet has started it again", async () => (await restartsOf(metadata.name)) === 1)
        .catch(failed);
      await stage.servingPod(CHAT.name, "b").catch(failed);
      const target = { address: cluster.lab.place(EDGE).address, port: CHAT.nodePort };
      const { name, kind } = CHAT;
      const sessions = SESSIONS[name] as number;
      loads.set(CHAT, await startLoad(cluster.lab, kind, { target, sessions, intervalMs: 20, restMs: 200 }));
      await marked();
      const status = await stage.ended(stage.migrate(metadata.name, "a"), () => {});
      if (status !== 0) await failed("holdfast migrate");
      await stage.servingPod(CHAT.name, "a");
      await nobodyIsLost();
    });
  });
