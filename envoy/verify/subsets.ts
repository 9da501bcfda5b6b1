/**
 * Subsets of a DestinationRule and the routes of a VirtualService that lead to them: has a proxy the clusters and the routes, and if not, why.
 * Pure. Of hosts by their full names and routes with names, for sidecars, as `render` writes them; of what else there is it says so.
 */
import { type DumpedProxy, type JsonObject, listAt, objectAt } from "../config-dump.ts";
import { hostsOf, keyOf, refusedOr } from "./clusters.ts";
import type { Found } from "./result.ts";
import { matchesOf, nameOfRoute, notCompared, routeDifference } from "./routes.ts";

/** One of an object's parts, and what was found, or why it is not for this proxy, or not looked at. */
export interface Part {
  part: string;
  what: string;
  found: Found | { elsewhere: string } | { unknown: string };
}

/** @param own how hosts begin that this proxy has to know, `chat.demo.svc.`; null: it need know none */
export function lookAtSubsets(proxy: DumpedProxy, object: JsonObject, own: string | null): Part[] {
  const spec = objectAt(object, "spec");
  const { host } = spec;
  const not = whyNotLookedAt(spec, [host], ["workloadSelector", "exportTo"]);
  return listAt(spec, "subsets").map(({ name: subset }, index) => {
    const what = `outbound|*|${subset}|${host}`;
    const part = `subsets[${index}]`;
    if (not !== null) return { part, what, found: { unknown: not } };
    if (!knows(proxy, String(host)))
      return { part, what, found: unknownHost(proxy, String(host), own, what) };
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
    const state =
      clusters.length > 0
        ? { reason: null, why: null }
        : refusedOr(proxy, null, "the proxy has no cluster of it", ["clusters"]);
    return { part, what, found: { what, ...state, warnings } };
  });
}

/** A virtual host, and the port of the listener whose routes it is among. */
export interface Table {
  /** null: not known by the name of its routes */
  port: number | null;
  virtualHost: JsonObject;
}

export function tablesOf(proxy: DumpedProxy, hosts: readonly unknown[]): Table[] {
  return proxy.routes.flatMap((config) => {
    // of a listener of all addresses "8080", of a Service's own "chat.demo.svc.cluster.local:8080"
    const number = /(?:^|:)(\d+)$/.exec(String(config.name))?.[1];
    return listAt(config, "virtual_hosts")
      .filter(({ domains }) => Array.isArray(domains) && domains.some((domain) => hosts.includes(domain)))
      .map((virtualHost) => ({ port: number === undefined ? null : Number(number), virtualHost }));
  });
}

/** @param own as of {@link lookAtSubsets} */
export function lookAtRoutes(proxy: DumpedProxy, object: JsonObject, own: string | null): Part[] {
  const spec = objectAt(object, "spec");
  const hosts = Array.isArray(spec.hosts) ? spec.hosts : [];
  const not = whyNotLookedAt(spec, hosts, ["gateways", "exportTo"]);
  const tables = tablesOf(proxy, hosts);
  return listAt(spec, "http").map((rule, index) => {
    const { name } = rule;
    const part = `http[${index}]`;
    const what = `route ${name ?? "without a name"}`;
    const of = (found: Part["found"]): Part => ({ part, what, found });
    if (not !== null) return of({ unknown: not });
    if (typeof name !== "string") return of({ unknown: "a route without a name is not looked at" });
    if (proxy.kind !== "sidecar") return of({ elsewhere: "it is for sidecars" });
    if (!hosts.some((host) => knows(proxy, String(host))))
      return of(unknownHost(proxy, String(hosts[0]), own, what));
    const matches = matchesOf(proxy, rule);
    if (matches.length === 0) return of({ elsewhere: "it is for clients in other pods" });
    return of(lookAtRule(proxy, tables, rule, matches));
  });
}

/** Each route of its name is of one of its matches, and each of its matches has one. */
function lookAtRule(
  proxy: DumpedProxy,
  tables: readonly Table[],
  rule: JsonObject,
  matches: readonly JsonObject[],
): Found {
  const what = `route ${rule.name}`;
  const isAt = ({ port }: Table, match: JsonObject): boolean =>
    match.port === undefined || port === null || match.port === port;
  const names = new Set(matches.map((match) => nameOfRoute(rule, match)));
  const there = tables.flatMap((table) =>
    listAt(table.virtualHost, "routes")
      .filter(({ name }) => names.has(String(name)))
      .map((route) => ({ table, route })),
  );
  if (there.length === 0) {
    const why = "the proxy has no route of that name; of two VirtualServices for one host the older holds";
    return { what, ...refusedOr(proxy, null, why, ["routes"]) };
  }
  const differences = there.map(({ table, route }) =>
    matches
      .filter((match) => nameOfRoute(rule, match) === route.name && isAt(table, match))
      .map((match) => ({ match, why: routeDifference(rule, match, route) })),
  );
  const found = new Set(differences.flat().flatMap(({ match, why }) => (why === null ? [match] : [])));
  const other = differences.find((all) => all.every(({ why }) => why !== null));
  // at a port of which the proxy has no routes of that host there are none of any rule
  const lost = matches.find((match) => !found.has(match) && tables.some((table) => isAt(table, match)));
  const why = other?.[0]?.why ?? (other === undefined ? null : "it is at another port");
  const whole = why ?? (lost === undefined ? null : `it has no route of the match ${JSON.stringify(lost)}`);
  if (whole === null) {
    const fields = notCompared(rule);
    const warnings = fields.length === 0 ? [] : [`${fields.join(", ")} of it is not looked at`];
    return { what, reason: null, why: null, warnings };
  }
  const refused = refusedOr(proxy, null, whole, ["routes"]);
  return { what, reason: refused.reason === "rejected" ? "rejected" : "other-value", why: refused.why };
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

/** A pod of the policy's own is a client of its Service as any other: where it does not know the host, nobody does. */
export function unknownHost(
  proxy: DumpedProxy,
  host: string,
  own: string | null,
  what: string,
): { elsewhere: string } | Found {
  const why = `this proxy has no cluster of ${host}`;
  if (own === null || !host.startsWith(own)) return { elsewhere: why };
  const [other] = hostsOf(proxy, own);
  const shown = other === undefined ? why : `${why}: it knows the Service as ${other}`;
  return { what, reason: "no-target", why: shown };
}
