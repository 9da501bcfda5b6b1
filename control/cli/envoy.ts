/** `holdfast envoy …`: what a policy comes to in a mesh, and whether a proxy has it. */
import { readFileSync, statSync } from "node:fs";
import { parseAllDocuments } from "yaml";
import { type Audit, audit } from "#envoy/audit/audit.ts";
import { askEnvoy, type DumpedProxy, ROOT_NAMESPACE, readDumpFile } from "#envoy/config-dump.ts";
import type { SidecarObject } from "#envoy/default-sidecar.ts";
import { type LeftOut, policiesOf } from "#envoy/from-cluster.ts";
import { render } from "#envoy/generate/render.ts";
import type { Rendered } from "#envoy/generate/resource.ts";
import { jsonOf, markText, yamlOf } from "#envoy/generate/text.ts";
import { type Mode, type Policy, policySchema } from "#envoy/policy.ts";
import { verifyPlain } from "#envoy/verify/plain.ts";
import type { Result } from "#envoy/verify/result.ts";
import { objectsOf, verify } from "#envoy/verify/verify.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { EXIT } from "../api/exit-status.ts";
import { parseFile, readFile } from "../config/yaml-file.ts";
import { isCode, type KubernetesApi } from "../kubernetes/client/api.ts";
import type { KubernetesObject, Pod, Service } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { plain, type Terminal, table } from "./terminal.ts";

const RESOURCES_BYTES_MAX = 16_777_216;

export interface RenderRequest {
  policies: readonly Policy[];
  mode: Mode;
  istioVersion: string | undefined;
  format: "yaml" | "json";
}

/** Where a proxy's configuration is read: exactly one. */
export interface ProxySource {
  configDump?: string | undefined;
  admin?: string | undefined;
}

export interface FoundInCluster {
  policies: Policy[];
  leftOut: LeftOut[];
  /** all of the namespace, as pods are */
  services: Service[];
  pods: Pod[];
  /** false: Sidecars that may restrict what pods reach could not be listed, and policies may lack it */
  isReachKnown: boolean;
}

/**
 * Of the Services of a namespace, or of those that are named; why others are left out goes to standard error.
 * @throws HoldfastError of the client; `KUBERNETES_NOT_FOUND`: there are none
 */
export async function policiesInCluster(
  api: KubernetesApi,
  { namespace, services, mode }: { namespace: string; services: readonly string[]; mode: Mode },
  { err }: Terminal,
): Promise<FoundInCluster> {
  const [all, pods, ...sidecars] = await Promise.all([
    api.list<Service>(pathOf("services", { namespace })),
    api.list<Pod>(pathOf("pods", { namespace })),
    ...(mode === "sidecar" ? [...new Set([namespace, ROOT_NAMESPACE])] : []).map((one) =>
      sidecarsIn(api, one, err),
    ),
  ]);
  const isNamed = ({ metadata: { name } }: Service) => services.length === 0 || services.includes(name);
  const missing = services.find((name) => !all.items.some(({ metadata }) => metadata.name === name));
  if (missing !== undefined)
    throw fail("KUBERNETES_NOT_FOUND", `there is no Service ${missing} in namespace ${namespace}`);
  const { policies, leftOut } = policiesOf(
    all.items.filter(isNamed),
    pods.items,
    sidecars.flatMap((some) => some ?? []),
  );
  for (const { service, reason, message } of leftOut)
    err.write(`${plain(`Service ${service.metadata.name}: ${reason}: ${message}`)}\n`);
  if (policies.length === 0)
    throw fail(
      "KUBERNETES_NOT_FOUND",
      `no Service of namespace ${namespace} has pods that both Holdfast and Istio have injected`,
    );
  const found = policies.map(({ policy }) => policy);
  const isReachKnown = sidecars.every((some) => some !== null);
  return { policies: found, leftOut, services: all.items, pods: pods.items, isReachKnown };
}

/** Null where one may not look, which is said: what they restrict is not in the policies then. */
async function sidecarsIn(
  api: KubernetesApi,
  namespace: string,
  err: Terminal["err"],
): Promise<SidecarObject[] | null> {
  try {
    return (await api.list<KubernetesObject & SidecarObject>(pathOf("sidecars", { namespace }))).items;
  } catch (error) {
    if (isCode(error, "KUBERNETES_NOT_FOUND")) return [];
    if (!isCode(error, "KUBERNETES_FORBIDDEN")) throw error;
    err.write(
      `${plain(`Sidecars of namespace ${namespace} may not be listed: where one restricts what these pods reach (egress), theirs is not to be applied without it: ${messageOf(error)}`)}\n`,
    );
    return null;
  }
}

/** @throws HoldfastError `CONFIG_INVALID` */
export function readPolicy(file: string): Policy {
  return parseFile(policySchema, readFile(file), file);
}

/** Prints everything or nothing. @throws HoldfastError `CONFIG_INVALID`: it cannot be had in that mode */
export function renderPolicies(
  { policies, mode, istioVersion, format }: RenderRequest,
  terminal: Terminal,
): number {
  const all = policies.map((policy) => ({ policy, rendered: render(policy, mode, istioVersion) }));
  if (format === "yaml")
    terminal.out.write(all.map(({ policy, rendered }) => yamlOf(rendered, policy.namespace)).join("---\n"));
  else {
    terminal.out.write(jsonOf(joined(all.map(({ rendered }) => rendered))));
    // a List has no place for them
    for (const { policy, rendered } of all)
      for (const mark of rendered.marks) terminal.err.write(`${markText(mark, policy.namespace)}\n`);
  }
  return EXIT.ok;
}

function joined(all: readonly Rendered[]): Rendered {
  return { documents: all.flatMap(({ documents }) => documents), marks: all.flatMap(({ marks }) => marks) };
}

export interface VerifyRequest extends ProxySource {
  policy: Policy | null;
  mode: Mode;
  /** files of Kubernetes objects, YAML or JSON */
  files: readonly string[];
}

export async function verifyProxy(
  request: VerifyRequest,
  json: boolean,
  terminal: Terminal,
): Promise<number> {
  const { policy, mode, files } = request;
  if (policy === null && files.length === 0)
    throw fail("USAGE_ENVOY", "expected what is to be looked for: --policy FILE, or -f FILE of resources");
  const proxy = await proxyOf(request);
  const { documents, marks } = policy === null ? { documents: [], marks: [] } : render(policy, mode);
  const objects = objectsOf([
    ...documents.map(({ object }) => JSON.parse(JSON.stringify(object)) as unknown),
    ...files.flatMap(readObjects),
  ]);
  const results =
    policy !== null && mode === "plain"
      ? objects.flatMap((one) => verifyPlain(proxy, one))
      : verify(proxy, objects, policy === null ? null : { policy, marks });
  if (json) terminal.out.write(`${JSON.stringify({ proxy: shownOf(proxy), results })}\n`);
  else {
    terminal.out.write(resultsText(results));
    if (!results.some(isOfProxy))
      terminal.err.write(`nothing of it is for this proxy (${plain(proxy.id || "without an id")})\n`);
  }
  return isAllApplied(results) ? EXIT.ok : EXIT.failed;
}

function isOfProxy({ state }: Result): boolean {
  return state === "applied" || state === "missing";
}

/** All that is looked at, and there is something. */
export function isAllApplied(results: readonly Result[]): boolean {
  const ours = results.filter(isOfProxy);
  return ours.length > 0 && ours.every(({ state }) => state === "applied");
}

export interface AuditRequest extends ProxySource {
  files: readonly string[];
}

/** It looks; what would cut sessions is no failure. */
export async function auditProxy(request: AuditRequest, json: boolean, terminal: Terminal): Promise<number> {
  const proxy = await proxyOf(request);
  const result = audit(proxy, objectsOf(request.files.flatMap(readObjects)));
  terminal.out.write(json ? `${JSON.stringify(result)}\n` : auditText(result));
  return EXIT.ok;
}

function auditText({ facts, pushes, findings }: Audit): string {
  const { id, ports, isPinned, drainSeconds } = facts;
  const shown = ports.map(
    ({ port, http, endpoint }) => `${port}${http ? "/http" : ""}${endpoint === null ? "" : ` → ${endpoint}`}`,
  );
  const head = [
    `proxy     ${id || "-"}`,
    `ports     ${shown.join(", ") || "-"}`,
    `pinned    ${isPinned ? "yes, by a Sidecar" : "no"}`,
    `drain     ${drainSeconds === null ? "not known (Istio's: 45 s)" : `${drainSeconds} s`}`,
  ];
  const rows = pushes.map(({ what, side, sessions: { tcp, websocket, http } }) => [
    what,
    side,
    tcp,
    websocket,
    http,
  ]);
  const cures = pushes.filter(({ cuts, cure }) => cuts && cure !== null);
  return [
    `${head.map(plain).join("\n")}\n\n`,
    rows.length === 0
      ? "no istiod pushes to this Envoy\n"
      : table(["PUSH", "AT", "TCP", "WEBSOCKET", "HTTP"], rows),
    ...(cures.length === 0 ? [] : ["\n"]),
    ...cures.map(({ what, why, cure }) => `${what}: ${why}.\n  ${cure}\n`),
    ...(findings.length === 0 ? [] : ["\n"]),
    ...findings.map(({ severity, what, cure }) => `${severity}: ${plain(what)}\n  ${plain(cure)}\n`),
  ].join("");
}

/** @throws HoldfastError `ENVOY_UNREACHABLE`, `CONFIG_INVALID`, `USAGE_ENVOY` */
async function proxyOf({ configDump, admin }: ProxySource): Promise<DumpedProxy> {
  if ((configDump === undefined) === (admin === undefined))
    throw fail("USAGE_ENVOY", "expected exactly one of --config-dump FILE and --admin URL");
  return configDump === undefined ? askEnvoy(admin as string) : readDumpFile(configDump);
}

/** @throws HoldfastError `MANIFEST_INVALID` */
function readObjects(file: string): unknown[] {
  try {
    const { size } = statSync(file);
    if (size > RESOURCES_BYTES_MAX)
      throw new Error(`it has ${size} bytes, at most ${RESOURCES_BYTES_MAX} are read`);
    return parseAllDocuments(readFileSync(file, "utf8"), { logLevel: "silent" }).map((document) => {
      const [error] = document.errors;
      if (error !== undefined) throw new Error((error.message.split("\n")[0] ?? "").replace(/:$/, ""));
      return document.toJS({ maxAliasCount: 100 }) as unknown;
    });
  } catch (cause) {
    throw fail("MANIFEST_INVALID", `${file}: cannot be read: ${messageOf(cause)}`, { cause });
  }
}

export function shownOf({ id, kind, namespace, labels, drainSeconds, rejected }: DumpedProxy): object {
  return { id, kind, namespace, labels, drainSeconds, rejected };
}

export function resultsText(results: readonly Result[]): string {
  const rows = results.map(({ resource, part, what, state, reason }) =>
    [resource, part, what, reason === null ? state : `${state} (${reason})`].map(plain),
  );
  const told = results.flatMap(({ resource, part, why, cure, warnings, state }) => [
    ...(why === null || state === "elsewhere"
      ? []
      : [`${resource} ${part}: ${why}${cure === null ? "" : `: ${cure}`}`]),
    ...warnings.map((warning) => `${resource} ${part}: warning: ${warning}`),
  ]);
  return `${table(["RESOURCE", "PART", "WHAT", "STATE"], rows)}${told.map((line) => `\n${plain(line)}\n`).join("")}`;
}
