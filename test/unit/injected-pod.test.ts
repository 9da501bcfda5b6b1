/** What the annotations of an injected pod come to, as a workload's configuration or as a clear refusal. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type InjectedPod, lookAt, nameOf, workloadOf } from "#control/kubernetes/node/injected-pod.ts";

const ADDRESS = "10.99.0.2";
const ANNOTATIONS = { container: "app", ports: "8080:9000", command: '["node","server.js"]' };

function pod(annotations: Record<string, string | undefined> = {}): InjectedPod {
  const all = Object.entries({ ...ANNOTATIONS, ...annotations }).filter(([, value]) => value !== undefined);
  const given = Object.fromEntries(all) as Record<string, string>;
  return { uid: "1", namespace: "default", name: "chat-a", annotations: given };
}

function object(
  annotations: Record<string, string>,
  more: { metadata?: object; spec?: object; status?: object } = {},
): unknown {
  const metadata = { uid: "1", namespace: "default", name: "chat-a", annotations, ...more.metadata };
  return { metadata, spec: { nodeName: "a", ...more.spec }, status: more.status };
}

describe("a pod that was injected", () => {
  it("starts its workload, a standby does not", () => {
    const config = workloadOf(pod(), ADDRESS);
    assert.equal(config.name, "default.chat-a");
    assert.equal(config.start, true);
    assert.equal(config.restart, "always");
    assert.equal(config.subreaper, false);
    assert.equal(workloadOf(pod({ subreaper: "true" }), ADDRESS).subreaper, true);
    assert.deepEqual(config.pod, {
      ...{ namespace: "default", name: "chat-a", uid: "1", container: "app" },
      ...{ command: ["node", "server.js"], cwd: null, proxy: "node" },
    });
    assert.deepEqual([config.listenIn, config.listenAddress], ["node", ADDRESS]);
    assert.equal(workloadOf(pod({ listen: "pod" }), ADDRESS).listenIn, "container");
    assert.equal(workloadOf(pod({ listen: "pod", mode: "gateway" }), ADDRESS).listenIn, "node");
    const sidecar = workloadOf(pod({ proxy: "sidecar" }), ADDRESS);
    assert.deepEqual([sidecar.pod?.proxy, sidecar.listenIn], ["sidecar", "container"]);
    assert.equal(workloadOf(pod({ proxy: "sidecar", mode: "gateway" }), ADDRESS).listenIn, "node");
    const standby = workloadOf(pod({ standby: "true", workload: "default.other" }), ADDRESS);
    assert.deepEqual([standby.name, standby.start], ["default.other", false]);
  });

  it("names its ports, what is behind them and the protocol", () => {
    const config = workloadOf(
      pod({ ports: "8080/http, 9000,80:8081/websocket", continuity: "replay" }),
      ADDRESS,
    );
    assert.deepEqual(
      config.ports.map(({ listen, upstream, protocol, continuity }) => [
        listen,
        upstream,
        protocol,
        continuity,
      ]),
      [
        [8080, { address: "127.0.0.1", port: 8080 }, "http", "replay"],
        [9000, { address: "127.0.0.1", port: 9000 }, "auto", "replay"],
        [80, { address: "127.0.0.1", port: 8081 }, "websocket", "replay"],
      ],
    );
    assert.equal(workloadOf(pod({ continuity: "none" }), ADDRESS).ports[0]?.continuity, "transplant");
    assert.equal(workloadOf(pod({ mode: "gateway" }), ADDRESS).downstream, "gateway");
    assert.equal(workloadOf(pod({ command: undefined }), ADDRESS).pod?.command, null);
    assert.equal(workloadOf(pod({ limits: '{"deadlineMs":5000}' }), ADDRESS).limits.deadlineMs, 5000);
  });

  it("has a name that fits, and another for each pod", () => {
    const long = (name: string): InjectedPod => ({ ...pod(), namespace: "production", name });
    const NAME = "checkout-sessions-of-all-customers-in-europe-7d9c5b8f6d-x2x4z";
    const [one, other] = [NAME, NAME.replace(/z$/, "y")].map((name) => nameOf(long(name)));
    assert.match(one ?? "", /^production\.checkout-sessions-of-[a-z0-9-]*-[0-9a-f]{10}$/);
    assert.equal(one?.length, 63);
    assert.notEqual(one, other);
    assert.equal(nameOf({ ...pod({ workload: "other.chat" }), name: "mine" }), "default.mine");
    assert.equal(workloadOf(long(NAME), ADDRESS).name, one);
  });

  for (const [what, annotations, message] of [
    ["no container", { container: undefined }, /annotation holdfast\.dev\/container: is missing/],
    ["another place for the proxy", { proxy: "moon" }, /holdfast\.dev\/proxy: expected node or sidecar/],
    [
      "a proxy in the pod that is to listen at the node",
      { proxy: "sidecar", listen: "node" },
      /pod\.listen: expected pod, as a proxy in the pod cannot listen at the node/,
    ],
    ["another place for clients", { listen: "moon" }, /holdfast\.dev\/listen: expected node or pod/],
    ["a mode of nodes alone", { mode: "takeover" }, /holdfast\.dev\/mode: expected forward or gateway/],
    ["a command that is no JSON", { command: "node server.js" }, /holdfast\.dev\/command: expected JSON/],
    [
      "a command that is no list",
      { command: '"node"' },
      /pod\.command: expected a command as a list of words/,
    ],
    ["no ports", { ports: "" }, /holdfast\.dev\/ports: expected ports as LISTEN/],
    ["a port that is none", { ports: "8080:http" }, /holdfast\.dev\/ports: expected ports as LISTEN/],
    ["a port out of range", { ports: "70000" }, /70000|expected a port number/],
    ["a protocol nobody knows", { ports: "80/gopher" }, /ports\[0\]\.protocol: expected auto, tcp/],
    ["the same port twice", { ports: "80:1,80:2" }, /ports\[1\]\.listen: expected a port of its own/],
    ["another continuity", { continuity: "always" }, /holdfast\.dev\/continuity: expected none or replay/],
    ["a limit nobody knows", { limits: '{"deadlnMs":1}' }, /limits\.deadlnMs: unknown key/],
    ["a name with a slash", { workload: "default./../../etc" }, /name: expected a name/],
    [
      "a name of another namespace",
      { workload: "other.chat" },
      /workload: expected a name that begins with "default\."/,
    ],
  ] as const)
    it(`is refused with ${what}, by its name and the annotation's`, () => {
      assert.throws(
        () => workloadOf(pod(annotations), ADDRESS),
        (error: Error) => {
          assert.match(error.message, message);
          assert.match(error.message, /pod default\/chat-a/);
          return true;
        },
      );
    });

  it("is looked at for whether its container runs, and whether it is about to go", () => {
    const injected = { "holdfast.dev/injected": "1", "holdfast.dev/container": "app", other: "x" };
    const running = { containerStatuses: [{ name: "app", state: { running: { startedAt: "now" } } }] };
    const waiting = { containerStatuses: [{ name: "app", state: { waiting: {} } }] };
    assert.equal(lookAt(object({ other: "x" }, { status: running })), null);
    assert.equal(lookAt(object(injected))?.state, "starting");
    assert.equal(lookAt(object(injected, { status: waiting }))?.state, "starting");
    const here = lookAt(object(injected, { status: { phase: "Running", ...running } }));
    assert.equal(here?.state, "here");
    assert.deepEqual(here?.pod.annotations, { injected: "1", container: "app" });
    const metadata = { deletionTimestamp: "2026-11-27T12:00:00Z" };
    assert.equal(lookAt(object(injected, { status: running, metadata }))?.state, "ending");
    assert.equal(lookAt(object(injected, { status: { ...running, phase: "Failed" } }))?.state, "over");
  });

  it("may run before kubelet says so, when all that runs before it has", () => {
    const injected = { "holdfast.dev/injected": "1", "holdfast.dev/container": "app" };
    const lastTransitionTime = "2026-11-30T12:00:00Z";
    const look = (status: string) => {
      const conditions = [{ type: "Initialized", status, lastTransitionTime }];
      return lookAt(object(injected, { status: { phase: "Pending", conditions } }));
    };
    assert.equal(look("False")?.state, "starting");
    assert.equal(look("True")?.state, "initialized");
    assert.equal(look("True")?.sinceMs, Date.parse(lastTransitionTime));
  });
});
