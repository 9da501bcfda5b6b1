/** What pods say to Holdfast and Holdfast says of them: labels, annotations, and the names of what is added to a pod. */

/** On a pod or its namespace: `enabled` or `disabled`. Selectors of webhooks see labels only. */
export const INJECT_LABEL = "holdfast.dev/inject";
/** On a namespace: `enforce` keeps pods out that are to be injected and cannot be. */
export const POLICY_LABEL = "holdfast.dev/policy";

/** What the owner of a pod may say. README.md beside this folder has the values. */
export const SETTINGS = {
  container: "holdfast.dev/container",
  ports: "holdfast.dev/ports",
  protocol: "holdfast.dev/protocol",
  continuity: "holdfast.dev/continuity",
  mode: "holdfast.dev/mode",
  listen: "holdfast.dev/listen",
  proxy: "holdfast.dev/proxy",
  proxyResources: "holdfast.dev/proxy-resources",
  limits: "holdfast.dev/limits",
  stateless: "holdfast.dev/stateless",
  workload: "holdfast.dev/workload",
  standby: "holdfast.dev/standby",
  subreaper: "holdfast.dev/subreaper",
} as const;

/** What the injector says: the agent reads the first three, {@link uninject} the last. */
export const MADE = {
  injected: "holdfast.dev/injected",
  command: "holdfast.dev/command",
  args: "holdfast.dev/args",
  replaced: "holdfast.dev/replaced",
} as const;

export const ANNOTATION_PREFIX = "holdfast.dev/";
/** value of {@link MADE.injected}: raised when what is injected changes its meaning */
export const INJECTED = "1";

/** Where a pod's container finds the init; as the agent's `control/runtime/cri` has it. */
export const INSIDE = "/.holdfast";
/** In the place of the application's command. What follows it is not run: kubelet puts variables into it, and the agent can read it. */
export const WAITING: readonly string[] = [`${INSIDE}/init`, "-P", "--"];

/** of the init container, and of the volume that it fills */
export const NAME = "holdfast";
/** of the volume at /tmp */
export const TMP_NAME = "holdfast-tmp";

/**
 * Proxies of meshes, by the name of their container: the annotation that says which ports of a pod are not led to it, with commas between. It is
 * read when the mesh's proxy is injected.
 */
export const MESH_PROXIES: ReadonlyMap<string, string> = new Map([
  ["istio-proxy", "traffic.sidecar.istio.io/excludeInboundPorts"],
  ["linkerd-proxy", "config.linkerd.io/skip-inbound-ports"],
]);

/** our name among a pod's responders, and a label of Evictions that we may have to do with */
export const RESPONDER = "holdfast.dev/controller";
/** before whatever made the pod, which has 10,000, and could only delete it */
export const RESPONDER_PRIORITY = 20_000;
/** of a pod; a limit of Kubernetes */
export const RESPONDERS_MAX = 10;
