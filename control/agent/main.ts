/** The composition root of the node agent: builds every part, answers the other agents, ends in order. */
import { chmodSync, mkdirSync, realpathSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Logger, pino } from "pino";
import { z } from "zod";
import { Channel, checked } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { logDestination } from "#proxy/contract/log-destination.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { openStore } from "#proxy/store/open.ts";
import { checkCall } from "../api/check.ts";
import { anchorPrepareCall, anchorSwitchCall, outcomeCall, prepareCall } from "../api/migration.ts";
import { ownersCall } from "../api/owners.ts";
import { ChangeWatch } from "../config/change-watch.ts";
import { type AgentConfig, exceededBy } from "../config/config.ts";
import { findCriu } from "../criu/tool.ts";
import type { Pod } from "../kubernetes/client/objects.ts";
import { Faults } from "../migration/faults.ts";
import { ParkedAddresses } from "../network/parked-addresses.ts";
import { makeTopGroups, mountMissingCgroups } from "../runtime/cgroups.ts";
import { lookAfterForwarding } from "../runtime/runc/network.ts";
import { RuncRuntime } from "../runtime/runc/runc-runtime.ts";
import type { Runtime } from "../runtime/runtime.ts";
import { ClusterMark } from "../workload/cluster-mark.ts";
import { Owners } from "../workload/owners.ts";
import { answerCheck } from "../workload/preflight/preflight.ts";
import { Workload } from "../workload/workload.ts";
import { AdminServer, type OwnContext } from "./admin.ts";
import { collectSeldom } from "./collector.ts";
import { KeyRing } from "./key-ring.ts";
import { AgentMetrics } from "./metrics.ts";
import type { MigrationsOptions } from "./migrations.ts";
import { PodPeers } from "./pod-peers.ts";
import { PodWorkloads } from "./pod-workloads.ts";
import { dialSecure, listenSecure } from "./secure.ts";
import { Trust } from "./trust.ts";

export interface AgentOptions {
  logLevel: string;
}

const INIT_BINARY = "/usr/bin/catatonit";
const RECOVER_MS_MAX = 3_000;
/** what a node of Kubernetes listens at by itself: a pod that has one when kubelet starts again keeps that from starting */
const NODE_PORTS = [
  ...[10248, 10250, 10255].map((port) => [port, "kubelet's"] as const),
  ...[10249, 10256].map((port) => [port, "kube-proxy's"] as const),
];
const FORWARDING_MS = 5_000;
const CACHE_DIR = "/var/cache/holdfast";
/** Runs until SIGTERM or SIGINT; workloads and their sessions go on without it. */
export async function runAgent(config: AgentConfig, options: AgentOptions): Promise<void> {
  collectSeldom();
  const log = pino({ level: options.logLevel, base: { node: config.node } }, logDestination());
  mkdirSync(config.stateDir, { recursive: true, mode: 0o700 });
  chmodSync(config.stateDir, 0o700);
  const mounted = await mountMissingCgroups();
  if (mounted.length > 0) log.info({ mounted }, "mounted cgroups that `ip netns exec` had hidden");
  const workloads = new Map<string, Workload>();
  const metrics = new AgentMetrics(workloads);
  const store = openStore(config.store, {
    onDown: (reason) => {
      metrics.storeUp(false);
      log.warn({ reason: messageOf(reason) }, "the store is out of reach; sessions go on, moves wait");
    },
    onUp: () => {
      metrics.storeUp(true);
      log.info("the store is back");
    },
  });
  const ring = new KeyRing(config.keys);
  const gatewayRing = config.gatewayKeys === null ? ring : new KeyRing(config.gatewayKeys.keys);
  const trust = new Trust({ node: config.node, ring, identity: config.identity, revoked: config.revoked });
  const podPeers =
    config.agents === null
      ? null
      : new PodPeers({
          node: config.node,
          port: config.listen.port,
          file: join(config.stateDir, "peers.json"),
          log,
        });
  const peers = podPeers?.peers ?? config.peers;
  const context: OwnContext = {
    node: config.node,
    host: config.listen.address,
    links: config.links,
    configFile: config.file,
    stateDir: config.stateDir,
    // in a pod, what is in the agent's groups ends with its container
    proxyGroups: config.pods ? makeTopGroups("holdfast") : [],
    ring,
    gatewayRing,
    trust,
    secrets: [...secretFiles(config), config.stateDir, config.file].map(realPath),
    store,
    storeUrl: config.store.replace(/\/\/[^@/]*@/, "//"),
    mark: new ClusterMark(join(config.stateDir, "store-mark"), store),
    parked: new ParkedAddresses(join(config.stateDir, "parked.json")),
    peers,
    owners: new Owners(() => context, workloads),
    runtime: await runtimeOf(config),
    criu: await findCriu(process.env.HOLDFAST_CACHE ?? CACHE_DIR),
    initBinary: INIT_BINARY,
    log,
    metrics,
    faults: new Faults(process.env.HOLDFAST_FAULT),
    dial: (node, timeoutMs) => dial(peers, trust, node, workloads, timeoutMs),
  };
  const folder = join(config.stateDir, "workloads");
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const workload of config.workloads) {
    mkdirSync(join(folder, workload.name), { recursive: true, mode: 0o700 });
    workloads.set(workload.name, new Workload(workload, context));
  }
  const admin = new AdminServer(context, workloads, metrics);
  await admin.claim(config.admin, config.metrics);
  const recovering = new Set<Workload>();
  const recover = async (workload: Workload): Promise<void> => {
    recovering.add(workload);
    await podPeers?.known; // who may have it is asked
    await workload
      .recover()
      .catch((error: unknown) =>
        log.error({ workload: workload.name, reason: messageOf(error) }, "cannot be started"),
      );
    recovering.delete(workload);
  };
  const pods = new PodWorkloads({
    workloads,
    stateDir: config.stateDir,
    folder,
    nodeAddress: config.listen.address,
    log,
    create: (workload) => new Workload(workload, context),
    recover: (workload) => void recover(workload),
    isRecovering: (workload) => recovering.has(workload),
    runs: ({ annotations: { container = "" }, ...pod }) => context.runtime.runs({ ...pod, container }),
    exceeds: (all) => exceededBy(all, config.limits)?.message ?? null,
    reserved: new Map([
      ...NODE_PORTS,
      [config.listen.port, "this agent's"],
      ...(config.metrics === null ? [] : [[config.metrics.port, "this agent's (metrics)"] as const]),
    ]),
  });
  const unreadPods = config.pods ? pods.restore() : [];
  const known = new Set(
    [...workloads.values()].flatMap((workload) =>
      workload.journal.container === null ? [] : [workload.journal.container.id],
    ),
  );
  const unread = [...workloads.values()]
    .filter(({ damage }) => damage !== null)
    .map(({ name }) => name)
    .concat(unreadPods)
    .map((workload) => ({ workload, node: config.node }));
  for (const { id, problem } of await context.runtime.removeStrays(known, unread))
    if (problem === null) log.warn({ container: id }, "removed what an earlier agent left behind");
    else log.error({ container: id, problem }, "what an earlier agent left behind cannot be removed");
  const forwarding = setInterval(() => {
    lookAfterForwarding().catch((error: unknown) =>
      log.warn({ reason: messageOf(error) }, "who forwards on this node was not looked at"),
    );
  }, FORWARDING_MS);
  forwarding.unref();

  const listener = await listenSecure({
    host: config.listen.address,
    port: config.listen.port,
    trust,
    onPeer: (stream, peer) => serve(new Channel(stream, { name: `agent ${peer}` }), peer, workloads, context),
    onRefused: (line) => log.warn(line),
  });
  const secrets = watchSecrets(config, context, workloads);
  context.owners.keep();
  const watch = await watchCluster(config, pods, podPeers, metrics, log, {
    store,
    isRecovering: (workload) => recovering.has(workload as Workload),
  });
  const recovered = Promise.all([...workloads.values()].map(recover));
  // a move that was cut off may wait for the store or another node: people can look at it meanwhile
  await Promise.race([recovered, delay(RECOVER_MS_MAX, undefined, { ref: false })]);
  const told = new Promise<void>((resolve) => {
    process.once("SIGTERM", resolve);
    process.once("SIGINT", resolve);
  });
  await admin.open(config.socket);
  log.info(
    {
      listen: `${config.listen.address}:${config.listen.port}`,
      socket: config.socket,
      criu: context.criu.version,
      runtime: context.runtime.program,
    },
    "agent ready",
  );

  await told;
  log.info("agent ends; its workloads go on");
  await watch.close();
  pods.close();
  podPeers?.close();
  for (const workload of workloads.values()) workload.close();
  secrets.close();
  clearInterval(forwarding);
  context.owners.close();
  await admin.close();
  await listener.close();
  await store.close();
}

/** The pods of this node and of the agents of others, and Migrations, from now on. */
async function watchCluster(
  { node, pods: hasPods, agents }: AgentConfig,
  pods: PodWorkloads<Workload>,
  peers: PodPeers | null,
  metrics: AgentMetrics,
  log: Logger,
  of: Pick<MigrationsOptions, "store"> & { isRecovering(workload: object): boolean },
): Promise<{ close(): Promise<void> }> {
  if (!hasPods) return { async close() {} };
  // a file's agent does without
  const [{ findAccess }, { KubernetesApi }, { Watches }, { pathOf }, { Migrations }, { MovablePods }] =
    await Promise.all([
      import("../kubernetes/client/access.ts"),
      import("../kubernetes/client/api.ts"),
      import("../kubernetes/client/watches.ts"),
      import("../kubernetes/client/paths.ts"),
      import("./migrations.ts"),
      import("./movable-pods.ts"),
    ]);
  const access = findAccess(process.env);
  const api = new KubernetesApi(access, `holdfast-agent/${node}`);
  const migrations = new Migrations({
    ...of,
    node,
    api,
    log,
    workloadOf: (podUid) => pods.workloadOf(podUid),
  });
  const movable = new MovablePods({
    api,
    log,
    workloadOf: (podUid) => pods.workloadOf(podUid),
    isRecovering: of.isRecovering,
  });
  metrics.assesses(() => movable.assessed());
  const watches = new Watches({
    api,
    silent: metrics.silent,
    onProblem: (what, error) => log.warn({ reason: messageOf(error) }, what),
  });
  watches.open<Pod>("pods of this node", {
    path: pathOf("pods"),
    query: { fieldSelector: `spec.nodeName=${node}` },
    onAll: (found) => {
      pods.update(found);
      migrations.seePods(found);
      movable.seePods(found);
    },
  });
  watches.open("Migrations", {
    path: pathOf("migrations"),
    onAll: (found) => migrations.seeMigrations(found),
  });
  if (agents !== null && peers !== null)
    watches.open("pods of agents", {
      path: pathOf("pods", { namespace: access.namespace }),
      query: { labelSelector: agents },
      onAll: (found) => peers.update(found),
    });
  return {
    async close() {
      migrations.close();
      movable.close();
      await watches.close();
      api.close();
    },
  };
}

async function runtimeOf({ cri, stateDir }: AgentConfig): Promise<Runtime> {
  if (cri === null) return RuncRuntime.find(stateDir);
  // gRPC takes 40 ms and 15 MB, which an agent without Kubernetes need not have
  const { CriRuntime } = await import("../runtime/cri/cri-runtime.ts");
  return CriRuntime.connect(cri, stateDir);
}

function secretFiles({ keyFile, gatewayKeys, identity, revoked }: AgentConfig): string[] {
  const { certificate, key, authorities } = identity ?? {};
  return [keyFile, gatewayKeys?.file, certificate, key, authorities, revoked ?? undefined].filter(
    (file) => file !== undefined,
  );
}

/** Files that are replaced while the agent runs are read again, and on SIGHUP. */
function watchSecrets(
  config: AgentConfig,
  { ring, gatewayRing, trust, log }: OwnContext,
  workloads: ReadonlyMap<string, Workload>,
): { close(): void } {
  const readAgain = (): void => {
    const read = (one: KeyRing, file: string): void => {
      const news = one.readAgain(file);
      if (news === "damaged") log.error(one.problem);
      else if (news !== null) log.info({ file, keys: one.ids }, "the key file was read again");
    };
    read(ring, config.keyFile);
    if (config.gatewayKeys !== null) read(gatewayRing, config.gatewayKeys.file);
    if (trust.readAgain()) {
      for (const problem of trust.problems) log.error(problem);
      log.info({ revoked: trust.revoked.nodes }, "certificates and who is revoked were read again");
    }
    for (const workload of workloads.values()) void workload.keeper.tellKeys();
  };
  const watch = new ChangeWatch(secretFiles(config), readAgain);
  readAgain(); // what has changed since the start
  process.on("SIGHUP", readAgain);
  return {
    close() {
      process.off("SIGHUP", readAgain);
      watch.close();
    },
  };
}

function realPath(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return resolve(path); // it went since it was read
  }
}

/** What other agents may ask. */
function serve(channel: Channel, peer: string, workloads: Map<string, Workload>, context: OwnContext): void {
  const workload = (name: string): Workload => {
    const found = workloads.get(name);
    if (found === undefined) {
      throw fail(
        "WORKLOAD_UNKNOWN",
        `workload ${name} is not configured on this node: add it to the agent's file, with start: false`,
        { source: "peer" },
      );
    }
    return found;
  };
  const isItself = (from: string): void => {
    if (from === peer) return;
    throw fail("PEER_IDENTITY", `node ${peer} speaks for ${from}`);
  };
  channel.on(
    "check",
    checked(checkCall, async (call) => {
      isItself(call.from);
      return { result: await answerCheck(context, workloads.get(call.workload) ?? null, call) };
    }),
  );
  channel.on(
    "prepare",
    checked(prepareCall, async (prepare) => {
      isItself(prepare.from);
      await workload(prepare.workload).moves.arrive(channel, prepare);
    }),
  );
  channel.on(
    "outcome",
    checked(outcomeCall, async (call) => ({ result: await workload(call.workload).moves.outcome(call) })),
  );
  channel.on(
    "owners",
    checked(ownersCall, async ({ workloads: told }) => ({ result: await context.owners.answer(peer, told) })),
  );
  channel.on(
    "anchor.prepare",
    checked(anchorPrepareCall, async ({ workload: name, epoch, target }) => ({
      result: await workload(name).anchors.onPrepare(epoch, target),
    })),
  );
  channel.on(
    "anchor.switch",
    checked(anchorSwitchCall, ({ workload: name, epoch, owner }) =>
      workload(name).anchors.onSwitch(epoch, owner),
    ),
  );
}

async function dial(
  peers: Record<string, Endpoint>,
  trust: Trust,
  node: string,
  workloads: Map<string, Workload>,
  timeoutMs?: number,
): Promise<Channel> {
  const peer = peers[node];
  if (peer === undefined) {
    const known = Object.keys(peers).join(", ") || "none";
    throw fail("NODE_UNKNOWN", `no peer ${node} in the configuration; there are: ${known}`);
  }
  const stream = await dialSecure({
    host: peer.address,
    port: peer.port,
    trust,
    peer: node,
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  const channel = new Channel(stream, { name: `agent ${node}` });
  channel.on(
    "grantRelease",
    checked(z.strictObject({ migration: z.string() }), ({ migration }) => {
      const departing = [...workloads.values()].find((workload) => workload.journal.moving?.id === migration);
      if (departing === undefined) throw fail("MIGRATION_UNKNOWN", "no such migration", { source: "peer" });
      departing.moves.grantRelease(migration);
    }),
  );
  return channel;
}
