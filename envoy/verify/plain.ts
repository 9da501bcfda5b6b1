/** Whether an Envoy of one's own runs with the bootstrap that a policy comes to. Pure. */
import { type DumpedProxy, type JsonObject, listAt, objectAt } from "../config-dump.ts";
import { differences } from "./contains.ts";
import { type Reason, type Result, resultOf } from "./result.ts";

/** @param bootstrap as it was rendered */
export function verifyPlain(proxy: DumpedProxy, bootstrap: JsonObject): Result[] {
  const { id } = objectAt(bootstrap, "node");
  const resource = `bootstrap ${id}`;
  const look = (part: "listeners" | "clusters", one: JsonObject, index: number): Result => {
    const name = String(one.name);
    const there = proxy[part].find((other) => other.name === name);
    const of = (reason: Reason | null, why: string | null): Result =>
      resultOf(resource, `${part}[${index}]`, { what: name, reason, why });
    if (there?.config == null) return of("restart-envoy", "it is not there");
    const found = differences(one, there.config);
    if (found.length > 0)
      return of("restart-envoy", `${found.map(({ path }) => path).join(", ")} is not as it was rendered`);
    const isEds = part === "clusters" && one.type === "EDS";
    return isEds && proxy.endpoints !== null && !proxy.endpoints.get(name)
      ? of("no-endpoints", "it has had no endpoints yet")
      : of(null, null);
  };
  return (["listeners", "clusters"] as const).flatMap((part) =>
    listAt(bootstrap, "static_resources", part).map((one, index) => look(part, one, index)),
  );
}
