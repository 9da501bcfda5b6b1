/** Services whose clients come to gateways: what the controller makes of them and of pods, and what a gateway makes of that. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ServiceEntry } from "#control/api/gateway-table.ts";
import { ServiceTable } from "#control/gateway/services.ts";
import type { Pod, Service } from "#control/kubernetes/client/objects.ts";
import { adopt, parseSelector } from "#control/kubernetes/services/adopt.ts";
import { planServices, TABLE_BYTES_MAX } from "#control/kubernetes/services/plan.ts";
import { PORT_FIRST, PORT_LAST } from "#control/kubernetes/services/port-numbers.ts";
import type { SliceManifest } from "#control/kubernetes/services/slices.ts";

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
    status: {
      phase: "Running",
      podIP: `10.244.1.${name.length}`,
      conditions: [{ type: "Ready", status: ready ? "True" : "False" }],
    },
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

function planOf(
  services: Service[],
  pods: Pod[],
  table: Record<string, string> = {},
  gateways = GATEWAYS,
  lastPort: number | null = null,
) {
  const plan = planServices({
    ...{ services, pods, gateways, table },
    ...(lastPort === null ? {} : { lastPort: `${lastPort}` }),
  });
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

  it("do not get the number of one that has just gone: a gateway may not have heard yet", () => {
    const [b, c, d] = [service("b"), service("c"), service("d")];
    const numberOf = (plan: ReturnType<typeof planOf>, name: string): number | undefined =>
      plan.entries[`games.${name}`]?.ports[0]?.listen;
    const first = planOf([b, c], [pod("chat-a")]);
    // in one round
    const second = planOf([b, d], [pod("chat-a")], first.table, GATEWAYS, first.lastPort);
    assert.equal(numberOf(second, "d"), PORT_FIRST + 2);
    // … in two
    const gone = planOf([b], [pod("chat-a")], first.table, GATEWAYS, first.lastPort);
    const third = planOf([b, d], [pod("chat-a")], gone.table, GATEWAYS, gone.lastPort);
    assert.equal(numberOf(third, "d"), PORT_FIRST + 2);
    // … and of a table in which nothing is said of the last
    assert.equal(numberOf(planOf([b, d], [pod("chat-a")], first.table), "d"), PORT_FIRST + 2);
    // … when all have been given out once
    const wrapped = planOf([b, d], [pod("chat-a")], first.table, GATEWAYS, PORT_LAST);
    assert.equal(numberOf(wrapped, "d"), PORT_FIRST + 2 - 1, "free for longest");
    const after = planOf([b, c], [pod("chat-a")], wrapped.table, GATEWAYS, wrapped.lastPort);
    assert.equal(numberOf(after, "c"), PORT_FIRST + 2);
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

  /** Where clients of each port come: "NAME ADDRESS:PORT/PROTOCOL". */
  function endpointsOf({ slices }: { slices: SliceManifest[] }): string[] {
    return slices.flatMap(({ endpoints = [], ports = [] }) =>
      (endpoints as { addresses: string[] }[]).flatMap(({ addresses: [address] }) =>
        (ports as { name: string; port: number; protocol: string }[]).map(
          ({ name, port, protocol }) => `${name} ${address}:${port}/${protocol}`,
        ),
      ),
    );
  }
  const forward = { "holdfast.dev/mode": "forward" };
  const AT_GATEWAYS = GATEWAYS.map(({ status }) => ` ${status?.podIP}:${PORT_FIRST}/TCP`);

  it("lead to the pods themselves while there is none that gateways could lead to, and to gateways as soon as there is", () => {
    const old = [pod("old", { annotations: forward }), pod("plain", { annotations: null })];
    const unready = pod("old-2", { annotations: forward, ready: false });
    const labelled = planOf([service("chat")], [...old, unready]);
    const itself = [" 10.244.1.3:9000/TCP", " 10.244.1.5:9000/TCP"];
    assert.deepEqual(endpointsOf(labelled), itself);
    assert.deepEqual(
      labelled.slices.map(({ metadata }) => metadata.name),
      ["chat-holdfast", "chat-holdfast-pods-0"],
    );
    assert.deepEqual(labelled.leads, { gateways: 0, pods: 1, nowhere: 0 });
    assert.deepEqual(
      labelled.reasons.map(([reason, message]) => [reason, message.split(":")[0]]),
      [
        ["NotInjected", "clients come to plain without a gateway, as without the label"],
        ["NotGateway", "clients come to old, old-2 without a gateway, as without the label"],
      ],
    );
    // a roll-out
    const starting = planOf([service("chat")], [...old, pod("new", { ready: false })], labelled.table);
    assert.deepEqual(endpointsOf(starting), itself);
    const ready = planOf([service("chat")], [...old, pod("new")], starting.table);
    assert.deepEqual(endpointsOf(ready), AT_GATEWAYS);
    assert.deepEqual(ready.leads, { gateways: 1, pods: 0, nowhere: 0 });
  });

  it("lead to the pods themselves at ports that gateways do not have", () => {
    const ports = [
      { name: "tcp", port: 80, targetPort: 9000 },
      { name: "udp", port: 53, targetPort: 5353, protocol: "UDP" },
    ];
    const plan = planOf([service("chat", { spec: { ports } })], [pod("a")]);
    assert.deepEqual(endpointsOf(plan), [
      ...AT_GATEWAYS.map((one) => `tcp${one}`),
      "udp 10.244.1.1:5353/UDP",
    ]);
  });

  it("have slices of pods as Kubernetes would, of so many, and of each number that a name stands for", () => {
    const many = Array.from({ length: 150 }, (_, index) => pod(`p${index}`, { annotations: null }));
    const other = pod("z", { annotations: null });
    other.spec = { containers: [{ name: "app", ports: [{ name: "ws", containerPort: 9001 }] }] };
    const nameless = pod("y", { annotations: null });
    nameless.spec = { containers: [{ name: "app" }] };
    const spec = { ports: [{ port: 80, targetPort: "ws" }] };
    const { slices } = planOf([service("chat", { spec })], [...many, nameless, other]);
    assert.deepEqual(
      slices.slice(1).map(({ metadata, ports, endpoints = [] }) => [metadata.name, ports, endpoints.length]),
      [9000, 9000, 9001].map((port, index) => [
        `chat-holdfast-pods-${index}`,
        [{ name: "", port, protocol: "TCP" }],
        [100, 50, 1][index],
      ]),
    );
  });

  it("refuse connections while no gateway is Ready, and say so", () => {
    const { slices, reasons } = planOf([service("chat")], [pod("a")], {}, []);
    assert.deepEqual(
      slices.map(({ endpoints }) => endpoints),
      [[]],
    );
    assert.deepEqual(
      reasons.map(([reason]) => reason),
      ["NoGateway"],
    );
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
      /^clients of port dns come to the pods themselves: it is UDP/,
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

  it("have their clients come to the pods themselves where the table has no room, but for those that are in it", () => {
    const pods = Array.from({ length: 2_000 }, (_, index) => pod(`${"p".repeat(40)}-${index}`));
    const known = Array.from({ length: 7 }, (_, index) => service(`known-${index}`));
    const before = planOf(known, pods);
    assert.equal(Object.keys(before.table).length, 7);
    // earlier in the order of names
    const fresh = Array.from({ length: 5 }, (_, index) => service(`a-${index}`));
    const after = planOf([...fresh, ...known], pods, before.table);
    assert.deepEqual(
      known.filter(({ metadata }) => after.table[`games.${metadata.name}`] === undefined),
      [],
    );
    const outside = fresh.filter(({ metadata }) => after.table[`games.${metadata.name}`] === undefined);
    assert.ok(outside.length > 0);
    assert.deepEqual(
      after.reasons.map(([reason]) => reason),
      outside.map(() => "TooManyServices"),
    );
    assert.equal(after.leads.pods, outside.length);
    for (const { metadata } of outside) {
      const slices = after.slices.filter((one) => one.metadata.name.startsWith(`${metadata.name}-`));
      assert.equal(endpointsOf({ slices }).length, pods.length);
    }
    const bytes = Object.values(after.table).reduce((sum, text) => sum + Buffer.byteLength(text), 0);
    assert.ok(bytes <= after.tableBytes && after.tableBytes <= TABLE_BYTES_MAX);
    // … and those have room to grow
    const more = Array.from({ length: 100 }, (_, index) => pod(`${"q".repeat(40)}-${index}`));
    const grown = planOf([...fresh, ...known], [...pods, ...more], after.table);
    assert.deepEqual(Object.keys(grown.table).toSorted(), Object.keys(after.table).toSorted());
    assert.ok(grown.tableBytes > after.tableBytes && grown.tableBytes <= TABLE_BYTES_MAX);
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

describe("gateways", () => {
  const refusedOf = (table: Record<string, string>): string[] => {
    const refused: string[] = [];
    new ServiceTable("10.244.3.2", (key, reason) => refused.push(`${key}: ${reason}`)).read(table);
    return refused;
  };

  it("are told of no session that they would not understand: their Service is led without it", () => {
    for (const said of [
      '{"cookie":"two words"}',
      '{"coookie":"sid"}',
      '{"cookie":"sid","header":"x-sid"}',
      '{"query":""}',
      "{}",
      "null",
    ]) {
      const annotations = { "holdfast.dev/selector": "app=chat", "holdfast.dev/session": said };
      const { table, reasons } = planOf([service("s", { annotations })], [pod("a")]);
      assert.deepEqual(refusedOf(table), [], said);
      assert.deepEqual(
        reasons.map(([reason]) => reason),
        ["SessionInvalid"],
        said,
      );
      assert.deepEqual(JSON.parse(table["games.s"] ?? "{}").workloads, ["games.a"]);
    }
  });

  it("lead clients to all pods of a Service that has thousands", () => {
    const pods = Array.from({ length: 5_000 }, (_, index) => pod(`p-${index}`));
    assert.deepEqual(refusedOf(planOf([service("s")], pods).table), []);
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
