/** Commands about pods of a cluster: each makes or changes Migrations, which the cluster's controller carries out. */
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import {
  ANNOTATION,
  API_VERSION,
  isFinal,
  MIGRATION_LABEL,
  type Migration,
  type MigrationSpec,
  migration as migrationSchema,
  migrationsIn,
} from "../api/resources.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { isActive, type Node, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { askToEnd } from "../kubernetes/controller/end-migrations.ts";
import { createdMs, isAbout } from "../kubernetes/triggers/caused.ts";
import type { OnInterrupt } from "./cancellable.ts";
import { MigrationFollower, type Patience } from "./follow-migration.ts";
import { milliseconds, PhaseRenderer, plain, type Terminal, table } from "./terminal.ts";

export interface PodRequest {
  namespace: string;
  pod: string;
  to: string | null;
  deadlineMs: number | null;
  dryRun: boolean;
  /** else it is made, and named */
  wait: boolean;
}

const DAY_S = 86_400;
const SUFFIX_RADIX = 36;

/** `holdfast migrate pod/POD --to NODE` */
export async function migratePod(
  api: KubernetesApi,
  request: PodRequest,
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
  patience?: Patience,
): Promise<number> {
  const { namespace, pod, to, deadlineMs, dryRun, wait } = request;
  const found = await api.find<Pod>(pathOf("pods", { namespace, name: pod }));
  if (found === null) throw fail("KUBERNETES_NOT_FOUND", `there is no pod ${pod} in namespace ${namespace}`);
  const made = await make(api, found, {
    pod,
    podUid: found.metadata.uid,
    ...(to === null ? {} : { target: { node: to } }),
    ...(deadlineMs === null ? {} : { deadlineSeconds: Math.max(1, Math.round(deadlineMs / 1_000)) }),
    ...(dryRun ? { dryRun } : {}),
    ttlSecondsAfterFinished: DAY_S,
  });
  const { name } = made.metadata;
  if (!wait) {
    terminal.out.write(json ? `${JSON.stringify(made)}\n` : `migration/${name} created in ${namespace}\n`);
    return EXIT.ok;
  }
  const phases = json ? null : new PhaseRenderer(terminal.out);
  const tell = (line: string): unknown =>
    phases === null ? terminal.err.write(`${line}\n`) : phases.note(line);
  const stopListening = onInterrupt(
    () => {
      tell("aborting; waiting for the outcome (Ctrl-C again to leave, the controller goes on)");
      askToEnd(api, namespace, name).catch((error: unknown) =>
        tell(`not aborted: ${plain(messageOf(error))}`),
      );
    },
    () => phases?.stop(),
  );
  try {
    const ended = await new MigrationFollower(api, terminal, patience).follow(namespace, name, phases);
    phases?.stop();
    terminal.out.write(json ? `${JSON.stringify(ended)}\n` : summary(ended));
    return ended.status.phase === "Succeeded" ? EXIT.ok : EXIT.failed;
  } finally {
    phases?.stop();
    stopListening();
  }
}

/** `holdfast abort MIGRATION`: waits for what comes of it. */
export async function abortMigration(
  api: KubernetesApi,
  request: { namespace: string; name: string },
  json: boolean,
  terminal: Terminal,
  patience?: Patience,
): Promise<number> {
  const { namespace, name } = request;
  await askToEnd(api, namespace, name);
  const ended = await new MigrationFollower(api, terminal, patience).follow(namespace, name);
  terminal.out.write(json ? `${JSON.stringify(ended)}\n` : summary(ended));
  return ended.status.phase === "Aborted" ? EXIT.ok : EXIT.failed;
}

/**
 * `holdfast drain NODE`: no new pods come, and each injected one moves; the rest is for `kubectl drain`. What goes wrong with one pod is
 * told in its row.
 */
export async function drainNode(
  api: KubernetesApi,
  request: { node: string; deadlineMs: number | null },
  json: boolean,
  terminal: Terminal,
  patience?: Patience,
): Promise<number> {
  const { node, deadlineMs } = request;
  const path = pathOf("nodes", { name: node });
  if ((await api.find<Node>(path)) === null) throw fail("KUBERNETES_NOT_FOUND", `there is no node ${node}`);
  await api.patch(path, { spec: { unschedulable: true } });
  const { items } = await api.list<Pod>(pathOf("pods"), { fieldSelector: `spec.nodeName=${node}` });
  const pods = items.filter(
    (pod) =>
      isActive(pod) &&
      pod.metadata.annotations?.[ANNOTATION.injected] === "1" &&
      pod.metadata.annotations[ANNOTATION.standby] !== "true",
  );
  const follower = new MigrationFollower(api, terminal, patience);
  const known = new Map<string, Promise<Migration[]>>();
  const outcomes = await Promise.allSettled(
    pods.map(async (pod) => {
      const { namespace = "default", name, uid } = pod.metadata;
      const before = known.get(namespace) ?? migrationsOf(api, namespace);
      known.set(namespace, before);
      const open = openOf(pod, await before);
      const made =
        open ??
        (await make(api, pod, {
          pod: name,
          podUid: uid,
          ...(deadlineMs === null ? {} : { deadlineSeconds: Math.max(1, Math.round(deadlineMs / 1_000)) }),
          ttlSecondsAfterFinished: DAY_S,
        }));
      const how = open === null ? "" : ", which is under way already";
      if (!json) terminal.err.write(`${namespace}/${name}: migration/${made.metadata.name}${how}\n`);
      const ended = await follower.follow(namespace, made.metadata.name);
      if (ended.status.phase === "Succeeded") return ended;
      // kubectl drain may have asked for one in the same moment, by which the pod has gone
      const other = movedBy(pod, await migrationsOf(api, namespace));
      return other === null ? ended : await follower.follow(namespace, other.metadata.name);
    }),
  );
  const migrations: Migration[] = [];
  const problems: { pod: string; code: string; message: string }[] = [];
  const rows = pods.map(({ metadata: { namespace = "default", name } }, at) => {
    const pod = `${namespace}/${name}`;
    const outcome = outcomes[at] as PromiseSettledResult<Migration>;
    if (outcome.status === "fulfilled") {
      migrations.push(outcome.value);
      return [pod, ...cellsOf(outcome.value)];
    }
    const { reason } = outcome;
    const message = plain(messageOf(reason));
    problems.push({ pod, code: reason instanceof HoldfastError ? reason.code : "INTERNAL", message });
    return [pod, "Unknown", "-", "-", "-", message];
  });
  if (json) terminal.out.write(`${JSON.stringify({ node, migrations, problems })}\n`);
  else {
    const head = ["POD", "OUTCOME", "TO", "SESSIONS", "PAUSE", "MESSAGE"];
    terminal.out.write(
      rows.length === 0 ? `node ${node} is cordoned; no pod of it is injected\n` : table(head, rows),
    );
  }
  const isEmpty = problems.length === 0 && migrations.every(({ status }) => status.phase === "Succeeded");
  return isEmpty ? EXIT.ok : EXIT.failed;
}

function cellsOf({ status: { phase, target, move, message } }: Migration): string[] {
  return [
    phase ?? "-",
    target?.node ?? "-",
    move?.sessions === undefined ? "-" : String(move.sessions),
    milliseconds(move?.pauseMs),
    plain(message ?? ""),
  ];
}

async function migrationsOf(api: KubernetesApi, namespace: string): Promise<Migration[]> {
  return migrationsIn((await api.list(pathOf("migrations", { namespace }))).items);
}

/** The one that moves the pod, or is to: another would wait for it, and then find no pod. The pod's label says which of several. */
function openOf(pod: Pod, migrations: readonly Migration[]): Migration | null {
  const claimed = pod.metadata.labels?.[MIGRATION_LABEL];
  const open = migrations
    .filter((one) => isAway(one, pod) && isGoingOn(one))
    .toSorted((one, other) => createdMs(one) - createdMs(other));
  return open.find(({ metadata }) => metadata.uid === claimed) ?? open[0] ?? null;
}

/** … or has moved it. */
function movedBy(pod: Pod, migrations: readonly Migration[]): Migration | null {
  const moved = ({ status }: Migration): boolean => status.phase === "Succeeded";
  return migrations.find((one) => isAway(one, pod) && moved(one)) ?? openOf(pod, migrations);
}

function isAway(migration: Migration, pod: Pod): boolean {
  return migration.spec.dryRun !== true && isAbout(migration, pod);
}

function isGoingOn({ metadata, spec, status }: Migration): boolean {
  return !isFinal(status.phase) && spec.abort !== true && metadata.deletionTimestamp === undefined;
}

async function make(api: KubernetesApi, { metadata }: Pod, spec: MigrationSpec): Promise<Migration> {
  const { namespace = "default", name } = metadata;
  const suffix = Date.now().toString(SUFFIX_RADIX);
  const made = await api.create<object>(pathOf("migrations", { namespace }), {
    apiVersion: API_VERSION,
    kind: "Migration",
    metadata: { name: `${name.slice(0, 200)}-${suffix}`, namespace },
    spec,
  });
  return migrationSchema.parse(made);
}

function summary({ metadata, spec, status }: Migration): string {
  const { phase, message = "", plan = [], target, source, move } = status;
  if (phase === "Succeeded" && plan.length > 0)
    return `would\n${plan.map((line) => `  ${plain(line)}\n`).join("")}`;
  if (phase !== "Succeeded")
    return `${phase?.toLowerCase()}: pod ${metadata.namespace}/${spec.pod}: ${plain(message)}\n`;
  const sessions = move?.sessions === undefined ? "" : `, ${move.sessions} sessions`;
  const downstream = move?.downstream === undefined ? "" : ` (${plain(move.downstream)})`;
  const pause = move?.pauseMs === undefined ? "" : `pause     ${milliseconds(move.pauseMs)}\n`;
  return `moved pod ${plain(spec.pod)} from ${plain(source?.node ?? "?")} to ${plain(target?.node ?? "?")}${downstream}${sessions}; it is pod ${plain(target?.pod ?? "?")} now\n${pause}`;
}
