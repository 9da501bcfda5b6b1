/** The pure parts of `check`: what two nodes must agree on, how they differ, and what is said of it. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { NodeProfile } from "#control/api/check.ts";
import {
  type Add,
  areToPass,
  type Check,
  type Finding,
  finding as findingSchema,
  merged,
  runChecks,
} from "#control/api/finding.ts";
import { parseConfig, type WorkloadConfig } from "#control/config/config.ts";
import type { OciSpec } from "#control/runtime/oci.ts";
import { buildSpec } from "#control/runtime/runc/spec.ts";
import {
  type Agreement,
  agreementOf,
  canonicalJson,
  disagreements,
} from "#control/workload/preflight/agreement.ts";
import { type ArrivalPlace, arrivalChecks } from "#control/workload/preflight/arrival.ts";
import { addClockFinding, clockOf } from "#control/workload/preflight/clocks.ts";
import {
  cgroupsOf,
  compareVersions,
  instructionFlags,
  profileDifferences,
} from "#control/workload/preflight/node-profile.ts";
import { compareFiles, mappedPath, placeOf } from "#control/workload/preflight/same-files.ts";
import { fail } from "#proxy/contract/error-codes.ts";

const SCOPE = { node: "a", workload: "chat" };
const SECRET = Buffer.alloc(32, 7);

/** What a check says. */
async function found(run: (add: Add) => void | Promise<void>): Promise<Finding[]> {
  const check: Check<null> = { category: "test", run: async (_, add) => run(add) };
  return (await runChecks([check], null, SCOPE)).findings;
}

async function ids(run: (add: Add) => void | Promise<void>): Promise<string[]> {
  return (await found(run)).map(({ id, severity }) => `${severity} ${id}`);
}

const NO_CHANGE = { add: [], drop: [] };

describe("findings", () => {
  it("carry their scope and category, and pass the schema of the wire", async () => {
    const [one] = await found((add) =>
      add("descriptor.io-uring", "error", "what", "cure", { pid: 7, fd: 3, path: "/x" }),
    );
    assert.deepEqual(one, {
      id: "descriptor.io-uring",
      category: "test",
      node: "a",
      workload: "chat",
      severity: "error",
      what: "what",
      cure: "cure",
      subject: { pid: 7, fd: 3, path: "/x" },
    });
    assert.deepEqual(findingSchema.parse(one), one);
    assert.throws(() => findingSchema.parse({ ...one, id: "no dots" }));
  });

  it("that are alike are counted, not repeated", async () => {
    const all = await found((add) => {
      for (let pid = 1; pid <= 1_000; pid++) add("a.b", "error", `process ${pid}`, "x");
      add("a.c", "warning", "another", "x");
    });
    assert.deepEqual(
      all.map(({ what }) => what),
      ["process 1", "process 2", "process 3", "process 4", "process 5 (and 995 more like it)", "another"],
    );
  });

  it("a check that fails is one: what was not looked at is not well", async () => {
    const all = await found(() => Promise.reject(new Error("no such thing")));
    assert.deepEqual(
      all.map(({ id, severity, what }) => [id, severity, what]),
      [["check.failed", "error", "test could not be looked at: no such thing"]],
    );
  });

  it("of a node that was asked twice are told once", async () => {
    const report = await runChecks(
      [{ category: "x", run: async (_, add) => add("a.b", "error", "c", "d") }],
      null,
      SCOPE,
    );
    assert.deepEqual(merged(report, structuredClone(report)), report);
  });
});

describe("a target's container", () => {
  /** What is found where it cannot be planned. */
  async function withoutPlan(error: unknown): Promise<Finding[]> {
    const workload = { name: "chat", runtime: { plan: () => Promise.reject(error) } };
    const place = { workload, call: { facts: {} } } as unknown as ArrivalPlace;
    const checks = arrivalChecks.filter(({ category }) => category === "configuration");
    return (await runChecks(checks, place, SCOPE)).findings;
  }

  it("that is not there yet, or of a runtime that is away, passes", async () => {
    for (const error of [
      fail("CRI_UNREACHABLE", "the container runtime at /run/c.sock does not answer"),
      fail("POD_MISSING", "no container app of pod default/chat runs on this node", { retryable: true }),
    ]) {
      const findings = await withoutPlan(error);
      assert.deepEqual(
        findings.map(({ id, severity, what }) => [id, severity, what]),
        [["target.no-container", "error", error.message]],
      );
      assert.ok(areToPass(findings));
    }
  });

  it("with a root file system that is not there does not", async () => {
    const findings = await withoutPlan(fail("CONFIG_INVALID", "/images/chat: no such folder"));
    assert.deepEqual(
      findings.map(({ id }) => id),
      ["target.rootfs"],
    );
    assert.ok(!areToPass(findings));
  });
});

describe("what two configurations must agree on", () => {
  const workload = (more: Record<string, unknown> = {}): WorkloadConfig => {
    const folder = mkdtempSync(join(tmpdir(), "hf-agreement-"));
    try {
      writeFileSync(join(folder, "key"), SECRET, { mode: 0o600 });
      const one = {
        name: "chat",
        container: {
          command: ["node"],
          rootfs: "host",
          env: { PASSWORD: "secret" },
          mounts: [{ source: "/data/a", target: "/data", shared: true }],
        },
        ports: [
          { listen: 8080, upstream: "127.0.0.1:9000" },
          { listen: 8081, upstream: "127.0.0.1:9001" },
        ],
        vip: { address: "10.99.0.50/24", device: "eth0" },
        ...more,
      };
      const file = {
        node: "a",
        store: "memory:",
        listen: "10.99.0.2:7400",
        stateDir: "/x",
        key: `file:${folder}/key`,
        workloads: [one],
      };
      return parseConfig(JSON.stringify(file), "test.yaml").workloads[0] as WorkloadConfig;
    } finally {
      rmSync(folder, { recursive: true });
    }
  };
  const spec = (config: WorkloadConfig, change: (spec: OciSpec) => void = () => {}): OciSpec => {
    const made = buildSpec({
      container: config.container ?? {
        command: [],
        cwd: "/",
        env: {},
        mounts: [],
        network: null,
        capabilities: NO_CHANGE,
      },
      rootfs: "/r",
      isHostView: true,
      runDir: "/run/x",
      criuDir: "/criu",
      hostname: config.name,
      cgroupsPath: "/holdfast/x",
      secrets: ["/etc/holdfast/key"],
    });
    change(made);
    return made;
  };
  const base = workload();
  /** as the file says it */
  const container = {
    ...(base.container as NonNullable<WorkloadConfig["container"]>),
    network: "host" as string | object,
  };
  const of = (config: WorkloadConfig, change?: (spec: OciSpec) => void): Agreement =>
    agreementOf(config, spec(config, change), SECRET);
  const differ = (config: WorkloadConfig, change?: (spec: OciSpec) => void): string[] =>
    disagreements(of(base), of(config, change)).map(({ key, severity }) => `${severity} ${key}`);

  it("nothing where they say the same, in whatever order of keys", () => {
    assert.deepEqual(differ(workload()), []);
    assert.equal(canonicalJson({ b: [1, { d: 2, c: null }], a: "x" }), '{"a":"x","b":[1,{"c":null,"d":2}]}');
    assert.equal(canonicalJson({ a: undefined }), "{}");
  });

  it("nothing of where files come from, or of what one instance has for itself", () => {
    const elsewhere = workload({
      container: { ...container, mounts: [{ ...container.mounts[0], source: "/mnt/other" }] },
    });
    assert.deepEqual(
      differ(elsewhere, (made) => {
        made.root.path = "/another";
        made.linux = { ...made.linux, cgroupsPath: "/holdfast/other" };
      }),
      [],
    );
    assert.deepEqual(differ(workload({ vip: { address: "10.99.0.50/24", device: "ens3" } })), []);
  });

  it("whether a load balancer names the clients; which one it is may differ", () => {
    const behind = (from: string[]): WorkloadConfig => {
      const [first, second] = base.ports.map(({ listen, upstream }) => ({
        listen,
        upstream: `${upstream.address}:${upstream.port}`,
      }));
      return workload({ ports: [{ ...first, proxyProtocol: { from } }, second] });
    };
    const [one, other] = [behind(["10.0.0.0/8"]), behind(["10.1.0.0/16"])];
    assert.deepEqual(differ(one), ["error ports.proxyProtocol", "warning ports.proxyProtocol.from"]);
    const found = disagreements(of(one), of(other)).map(({ key, severity }) => `${severity} ${key}`);
    assert.deepEqual(found, ["warning ports.proxyProtocol.from"]);
  });

  it("names the keys that block", () => {
    const { vip: _, ...forward } = { vip: null };
    assert.deepEqual(differ(workload({ vip: undefined, ...forward })), ["error downstream", "error vip"]);
    assert.deepEqual(differ(workload({ outbound: "keep" })), ["error outbound"]);
    assert.deepEqual(differ(workload({ ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }] })), [
      "error ports",
      "error ports.continuity",
      "error ports.protocol",
      "warning ports.replay",
    ]);
    const mounts = [{ ...container.mounts[0], target: "/elsewhere" }];
    assert.deepEqual(differ(workload({ container: { ...container, mounts } })), [
      "error container.mounts",
      "error spec.mounts",
    ]);
    assert.deepEqual(differ(workload({ container: { ...container, rootfs: "/srv/root" } })), [
      "error rootfs",
    ]);
    assert.deepEqual(differ(workload({ container: { ...container, network: "own" } })), [
      "error container.network",
      "error spec.linux.namespaces",
    ]);
    const network = { address: "10.7.0.2/30", gateway: "10.7.0.1" };
    const apart = [network, "own"].map((one) => workload({ container: { ...container, network: one } }));
    const [one = {}, other = {}] = apart.map((config) => of(config));
    assert.deepEqual(
      disagreements(one, other).map(({ key }) => key),
      ["container.network"],
    );
    assert.deepEqual(
      differ(base, (made) => {
        made.linux = { ...made.linux, namespaces: [{ type: "pid" }], sysctl: { "kernel.shmmax": "1" } };
      }),
      ["error spec.linux.namespaces", "error spec.linux.sysctl"],
    );
  });

  it("names the OCI runtime of a pod's container, and of its hostname nothing", () => {
    const pod = { ...base, container: null, pod: { namespace: "x", name: "a", container: "app" } };
    const made = (madeBy: "runc" | "crun", hostname: string): Agreement =>
      of(pod as WorkloadConfig, (one) => Object.assign(one, { madeBy, hostname }));
    const keys = (source: Agreement, target: Agreement): string[] =>
      disagreements(source, target).map(({ key, severity }) => `${severity} ${key}`);
    assert.deepEqual(keys(made("runc", "a"), made("runc", "b")), []);
    assert.deepEqual(keys(made("runc", "a"), made("crun", "a")), ["error spec.made-by"]);
    const before = of(pod as WorkloadConfig, () => {});
    assert.deepEqual(keys(before, made("runc", "a")), [], "an agent of the version before knows runc alone");
  });

  it("says that ports are in another order", () => {
    const swapped = workload({
      ports: [...base.ports]
        .reverse()
        .map(({ listen, upstream }) => ({ listen, upstream: `${upstream.address}:${upstream.port}` })),
    });
    const [one, ...others] = disagreements(of(base), of(swapped));
    assert.deepEqual(others, []);
    assert.deepEqual(
      [one?.key, one?.severity, one?.what],
      ["ports", "error", "its ports are in another order"],
    );
  });

  it("warns of what a move carries and a later start would do otherwise", () => {
    const changed = workload({
      container: { ...container, env: { PASSWORD: "other", MORE: "1" }, command: ["deno"] },
      limits: { unavailableMsMax: 5 },
      restart: "never",
    });
    assert.deepEqual(
      differ(changed, (made) => {
        made.linux = { ...made.linux, seccomp: { defaultAction: "SCMP_ACT_ALLOW" } };
      }),
      [
        "warning container.command",
        "warning container.env.MORE",
        "warning container.env.PASSWORD",
        "warning limits.unavailableMsMax",
        "warning restart.policy",
        "warning spec.seccomp",
      ],
    );
  });

  it("tells no value, and nothing that helps to guess one without the nodes' key", () => {
    const text = JSON.stringify(of(base));
    assert.doesNotMatch(text, /secret|9000/);
    const other = agreementOf(base, spec(base), Buffer.alloc(32, 8));
    assert.notEqual(other["container.env.PASSWORD"], of(base)["container.env.PASSWORD"]);
  });
});

describe("what one node has and another has not", () => {
  const node: NodeProfile = {
    arch: "x64",
    cpuFlags: ["avx2", "sse2"],
    kernel: "6.18.44-fc-v657",
    timeNamespaces: true,
    cgroups: "v2",
    criu: "4.2",
    runtime: "runc 1.1.5+ds1",
  };
  const against = (target: Partial<NodeProfile>, source: Partial<NodeProfile> = {}): Promise<string[]> =>
    ids((add) => profileDifferences({ ...node, ...source }, { ...node, ...target }, add));

  it("instructions that the target lacks block; what it has more does not", async () => {
    assert.deepEqual(await against({ cpuFlags: ["avx2", "avx512f", "sse2"] }), []);
    const [one] = await found((add) => profileDifferences(node, { ...node, cpuFlags: ["sse2"] }, add));
    assert.equal(one?.id, "target.cpu-features");
    assert.match(one?.what ?? "", /using: avx2$/);
    assert.deepEqual(await against({ arch: "arm64", cpuFlags: [] }), ["error target.cpu-architecture"]);
  });

  it("versions: an older CRIU blocks, an older kernel or another runtime is a warning", async () => {
    assert.deepEqual(await against({ criu: "4.1.1" }), ["error target.criu-older"]);
    assert.deepEqual(await against({ criu: "4.10" }), ["warning target.criu-newer"]);
    assert.deepEqual(await against({ kernel: "6.8.0" }), ["warning target.kernel-older"]);
    assert.deepEqual(await against({ kernel: "7.0.1" }), []);
    assert.deepEqual(await against({ runtime: "crun 1.8" }), ["warning target.runtime-differs"]);
    assert.deepEqual(await against({ runtime: "runc 1.3.0" }), []);
    assert.deepEqual(await against({ timeNamespaces: false }), ["error target.no-time-namespaces"]);
    assert.deepEqual(await against({ cgroups: "v1" }), ["warning target.cgroups-differ"]);
    assert.ok(compareVersions("6.10", "6.9") > 0);
    assert.equal(compareVersions("6.18.44-fc-v657", "6.18.2"), 0);
  });

  it("of /proc/cpuinfo the instructions count that every processor has", () => {
    const cpuinfo =
      "processor\t: 0\nflags\t\t: fpu sse2 avx2 hypervisor ibrs constant_tsc\n\nprocessor\t: 1\nflags\t\t: fpu sse2 ssbd\n";
    assert.deepEqual(instructionFlags(cpuinfo), ["fpu", "sse2"]);
    assert.deepEqual(instructionFlags("Features\t: fp asimd sve\n"), ["asimd", "fp", "sve"]);
  });

  it("cgroups by the lines of /proc/self/cgroup", () => {
    assert.equal(cgroupsOf("0::/x\n"), "v2");
    assert.equal(cgroupsOf("4:memory:/\n0::/\n"), "v1 with v2");
    assert.equal(cgroupsOf("4:memory:/\n"), "v1");
  });
});

describe("clocks", () => {
  const told = async (offsetMs: number, roundTripMs: number): Promise<string[]> =>
    (
      await found((add) => {
        const sentAtMs = 1_000_000;
        const theyReceivedAtMs = sentAtMs + roundTripMs / 2 + offsetMs;
        const theySentAtMs = theyReceivedAtMs + 5_000; // how long the answer took does not count
        const receivedAtMs = sentAtMs + roundTripMs + 5_000;
        addClockFinding(clockOf({ sentAtMs, theyReceivedAtMs, theySentAtMs, receivedAtMs }), add);
      })
    ).map(({ what }) => what);

  it("more than a second apart is told, with the way; what the network may have done is not", async () => {
    assert.deepEqual(await told(0, 900), []);
    assert.deepEqual(await told(990, 0), []);
    assert.match((await told(1_500, 20))[0] ?? "", /^its clock is 1\.5 s ahead/);
    assert.match((await told(-61_000, 20))[0] ?? "", /^its clock is 61\.0 s behind/);
    assert.deepEqual(await told(1_500, 1_200), []);
  });
});

describe("files in use", () => {
  it("paths of /proc/PID/maps, spaces and newlines included", () => {
    const line =
      "7f0000000000-7f0000001000 r-xp 00000000 00:1b 1234                       /usr/lib/a b\\012c.so";
    assert.equal(mappedPath(line), "/usr/lib/a b\nc.so");
    assert.equal(
      mappedPath("7ffc0000-7ffc1000 rw-p 00000000 00:00 0                          [stack]"),
      undefined,
    );
    assert.equal(mappedPath("7ffc0000-7ffc1000 rw-p 00000000 00:00 0 "), undefined);
  });

  it("lie in the innermost mount they are below", () => {
    const binds = [
      { source: "/host/data", target: "/data" },
      { source: "/host/inner", target: "/data/inner" },
    ];
    assert.equal(placeOf("/usr/lib/x", "/root", binds), "/root/usr/lib/x");
    assert.equal(placeOf("/data/x", "/", binds), "/host/data/x");
    assert.equal(placeOf("/data/inner/x", "/", binds), "/host/inner/x");
    assert.equal(placeOf("/database/x", "/", binds), "/database/x");
    assert.equal(placeOf("/data", "/", binds), "/host/data");
  });

  it("are another in each pod where they are of a ConfigMap, and then copying is what helps", async () => {
    const cures: string[] = [];
    const used = ["/etc/app/..2026_11_29_17_27_10.344311880/start.sh", "/etc/app/..start/start.sh"].map(
      (path) => ({ path, kind: "file" as const, bytes: 1, mode: 0o644, digest: null }),
    );
    await compareFiles(used, "/nonexistent", [], (id, _severity, _what, cure) => {
      assert.equal(id, "target.file-missing");
      cures.push(cure);
    });
    assert.match(cures[0] ?? "", /copy it to an emptyDir/);
    assert.match(cures[1] ?? "", /install the same files/);
  });
});
