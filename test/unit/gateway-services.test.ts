/** Services whose clients come to gateways: what the controller makes of them and of pods, and what a gateway makes of that. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ServiceEntry } from "#control/api/gateway-table.ts";
import { ServiceTable } from "#control/gateway/services.ts";
import type { Pod, Service } from "#control/kubernetes/client/objects.ts";
import { adopt, parseSelector } from "#control/kubernetes/services/adopt.ts";
import { PORT_FIRST, PORT_LAST, planServices } from "#control/kubernetes/services/plan.ts";

const META = { resourceVersion: "1", creationTimestamp: "2026-01-01T00:00:00Z" };

function service(
  name: string,
  more: { annotations?: Record<string, string>; spec?: Service["spec"] } = {},
): Service {
  const {
    annotations = { "holdfast.dev/selector": "app=chat" },
    spec = { ports: [{ port: 80, targetPort: 9000 }] },
  } = more;
  return {
    metadata: { ...META, name, namespace: "games", uid: `uid-${name}`, annotations },
    spec: { clusterIP: "10.96.0.9", ...spec },
  };
}

function pod(
  name: string,
  more: {
    annotations?: Record<string, string> | null;
    ready?: boolean;
    deleted?: boolean;
    app?: string;
  } = {},
): Pod {
  const { annotations = {}, ready = true, deleted = false, app = "chat" } = more;
  const injected = {
    "holdfast.dev/injected": "1",
    "holdfast.dev/container": "app",
    "holdfast.dev/ports": "8080:9000/websocket, 8081",
    "holdfast.dev/mode": "gateway",
  };
  return {
    metadata: {
      ...META,
      name,
      namespace: "games",
      uid: `uid-${name}`,
      labels: { app },
      ...(annotations === null ? {} : { annotations: { ...injected, ...annotations } }),
      ...(deleted ? { deletionTimestamp: META.creationTimestamp } : {}),
    },
    spec: { containers: [{ name: "app", ports: [{ name: "ws", containerPort: 9000 }] }] },
    status: { phase: "Running", conditions: [{ type: "Ready", status: ready ? "True" : "False" }] },
  };
}

function gateway(name: string, podIP: string, ready = true): Pod {
  return {
    ...pod(name, { annotations: null, ready }),
    spec: { nodeName: "edge", containers: [{ name: "gateway" }] },
    status: { phase: "Running", podIP, conditions: [{ type: "Ready", status: ready ? "True" : "False" }] },
  };
}

const GATEWAYS = [gateway("g1", "10.244.3.2"), gateway("g2", "10.244.3.3")];

function planOf(services: Service[], pods: Pod[], table: Record<string, string> = {}, gateways = GATEWAYS) {
  const plan = planServices({ services, pods, gateways, table });
  const entries = Object.fromEntries(
    Object.entries(plan.table).map(([key, text]) => [key, JSON.parse(text) as ServiceEntry]),
  );
  return {
    ...plan,
    entries,
    reasons: plan.findings.map(({ reason, message }) => [reason, message] as const),
  };
}

describe("Services whose clients come to gateways", () => {
  it("get an entry with a port number of their own, and the gateways' endpoints", () => {
    const { entries, slices, reasons } = planOf(
      [service("chat")],
      [pod("chat-a"), pod("chat-b"), pod("x", { app: "x" })],
    );
    assert.deepEqual(entries, {
      "games.chat": {
        ports: [{ name: "", listen: PORT_FIRST, port: 8080 }],
        workloads: ["games.chat-a", "games.chat-b"],
      },
    });
    assert.deepEqual(reasons, []);
    const [slice] = slices;
    assert.deepEqual(slice?.metadata, {
      name: "chat-holdfast",
      namespace: "games",
      labels: {
        "kubernetes.io/service-name": "chat",
        "endpointslice.kubernetes.io/managed-by": "gateway.holdfast.dev",
      },
      ownerReferences: [
        { apiVersion: "v1", kind: "Service", name: "chat", uid: "uid-chat", controller: true },
      ],
    });
    assert.deepEqual(slice?.ports, [{ name: "", port: PORT_FIRST, protocol: "TCP" }]);
    assert.deepEqual(
      slice?.endpoints?.map((one) => (one as { addresses: string[] }).addresses),
      [["10.244.3.2"], ["10.244.3.3"]],
    );
  });

  it("lead nobody to a gateway that is not Ready, or ends", () => {
    const gateways = [gateway("g1", "10.244.3.2", false), { ...gateway("g2", "10.244.3.3") }];
    (gateways[1] as Pod).metadata.deletionTimestamp = META.creationTimestamp;
    const { slices } = planOf([service("chat")], [pod("chat-a")], {}, gateways);
    assert.deepEqual(slices[0]?.endpoints, []);
  });

  it("keep their numbers, whatever comes or goes beside them", () => {
    const [one, two] = [service("b"), service("c")];
    const first = planOf([one, two], [pod("p")]);
    const listens = (entries: Record<string, ServiceEntry>) =>
      Object.fromEntries(Object.entries(entries).map(([key, { ports }]) => [key, ports[0]?.listen]));
    assert.deepEqual(listens(first.entries), { "games.b": PORT_FIRST, "games.c": PORT_FIRST + 1 });
    const second = planOf([service("a"), two], [pod("p")], first.table);
    assert.deepEqual(listens(second.entries), { "games.a": PORT_FIRST + 2, "games.c": PORT_FIRST + 1 });
  });

  it("never have the same number, even where the table gives it to both", () => {
    const entry = JSON.stringify({ ports: [{ name: "", listen: PORT_LAST, port: 8080 }], workloads: [] });
    const { entries } = planOf([service("a"), service("b")], [pod("p")], {
      "games.a": entry,
      "games.b": entry,
    });
    assert.equal(entries["games.a"]?.ports[0]?.listen, PORT_LAST);
    assert.equal(entries["games.b"]?.ports[0]?.listen, PORT_FIRST);
  });

  it("know a workload by the name that it keeps when it moves, once where two pods stand for it", () => {
    const moved = pod("chat-9k2lm", { annotations: { "holdfast.dev/workload": "games.chat-a" } });
    const { entries } = planOf([service("chat")], [pod("chat-a"), moved]);
    assert.deepEqual(entries["games.chat"]?.workloads, ["games.chat-a"]);
  });

  it("lead to pods that are Ready, and only where none is to those that are not", () => {
    const [ready, not] = [pod("a"), pod("b", { ready: false })];
    assert.deepEqual(planOf([service("chat")], [ready, not]).entries["games.chat"]?.workloads, ["games.a"]);
    assert.deepEqual(planOf([service("chat")], [not]).entries["games.chat"]?.workloads, ["games.b"]);
  });

  it("refuse connections, with their number kept, while there is no pod", () => {
    const before = planOf([service("chat")], [pod("a")]);
    const { entries, slices } = planOf([service("chat")], [pod("a", { deleted: true })], before.table);
    assert.deepEqual(entries["games.chat"], {
      ports: [{ name: "", listen: PORT_FIRST, port: 8080 }],
      workloads: [],
    });
    assert.deepEqual(slices[0]?.endpoints, []);
  });

  it("lead nobody to a pod that is not injected, or not in gateway mode, and say so", () => {
    const pods = [
      pod("in"),
      pod("plain", { annotations: null }),
      pod("forward", { annotations: { "holdfast.dev/mode": "forward" } }),
    ];
    const { entries, reasons } = planOf([service("chat")], pods);
    assert.deepEqual(entries["games.chat"]?.workloads, ["games.in"]);
    assert.deepEqual(
      reasons.map(([reason, message]) => [reason, /to (\w+):/.exec(message)?.[1]]),
      [
        ["NotInjected", "plain"],
        ["NotGateway", "forward"],
      ],
    );
  });

  it("find a pod's port by what clients call it, by where the application listens, and by its name", () => {
    const ports = [
      { name: "own", port: 1, targetPort: 8080 },
      { name: "application", port: 2, targetPort: 9000 },
      { name: "named", port: 3, targetPort: "ws" },
      { name: "other", port: 8081 },
    ];
    const { entries, slices } = planOf([service("chat", { spec: { ports } })], [pod("a")]);
    assert.deepEqual(
      entries["games.chat"]?.ports.map(({ name, port }) => [name, port]),
      [
        ["own", 8080],
        ["application", 8080],
        ["named", 8080],
        ["other", 8081],
      ],
    );
    assert.deepEqual(
      slices[0]?.ports,
      ["own", "application", "named", "other"].map((name, index) => ({
        name,
        port: PORT_FIRST + index,
        protocol: "TCP",
      })),
    );
  });

  it("say why nobody, or not everybody, is led as expected", () => {
    const reasonOf = (one: Service, pods = [pod("a")]) => planOf([one], pods).reasons;
    const ports = [{ port: 80, targetPort: 9000 }];
    const only = (one: Service, reason: string, message: RegExp, pods?: Pod[]) => {
      const [[found, text] = ["", ""], ...others] = reasonOf(one, pods);
      assert.deepEqual([found, others], [reason, []]);
      assert.match(text, message);
    };
    only(
      service("s", { spec: { selector: { app: "chat" }, ports } }),
      "HasSelector",
      /annotate service s holdfast.dev\/selector=app=chat;/,
    );
    only(service("s", { annotations: {} }), "NoSelector", /got nothing/);
    only(
      service("s", { annotations: { "holdfast.dev/selector": "app in (x)" } }),
      "NoSelector",
      /got app in \(x\)/,
    );
    only(service("s", { spec: { clusterIP: "None", ports } }), "NoAddress", /clusterIP/);
    only(
      service("s", { spec: { ports: [...ports, { name: "dns", port: 53, protocol: "UDP" }] } }),
      "NotTcp",
      /port dns: expected TCP, got UDP/,
    );
    only(service("s", { spec: { ports: [{ port: 81 }] } }), "NoSuchPort", /targetPort 81: .* of a:/);
    only(
      service("s", { annotations: { "holdfast.dev/selector": "app=chat", "holdfast.dev/session": "sid" } }),
      "SessionInvalid",
      /got sid/,
    );
    const later = pod("b", { annotations: { "holdfast.dev/ports": "7000" } });
    only(service("s"), "NoSuchPort", /targetPort 9000: expected it as port 8080 .* of b:/, [pod("a"), later]);
  });

  it("leave out what does not fit into one object, and say so", () => {
    const services = Array.from({ length: 12 }, (_, index) => service(`s${index}`));
    const pods = Array.from({ length: 2_000 }, (_, index) => pod(`${"p".repeat(40)}-${index}`));
    const { table, reasons } = planOf(services, pods);
    assert.ok(Object.keys(table).length < 12);
    assert.ok(reasons.some(([reason]) => reason === "TooManyServices"));
    assert.ok(Buffer.byteLength(JSON.stringify(Object.values(table))) < 1_048_576 * 1.2);
  });
});

describe("a Service, as it is admitted", () => {
  const labels = { "holdfast.dev/gateway": "enabled", team: "x" };
  const plain = {
    metadata: { name: "chat", labels: { team: "x" } },
    spec: { selector: { app: "chat", tier: "2" }, ports: [] },
  };
  const labelled = { ...plain, metadata: { ...plain.metadata, labels } };
  const kept = {
    metadata: { name: "chat", labels, annotations: { "holdfast.dev/selector": "app=chat,tier=2" } },
    spec: { ports: [] },
  };

  it("loses its selector to an annotation when its clients are to come to gateways", () => {
    assert.deepEqual(adopt(labelled, null), kept);
    assert.deepEqual(adopt(labelled, plain), kept);
  });

  it("stays as it is when it is so already, or is none of gateways'", () => {
    assert.equal(adopt(kept, kept), null);
    assert.equal(adopt(plain, null), null);
    assert.equal(adopt(plain, plain), null);
  });

  it("has the selector that somebody applies again", () => {
    const again = { ...kept, spec: { selector: { app: "other" }, ports: [] } };
    assert.equal(adopt(again, kept)?.metadata?.annotations?.["holdfast.dev/selector"], "app=other");
  });

  it("gets its selector back when its label goes", () => {
    const without = { ...kept, metadata: { ...kept.metadata, labels: { team: "x" } } };
    assert.deepEqual(adopt(without, kept), { ...plain, metadata: { ...plain.metadata, annotations: {} } });
  });
});

describe("a selector in an annotation", () => {
  it("is names and values that have to be the same", () => {
    assert.deepEqual(parseSelector("app=chat, games.example/tier=2,empty="), {
      app: "chat",
      "games.example/tier": "2",
      empty: "",
    });
  });

  it("never selects everything", () => {
    for (const text of ["", " ", "app", "app=chat,", "a!=b", "=x"])
      assert.equal(parseSelector(text), null, text);
  });
});

describe("a gateway's listeners", () => {
  const entry = (listen: number, more: object = {}) =>
    JSON.stringify({ ports: [{ name: "", listen, port: 8080 }], workloads: ["games.a"], ...more });

  function table(): { table: ServiceTable; refused: string[] } {
    const refused: string[] = [];
    return {
      table: new ServiceTable("10.244.3.2", (service, reason) => refused.push(`${service}: ${reason}`)),
      refused,
    };
  }

  it("are one for each port of each Service", () => {
    const { table: of, refused } = table();
    const listeners = of.read({
      "games.chat": entry(20_000, { session: { cookie: "sid" }, sendProxyProtocol: true }),
      "games.none": entry(20_001, { workloads: [] }),
      "games.echo": entry(20_002, { workloads: ["games.b", "games.c"] }),
    });
    assert.deepEqual(
      listeners.map(({ at, routes: [route], sendProxyProtocol }) => [
        at,
        route?.workloads,
        route?.port,
        route?.session,
        sendProxyProtocol,
      ]),
      [
        [
          { address: "10.244.3.2", port: 20_000 },
          ["games.a"],
          8080,
          { from: "cookie", name: "sid", issue: false },
          true,
        ],
        [{ address: "10.244.3.2", port: 20_002 }, ["games.b", "games.c"], 8080, null, false],
      ],
    );
    assert.deepEqual(refused, []);
  });

  it("leave out what is not understood, once, and what would be another's", () => {
    const { table: of, refused } = table();
    const data = {
      "games.a": entry(20_000),
      "games.b": "{",
      "games.c": entry(20_000),
      "games.d": entry(20_001, { session: {} }),
    };
    for (let times = 0; times < 2; times++) assert.equal(of.read(data).length, 1);
    assert.match(refused.join("\n"), /^games\.b: .*JSON/m);
    assert.match(refused.join("\n"), /^games\.c: another Service has its port 20000/m);
    assert.match(refused.join("\n"), /^games\.d: .*session/m);
    assert.equal(refused.filter((line) => line.startsWith("games.b")).length, 1);
  });
});
