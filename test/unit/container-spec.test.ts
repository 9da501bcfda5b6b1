import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { capabilitiesOf } from "#control/config/capabilities.ts";
import type { OciSpec } from "#control/runtime/oci.ts";
import { plannedSpec } from "#control/runtime/runc/planned-spec.ts";
import { seccompProfile } from "#control/runtime/runc/seccomp.ts";
import { withoutPasswords } from "#control/runtime/runc/shadow.ts";
import { adaptSpec, buildSpec, type SpecOptions, travellingTmpfs } from "#control/runtime/runc/spec.ts";

const options: SpecOptions = {
  container: {
    command: ["app"],
    cwd: "/",
    env: {},
    mounts: [],
    network: null,
    capabilities: { add: [], drop: [] },
  },
  rootfs: "/r",
  isHostView: true,
  runDir: "/state/run/x",
  criuDir: "/criu",
  hostname: "app",
  cgroupsPath: "/holdfast/x",
  secrets: ["/etc/holdfast/key"],
};

describe("a container by default", () => {
  const spec = buildSpec(options);

  it("has no capability over the node's network or its devices, and what a file adds or drops", () => {
    const none = capabilitiesOf({ add: [], drop: [] });
    for (const name of ["NET_RAW", "NET_ADMIN", "MKNOD", "SYS_ADMIN"])
      assert.ok(!none.includes(`CAP_${name}`));
    assert.ok(capabilitiesOf({ add: ["NET_RAW"], drop: [] }).includes("CAP_NET_RAW"));
    assert.ok(!capabilitiesOf({ add: [], drop: ["KILL"] }).includes("CAP_KILL"));
    assert.deepEqual(capabilitiesOf({ add: ["KILL"], drop: ["ALL"] }), ["CAP_KILL"]);
    assert.deepEqual(capabilitiesOf({ add: ["KILL"], drop: ["ALL", "KILL"] }), []);
  });

  it("is in the node's network, or in one that is made with it", () => {
    const types = (network: SpecOptions["container"]["network"]): string[] => {
      const container = { ...options.container, network };
      return buildSpec({ ...options, container }).linux?.namespaces?.map(({ type }) => type) ?? [];
    };
    assert.ok(!types(null).includes("network"));
    assert.ok(types({ address: "169.254.7.2", prefix: 30, gateway: "169.254.7.1" }).includes("network"));
  });

  it("hides the agent's secrets and those of a host that it is shown", () => {
    const masked = spec.linux?.maskedPaths ?? [];
    for (const path of ["/etc/holdfast/key", "/root/.ssh", "/proc/kcore"])
      assert.ok(masked.includes(path), path);
    const folder = buildSpec({ ...options, isHostView: false }).linux?.maskedPaths ?? [];
    assert.ok(!folder.includes("/root/.ssh") && folder.includes("/etc/holdfast/key"));
  });

  it("hides them wherever it has them: in its root file system, and in a mount of a folder that holds them", () => {
    const rootfs = { lower: "/images/app", bundle: null };
    const mounts = [{ source: "/etc", target: "/host/etc", readonly: true }];
    const secrets = ["/etc/holdfast/key", "/images/app/state", "/var/lib/holdfast"];
    const container = { ...options.container, mounts };
    const { linux } = plannedSpec({ container, rootfs, criuDir: "/criu", workload: "app", secrets });
    const masked = (linux?.maskedPaths ?? []).filter((path) => !/^\/(proc|sys)\//.test(path));
    assert.deepEqual(masked.sort(), ["/host/etc/holdfast/key", "/state"]);
  });

  it("is shown what Holdfast needs in it read-only, and that travels nowhere", () => {
    const ours = (spec.mounts ?? []).filter(({ destination }) => destination.startsWith("/.holdfast"));
    assert.deepEqual(
      ours.map(({ destination }) => destination),
      ["/.holdfast", "/.holdfast/run", "/.holdfast/criu"],
    );
    for (const mount of ours) assert.ok(mount.options?.includes("ro"), mount.destination);
    assert.ok(!travellingTmpfs(spec).includes("/.holdfast"));
  });

  it("may not make namespaces, unless it has the capability anyway", () => {
    const refused = (capabilities: string[]): string =>
      JSON.stringify((seccompProfile(capabilities) as { syscalls: object[] }).syscalls);
    for (const call of ["unshare", "clone3", "mount", "keyctl", "userfaultfd"])
      assert.match(refused([]), new RegExp(`"${call}"`), call);
    for (const call of ["unshare", "clone3", "mount"])
      assert.doesNotMatch(refused(["CAP_SYS_ADMIN"]), new RegExp(`"${call}"`), call);
    for (const call of ["keyctl", "userfaultfd"])
      assert.match(refused(["CAP_SYS_ADMIN"]), new RegExp(`"${call}"`), call);
  });
});

it("accounts of a host keep everything but their passwords", () => {
  const text = "root:$y$j9T$abc:20228:0:99999:7:::\ndaemon:*:1::::::\nempty::1::::::\n";
  const hidden = "root:*:20228:0:99999:7:::\ndaemon:*:1::::::\nempty:*:1::::::\n";
  assert.equal(withoutPasswords(text), hidden);
});

it("a bundle keeps its own capabilities and hidden paths, and hides the agent's secrets too", () => {
  const bundle: OciSpec = {
    ociVersion: "1.0.2",
    process: { args: ["theirs"], cwd: "/", capabilities: { bounding: ["CAP_SYS_TIME"] } },
    root: { path: "rootfs" },
    linux: {
      maskedPaths: ["/proc/theirs"],
      seccomp: { defaultAction: "SCMP_ACT_ERRNO", syscalls: [{ names: ["read"], action: "SCMP_ACT_ALLOW" }] },
    },
  };
  const spec = adaptSpec({ ...options, isHostView: false }, bundle);
  assert.deepEqual(spec.process.capabilities, { bounding: ["CAP_SYS_TIME"] });
  assert.deepEqual(spec.linux?.maskedPaths, ["/proc/theirs", "/etc/holdfast/key"]);
  assert.deepEqual(spec.linux?.seccomp, bundle.linux?.seccomp);
});
