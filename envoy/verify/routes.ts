/**
 * What a rule of a VirtualService comes to in Envoy's routes: whom it matches, what it answers and how it shares. Pure.
 * Source: pilot/pkg/networking/core/route/route.go of istiod 1.31 (TranslateRoute, TranslateRouteMatch)
 */
import { type DumpedProxy, type Json, type JsonObject, listAt, objectAt } from "../config-dump.ts";
import { keyOf } from "./clusters.ts";
import { differences } from "./contains.ts";

/** of a rule and of a match: what is compared, or says which proxies it is for */
const COMPARED_OF_RULE = new Set(["name", "match", "route", "headers"]);
const OF_REQUEST = ["method", "authority", "scheme"] as const;
const COMPARED_OF_MATCH = new Set<string>([
  ...["name", "port", "uri", "headers", "withoutHeaders", "sourceLabels", "sourceNamespace", "gateways"],
  ...OF_REQUEST,
]);

/** Those that istiod makes routes of for this proxy; {} where a rule has none, which matches all. */
export function matchesOf(proxy: DumpedProxy, rule: JsonObject): JsonObject[] {
  const all = listAt(rule, "match");
  if (all.length === 0) return [{}];
  return all.filter(({ gateways, sourceNamespace, sourceLabels }) => {
    if (Array.isArray(gateways) && gateways.length > 0) return gateways.includes("mesh");
    const labels = Object.entries(objectAt(sourceLabels));
    return (
      (sourceNamespace === undefined || sourceNamespace === "" || sourceNamespace === proxy.namespace) &&
      labels.every(([key, value]) => proxy.labels[key] === value)
    );
  });
}

/** What of them is compared with nothing. */
export function notCompared(rule: JsonObject): string[] {
  const ofMatches = listAt(rule, "match").flatMap((match) =>
    Object.keys(match).filter((key) => !COMPARED_OF_MATCH.has(key)),
  );
  const ofRule = Object.keys(rule).filter((key) => !COMPARED_OF_RULE.has(key));
  return [...new Set([...ofRule, ...ofMatches])];
}

export function nameOfRoute({ name }: JsonObject, match: JsonObject): string {
  return match.name === undefined || match.name === "" ? String(name) : `${name}.${match.name}`;
}

/** A clause: in what this route is not of the rule and its match; null: in nothing. */
export function routeDifference(rule: JsonObject, match: JsonObject, route: JsonObject): string | null {
  return (
    destinationDifference(listAt(rule, "route"), route) ??
    matchDifference(match, objectAt(route, "match")) ??
    answerDifference(rule, route)
  );
}

export function clustersOf(route: JsonObject): string[] {
  return sharesOf(route).map(({ name }) => String(name));
}

function sharesOf(route: JsonObject): JsonObject[] {
  const action = objectAt(route, "route");
  return typeof action.cluster === "string"
    ? [{ name: action.cluster }]
    : listAt(action, "weighted_clusters", "clusters");
}

/** To each of the destinations by its share, and nowhere else. */
function destinationDifference(all: JsonObject[], route: JsonObject): string | null {
  const wanted = weighedOf(all);
  const shares = sharesOf(route);
  const isOf = (share: JsonObject, { destination }: JsonObject): boolean => {
    const { host, subset = "", port } = objectAt(destination);
    const key = keyOf(String(share.name));
    const { number = key?.port } = objectAt(port);
    return key?.host === host && key?.subset === subset && key?.port === number;
  };
  const isLed =
    shares.every((share) => wanted.some((one) => isOf(share, one))) &&
    wanted.every((one) => shares.some((share) => isOf(share, one)));
  if (!isLed) return `it leads to ${clustersOf(route).join(", ") || "no cluster"}`;
  if (all.length < 2) return null;
  const other = shares.find(
    (share) => !wanted.some((one) => isOf(share, one) && one.weight === share.weight),
  );
  return other === undefined ? null : `${other.weight ?? 0} of it go to ${other.name}`;
}

/** istiod leaves out what has no share, where there are several. */
function weighedOf(all: JsonObject[]): JsonObject[] {
  return all.length < 2 ? all : all.filter(({ weight }) => typeof weight === "number" && weight > 0);
}

/** Every header that is asked for, and no other. */
function matchDifference(match: JsonObject, found: JsonObject): string | null {
  const of = (key: string): [string, Json][] => Object.entries(objectAt(match, key));
  const all: JsonObject[] = [
    ...of("headers").map(([name, value]) => headerOf(name, value)),
    ...of("withoutHeaders").map(([name, value]) => ({ ...headerOf(name, value), invert_match: true })),
    ...OF_REQUEST.flatMap((key) => (match[key] === undefined ? [] : [headerOf(`:${key}`, match[key])])),
  ];
  // a JWT's claims are matched as metadata
  const wanted = all.filter(({ name }) => !String(name).startsWith("@"));
  const headers = listAt(found, "headers");
  const isSame = (one: JsonObject, other: JsonObject): boolean =>
    differences(one, other).length === 0 && Boolean(one.invert_match) === Boolean(other.invert_match);
  if (headers.length !== wanted.length || !wanted.every((one) => headers.some((other) => isSame(one, other))))
    return `its match has the headers ${JSON.stringify(headers)}`;
  const path = pathOf(match);
  return differences(path, found).length === 0 ? null : `its match has not ${JSON.stringify(path)}`;
}

function headerOf(name: string, value: Json): JsonObject {
  const { regex } = objectAt(value);
  const isAny = Object.keys(objectAt(value)).length === 0 || regex === "*";
  return isAny ? { name, present_match: true } : { name, string_match: textOf(value) };
}

function textOf(value: Json): JsonObject {
  const { regex, exact, prefix } = objectAt(value);
  if (regex !== undefined) return { safe_regex: { regex } };
  return exact === undefined ? { prefix: prefix ?? "" } : { exact };
}

function pathOf({ uri }: JsonObject): JsonObject {
  const { exact, regex, prefix = "/" } = objectAt(uri);
  if (exact !== undefined) return { path: exact };
  return regex === undefined ? { prefix } : { safe_regex: { regex } };
}

/** What is added to answers. Others' headers beside them may be an EnvoyFilter's; other values of the same ones are not. */
function answerDifference(rule: JsonObject, route: JsonObject): string | null {
  const all = listAt(rule, "route");
  const ofRule = addedBy(rule);
  const [first = {}] = all;
  const single = all.length < 2;
  const pairs: [wanted: JsonObject[], found: JsonObject[]][] = [
    [single ? [...ofRule, ...addedBy(first)] : ofRule, listAt(route, "response_headers_to_add")],
    ...(single
      ? []
      : sharesOf(route).map((share): [JsonObject[], JsonObject[]] => [
          addedBy(destinationOf(all, share)),
          listAt(share, "response_headers_to_add"),
        ])),
  ];
  for (const [wanted, found] of pairs) {
    const keys = new Set(wanted.map(keyOfHeader));
    const ofSame = found.filter((one) => keys.has(keyOfHeader(one)));
    const isThere =
      ofSame.length === wanted.length &&
      wanted.every((one) => ofSame.some((other) => differences(one, other).length === 0));
    if (!isThere) return `it adds ${JSON.stringify(ofSame.map((one) => objectAt(one, "header")))} to answers`;
  }
  return null;
}

function destinationOf(all: JsonObject[], share: JsonObject): JsonObject {
  const key = keyOf(String(share.name));
  return (
    all.find(({ destination }) => {
      const { host, subset = "" } = objectAt(destination);
      return key?.host === host && key?.subset === subset;
    }) ?? {}
  );
}

function addedBy(one: JsonObject): JsonObject[] {
  const of = (key: "set" | "add", append_action: string): JsonObject[] =>
    Object.entries(objectAt(one, "headers", "response", key)).map(([name, value]) => ({
      header: { key: name, value },
      append_action,
    }));
  return [...of("set", "OVERWRITE_IF_EXISTS_OR_ADD"), ...of("add", "APPEND_IF_EXISTS_OR_ADD")];
}

function keyOfHeader(one: JsonObject): string {
  return String(objectAt(one, "header").key).toLowerCase();
}
