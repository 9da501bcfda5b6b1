/** Where a pod's proxy is, which says who may hold its clients' sockets, and what a mesh is told of it. Pure. */
import { type ProxyDefault, SIDECAR_HTTP_PORT, SIDECAR_LINK_PORT } from "#proxy/contract/commands.ts";
import type { ProxyResources } from "../../config/proxy-resources.ts";
import { MESH_PROXIES, SETTINGS } from "./names.ts";
import type { Pod } from "./pod.ts";
import type { Settings } from "./settings.ts";

/** of the cluster */
export interface Gateways {
  /** a Service of theirs is for pods with these labels */
  isSelected(labels: Record<string, string>): boolean;
}

export interface ProxyOptions {
  /** null: none is known */
  image: string | null;
  /** of pods that do not say it; auto: a sidecar in gateway mode, and else at the node */
  default: ProxyDefault;
  /** of a proxy in a pod. Absent: as the webhook's file has them by default */
  resources?: ProxyResources | undefined;
}

interface Around {
  gateways?: Gateways | null | undefined;
  proxy?: ProxyOptions | null | undefined;
}

export const MESH_EXCLUSIONS: readonly string[] = [...MESH_PROXIES.values()];
/** of links, and of metrics */
const SIDECAR_PORTS = [SIDECAR_LINK_PORT, SIDECAR_HTTP_PORT].map(String);

/**
 * Where the proxy is, and whether the mode is made by the cluster's gateways. In forward mode a sidecar has clients at the pod's own address: its
 * end resets them, and none of its Services could be labelled for gateways later. So `auto` has it in gateway mode alone.
 */
export function placeOf(
  pod: Pod,
  settings: Settings,
  around: Around,
): { hasSidecar: boolean; isOfGateways: boolean } {
  // who is to come to the node's address says with that where the proxy is
  const said = settings.proxy ?? (settings.listen === "node" ? "node" : around.proxy?.default);
  const isOfGateways = goesToGateways(pod, around, said === "sidecar");
  const isGateway = isOfGateways || settings.mode === "gateway";
  return { hasSidecar: said === "sidecar" || (said === "auto" && isGateway && !isMeshed(pod)), isOfGateways };
}

/**
 * The pod does not say who holds its clients' sockets, and the cluster has gateways. Where a sidecar is asked for whatever the mode, it has the
 * clients of every Service at the pod's own address: then only a Service of gateways leads them away from it.
 */
function goesToGateways({ metadata }: Pod, { gateways }: Around, hasSidecar: boolean): boolean {
  const { annotations, labels } = metadata ?? {};
  if (gateways == null) return false;
  if (annotations?.[SETTINGS.mode] !== undefined || annotations?.[SETTINGS.listen] !== undefined)
    return false;
  return !hasSidecar || gateways.isSelected(labels ?? {});
}

/** A mesh's proxy is there already, and has not been told to leave links alone. */
function isMeshed({ metadata, spec }: Pod): boolean {
  return [...spec.containers, ...(spec.initContainers ?? [])].some(({ name }) => {
    const exclusion = MESH_PROXIES.get(name);
    return (
      exclusion !== undefined && !portsOf(metadata?.annotations?.[exclusion]).includes(`${SIDECAR_LINK_PORT}`)
    );
  });
}

/**
 * What keeps a mesh that is injected after us off the sidecar's ports: who takes a link speaks first, and a mesh's proxy would wait for the other
 * side for ever.
 * @returns annotations as they are to be, and those that there were
 */
export function exclusionsOf({ metadata }: Pod): {
  made: Record<string, string>;
  before: Record<string, string>;
} {
  const said = metadata?.annotations ?? {};
  const withOurs = (name: string): string => {
    const own = portsOf(said[name]);
    // there, and without a port: who says that has declared the port of links to the mesh
    if (said[name] !== undefined && own.length === 0) return said[name];
    return [...new Set([...own, ...SIDECAR_PORTS])].join(",");
  };
  return {
    made: Object.fromEntries(MESH_EXCLUSIONS.map((name) => [name, withOurs(name)])),
    before: Object.fromEntries(Object.entries(said).filter(([name]) => MESH_EXCLUSIONS.includes(name))),
  };
}

function portsOf(text = ""): string[] {
  return text
    .split(",")
    .map((port) => port.trim())
    .filter((port) => port !== "");
}
