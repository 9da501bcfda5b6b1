/**
 * `holdfast diagnostics`: what somebody needs who looks for a fault in a cluster, in one archive, and nothing secret. Secrets are not read;
 * of other objects environment, commands and certificates are left out; of logs keys and passwords.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import type { KubernetesObject, Pod } from "../kubernetes/client/objects.ts";
import { type Kind, pathOf } from "../kubernetes/client/paths.ts";
import { viewCluster } from "./cluster-view.ts";
import type { Terminal } from "./terminal.ts";

const OURS = "app.kubernetes.io/name=holdfast";
const LOG_LINES = 5_000;
const LEFT_OUT = "(left out)";
/** Of any object: values that may be anybody's secret, or say nothing. */
const HIDDEN =
  /^(env|envFrom|data|stringData|binaryData|command|args|caBundle|managedFields|holdfast\.dev\/(command|args|replaced|becomes)|kubectl\.kubernetes\.io\/last-applied-configuration)$/;
const KINDS: Kind[] = [
  "deployments",
  "daemonsets",
  "mutatingwebhookconfigurations",
  "validatingwebhookconfigurations",
];

export interface DiagnosticsRequest {
  /** of the archive */
  file: string;
  /** `holdfast status --json` beside the agent of a node; what it prints */
  askAgent(pod: Pod): Promise<string>;
}

export async function writeDiagnostics(
  api: KubernetesApi,
  { file, askAgent }: DiagnosticsRequest,
  terminal: Terminal,
): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-diagnostics-"));
  const problems: string[] = [];
  const keep = async (name: string, read: () => Promise<unknown>): Promise<void> => {
    try {
      const value = await read();
      const to = join(folder, name);
      mkdirSync(dirname(to), { recursive: true });
      writeFileSync(
        to,
        typeof value === "string" ? withoutSecrets(value) : `${JSON.stringify(redacted(value), null, 2)}\n`,
      );
    } catch (error) {
      problems.push(`${name}: ${messageOf(error)}`);
    }
  };
  try {
    const view = await viewCluster(api, null);
    await keep("cluster.json", async () => view);
    const list = async (kind: Kind, query = {}): Promise<KubernetesObject[]> =>
      (await api.list<KubernetesObject>(pathOf(kind), query)).items;
    await keep("continuitypolicies.json", () => list("continuitypolicies"));
    for (const kind of KINDS) await keep(`${kind}.json`, () => list(kind, { labelSelector: OURS }));
    await keep("events.json", async () =>
      (await list("events")).filter((event) => isOurs(event as Event, view.namespace)),
    );
    const { items: pods } = await api.list<Pod>(pathOf("pods"), { labelSelector: OURS });
    await keep("pods.json", async () => pods);
    for (const pod of pods) {
      const { name, namespace = "" } = pod.metadata;
      for (const { name: container, restartCount = 0 } of pod.status?.containerStatuses ?? [])
        for (const previous of restartCount > 0 ? [false, true] : [false])
          await keep(`logs/${name}_${container}${previous ? "_previous" : ""}.log`, () =>
            api.text(pathOf("pods", { namespace, name, subresource: "log" }), {
              container,
              previous,
              tailLines: LOG_LINES,
            }),
          );
      if (pod.metadata.labels?.["app.kubernetes.io/component"] === "agent")
        await keep(
          `agents/${pod.spec.nodeName}.json`,
          async () => JSON.parse(await askAgent(pod)) as unknown,
        );
    }
    if (problems.length > 0)
      writeFileSync(join(folder, "problems.txt"), `${problems.map(withoutSecrets).join("\n")}\n`);
    const { status, stderr } = spawnSync("tar", ["-czf", file, "-C", folder, "."], { encoding: "utf8" });
    if (status !== 0) throw fail("DIAGNOSTICS_FAILED", `${file} cannot be written: ${stderr.trim()}`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  for (const problem of problems) terminal.err.write(`not in it: ${withoutSecrets(problem)}\n`);
  terminal.out.write(`${file}\n`);
  return EXIT.ok;
}

interface Event extends KubernetesObject {
  involvedObject?: { kind?: string; namespace?: string };
  source?: { component?: string };
}

function isOurs({ involvedObject, source }: Event, namespace: string | null): boolean {
  return (
    involvedObject?.kind === "Migration" ||
    source?.component === "holdfast-controller" ||
    (namespace !== null && involvedObject?.namespace === namespace)
  );
}

/** A copy. */
export function redacted(value: unknown): unknown {
  if (typeof value === "string") return withoutSecrets(value);
  if (Array.isArray(value)) return value.map(redacted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, HIDDEN.test(key) ? LEFT_OUT : redacted(inner)]),
  );
}

/** Passwords in addresses, keys as they are in files, private keys, tokens. */
export function withoutSecrets(text: string): string {
  return text
    .replaceAll(/-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----/gs, LEFT_OUT)
    .replaceAll(/(\w:\/\/)[^\s/@"']*@/g, "$1…@")
    .replaceAll(/\bBearer [\w.~+/=-]+/g, `Bearer ${LEFT_OUT}`)
    .replaceAll(/\beyJ[\w-]{10,}\.[\w-]+\.[\w-]+/g, LEFT_OUT)
    .replaceAll(/(?<!sha256:)\b[0-9a-fA-F]{64}\b/g, LEFT_OUT);
}
