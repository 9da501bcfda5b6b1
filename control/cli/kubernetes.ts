/** Commands about pods of a cluster: each makes or changes Migrations, which the cluster's controller carries out. */
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import {
  ANNOTATION,
  API_VERSION,
  isFinal,
  type Migration,
  type MigrationSpec,
  migration as migrationSchema,
} from "../api/resources.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { isActive, type KubernetesObject, type Node, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { Reflector } from "../kubernetes/client/reflector.ts";
import { askToEnd } from "../kubernetes/controller/end-migrations.ts";
import type { OnInterrupt } from "./cancellable.ts";
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
    const ended = await follow(api, namespace, name, phases);
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
): Promise<number> {
  const { namespace, name } = request;
  await askToEnd(api, namespace, name);
  const ended = await follow(api, namespace, name, null);
  terminal.out.write(json ? `${JSON.stringify(ended)}\n` : summary(ended));
  return ended.status.phase === "Aborted" ? EXIT.ok : EXIT.failed;
}

/** `holdfast drain NODE`: no new pods come, and each injected one moves; the rest is for `kubectl drain`. */
export async function drainNode(
  api: KubernetesApi,
  request: { node: string; deadlineMs: number | null },
  json: boolean,
  terminal: Terminal,
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
  const ended = await Promise.all(
    pods.map(async (pod) => {
      const { namespace = "default", name, uid } = pod.metadata;
      const made = await make(api, pod, {
        pod: name,
        podUid: uid,
        ...(deadlineMs === null ? {} : { deadlineSeconds: Math.max(1, Math.round(deadlineMs / 1_000)) }),
        ttlSecondsAfterFinished: DAY_S,
      });
      if (!json) terminal.err.write(`${namespace}/${name}: migration/${made.metadata.name}\n`);
      return follow(api, namespace, made.metadata.name, null);
    }),
  );
  if (json) terminal.out.write(`${JSON.stringify({ node, migrations: ended })}\n`);
  else {
    const rows = ended.map(({ metadata, spec, status }) => [
      `${metadata.namespace}/${spec.pod}`,
      status.phase ?? "-",
      status.target?.node ?? "-",
      status.move?.sessions === undefined ? "-" : String(status.move.sessions),
      milliseconds(status.move?.pauseMs),
      plain(status.message ?? ""),
    ]);
    const head = ["POD", "OUTCOME", "TO", "SESSIONS", "PAUSE", "MESSAGE"];
    terminal.out.write(
      rows.length === 0 ? `node ${node} is cordoned; no pod of it is injected\n` : table(head, rows),
    );
  }
  return ended.every(({ status }) => status.phase === "Succeeded") ? EXIT.ok : EXIT.failed;
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

/** Its end. @throws HoldfastError `KUBERNETES_NOT_FOUND`: it was deleted before */
async function follow(
  api: KubernetesApi,
  namespace: string,
  name: string,
  phases: PhaseRenderer | null,
): Promise<Migration> {
  const ended = Promise.withResolvers<Migration>();
  let shown: string | null = null;
  let told = "";
  const see = (object: KubernetesObject | null): void => {
    const parsed = object === null ? null : migrationSchema.safeParse(object);
    if (!parsed?.success) {
      ended.reject(fail("KUBERNETES_NOT_FOUND", `Migration ${namespace}/${name} is not there any more`));
      return;
    }
    const { phase = "Pending", message = "" } = parsed.data.status;
    if (phase !== shown) {
      if (shown !== null) phases?.show({ type: "phase", phase: shown.toLowerCase(), state: "done" });
      if (!isFinal(phase)) phases?.show({ type: "phase", phase: phase.toLowerCase(), state: "start" });
      shown = phase;
    } else if (message !== told && phases !== null) phases.note(`  ${plain(message)}`);
    told = message;
    if (isFinal(phase)) ended.resolve(parsed.data);
  };
  const reflector = new Reflector<KubernetesObject>({
    api,
    path: pathOf("migrations", { namespace }),
    query: { fieldSelector: `metadata.name=${name}` },
    onChange: see,
    onAll: (objects) => {
      if (objects.length === 0) see(null);
    },
  });
  try {
    return await ended.promise;
  } finally {
    await reflector.close();
  }
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
