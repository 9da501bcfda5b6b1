/**
 * A pod, injected: what the agent needs in it to start its application, and to dump and restore it. A pure function, which the webhook and
 * `holdfast inject` share, and its inverse.
 *
 * The container that moves gets an init that waits in the place of its command; the agent starts the application below it
 * (`control/runtime/cri`). CRIU itself is not in the pod. The proxy is, as a native sidecar without a privilege, where it is not to be a process of
 * the node's agent. That puts the init into an emptyDir when it starts; without it, an init container does.
 */
import { SIDECAR_FOLDER, SIDECAR_HTTP_PORT, SIDECAR_NAME, SIDECAR_SOCKET } from "#proxy/contract/commands.ts";
import {
  INJECT_LABEL,
  INJECTED,
  INSIDE,
  MADE,
  NAME,
  RESPONDER,
  RESPONDER_PRIORITY,
  RESPONDERS_MAX,
  SETTINGS,
  TMP_NAME,
  WAITING,
} from "./names.ts";
import {
  ANNOTATION_BYTES_MAX,
  chooseContainer,
  cleanPath,
  containerObstacle,
  halfInjected,
  missingPorts,
  podObstacle,
  sidecarObstacle,
  tooLarge,
} from "./obstacles.ts";
import { annotationPath, type Container, type Pod, type Problem } from "./pod.ts";
import { exclusionsOf, type Gateways, MESH_EXCLUSIONS, type ProxyOptions, placeOf } from "./proxy-place.ts";
import { initResources, sidecarResources, wholeWith } from "./resources.ts";
import { declaredPorts, type Settings, settingsOf, unknownAnnotations } from "./settings.ts";

export interface InjectOptions {
  /** what is copied into pods: its programs are at /holdfast, and it has cp(1) and a user that is not root */
  image: string;
  /** null: Kubernetes' default */
  imagePullPolicy: "Always" | "IfNotPresent" | "Never" | null;
  /** of the cluster, which hold the sockets of clients. Absent: there are none */
  gateways?: Gateways | null | undefined;
  /**
   * what runs the proxy in pods (Node and Holdfast at /holdfast, and a user that is not root), and where it is in pods that say nothing
   * of it. Absent: never in a pod
   */
  proxy?: ProxyOptions | null | undefined;
  /**
   * the controller is one of the pod's responders to EvictionRequests. A cluster that does not serve them drops the field. Default: no
   */
  evictionRequests?: boolean | undefined;
}

export type Outcome =
  | { kind: "injected"; pod: Pod; warnings: string[] }
  | { kind: "unchanged"; reason: string }
  | { kind: "refused"; problem: Problem };

/** What {@link uninject} needs beside the pod. */
interface Replaced {
  /** settings that the pod had left out */
  added: (keyof typeof SETTINGS)[];
  livenessProbe?: unknown;
  startupProbe?: unknown;
  /** the container had none */
  seccompProfile?: null;
  /** we are one of its responders now */
  responder?: true;
  /** {@link MESH_EXCLUSIONS} are ours: those that the pod had */
  annotations?: Record<string, string>;
  /** what the pod asks for as a whole, which has ours in it now */
  resources?: Pod["spec"]["resources"];
}

/** kubelet would make the container anew for these while it waits for its application. */
const PROBES = ["livenessProbe", "startupProbe"] as const;
const COPY = ["/bin/cp", "-rf", "/holdfast/.", INSIDE];
const VOLUME_BYTES = "32Mi";
/** Containers and volumes of ours. */
const ADDED: ReadonlySet<string> = new Set([NAME, TMP_NAME, SIDECAR_NAME]);
/** Process 1 of its container, by which the agent knows it. */
const PROXY = ["/holdfast/node_modules/node/bin/node", "/holdfast/proxy/main.ts"];
/**
 * kubelet starts no other container before this has ended, and it says nothing of the proxy, which the agent waits for: until that listens there is
 * no application. A program that starts at once, as every standby waits for it: Node took 1.9 s on a node that makes one beside much else. It puts
 * new files in the place of old ones, when kubelet starts the sidecar again: what runs, and has them mapped, keeps its own.
 */
const BRING = ["/bin/cp", "-r", "--remove-destination", "/holdfast/inside/.", INSIDE];

/** The argument stays as it is. Injected already: unchanged. */
export function inject(pod: Pod, options: InjectOptions): Outcome {
  if (pod.metadata?.labels?.[INJECT_LABEL] === "disabled")
    return { kind: "unchanged", reason: `it has the label ${INJECT_LABEL}: disabled` };
  if (pod.metadata?.annotations?.[MADE.injected] !== undefined)
    return isWhole(pod)
      ? { kind: "unchanged", reason: "it is injected already" }
      : { kind: "refused", problem: halfInjected() };
  const settings = settingsOf(pod);
  if ("at" in settings) return { kind: "refused", problem: settings };
  const obstacle = podObstacle(pod);
  if (obstacle !== null) return { kind: "refused", problem: obstacle };
  const choice = chooseContainer(pod, settings);
  if (choice.chosen === null) return { kind: "refused", problem: choice.problem };
  const { chosen } = choice;
  const at = `spec.containers[${pod.spec.containers.indexOf(chosen)}]`;
  const inTheWay = containerObstacle(pod, chosen, at);
  if (inTheWay !== null) return { kind: "refused", problem: inTheWay };
  const ports = settings.ports === null ? declaredPorts(chosen, settings.protocol) : null;
  if (settings.ports === null && ports === null) return { kind: "refused", problem: missingPorts(chosen) };
  const { hasSidecar, isOfGateways } = placeOf(pod, settings, options);
  const unfit = hasSidecar ? sidecarObstacle(settings, options.proxy?.image ?? null) : null;
  if (unfit !== null) return { kind: "refused", problem: unfit };

  const copy = structuredClone(pod);
  const container = copy.spec.containers.find(({ name }) => name === chosen.name) as Container;
  const replaced: Replaced = { added: [] };
  if (isOfGateways) replaced.added.push("mode");
  if (settings.container === null) replaced.added.push("container");
  if (ports !== null) replaced.added.push("ports");
  const isForward = settings.mode === "forward" && !isOfGateways;
  const isListening = hasSidecar && isForward && settings.listen === null;
  if (isListening) replaced.added.push("listen");
  if (hasSidecar && settings.proxy === null) replaced.added.push("proxy");
  if (settings.subreaper === null) replaced.added.push("subreaper");
  if (hasSidecar) addSidecar(copy, container, options, settings, replaced);
  else addInit(copy, container, options);
  addInside(copy, container);
  const exclusions = hasSidecar ? exclusionsOf(pod) : null;
  if (exclusions !== null) replaced.annotations = exclusions.before;
  addTmp(copy, container);
  addSeccomp(copy, container, replaced);
  takeProbes(container, replaced);
  if (options.evictionRequests === true) addResponder(copy, replaced);
  wait(container);
  copy.metadata ??= {};
  copy.metadata.annotations = {
    ...copy.metadata.annotations,
    [MADE.injected]: INJECTED,
    [SETTINGS.container]: chosen.name,
    ...(ports === null ? {} : { [SETTINGS.ports]: ports }),
    ...(isOfGateways ? { [SETTINGS.mode]: "gateway" } : {}),
    ...(hasSidecar ? { [SETTINGS.proxy]: "sidecar" } : {}),
    ...(isListening ? { [SETTINGS.listen]: "pod" } : {}),
    // written, so that a pod of a version that did not have it keeps what it was started with
    ...(settings.subreaper === null ? { [SETTINGS.subreaper]: "true" } : {}),
    ...exclusions?.made,
    ...commandNotes(chosen),
    [MADE.replaced]: JSON.stringify(replaced),
  };
  const bytes = bytesOf(copy.metadata.annotations);
  if (bytes > ANNOTATION_BYTES_MAX) return { kind: "refused", problem: tooLarge(bytes) };
  return { kind: "injected", pod: copy, warnings: warningsOf(pod, chosen, replaced) };
}

/** The pod as it was; lists and mappings that were empty are absent. */
export function uninject(pod: Pod): Outcome {
  const said = pod.metadata?.annotations ?? {};
  if (said[MADE.injected] === undefined) return { kind: "unchanged", reason: "it is not injected" };
  const name = said[SETTINGS.container];
  const replaced = readReplaced(said[MADE.replaced]);
  if (!isWhole(pod)) return { kind: "refused", problem: halfInjected() };
  if (replaced === null)
    return {
      kind: "refused",
      problem: {
        at: annotationPath(MADE.replaced),
        message: "expected what inject has noted there: restore the pod from where it was described",
      },
    };
  const copy = structuredClone(pod);
  const { spec } = copy;
  spec.initContainers = (spec.initContainers ?? []).filter((one) => !ADDED.has(one.name));
  spec.volumes = (spec.volumes ?? []).filter((one) => !ADDED.has(one.name));
  const container = spec.containers.find((one) => one.name === name) as Container;
  container.volumeMounts = (container.volumeMounts ?? []).filter((mount) => !ADDED.has(mount.name));
  container.command = (container.command ?? []).slice(WAITING.length);
  for (const probe of PROBES) if (replaced[probe] !== undefined) container[probe] = replaced[probe];
  if (replaced.responder === true)
    spec.evictionResponders = (spec.evictionResponders ?? []).filter((one) => one.name !== RESPONDER);
  if (replaced.resources !== undefined) spec.resources = replaced.resources;
  if (replaced.seccompProfile === null && container.securityContext != null) {
    delete container.securityContext.seccompProfile;
    dropEmpty(container, ["securityContext"]);
  }
  const metadata = copy.metadata as NonNullable<Pod["metadata"]>;
  const mine = new Set<string>([
    ...Object.values(MADE),
    ...replaced.added.map((key) => SETTINGS[key]),
    ...(replaced.annotations === undefined ? [] : MESH_EXCLUSIONS),
  ]);
  const own = Object.entries(said).filter(([key]) => !mine.has(key));
  metadata.annotations = { ...Object.fromEntries(own), ...replaced.annotations };
  dropEmpty(container, ["volumeMounts", "command"]);
  dropEmpty(spec, ["initContainers", "volumes", "evictionResponders"]);
  dropEmpty(metadata, ["annotations"]);
  return { kind: "injected", pod: copy, warnings: [] };
}

/** Everything that the agent needs is there. */
function isWhole({ metadata, spec }: Pod): boolean {
  const name = metadata?.annotations?.[SETTINGS.container];
  const container = spec.containers.find((one) => one.name === name);
  return (
    metadata?.annotations?.[MADE.injected] === INJECTED &&
    container !== undefined &&
    WAITING.every((word, index) => container.command?.[index] === word) &&
    (container.volumeMounts ?? []).some((mount) => mount.name === NAME && mount.mountPath === INSIDE) &&
    (spec.volumes ?? []).some((volume) => volume.name === NAME) &&
    // a version before had both
    (spec.initContainers ?? []).some(bringsInside) &&
    (metadata.annotations[SETTINGS.proxy] !== "sidecar" ||
      (spec.initContainers ?? []).some((one) => one.name === SIDECAR_NAME))
  );
}

function bringsInside({ name, volumeMounts }: Container): boolean {
  return (
    name === NAME || (name === SIDECAR_NAME && (volumeMounts ?? []).some((mount) => mount.name === NAME))
  );
}

/** How the application is started, as far as the pod says so: its image may have an entrypoint, which only its node knows. */
function commandNotes({ command, args }: Container): Record<string, string> {
  const words = command ?? [];
  if (words.length > 0) return { [MADE.command]: JSON.stringify([...words, ...(args ?? [])]) };
  return (args ?? []).length > 0 ? { [MADE.args]: JSON.stringify(args) } : {};
}

/** First of all, since it waits for nothing. */
function addInit({ spec }: Pod, container: Container, { image, imagePullPolicy }: InjectOptions): void {
  const first: Container = {
    name: NAME,
    image,
    ...(imagePullPolicy === null ? {} : { imagePullPolicy }),
    command: COPY,
    ...initResources(container),
    securityContext: restricted(container),
    volumeMounts: [{ name: NAME, mountPath: INSIDE }],
  };
  spec.initContainers = [first, ...(spec.initContainers ?? [])];
}

function addInside({ spec }: Pod, container: Container): void {
  spec.volumes = [...(spec.volumes ?? []), { name: NAME, emptyDir: { sizeLimit: VOLUME_BYTES } }];
  container.volumeMounts = [
    ...(container.volumeMounts ?? []),
    { name: NAME, mountPath: INSIDE, readOnly: true },
  ];
}

/**
 * First of all, so that its hook keeps all others waiting. An agent, which reaches it through its socket, tells it what to do, and leads clients to
 * it before the application is started.
 */
function addSidecar(
  { spec }: Pod,
  container: Container,
  { imagePullPolicy, proxy }: InjectOptions,
  { proxyResources }: Settings,
  replaced: Replaced,
): void {
  const resources = sidecarResources(spec, proxyResources, proxy?.resources);
  const whole = resources === null ? null : wholeWith(spec, resources);
  if (whole !== null) {
    replaced.resources = spec.resources;
    spec.resources = whole;
  }
  const sidecar: Container = {
    name: SIDECAR_NAME,
    image: proxy?.image ?? "",
    ...(imagePullPolicy === null ? {} : { imagePullPolicy }),
    restartPolicy: "Always",
    command: [...PROXY, "--socket", SIDECAR_SOCKET, "--http", `0.0.0.0:${SIDECAR_HTTP_PORT}`, "--helped"],
    // a pod that asks for nothing is of another class as soon as one container does
    ...(resources === null ? {} : { resources }),
    securityContext: restricted(container),
    lifecycle: { postStart: { exec: { command: BRING } } },
    volumeMounts: [
      { name: SIDECAR_NAME, mountPath: SIDECAR_FOLDER },
      { name: NAME, mountPath: INSIDE },
    ],
  };
  spec.initContainers = [sidecar, ...(spec.initContainers ?? [])];
  spec.volumes = [...(spec.volumes ?? []), { name: SIDECAR_NAME, emptyDir: {} }];
}

/**
 * Of a pod that has been injected and whose proxy is to be at the node after all: the sidecar only puts there what the application's container starts
 * with, and ends. A version before had a container for that beside it.
 */
export function withoutSidecar<One extends { name: string }>(initContainers: readonly One[]): One[] {
  const hasOther = initContainers.some(({ name }) => name === NAME);
  return initContainers.flatMap((one) => {
    if (one.name !== SIDECAR_NAME) return [one];
    if (hasOther) return [];
    const { restartPolicy: _, lifecycle: __, ...rest } = one as unknown as Container;
    const volumeMounts = (rest.volumeMounts ?? []).filter(({ name }) => name !== SIDECAR_NAME);
    return [{ ...rest, name: NAME, command: BRING, volumeMounts } as unknown as One];
  });
}

/** What Pod Security restricted asks for; the user is the container's, so that none is made up. */
function restricted({ securityContext }: Container): NonNullable<Container["securityContext"]> {
  const { runAsUser, runAsGroup, runAsNonRoot } = securityContext ?? {};
  return {
    allowPrivilegeEscalation: false,
    capabilities: { drop: ["ALL"] },
    readOnlyRootFilesystem: true,
    seccompProfile: { type: "RuntimeDefault" },
    ...(runAsNonRoot == null ? {} : { runAsNonRoot }),
    ...(runAsUser == null ? {} : { runAsUser }),
    ...(runAsGroup == null ? {} : { runAsGroup }),
  };
}

/** CRIU makes a folder there when it looks at what the kernel can do (criu/kerndat.c). */
function addTmp({ spec }: Pod, container: Container): void {
  if (container.securityContext?.readOnlyRootFilesystem !== true) return;
  if ((container.volumeMounts ?? []).some(({ mountPath }) => cleanPath(mountPath) === "/tmp")) return;
  spec.volumes = [...(spec.volumes ?? []), { name: TMP_NAME, emptyDir: {} }];
  container.volumeMounts = [...(container.volumeMounts ?? []), { name: TMP_NAME, mountPath: "/tmp" }];
}

/** Kubernetes' own default lets io_uring through, which CRIU cannot dump. */
function addSeccomp({ spec }: Pod, container: Container, replaced: Replaced): void {
  const said = container.securityContext?.seccompProfile ?? spec.securityContext?.seccompProfile;
  if (said != null) return;
  container.securityContext = {
    ...container.securityContext,
    seccompProfile: { type: "RuntimeDefault" },
  };
  replaced.seccompProfile = null;
}

function takeProbes(container: Container, replaced: Replaced): void {
  for (const probe of PROBES) {
    if (container[probe] == null) continue;
    replaced[probe] = container[probe];
    delete container[probe];
  }
}

/** Nothing else may be added later. One that is full stays: its own responders delete it. */
function addResponder({ spec }: Pod, replaced: Replaced): void {
  const before = spec.evictionResponders ?? [];
  if (before.length >= RESPONDERS_MAX || before.some(({ name }) => name === RESPONDER)) return;
  // a pod of a group may have none (KEP-4563)
  if (spec.schedulingGroup != null) return;
  spec.evictionResponders = [...before, { name: RESPONDER, priority: RESPONDER_PRIORITY }];
  replaced.responder = true;
}

/** Its arguments stay: kubelet puts variables into them, `$(NAME)`, and the agent finds them in the process's own. */
function wait(container: Container): void {
  container.command = [...WAITING, ...(container.command ?? [])];
}

function warningsOf(pod: Pod, container: Container, replaced: Replaced): string[] {
  const { name, command, lifecycle } = container;
  const taken = PROBES.filter((probe) => replaced[probe] !== undefined);
  return [
    ...unknownAnnotations(pod).map((one) => `annotation ${one} is not known and does nothing`),
    ...(taken.length > 0
      ? [`kubelet does not run ${taken.join(" and ")} of ${name}, which would end a container that waits`]
      : []),
    ...((command ?? []).length === 0
      ? [`${name} names no command: its image's entrypoint is used, where the agent can read it`]
      : []),
    ...(lifecycle?.postStart != null ? [`postStart of ${name} runs in each standby as well`] : []),
  ];
}

function readReplaced(text: string | undefined): Replaced | null {
  try {
    const value = JSON.parse(text ?? "") as Replaced;
    return Array.isArray(value?.added) && value.added.every((key) => Object.hasOwn(SETTINGS, key))
      ? value
      : null;
  } catch {
    return null;
  }
}

function bytesOf(annotations: Record<string, string>): number {
  const lengths = Object.entries(annotations).map(
    ([key, value]) => Buffer.byteLength(key) + Buffer.byteLength(value),
  );
  return lengths.reduce((all, one) => all + one, 0);
}

/** Deletes what is an empty list or mapping. */
function dropEmpty(from: Record<string, unknown>, keys: readonly string[]): void {
  for (const key of keys) {
    const value = from[key];
    if (typeof value === "object" && value !== null && Object.keys(value).length === 0) delete from[key];
  }
}
