/**
 * What a pod that was injected says of its workload, and what that comes to in a configuration. Pure. The annotations are
 * `inject/`'s; the API server may show anything in them, since people can write them too.
 */
import { createHash } from "node:crypto";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { parseWorkload, type WorkloadConfig } from "../../config/config.ts";

const PREFIX = "holdfast.dev/";
const NAME_CHARS_MAX = 63;
const HASH_CHARS = 10;

/** One that an agent has to do with, as far as it has to know it; kept across its restarts. */
export const injectedPod = z.looseObject({
  uid: z.string(),
  namespace: z.string(),
  name: z.string(),
  /** those of {@link PREFIX}, without it */
  annotations: z.record(z.string(), z.string()),
});
export type InjectedPod = z.infer<typeof injectedPod>;

const podSchema = z.looseObject({
  metadata: z.looseObject({
    uid: z.string(),
    namespace: z.string(),
    name: z.string(),
    annotations: z.record(z.string(), z.string()).optional(),
    deletionTimestamp: z.string().optional(),
  }),
  status: z
    .looseObject({
      phase: z.string().optional(),
      conditions: z
        .array(
          z.looseObject({
            type: z.string(),
            status: z.string(),
            lastTransitionTime: z.string().nullish(),
          }),
        )
        .optional(),
      containerStatuses: z
        .array(
          z.looseObject({
            name: z.string(),
            state: z.looseObject({ running: z.unknown().optional() }).optional(),
          }),
        )
        .optional(),
    })
    .optional(),
});

/**
 *   starting      its container does not run yet
 *   initialized   it may run by now: kubelet says so up to a second later, and where it has a hook `postStart` only when that has ended,
 *                 which may wait for the application. The container runtime knows
 *   here          it runs
 *   ending        it was deleted: kubelet ends its containers, each with its stop signal and in its time
 *   over          all of its containers have ended for good
 */
export type PodState = "starting" | "initialized" | "here" | "ending" | "over";

export interface SeenPod {
  pod: InjectedPod;
  state: PodState;
  /** initialized: since when, by its node's clock */
  sinceMs: number;
}

/** null: it was not injected @param object a Pod (core/v1) */
export function lookAt(object: unknown): SeenPod | null {
  const { metadata, status } = podSchema.parse(object);
  const all = Object.entries(metadata.annotations ?? {});
  const annotations = Object.fromEntries(
    all.filter(([key]) => key.startsWith(PREFIX)).map(([key, value]) => [key.slice(PREFIX.length), value]),
  );
  if (annotations.injected !== "1") return null;
  const { uid, namespace, name, deletionTimestamp } = metadata;
  const pod = { uid, namespace, name, annotations };
  const initialized = status?.conditions?.find((one) => one.type === "Initialized" && one.status === "True");
  const sinceMs = Date.parse(initialized?.lastTransitionTime ?? "") || 0;
  const seen = (state: PodState): SeenPod => ({ pod, state, sinceMs });
  if (status?.phase === "Succeeded" || status?.phase === "Failed") return seen("over");
  if (deletionTimestamp !== undefined) return seen("ending");
  const ours = status?.containerStatuses?.find((one) => one.name === annotations.container);
  if (ours?.state?.running !== undefined) return seen("here");
  return seen(initialized === undefined ? "starting" : "initialized");
}

/** Of its workload: what the annotation says, else NAMESPACE.POD; one that is too long ends with a digest of itself. */
export function nameOf({
  namespace,
  name,
  annotations,
}: Pick<InjectedPod, "namespace" | "name" | "annotations">): string {
  const { workload } = annotations;
  // whoever may make pods in one namespace is nobody in another
  const full = workload?.startsWith(`${namespace}.`) === true ? workload : `${namespace}.${name}`;
  if (full.length <= NAME_CHARS_MAX) return full;
  const hash = createHash("sha256").update(full).digest("hex").slice(0, HASH_CHARS);
  return `${full.slice(0, NAME_CHARS_MAX - HASH_CHARS - 1)}-${hash}`;
}

/** @throws HoldfastError `CONFIG_INVALID`: which annotation, and what it is expected to be */
export function workloadOf(pod: InjectedPod, nodeAddress: string): WorkloadConfig {
  const { uid, namespace, name, annotations } = pod;
  const { container, ports, command, standby, continuity, limits, mode, workload, listen, proxy, subreaper } =
    annotations;
  if (workload !== undefined && !workload.startsWith(`${namespace}.`))
    throw refuse(
      pod,
      "workload",
      `expected a name that begins with "${namespace}.", as a pod stands for those of its namespace, got ${JSON.stringify(workload)}`,
    );
  const file = {
    name: nameOf(pod),
    start: standby !== "true",
    subreaper: subreaper === "true",
    // as kubelet: pods with another restartPolicy are not injected
    restart: "always",
    pod: {
      ...{ namespace, name, uid },
      container: required(pod, "container", container),
      ...(listen === undefined ? {} : { listen: listenOf(pod, listen) }),
      ...(proxy === undefined ? {} : { proxy: proxyOf(pod, proxy) }),
      // without one the pod names none, and its image has it
      ...(command === undefined ? {} : { command: json(pod, "command", command) }),
    },
    ports: portsOf(pod, required(pod, "ports", ports), continuityOf(pod, continuity)),
    ...(mode === undefined ? {} : { downstream: modeOf(pod, mode) }),
    ...(limits === undefined ? {} : { limits: json(pod, "limits", limits) }),
  };
  return parseWorkload(file, nodeAddress, `pod ${namespace}/${name}, annotations ${PREFIX}*`);
}

const PORTS_EXPECTED =
  "expected ports as LISTEN[:UPSTREAM][/PROTOCOL], separated by commas, as 8080/http, 9000";

function portsOf(pod: InjectedPod, text: string, continuity: string | undefined): unknown[] {
  return text.split(",").map((part) => {
    const [, listen, upstream = listen, protocol] =
      /^\s*(\d{1,5})(?::(\d{1,5}))?(?:\/([a-z0-9]+))?\s*$/.exec(part) ?? [];
    if (listen === undefined) throw refuse(pod, "ports", `${PORTS_EXPECTED}, got ${JSON.stringify(text)}`);
    return {
      listen: Number(listen),
      upstream: `127.0.0.1:${upstream}`,
      ...(protocol === undefined ? {} : { protocol }),
      ...(continuity === undefined ? {} : { continuity }),
    };
  });
}

function modeOf(pod: InjectedPod, text: string): string {
  if (text === "forward" || text === "gateway") return text;
  throw refuse(pod, "mode", `expected forward or gateway, got ${JSON.stringify(text)}`);
}

/** Where clients come: to the node's address, or the pod's. */
function listenOf(pod: InjectedPod, text: string): string {
  if (text === "node" || text === "pod") return text;
  throw refuse(pod, "listen", `expected node or pod, got ${JSON.stringify(text)}`);
}

function proxyOf(pod: InjectedPod, text: string): string {
  if (text === "node" || text === "sidecar") return text;
  throw refuse(pod, "proxy", `expected node or sidecar, got ${JSON.stringify(text)}`);
}

function continuityOf(pod: InjectedPod, text: string | undefined): string | undefined {
  if (text === undefined || text === "none") return undefined; // connections move along all the same
  if (text === "replay") return text;
  throw refuse(pod, "continuity", `expected none or replay, got ${JSON.stringify(text)}`);
}

function required(pod: InjectedPod, key: string, value: string | undefined): string {
  if (value === undefined) throw refuse(pod, key, "is missing: delete the pod, so that it is injected anew");
  return value;
}

function json(pod: InjectedPod, key: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw refuse(pod, key, `expected JSON: ${messageOf(error)}`);
  }
}

function refuse({ namespace, name }: InjectedPod, key: string, what: string) {
  return fail("CONFIG_INVALID", `pod ${namespace}/${name}: annotation ${PREFIX}${key}: ${what}`);
}
