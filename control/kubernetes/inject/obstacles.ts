/** Why a pod cannot be injected. Each obstacle is one sentence: where, what is expected, what to do. */
import { SIDECAR_NAME } from "#proxy/contract/commands.ts";
import { INJECTED, INSIDE, MADE, MESH_PROXIES, NAME, SETTINGS, TMP_NAME } from "./names.ts";
import { annotationPath, type Container, type Pod, type Problem } from "./pod.ts";
import type { Settings } from "./settings.ts";

/** Annotations of one object, all together (k8s.io/apimachinery, validation.TotalAnnotationSizeLimitB). */
export const ANNOTATION_BYTES_MAX = 262_144;
/** Owners whose pods are not to be moved, and why. */
const OWNERS: Record<string, string> = {
  Job: "its pods end when their work is done",
  CronJob: "its pods end when their work is done",
  DaemonSet: "each of its pods belongs to one node",
};
/** Volumes that kubelet mounts read-only whatever the mount says. */
const READ_ONLY_VOLUMES = ["configMap", "secret", "projected", "downwardAPI", "image"];
const LEAVE_OUT = "or leave this pod out with the label holdfast.dev/inject: disabled";

/** An owner's kind that is never moved; why, null: it may be */
export function neverMoves(kind: string): string | null {
  return OWNERS[kind] ?? null;
}

/** What holds for the whole pod, whichever container moves. */
export function podObstacle({ metadata, spec }: Pod): Problem | null {
  if (metadata?.annotations?.["kubernetes.io/config.mirror"] !== undefined)
    return problem(
      annotationPath("kubernetes.io/config.mirror"),
      "this is a static pod, which kubelet makes from a file of its node: make it a Deployment",
    );
  const owner = (metadata?.ownerReferences ?? []).find(({ controller }) => controller === true);
  const reason = owner === undefined ? null : neverMoves(owner.kind);
  if (owner !== undefined && reason !== null)
    return problem("metadata.ownerReferences", ownedBy(owner.kind, reason));
  if (spec.os?.name === "windows" || spec.nodeSelector?.["kubernetes.io/os"] === "windows")
    return problem("spec.os", `only processes of Linux can be moved: run it on Linux, ${LEAVE_OUT}`);
  for (const [field, why] of [
    ["hostNetwork", "connections of the node's own network cannot be moved"],
    ["hostPID", "the process numbers of the application must be free in the pod it moves to"],
    ["hostIPC", "shared memory of the node cannot be moved"],
    ["shareProcessNamespace", "the init of Holdfast has to be process 1 of the container"],
  ] as const)
    if (spec[field] === true)
      return problem(`spec.${field}`, `${why}: take ${field} out of the pod, ${LEAVE_OUT}`);
  if (spec.hostUsers === false)
    return problem(
      "spec.hostUsers",
      `a user namespace of the pod's own is not moved yet: take hostUsers out of the pod, ${LEAVE_OUT}`,
    );
  if ((spec.restartPolicy ?? "Always") !== "Always")
    return problem(
      "spec.restartPolicy",
      `expected Always (an init that waits keeps the pod from completing), got ${spec.restartPolicy}: change it, ${LEAVE_OUT}`,
    );
  return nameObstacle(spec);
}

export function ownedBy(kind: string, reason: string): string {
  return `nothing of a ${kind} is moved, as ${reason}: take the label holdfast.dev/inject off its pods`;
}

/** The annotation says injected, and the pod is not. */
export function halfInjected(): Problem {
  return problem(
    annotationPath(MADE.injected),
    `it is "${INJECTED}", and what is injected is not all there: remove this annotation, and what is left of ${NAME}`,
  );
}

/** The container that moves: named, or the only one that is not to stay behind. */
export function chooseContainer(
  pod: Pod,
  settings: Settings,
): { chosen: Container } | { chosen: null; problem: Problem } {
  const { container, stateless } = settings;
  const { containers } = pod.spec;
  const refuse = (at: string, message: string) => ({ chosen: null, problem: { at, message } });
  const beside = (pod.spec.initContainers ?? []).filter((one) => one.restartPolicy === "Always");
  const all = [...containers, ...beside];
  const unknown = stateless.find((name) => !all.some((one) => one.name === name));
  if (unknown !== undefined)
    return refuse(
      annotationPath(SETTINGS.stateless),
      `expected containers of this pod (${listOf(all)}), got ${unknown}`,
    );
  // the standby's pod has a mesh's proxy of its own; old-style ones are ordinary containers
  const stays = ({ name }: Container): boolean => stateless.includes(name) || MESH_PROXIES.has(name);
  const candidates = containers.filter((one) => !stays(one));
  const named = containers.find(({ name }) => name === container) ?? null;
  if (container !== null && named === null)
    return refuse(
      annotationPath(SETTINGS.container),
      `expected a container of this pod (${listOf(containers)}), got ${JSON.stringify(container)}`,
    );
  if (named !== null && stateless.includes(named.name))
    return refuse(
      annotationPath(SETTINGS.stateless),
      `${named.name} is the container that moves: take it out of this list`,
    );
  const [only] = candidates;
  const moving = named ?? only;
  if (moving === undefined)
    return refuse(
      annotationPath(SETTINGS.stateless),
      "no container is left that could move: name all but one",
    );
  const others = [...candidates, ...beside.filter((one) => !stays(one))].filter((one) => one !== moving);
  if (others.length > 0 && named === null && candidates.length > 1)
    return refuse(
      "spec.containers",
      `which of ${listOf(candidates)} is to move: name it in ${SETTINGS.container}, and the others in ${SETTINGS.stateless} if nothing is lost when they are started anew`,
    );
  if (others.length > 0)
    return refuse(
      "spec.containers",
      `only ${moving.name} would move: name ${listOf(others)} in ${SETTINGS.stateless} if nothing is lost when they are started anew`,
    );
  return { chosen: moving };
}

/** @param at path of the container in the pod */
export function containerObstacle(pod: Pod, container: Container, at: string): Problem | null {
  const { name, securityContext } = container;
  if (securityContext?.privileged === true)
    return problem(
      `${at}.securityContext.privileged`,
      `what a privileged container has of its node cannot be moved: take privileged out of ${name}, ${LEAVE_OUT}`,
    );
  for (const field of ["tty", "stdin"] as const)
    if (container[field] === true)
      return problem(
        `${at}.${field}`,
        `the terminal of a container cannot be moved: take ${field} out of ${name}`,
      );
  if ((container.restartPolicy ?? "Always") !== "Always")
    return problem(
      `${at}.restartPolicy`,
      `expected Always (an init that waits does not end), got ${container.restartPolicy}`,
    );
  if ((container.volumeDevices ?? []).length > 0)
    return problem(
      `${at}.volumeDevices`,
      `a block device cannot be moved: mount a file system in ${name}, ${LEAVE_OUT}`,
    );
  // an extended resource has a domain, and those of Kubernetes have that of Kubernetes or none
  const device = Object.keys(container.resources?.limits ?? {}).find((key) =>
    /^(?!([^/]*\.)?kubernetes\.io\/)[^/]+\//.test(key),
  );
  if (device !== undefined)
    return problem(
      `${at}.resources.limits`,
      `a device (${device}) cannot be moved: take it out of ${name}, ${LEAVE_OUT}`,
    );
  return mountObstacle(pod, container, at);
}

/** @param image of the proxy; null: the injector has none */
export function sidecarObstacle({ listen }: Settings, image: string | null): Problem | null {
  if (image === null)
    return problem(
      annotationPath(SETTINGS.proxy),
      "expected node, as no image of the proxy is known here: give the injector one (proxy.image of the webhook, --proxy-image), or say node",
    );
  if (listen === "node")
    return problem(
      annotationPath(SETTINGS.listen),
      `expected pod, as a proxy in the pod cannot listen at the node: or say ${SETTINGS.proxy}: node`,
    );
  return null;
}

export function missingPorts({ name }: Container): Problem {
  return problem(
    annotationPath(SETTINGS.ports),
    `expected the ports where clients come, as "8080/http", since ${name} declares no TCP port: add the annotation or containerPort`,
  );
}

export function tooLarge(bytes: number): Problem {
  return problem(
    "metadata.annotations",
    `the command of the container is noted there, which makes ${bytes} bytes of at most ${ANNOTATION_BYTES_MAX}: put it into a script`,
  );
}

function mountObstacle({ spec }: Pod, container: Container, at: string): Problem | null {
  for (const [index, { name, mountPath, readOnly }] of (container.volumeMounts ?? []).entries()) {
    const path = cleanPath(mountPath);
    if (path === INSIDE || path.startsWith(`${INSIDE}/`))
      return problem(
        `${at}.volumeMounts[${index}].mountPath`,
        `expected another path than ${path}, where Holdfast has its init: mount ${name} elsewhere`,
      );
    const volume = (spec.volumes ?? []).find((one) => one.name === name);
    const isReadOnly = readOnly === true || READ_ONLY_VOLUMES.some((kind) => volume?.[kind] != null);
    if (path === "/tmp" && isReadOnly)
      return problem(
        `${at}.volumeMounts[${index}]`,
        `CRIU needs to write to /tmp, where ${name} is mounted read-only: mount it elsewhere`,
      );
  }
  return null;
}

function nameObstacle(spec: Pod["spec"]): Problem | null {
  for (const list of ["containers", "initContainers"] as const)
    for (const [index, { name }] of (spec[list] ?? []).entries())
      if (name === NAME || name === SIDECAR_NAME)
        return problem(
          `spec.${list}[${index}].name`,
          `expected another name than ${name}, which Holdfast's container has: rename it`,
        );
  for (const [index, { name }] of (spec.volumes ?? []).entries())
    if (name === NAME || name === TMP_NAME || name === SIDECAR_NAME)
      return problem(
        `spec.volumes[${index}].name`,
        `expected another name than ${name}, which a volume of Holdfast's has: rename it`,
      );
  return null;
}

/** Without "." and double slashes, as kubelet has it. */
export function cleanPath(path: string): string {
  const parts = path.split("/").filter((part) => part !== "" && part !== ".");
  return `/${parts.join("/")}`;
}

function listOf(containers: readonly Container[]): string {
  return containers.map(({ name }) => name).join(", ");
}

function problem(at: string, message: string): Problem {
  return { at, message };
}
