/**
 * Subsets of a DestinationRule and the routes of a VirtualService that lead to them: has a proxy the clusters and the routes, and if not, why.
 * Pure. Of hosts by their full names and routes with names, for sidecars, as `render` writes them; of what else there is it says so.
 */
import { type DumpedProxy, type JsonObject, listAt, objectAt } from "../config-dump.ts";
import { keyOf } from "./clusters.ts";
import type { Found } from "./result.ts";

/** One of an object's parts, and what was found, or why it is not for this proxy, or not looked at. */
export interface Part {
  part: string;
  what: string;
  found: Found | { elsewhere: string } | { unknown: string };
}

export function lookAtSubsets(proxy: DumpedProxy, object: JsonObject): Part[] {
  const spec = objectAt(object, "spec");
  const { host } = spec;
  const not = whyNotLookedAt(spec, [host], ["workloadSelector", "exportTo"]);
  return listAt(spec, "subsets").map(({ name: subset }, index) => {
    const what = `outbound|*|${subset}|${host}`;
    const part = `subsets[${index}]`;
    if (not !== null) return { part, what, found: { unknown: not } };
    if (!knows(proxy, String(host))) return { part, what, found: unknownHost(String(host)) };
    const clusters = proxy.clusters.filter(({ name }) => {
      const key = keyOf(name);
      return key?.direction === "outbound" && key.subset === subset && key.host === host;
    });
    const empty = clusters.find(({ name }) => proxy.endpoints !== null && !proxy.endpoints.get(name));
    const warnings =
      empty === undefined
        ? []
        : [
            `${empty.name} has no endpoints: no pod with its labels serves, and who is led there is answered 503`,
          ];
    const isThere = clusters.length > 0;
    const why = isThere ? null : "the proxy has no cluster of it";
    return { part, what, found: { what, reason: isThere ? null : "not-pushed", why, warnings } };
  });
}

export function lookAtRoutes(proxy: DumpedProxy, object: JsonObject): Part[] {
  const spec = objectAt(object, "spec");
  const hosts = Array.isArray(spec.hosts) ? spec.hosts : [];
  const not = whyNotLookedAt(spec, hosts, ["gateways", "exportTo"]);
  const routes = proxy.routes
    .flatMap((config) => listAt(config, "virtual_hosts"))
    .filter(({ domains }) => Array.isArray(domains) && domains.some((domain) => hosts.includes(domain)))
    .flatMap((one) => listAt(one, "routes"));
  return listAt(spec, "http").map((rule, index) => {
    const { name } = rule;
    const part = `http[${index}]`;
    const what = `route ${name ?? "without a name"}`;
    const of = (found: Part["found"]): Part => ({ part, what, found });
    if (not !== null) return of({ unknown: not });
    if (typeof name !== "string") return of({ unknown: "a route without a name is not looked at" });
    if (proxy.kind !== "sidecar") return of({ elsewhere: "it is for sidecars" });
    if (!hosts.some((host) => knows(proxy, String(host)))) return of(unknownHost(String(hosts[0])));
    const there = routes.filter((one) => one.name === name || String(one.name).startsWith(`${name}.`));
    if (there.length === 0)
      return of({
        ...{ what, reason: "not-pushed", warnings: [] },
        why: "the proxy has no route of that name; of two VirtualServices for one host the older holds",
      });
    const wanted = listAt(rule, "route").map((one) => objectAt(one, "destination"));
    const other = there.find((one) => !isLedTo(clustersOf(one), wanted));
    return of({
      ...{ what, reason: other === undefined ? null : "other-value", warnings: [] },
      why: other === undefined ? null : `it leads to ${clustersOf(other).join(", ") || "no cluster"}`,
    });
  });
}

/** null: it is */
function whyNotLookedAt(spec: JsonObject, hosts: readonly unknown[], keys: string[]): string | null {
  const key = keys.find((one) => spec[one] !== undefined);
  if (key !== undefined) return `one with ${key} is not looked at`;
  const short = hosts.find((host) => typeof host !== "string" || !host.includes(".") || host.includes("*"));
  return short === undefined && hosts.length > 0 ? null : `${short ?? "no host"} is not a host's full name`;
}

function knows(proxy: DumpedProxy, host: string): boolean {
  return proxy.clusters.some(({ name }) => {
    const key = keyOf(name);
    return key?.direction === "outbound" && key.host === host;
  });
}

function unknownHost(host: string): { elsewhere: string } {
  return { elsewhere: `this proxy has no cluster of ${host}` };
}

function clustersOf(route: JsonObject): string[] {
  const action = objectAt(route, "route");
  const weighted = listAt(action, "weighted_clusters", "clusters").map(({ name }) => String(name));
  return typeof action.cluster === "string" ? [action.cluster] : weighted;
}

/** To each of the destinations, and nowhere else. */
function isLedTo(clusters: string[], destinations: JsonObject[]): boolean {
  const isOf = (cluster: string, { host, subset = "", port }: JsonObject): boolean => {
    const key = keyOf(cluster);
    const { number = key?.port } = objectAt(port);
    return key?.host === host && key?.subset === subset && key?.port === number;
  };
  return (
    clusters.every((cluster) => destinations.some((one) => isOf(cluster, one))) &&
    destinations.every((one) => clusters.some((cluster) => isOf(cluster, one)))
  );
}
