/** EnvoyFilter patches of network and HTTP filters: are they in the proxy's listeners, and if not, why. Pure. */
import {
  type Chain,
  chainsOf,
  type Direction,
  type DumpedProxy,
  type JsonObject,
  listAt,
  objectAt,
} from "../config-dump.ts";
import { HCM } from "../generate/envoy-filter.ts";
import { refusedOr } from "./clusters.ts";
import { differences } from "./contains.ts";
import { type Found, nameOfToday } from "./result.ts";

const DIRECTIONS: Record<string, Direction> = { SIDECAR_INBOUND: "inbound", SIDECAR_OUTBOUND: "outbound" };

interface Wanted {
  what: string;
  match: JsonObject;
  operation: string;
  value: JsonObject;
  chains: Chain[];
}

export function lookAtFilters(proxy: DumpedProxy, context: string, configPatch: JsonObject): Found[] {
  const match = objectAt(configPatch, "match", "listener");
  const operation = String(objectAt(configPatch, "patch").operation ?? "MERGE");
  const value = objectAt(configPatch, "patch", "value");
  const port = typeof match.portNumber === "number" ? match.portNumber : null;
  const name = value.name ?? filterOf(match).name ?? "";
  const what = `${configPatch.applyTo} ${operation} ${name}${port === null ? "" : ` at port ${port}`}`;
  const old = [filterOf(match).name, objectAt(filterOf(match), "subFilter").name, value.name]
    .map((one) => [one, nameOfToday(one)] as const)
    .find(([, today]) => today !== null);
  if (old !== undefined)
    return [{ what, reason: "old-name", why: `${old[0]} is called ${old[1]}, and nothing has the old name` }];
  const listeners = chainsOf(proxy, DIRECTIONS[context] ?? null, port).filter(
    ({ listener }) => match.name === undefined || match.name === listener.name,
  );
  if (listeners.length === 0)
    return [{ what, reason: "no-listener", why: `no listener matches ${JSON.stringify(match)}` }];
  const named = objectAt(match, "filterChain").name;
  const chains = listeners.filter(({ config }) => named === undefined || config.name === named);
  if (chains.length === 0) {
    const names = [...new Set(listeners.map(({ config }) => String(config.name ?? "")))].filter(
      (one) => one !== "",
    );
    return [
      {
        what,
        reason: "chain-name",
        why: `no filter chain is called ${named}; there are ${names.slice(0, 8).join(", ") || "none with a name"}`,
      },
    ];
  }
  const chosen = chains.filter(({ config }) => isChosen(objectAt(match, "filterChain"), config));
  if (chosen.length === 0)
    return [
      {
        ...{ what, reason: "no-listener" },
        why: `no filter chain there matches ${JSON.stringify({ ...objectAt(match, "filterChain"), filter: undefined })}`,
      },
    ];
  const wanted = { what, match, operation, value, chains: chosen };
  return [configPatch.applyTo === "HTTP_FILTER" ? ofHttp(proxy, wanted) : ofNetwork(proxy, wanted)];
}

/** Source: filterChainMatch of pilot/pkg/networking/core/envoyfilter/listener_patch.go */
function isChosen(match: JsonObject, chain: JsonObject): boolean {
  const { destinationPort, sni, transportProtocol, applicationProtocols } = match;
  const has = objectAt(chain, "filter_chain_match");
  const lists = (key: string, wanted: string): boolean => {
    const { [key]: list } = has;
    return Array.isArray(list) && wanted.split(",").every((one) => list.includes(one));
  };
  return (
    (!destinationPort || has.destination_port === destinationPort) &&
    (!sni || lists("server_names", String(sni))) &&
    (!transportProtocol || has.transport_protocol === transportProtocol) &&
    (!applicationProtocols || lists("application_protocols", String(applicationProtocols)))
  );
}

function filterOf(match: JsonObject): JsonObject {
  return objectAt(match, "filterChain", "filter");
}

function ofHttp(proxy: DumpedProxy, wanted: Wanted): Found {
  const { what, match, chains } = wanted;
  const managers = chains.flatMap(({ filters }) => filters.filter(({ name }) => name === HCM));
  if (managers.length === 0)
    return {
      what,
      reason: "no-listener",
      why: "no filter chain there has HTTP: the port's protocol is another",
    };
  const lists = managers.map((manager) => listAt(manager, "typed_config", "http_filters"));
  const beside = objectAt(filterOf(match), "subFilter").name;
  return placed(proxy, { ...wanted, lists, beside });
}

function ofNetwork(proxy: DumpedProxy, wanted: Wanted): Found {
  const { match, operation, chains, value } = wanted;
  const beside = filterOf(match).name;
  const lists = chains
    .map(({ filters }) => filters)
    .filter(
      (filters) => operation !== "MERGE" || filters.some(({ name }) => name === (beside ?? value.name)),
    );
  return placed(proxy, { ...wanted, lists, beside });
}

/** In every list that it is for. */
function placed(
  proxy: DumpedProxy,
  { what, operation, value, chains, lists, beside }: Wanted & { lists: JsonObject[][]; beside: unknown },
): Found {
  const error = chains.map(({ listener }) => listener.error).find((one) => one !== null) ?? null;
  const isRelative = ["INSERT_BEFORE", "INSERT_AFTER", "MERGE", "REPLACE", "REMOVE"].includes(operation);
  if (isRelative && beside !== undefined && beside !== HCM && operation !== "REMOVE") {
    const has = lists.filter((list) => list.some(({ name }) => name === beside));
    if (has.length === 0)
      return { what, reason: "relative", why: `there is no filter ${beside} to find its place by` };
    // it applies where the filter is, and nowhere else; a merge may leave its name out
    const named = operation === "MERGE" ? { ...value, name: value.name ?? String(beside) } : value;
    return state(proxy, what, named, has, error);
  }
  if (operation === "REMOVE") {
    const isLeft = lists.some((list) => list.some(({ name }) => name === beside));
    return isLeft
      ? { what, ...refusedOr(proxy, error, `${beside} is there`) }
      : { what, reason: null, why: null };
  }
  if (lists.length === 0)
    return { what, reason: "no-listener", why: `no filter chain there has ${value.name}` };
  return state(proxy, what, value, lists, error);
}

function state(
  proxy: DumpedProxy,
  what: string,
  value: JsonObject,
  lists: JsonObject[][],
  error: string | null,
): Found {
  for (const list of lists) {
    // several EnvoyFilters may each insert one of that name
    const [found, ...others] = list
      .filter(({ name }) => name === value.name)
      .map((there) => differences(value, there));
    if (found === undefined) return { what, ...refusedOr(proxy, error, `${value.name} is not there`) };
    if (found.length > 0 && others.every((other) => other.length > 0)) {
      const zeros = found.every(({ isZero }) => isZero);
      const shown = found.map(({ path }) => path).join(", ");
      if (zeros) return { what, reason: "enum-zero", why: `a merge leaves out ${shown}` };
      return { what, ...refusedOr(proxy, error, `${shown} of ${value.name} is not as the patch has it`) };
    }
  }
  return { what, reason: null, why: null };
}
