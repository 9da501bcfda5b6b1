/** There is a workload for as long as its pod is there, and no other is in its way. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { pino } from "pino";
import { type PodWorkload, PodWorkloads } from "#control/agent/pod-workloads.ts";
import type { WorkloadConfig } from "#control/config/config.ts";
import { until } from "#test/support/moved-program.ts";

const ADDRESS = "10.99.0.2";

class FakeWorkload implements PodWorkload {
  config: WorkloadConfig;
  journal: PodWorkload["journal"] = { role: "owner", moving: null, owed: null };
  busyWith: string | null = null;
  isStarting = false;
  isAlive = false;
  did: string[] = [];
  sessions = 0;
  readonly keeper = { countSessions: async (): Promise<number> => this.sessions };

  constructor(config: WorkloadConfig) {
    this.config = config;
  }
  get isMoving(): boolean {
    return this.busyWith?.startsWith("moved") === true;
  }
  get name(): string {
    return this.config.name;
  }
  async stop(): Promise<void> {
    this.did.push("stop");
    this.journal = { ...this.journal, role: "none" };
  }
  useConfig(config: WorkloadConfig): void {
    this.config = config;
  }
  leaveDown(): void {
    if (this.did.at(-1) !== "leave down") this.did.push("leave down");
  }
  async hasContainer(): Promise<boolean> {
    return this.isAlive;
  }
  close(): void {
    this.did.push("close");
  }
}

describe("the workloads of pods", () => {
  let folder = "";
  let workloads: Map<string, FakeWorkload>;
  let made: FakeWorkload[];
  let recovered: string[];
  let recovering: Set<FakeWorkload>;
  let said: string[];
  let tooMuch: string | null;
  let asked = 0;
  let running: Set<string>;
  let askedOf: string[];
  let pods: PodWorkloads<FakeWorkload>;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-pods-"));
    [made, recovered, said, tooMuch] = [[], [], [], null];
    [running, askedOf] = [new Set(), []];
    recovering = new Set();
    pods = begin();
  });
  afterEach(() => {
    pods.close();
    rmSync(folder, { recursive: true });
  });

  /** As an agent does that starts. */
  function begin(): PodWorkloads<FakeWorkload> {
    workloads = new Map();
    return new PodWorkloads({
      workloads,
      stateDir: "/var/lib/holdfast",
      folder,
      nodeAddress: ADDRESS,
      reserved: new Map([[10250, "kubelet's"]]),
      log: pino({ base: null }, { write: (line: string) => void said.push(line) }),
      create(config) {
        const workload = new FakeWorkload(config);
        made.push(workload);
        return workload;
      },
      recover: ({ name }) => void recovered.push(name),
      async runs({ uid }) {
        askedOf.push(uid);
        return running.has(uid);
      },
      isRecovering: (workload) => recovering.has(workload),
      exceeds() {
        asked++;
        return tooMuch;
      },
      againMs: 1,
    });
  }

  function pod(
    name: string,
    uid: string,
    more: { ports?: string; state?: object; metadata?: object } = {},
  ): object {
    const annotations = {
      "holdfast.dev/injected": "1",
      "holdfast.dev/container": "app",
      "holdfast.dev/ports": more.ports ?? "8080",
    };
    const metadata = { uid, namespace: "default", name, annotations, ...more.metadata };
    const containerStatuses = [{ name: "app", state: more.state ?? { running: {} } }];
    return { metadata, status: { phase: "Running", containerStatuses } };
  }
  const names = (): string[] => [...workloads.keys()];
  const has = (...wanted: string[]): Promise<void> =>
    until(`there is ${wanted.join(", ") || "nothing"}`, () => names().join() === wanted.join());
  /** Resolves when everything has been looked at once more, with these pods and one that is new. */
  async function again(...others: object[]): Promise<void> {
    const name = `new-${made.length}`;
    pods.update([...others, pod(name, name, { ports: "1" })]);
    await until("a round", () => workloads.has(`default.${name}`));
  }

  it("come when a pod's container runs, and go with the pod", async () => {
    pods.update([
      pod("chat", "1", { state: { waiting: {} } }),
      { metadata: { uid: "2", namespace: "x", name: "y" } },
    ]);
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    assert.deepEqual(recovered, ["default.chat"]);
    pods.update([]);
    await has();
    assert.deepEqual(made[0]?.did, ["stop", "close"]);
    assert.deepEqual(readdirSync(folder), []);
  });

  it("come before kubelet says that the container runs: the runtime is asked as soon as it may", async () => {
    const starting = (status: string, lastTransitionTime: Date): object => {
      const conditions = [
        { type: "Initialized", status, lastTransitionTime: lastTransitionTime.toISOString() },
      ];
      return { ...pod("chat", "1", { state: { waiting: {} } }), status: { phase: "Pending", conditions } };
    };
    await again(starting("False", new Date()));
    assert.deepEqual(askedOf, []);
    pods.update([starting("True", new Date())]);
    await until("it was asked for twice", () => askedOf.length >= 2);
    assert.ok(!names().includes("default.chat"));
    running.add("1");
    await until("it is there", () => names().includes("default.chat"));
    // one that waits for something else, an image, goes on being asked for, as everything else is
    pods.update([]);
    await has();
    [running, askedOf] = [new Set(), []];
    pods.update([starting("True", new Date(Date.now() - 60_000))]);
    await until("it was asked for several times", () => askedOf.length >= 5);
    assert.ok(!names().includes("default.chat"));
  });

  it("go as soon as the pod is about to, and are not stopped where they are not", async () => {
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    (made[0] as FakeWorkload).journal = { role: "none", moving: null, owed: null };
    pods.update([pod("chat", "1", { metadata: { deletionTimestamp: "2026-11-27T12:00:00Z" } })]);
    await has();
    assert.deepEqual(made[0]?.did, ["close"]);
  });

  it("are left to kubelet while their pod is being deleted, and stop when their container has ended", async () => {
    const metadata = { deletionTimestamp: "2026-11-27T12:00:00Z" };
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    const [workload] = made as [FakeWorkload];
    workload.isAlive = true;
    pods.update([pod("chat", "1", { metadata })]);
    await until("it is told", () => workload.did.length > 0);
    await again(pod("chat", "1", { metadata }));
    assert.deepEqual(workload.did, ["leave down"]);
    workload.isAlive = false;
    await until("it goes", () => !workloads.has("default.chat"));
    assert.deepEqual(workload.did, ["leave down", "stop", "close"]);
  });

  it("stop at once where their pod is gone, whatever still runs of it", async () => {
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    (made[0] as FakeWorkload).isAlive = true;
    pods.update([]);
    await has();
    assert.deepEqual(made[0]?.did, ["stop", "close"]);
  });

  it("are not started again where their pod is gone, and give way to the next of its name", async () => {
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    const [workload] = made as [FakeWorkload];
    workload.busyWith = "moved away";
    await again(pod("chat", "2"));
    assert.deepEqual(workload.did, []);
    workload.busyWith = "started again";
    await until("it is told", () => workload.did.length > 0);
    await again(pod("chat", "2"));
    assert.deepEqual(workload.did, ["leave down"]);
    workload.busyWith = null;
    await until("the next has it", () => workloads.get("default.chat")?.config.pod?.uid === "2");
    assert.deepEqual(workload.did, ["leave down", "stop", "close"]);
  });

  it("stay while they are moved, while clients are forwarded, and until the store knows", async () => {
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    const [workload] = made as [FakeWorkload];
    recovering.add(workload);
    await again();
    assert.deepEqual(workload.did, []);
    workload.busyWith = "moved away";
    recovering.clear();
    await again();
    assert.deepEqual(workload.did, []);
    workload.journal = { role: "anchor", moving: null, owed: null };
    workload.busyWith = null;
    await again();
    assert.deepEqual(workload.did, []);
    workload.journal = { role: "none", moving: null, owed: "told" };
    await again();
    assert.deepEqual(workload.did, []);
    workload.journal = { role: "none", moving: null, owed: null };
    await until("it goes", () => !workloads.has("default.chat"));
    assert.deepEqual(workload.did, ["close"]);
  });

  it("are another's when another pod of the name comes, once the first has gone", async () => {
    pods.update([pod("db-0", "1")]);
    await has("default.db-0");
    const [first] = made as [FakeWorkload];
    first.busyWith = "moved away";
    await again(pod("db-0", "2"));
    assert.equal(workloads.get("default.db-0"), first);
    first.busyWith = null;
    pods.update([pod("db-0", "2")]);
    await until("the second comes", () => made.some(({ config }) => config.pod?.uid === "2"));
    assert.deepEqual(first.did, ["stop", "close"]);
  });

  it("are a standby's at once when the application has left and its clients are still here", async () => {
    const standby = pod("chat-x", "2") as { metadata: { annotations: object } };
    const isStandby = { "holdfast.dev/workload": "default.chat", "holdfast.dev/standby": "true" };
    Object.assign(standby.metadata.annotations, isStandby);
    pods.update([pod("chat", "1")]);
    await has("default.chat");
    const [workload] = made as [FakeWorkload];
    workload.journal = { role: "anchor", moving: null, owed: "told" };
    await again(standby);
    assert.equal(workload.config.pod?.uid, "1", "the store does not know yet");
    workload.journal = { role: "anchor", moving: null, owed: null };
    await until("it is the standby's", () => workload.config.pod?.uid === "2");
    assert.deepEqual(workload.did, []);
    assert.equal(pods.workloadOf("2"), workload);
    assert.equal(pods.workloadOf("1"), null);
    pods.close();
    pods = begin();
    pods.restore();
    assert.equal(workloads.get("default.chat")?.config.pod?.uid, "2", "an agent that starts knows");
  });

  it("whose application only passed go with their clients, and stay where it has been before", async () => {
    const passing = (uid: string): object => {
      const one = pod(`chat-${uid}`, uid) as { metadata: { annotations: object } };
      const keys = { workload: "default.chat", standby: "true", between: "true" };
      for (const [key, value] of Object.entries(keys))
        Object.assign(one.metadata.annotations, { [`holdfast.dev/${key}`]: value });
      return one;
    };
    pods.update([passing("1")]);
    await has("default.chat");
    const [workload] = made as [FakeWorkload];
    workload.journal = { role: "anchor", moving: null, owed: null };
    workload.sessions = 1;
    await again();
    assert.deepEqual(workload.did, []);
    workload.sessions = 0;
    await until("it goes", () => !workloads.has("default.chat"));
    assert.deepEqual(workload.did, ["stop", "close"]);

    pods.update([pod("chat", "2")]);
    await has("default.chat");
    const home = made.at(-1) as FakeWorkload;
    home.journal = { role: "anchor", moving: null, owed: null };
    await again(passing("3"));
    await until("it is the other pod's", () => home.config.pod?.uid === "3");
    await again();
    assert.deepEqual(home.did, [], "clients may come there");
  });

  it("are the next pod's, which has an application of its own, once no client is left of what has moved away", async () => {
    pods.update([pod("db-0", "1")]);
    await has("default.db-0");
    const [first] = made as [FakeWorkload];
    first.journal = { role: "anchor", moving: null, owed: null };
    first.sessions = 1;
    await again(pod("db-0", "2"));
    assert.deepEqual(first.did, []);
    first.sessions = 0;
    await until("the second comes", () => made.some(({ config }) => config.pod?.uid === "2"));
    assert.deepEqual(first.did, ["stop", "close"]);
  });

  it("are refused while something is in their way, and said once", async () => {
    tooMuch = "limits.heldMbMax: too much";
    pods.update([pod("chat", "1")]);
    await until("it is refused", () => said.some((line) => line.includes("too much")));
    const before = asked;
    await until("some rounds", () => asked > before + 2);
    tooMuch = null;
    await has("default.chat");
    const other = pod("other", "2");
    pods.update([pod("chat", "1"), other]);
    await until("it is refused", () => said.some((line) => line.includes("listens at port 8080")));
    pods.update([pod("taken", "3", { ports: "10250:8080" }), other]);
    await until("it is refused", () => said.some((line) => line.includes("10250 of this node is kubelet's")));
    await has("default.other");
    assert.equal(said.filter((line) => line.includes("too much")).length, 1);
  });

  it("are one where two pods of the node name the same", async () => {
    const annotations = { "holdfast.dev/workload": "default.chat" };
    const standby = pod("chat-standby", "2") as { metadata: { annotations: object } };
    Object.assign(standby.metadata.annotations, annotations);
    pods.update([pod("chat", "1"), standby]);
    await has("default.chat");
    assert.equal(made[0]?.config.pod?.name, "chat");
    assert.ok(said.some((line) => line.includes("is that of pod default/chat, too")));
    const [workload] = made as [FakeWorkload];
    await again(standby, pod("chat", "1"));
    assert.deepEqual([workload.did, workload.config.pod?.uid], [[], "1"], "in whatever order they come");
  });

  it("are those an earlier agent knew, until the API server says otherwise", async () => {
    pods.update([pod("chat", "1"), pod("gone", "2", { ports: "1" })]);
    await has("default.chat", "default.gone");
    pods.close();
    writeFileSync(join(folder, "default.gone", "pod.json"), "{");
    pods = begin();
    pods.restore();
    assert.deepEqual(names(), ["default.chat"]);
    assert.deepEqual(made.at(-1)?.config.pod?.uid, "1");
    assert.ok(said.some((line) => line.includes("cannot be used")));
    pods.update([]);
    await has();
    assert.ok(!existsSync(join(folder, "default.chat")));
  });
});
