/** Where workloads are, as Envoys are told: by files and over gRPC, of what owners tell the store. */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";
import { Client, type ClientDuplexStream, credentials } from "@grpc/grpc-js";
import { pino } from "pino";
import { decodeFields, encodeFields, type Field } from "#control/criu/protobuf.ts";
import { AdsServer } from "#envoy/endpoints/ads-server.ts";
import { ASSIGNMENT_TYPE } from "#envoy/endpoints/assignment.ts";
import { parseEndpointsConfig } from "#envoy/endpoints/config.ts";
import { type RunningEndpoints, startEndpoints } from "#envoy/endpoints/main.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import { until } from "#test/support/moved-program.ts";
import { stallingRelay } from "#test/support/stalling-relay.ts";

const CLUSTERS = [
  { cluster: "chat-8080", workloads: ["chat-0", "chat-1"], port: 8080 },
  { cluster: "chat-9000", workloads: ["chat-0"], port: 9000 },
];
const PORTS = [8080, 9000];
const ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

type Places = [workload: string, address: string, port: number][];

describe("endpoints", () => {
  let folder: string;
  let store: MemoryStore;
  let running: RunningEndpoints | null = null;
  const clients: Client[] = [];
  const lines: string[] = [];

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-endpoints-"));
    store = new MemoryStore();
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await running?.close();
    running = null;
    await store.close();
    rmSync(folder, { recursive: true });
  });

  async function start(): Promise<void> {
    const config = { folder, ads: { address: "127.0.0.1", port: 0 }, admin: null, clusters: CLUSTERS };
    running = await startEndpoints(config, store, pino({}, { write: (line) => void lines.push(line) }));
  }

  /** A node tells the store that it owns the workload, and where its clients come. */
  async function own(workload: string, node: string, address: string, more: object = {}): Promise<void> {
    const { epoch } = await take(workload, node);
    const clients = PORTS.map((port) => ({ address, port }));
    const link = { address, port: 7500 };
    await store.putLink({
      workload,
      node,
      epoch,
      record: { node, epoch, link, ports: PORTS, clients, ...more },
    });
  }

  async function take(workload: string, node: string) {
    const found = await store.ownership(workload);
    if (found === null || found.owner === node) return store.claim({ workload, node });
    return store.raise({ workload, node, epoch: found.epoch + 1 });
  }

  const fileOf = (cluster: string): Places =>
    JSON.parse(
      readFileSync(join(folder, `${cluster}.json`), "utf8"),
    ).resources[0].endpoints[0].lb_endpoints.map(
      (one: {
        endpoint: { address: { socket_address: { address: string; port_value: number } } };
        metadata: { filter_metadata: Record<string, { workload: string }> };
      }) => {
        const { address, port_value } = one.endpoint.address.socket_address;
        return [one.metadata.filter_metadata["envoy.lb"]?.workload, address, port_value];
      },
    );

  const hasFile = (cluster: string, places: Places) =>
    until(`${cluster} ${places}`, () => JSON.stringify(fileOf(cluster)) === JSON.stringify(places));

  it("are in files that Envoy can start with, empty until an owner has told where its clients come", async () => {
    await start();
    assert.deepEqual(fileOf("chat-8080"), []);
    await own("chat-0", "a", "10.99.0.2");
    await hasFile("chat-8080", [["chat-0", "10.99.0.2", 8080]]);
    await hasFile("chat-9000", [["chat-0", "10.99.0.2", 9000]]);
    await own("chat-1", "b", "10.99.0.3");
    await hasFile("chat-8080", [
      ["chat-0", "10.99.0.2", 8080],
      ["chat-1", "10.99.0.3", 8080],
    ]);
  });

  it("follow a workload that has moved, and never back to an owner of before", async () => {
    await start();
    await own("chat-0", "a", "10.99.0.2");
    await hasFile("chat-9000", [["chat-0", "10.99.0.2", 9000]]);
    await own("chat-0", "b", "10.99.0.3");
    await hasFile("chat-9000", [["chat-0", "10.99.0.3", 9000]]);
    // a store that a fail-over has thrown back
    const old = { node: "a", epoch: 1, link: { address: "10.99.0.2", port: 7500 }, ports: PORTS };
    const clients = PORTS.map((port) => ({ address: "10.99.0.2", port }));
    const ask = store.link.bind(store);
    let asked = 0;
    store.link = async (workload) => {
      if (workload !== "chat-0") return ask(workload);
      asked += 1;
      return { ...old, clients };
    };
    await store.putLink({ workload: "chat-0", node: "b", epoch: 2, record: { ...old, node: "b", epoch: 2 } });
    await until("looked again", () => asked > 0);
    await own("chat-1", "b", "10.99.0.4");
    await hasFile("chat-8080", [
      ["chat-0", "10.99.0.3", 8080],
      ["chat-1", "10.99.0.4", 8080],
    ]);
  });

  it("stay when the workload is stopped, the store forgets, or the process begins anew", async () => {
    await start();
    await own("chat-0", "a", "10.99.0.2");
    await hasFile("chat-9000", [["chat-0", "10.99.0.2", 9000]]);
    await store.stop({ workload: "chat-0", node: "a", epoch: 1 });
    await running?.close();
    await start();
    assert.deepEqual(fileOf("chat-9000"), [["chat-0", "10.99.0.2", 9000]]);
    await own("chat-0", "b", "10.99.0.3");
    await hasFile("chat-9000", [["chat-0", "10.99.0.3", 9000]]);
  });

  it("are told of no cluster before the store was asked for each of its workloads", async () => {
    await start();
    await own("chat-0", "a", "10.99.0.2");
    await own("chat-1", "b", "10.99.0.3");
    const both: Places = [
      ["chat-0", "10.99.0.2", 8080],
      ["chat-1", "10.99.0.3", 8080],
    ];
    await hasFile("chat-8080", both);
    await running?.close();
    await own("chat-0", "c", "10.99.0.4");
    const { promise: isLate, resolve } = Promise.withResolvers<void>();
    const ask = store.link.bind(store);
    store.link = async (workload) => {
      if (workload === "chat-1") await isLate;
      return ask(workload);
    };
    await start();
    await hasFile("chat-9000", [["chat-0", "10.99.0.4", 9000]]);
    assert.deepEqual(fileOf("chat-8080"), both);
    resolve();
    await hasFile("chat-8080", [["chat-0", "10.99.0.4", 8080], both[1] as Places[number]]);
  });

  it("are none of a workload whose clients come to gateways", async () => {
    await own("chat-0", "a", "10.99.0.2", { clients: undefined });
    await start();
    await own("chat-1", "b", "10.99.0.3");
    await hasFile("chat-8080", [["chat-1", "10.99.0.3", 8080]]);
    assert.deepEqual(fileOf("chat-9000"), []);
  });

  it("are written beside and renamed, readable for an Envoy of any user, and again when that fails", async () => {
    await start();
    await own("chat-0", "a", "10.99.0.2");
    await hasFile("chat-9000", [["chat-0", "10.99.0.2", 9000]]);
    const file = join(folder, "chat-9000.json");
    assert.equal(statSync(file).mode & 0o777, 0o644);
    const before = statSync(file).ino;
    rmSync(folder, { recursive: true });
    writeFileSync(folder, "no folder");
    await own("chat-0", "b", "10.99.0.3");
    await until("it has failed", () => lines.some((line) => line.includes("endpoints were not written")));
    rmSync(folder);
    mkdirSync(folder);
    await until("written again", () => existsSync(file) && fileOf("chat-9000")[0]?.[1] === "10.99.0.3");
    assert.notEqual(statSync(file).ino, before);
  });

  // ---- over gRPC

  interface Asking {
    stream: ClientDuplexStream<Buffer, Buffer>;
    answers: { nonce: string; clusters: Record<string, Places> }[];
    ask(names: string[], more?: Field[], type?: string): void;
  }

  function asking(): Asking {
    const client = new Client(`127.0.0.1:${running?.adsPort}`, credentials.createInsecure());
    clients.push(client);
    const stream = client.makeBidiStreamRequest<Buffer, Buffer>(
      ADS,
      (bytes) => bytes,
      (bytes) => bytes,
    );
    const answers: Asking["answers"] = [];
    stream.on("data", (bytes: Buffer) => answers.push(readResponse(bytes)));
    stream.on("error", () => {});
    const ask = (names: string[], more: Field[] = [], type = ASSIGNMENT_TYPE): void =>
      void stream.write(encodeFields([...names.map((name): Field => [3, name]), [4, type], ...more]));
    return { stream, answers, ask };
  }

  it("are pushed to each Envoy that has asked for the cluster, and to it alone", async () => {
    await own("chat-0", "a", "10.99.0.2");
    await start();
    await hasFile("chat-9000", [["chat-0", "10.99.0.2", 9000]]);
    const one = asking();
    const other = asking();
    one.ask(["chat-9000"]);
    other.ask(["chat-8080"]);
    await until("answered", () => one.answers.length === 1 && other.answers.length === 1);
    assert.deepEqual(one.answers[0]?.clusters, { "chat-9000": [["chat-0", "10.99.0.2", 9000]] });
    // taken: nothing more is said
    one.ask(["chat-9000"], [[5, "1"]]);
    await own("chat-1", "b", "10.99.0.3");
    await until("pushed", () => other.answers.length === 2);
    assert.deepEqual(other.answers[1]?.clusters["chat-8080"]?.length, 2);
    assert.equal(one.answers.length, 1);
    await own("chat-0", "b", "10.99.0.3");
    await until("pushed", () => one.answers.length === 2);
    assert.deepEqual(one.answers[1], {
      nonce: "2",
      clusters: { "chat-9000": [["chat-0", "10.99.0.3", 9000]] },
    });
  });

  it("of a cluster that nobody knows yet are not answered, so that Envoy keeps what it had", async () => {
    await start();
    const one = asking();
    one.ask(["chat-9000", "other"]);
    one.ask(["x"], [], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    await own("chat-0", "a", "10.99.0.2");
    await until("answered", () => one.answers.length === 1);
    assert.deepEqual(Object.keys(one.answers[0]?.clusters ?? {}), ["chat-9000"]);
  });

  it("that an Envoy refuses are counted, and not sent again; what is no request ends its stream alone", async () => {
    await own("chat-0", "a", "10.99.0.2");
    await start();
    const one = asking();
    const bad = asking();
    one.ask(["chat-9000"]);
    await until("answered", () => one.answers.length === 1);
    one.ask(
      ["chat-9000"],
      [
        [5, "1"],
        [6, [[2, "not so"]]],
      ],
    );
    const { promise, resolve } = Promise.withResolvers<number>();
    bad.stream.on("error", (error) => resolve((error as { code?: number }).code ?? 0));
    bad.stream.write(Buffer.from([0xff, 0xff]));
    assert.equal(await promise, 3);
    await own("chat-0", "b", "10.99.0.3");
    await until("pushed", () => one.answers.length === 2);
    assert.equal(one.answers.length, 2);
    const refusals = lines.map((text) => JSON.parse(text)).filter(({ msg }) => /has refused/.test(msg));
    assert.deepEqual(
      refusals.map(({ reason }) => reason),
      ["not so"],
    );
  });
});

describe("an ADS server", () => {
  it("ends the stream of an Envoy that has gone without a word, which has its place no more", async () => {
    const server = new AdsServer(pino({ level: "silent" }), { everyMs: 200, timeoutMs: 200 });
    const relay = await stallingRelay(await server.listen({ address: "127.0.0.1", port: 0 }));
    const client = new Client(`127.0.0.1:${relay.port}`, credentials.createInsecure());
    try {
      const pass = (bytes: Buffer) => bytes;
      const stream = client.makeBidiStreamRequest<Buffer, Buffer>(ADS, pass, pass);
      stream.on("error", () => {});
      stream.write(encodeFields([[4, ASSIGNMENT_TYPE]]));
      await until("it is served", () => server.subscribers === 1);
      assert.equal(relay.stall(), 1);
      await until("it is noticed", () => server.subscribers === 0);
    } finally {
      client.close();
      relay.close();
      server.close();
    }
  });
});

describe("the file of endpoints", () => {
  const good = {
    store: "redis://10.99.0.1:6379",
    folder: "/var/lib/holdfast/envoy",
    clusters: [{ cluster: "chat-8080", workloads: ["chat"], port: 8080 }],
  };
  const refused: [change: object, message: RegExp][] = [
    [{ folder: undefined }, /e\.yaml: expected where Envoy finds endpoints/],
    [{ store: "memory:" }, /store: expected the Redis/],
    [{ clusters: [] }, /clusters: expected a list/],
    [
      { clusters: [good.clusters[0], good.clusters[0]] },
      /clusters\[1\]\.cluster: expected a name of its own/,
    ],
    [{ clusters: [{ ...good.clusters[0], cluster: "../x" }] }, /clusters\[0\]\.cluster: expected the name/],
    [
      { clusters: [{ ...good.clusters[0], workloads: ["chat", "chat"] }] },
      /clusters\[0\]\.workloads: expected each name once/,
    ],
    [{ ads: "here" }, /ads: expected IP:PORT/],
  ];
  for (const [change, message] of refused)
    it(`with ${JSON.stringify(change)} is refused`, () => {
      assert.throws(() => parseEndpointsConfig(JSON.stringify({ ...good, ...change }), "e.yaml"), message);
    });
});

function readResponse(bytes: Buffer): { nonce: string; clusters: Record<string, Places> } {
  const of = (from: Buffer, number: number): Buffer[] =>
    decodeFields(from)
      .filter((field) => field.number === number)
      .map((field) => field.bytes);
  const down = (from: Buffer, ...path: number[]): Buffer =>
    path.reduce((at, number) => of(at, number)[0] ?? Buffer.alloc(0), from);
  const clusters = of(bytes, 2).map((any) => {
    const assignment = down(any, 2);
    const places = of(down(assignment, 2), 2).map((endpoint): Places[number] => {
      const address = down(endpoint, 1, 1, 1);
      const port = decodeFields(address).find(({ number }) => number === 3)?.varint ?? 0n;
      const workload = down(endpoint, 3, 1, 2, 1, 2, 3).toString();
      return [workload, down(address, 2).toString(), Number(port)];
    });
    return [down(assignment, 1).toString(), places] as const;
  });
  return { nonce: down(bytes, 5).toString(), clusters: Object.fromEntries(clusters) };
}
