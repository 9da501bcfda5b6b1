/**
 * Keeps what Services with the annotation `holdfast.dev/mesh` ask of Istio: the resources of their policy (`envoy/`). Level-triggered. The first
 * time that a Sidecar is applied, or when it goes, sessions end a drain time later: so a Service has to ask, and what was made for one
 * that asks stays as it is while its pods are away or do not fit.
 */
import { isDeepStrictEqual } from "node:util";
import type { SidecarObject } from "#envoy/default-sidecar.ts";
import { policiesOf } from "#envoy/from-cluster.ts";
import { render } from "#envoy/generate/render.ts";
import { POLICY_LABEL, type Resource } from "#envoy/generate/resource.ts";
import { markText } from "#envoy/generate/text.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { MESH_ANNOTATION } from "../../api/mesh.ts";
import { aborted } from "../client/aborted.ts";
import { isCode } from "../client/api.ts";
import {
  identityOf,
  type KubernetesObject,
  type ObjectMeta,
  type Pod,
  type Service,
} from "../client/objects.ts";
import { type Kind, pathOf } from "../client/paths.ts";
import type { Watched } from "../client/reflector.ts";
import { Rounds } from "../client/rounds.ts";
import { Watches, type WatchesOptions } from "../client/watches.ts";
import { type ServiceFinding, ServiceFindings, TELL_AGAIN_MS } from "../services/findings.ts";
import { hasLedTo, leadElsewhere, lostSubsets, SETTLE_MS, Settled, withSubsets } from "./subsets.ts";

const AGAIN_MS = 2_000;
const NOT_AS_ASKED = "the mesh is not as it is asked to be";
const MANAGED_BY_LABEL = "app.kubernetes.io/managed-by";
const MANAGED_BY = "holdfast-controller";

/** As a query: whatever this has made. */
export const MADE_BY_US = { labelSelector: `${POLICY_LABEL},${MANAGED_BY_LABEL}=${MANAGED_BY}` };

/** of one object, for what it is or where: a quota, a namespace that ends, a policy of the cluster */
const REFUSALS = ["KUBERNETES_FORBIDDEN", "KUBERNETES_INVALID", "KUBERNETES_NOT_FOUND"];

const SIDECARS: Kind = "sidecars";
/** what a policy comes to with sidecars */
export const MESH_KINDS: Record<string, Kind> = {
  Sidecar: SIDECARS,
  EnvoyFilter: "envoyfilters",
  DestinationRule: "destinationrules",
  VirtualService: "virtualservices",
};

export interface MeshOptions extends WatchesOptions {
  /** all of the cluster */
  pods: Watched<Pod>;
  /** how long subsets stay that no route leads to any more, and are there before one does; default: {@link SETTLE_MS} */
  settleMs?: number;
}

/** of the Service whose object it is */
type Finding = Omit<ServiceFinding, "service">;
type MeshObject = KubernetesObject & Pick<SidecarObject, "spec">;
type OwnedResource = Resource & { metadata: Required<Pick<ObjectMeta, "ownerReferences">> };

interface Wanted {
  service: Service;
  kind: Kind;
  object: OwnedResource;
}

/** Works until the signal is aborted. */
export async function keepMesh(options: MeshOptions, signal: AbortSignal): Promise<void> {
  const { api, pods, onProblem, settleMs = SETTLE_MS } = options;
  const settled = new Settled(settleMs);
  const watches = new Watches(options);
  const rounds = new Rounds(round, signal);
  const events = new ServiceFindings(api, onProblem);
  const onChange = (): void => rounds.soon();
  const services = watches.open<Service>("services of a mesh", {
    path: pathOf("services"),
    keep: partOf,
    onChange,
  });
  const made = Object.values(MESH_KINDS).map((kind) => ({
    kind,
    objects: watches.open<MeshObject>(`${kind} of policies`, {
      path: pathOf(kind),
      // of Sidecars also those of others, for what pods may reach by them
      ...(kind === SIDECARS ? { keep: madeOrReach } : { query: MADE_BY_US }),
      onChange,
    }),
  }));
  const unfollow = pods.follow(onChange);
  const again = setInterval(onChange, TELL_AGAIN_MS).unref();
  const ended = aborted(signal);

  async function round(): Promise<void> {
    try {
      const known = [services, pods, ...made.map(({ objects }) => objects)].map(({ synced }) => synced);
      await Promise.race([Promise.all(known), ended]);
      if (signal.aborted) return;
      const asking = [...services.objects.values()].filter(
        ({ metadata }) =>
          metadata.deletionTimestamp === undefined && metadata.annotations?.[MESH_ANNOTATION] !== undefined,
      );
      const findings: ServiceFinding[] = [];
      const all = made.map(({ kind, objects }) => ({ kind, objects: [...objects.objects.values()] }));
      const sidecars = all.filter(({ kind }) => kind === SIDECARS).flatMap(({ objects }) => objects);
      const { wanted, whole } = plan(asking, [...pods.objects.values()], sidecars, findings);
      const own = new Map(
        all.flatMap(({ kind, objects }) =>
          objects.filter(isMade).map((object) => [pathOfObject(kind, object), object] as const),
        ),
      );
      const found = new Map(own);
      const routesAreRight = (rule: Named): boolean => {
        const path = pathOfObject("virtualservices", rule);
        const has = found.get(path);
        const routes = wanted.find((one) => pathOfObject(one.kind, one.object) === path)?.object;
        return routes === undefined ? has === undefined : has !== undefined && isAsWanted(has, routes);
      };
      for (const { service, kind, object: last } of wanted) {
        const path = pathOfObject(kind, last);
        own.delete(path);
        if (kind === "virtualservices" && leadElsewhere(found.get(path), last)) {
          const rule = found.get(pathOfObject("destinationrules", last));
          if (!settled.isTime(path, hasLedTo(rule, last))) {
            rounds.later(settleMs);
            continue;
          }
        }
        const lost = kind === "destinationrules" ? lostSubsets(found.get(path), last) : [];
        const isEarly = lost.length > 0 && !settled.isTime(path, routesAreRight(last));
        const object = isEarly ? withSubsets(last, lost) : last;
        if (isEarly) rounds.later(settleMs);
        const finding = await apart(() => put(path, kind, object, found.get(path) ?? null));
        if (finding !== null) findings.push({ service, ...finding });
      }
      const isAsked = new Set(asking.map(({ metadata }) => metadata.uid));
      for (const [path, object] of own) {
        const { metadata } = object;
        const owner = ownerOf(metadata);
        // of a Service that asks, and has none now, it stays
        if (isAsked.has(owner) && !whole.has(owner)) continue;
        const isRule = path === pathOfObject("destinationrules", object);
        if (isRule && !settled.isTime(path, routesAreRight(object))) {
          rounds.later(settleMs);
          continue;
        }
        const finding = await apart(() => take(path, metadata));
        const service = [...services.objects.values()].find((one) => one.metadata.uid === owner);
        if (finding !== null && service !== undefined) findings.push({ service, ...finding });
      }
      await events.tell(findings);
    } catch (error) {
      if (signal.aborted) return;
      onProblem(NOT_AS_ASKED, error);
      rounds.later(AGAIN_MS);
    }
  }

  /** What is wrong with one object keeps no other waiting: it is the Service's to hear, and tried again. @throws HoldfastError `KUBERNETES_UNREACHABLE` */
  async function apart(change: () => Promise<Finding | null>): Promise<Finding | null> {
    try {
      return await change();
    } catch (error) {
      if (isCode(error, "KUBERNETES_UNREACHABLE")) throw error;
      rounds.later(AGAIN_MS);
      // since it was read; the watch tells
      if (isCode(error, "KUBERNETES_CONFLICT")) return null;
      onProblem(NOT_AS_ASKED, error);
      return isCode(error, ...REFUSALS) ? { reason: "Refused", message: messageOf(error) } : null;
    }
  }

  async function put(
    path: string,
    kind: Kind,
    object: OwnedResource,
    found: MeshObject | null,
  ): Promise<Finding | null> {
    const { kind: what, metadata } = object;
    try {
      if (found === null) await api.create(pathOf(kind, { namespace: metadata.namespace }), object);
      else if (!isAsWanted(found, object)) {
        const { resourceVersion } = found.metadata;
        await api.replace(path, { ...object, metadata: { ...metadata, resourceVersion } });
      }
      return null;
    } catch (error) {
      if (!isCode(error, "KUBERNETES_EXISTS")) throw error;
      if (await isOurs(kind, metadata)) return null;
      return {
        reason: "MadeByAnother",
        message: `${what} ${metadata.name} is somebody else's: delete it, and it is kept for this Service`,
      };
    }
  }

  async function take(path: string, { uid }: ObjectMeta): Promise<null> {
    await api.delete(path, { preconditions: { uid } });
    return null;
  }

  /** There is one of that name which the watch has not told of yet. */
  async function isOurs(kind: Kind, { namespace, name }: OwnedResource["metadata"]): Promise<boolean> {
    const { items } = await api.list(pathOf(kind, { namespace }), {
      fieldSelector: `metadata.name=${name}`,
      labelSelector: `${MANAGED_BY_LABEL}=${MANAGED_BY}`,
    });
    return items.length > 0;
  }

  await ended;
  clearInterval(again);
  unfollow();
  await Promise.all([rounds.end(), watches.close()]);
}

/** @returns what is to be, and the uids of the Services whose resources these are all */
function plan(
  asking: readonly Service[],
  pods: readonly Pod[],
  sidecars: readonly SidecarObject[],
  findings: ServiceFinding[],
): { wanted: Wanted[]; whole: Set<string> } {
  const { policies, leftOut } = policiesOf(asking, pods, sidecars);
  const warn = (service: Service, reason: string, message: string): void =>
    void findings.push({ service, reason, message });
  for (const { service, reason, message } of leftOut) warn(service, reason, message);
  const wanted: Wanted[] = [];
  const whole = new Set<string>();
  for (const { service, policy } of policies) {
    try {
      const { documents, marks } = render(policy, "sidecar");
      const { uid } = service.metadata;
      whole.add(uid);
      for (const mark of marks)
        findings.push({
          ...{ service, type: "Normal", reason: mark.on === "pods" ? "AnnotatePods" : "LabelService" },
          message: markText(mark, policy.namespace),
        });
      for (const { object } of documents) {
        const owned = ownedBy(object as Resource, service);
        wanted.push({ service, kind: MESH_KINDS[owned.kind] as Kind, object: owned });
      }
    } catch (error) {
      warn(service, "PolicyInvalid", messageOf(error));
    }
  }
  return { wanted, whole };
}

/** By {@link MADE_BY_US}. */
function isMade({ metadata: { labels = {} } }: MeshObject): boolean {
  return labels[POLICY_LABEL] !== undefined && labels[MANAGED_BY_LABEL] === MANAGED_BY;
}

/** Of somebody else's Sidecar as much as says what pods may reach. */
function madeOrReach(sidecar: MeshObject): MeshObject {
  if (isMade(sidecar)) return sidecar;
  const { workloadSelector, egress = null, outboundTrafficPolicy = null } = sidecar.spec ?? {};
  const spec = workloadSelector === undefined ? { egress, outboundTrafficPolicy } : { workloadSelector };
  return { metadata: identityOf(sidecar.metadata), spec };
}

/** The Service may be another of that name, for whose sake it is to stay. */
function isAsWanted({ spec, metadata }: MeshObject, wanted: OwnedResource): boolean {
  return (
    isDeepStrictEqual(spec, wanted.spec) &&
    isDeepStrictEqual(metadata.annotations ?? {}, wanted.metadata.annotations ?? {}) &&
    ownerOf(metadata) === ownerOf(wanted.metadata)
  );
}

function ownerOf({ ownerReferences }: Pick<ObjectMeta, "ownerReferences">): string {
  return ownerReferences?.[0]?.uid ?? "";
}

function ownedBy(object: Resource, { metadata: { name, uid } }: Service): OwnedResource {
  const labels = { ...object.metadata.labels, [MANAGED_BY_LABEL]: MANAGED_BY };
  const ownerReferences = [{ apiVersion: "v1", kind: "Service", name, uid }];
  return { ...object, metadata: { ...object.metadata, labels, ownerReferences } };
}

interface Named {
  metadata: { name: string; namespace?: string };
}

function pathOfObject(kind: Kind, { metadata }: Named): string {
  return pathOf(kind, { namespace: metadata.namespace ?? "default", name: metadata.name });
}

/** As much of a Service as a policy is made of. */
function partOf({ metadata, spec: { selector, ports } }: Service): Service {
  const asked = metadata.annotations?.[MESH_ANNOTATION];
  return {
    metadata: {
      ...identityOf(metadata),
      ...(asked === undefined ? {} : { annotations: { [MESH_ANNOTATION]: asked } }),
    },
    spec: { ...(selector === undefined ? {} : { selector }), ...(ports === undefined ? {} : { ports }) },
  };
}
