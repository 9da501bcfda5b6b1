/** Resources of somebody else for the same part of a proxy: whose is what there is in the place of ours. Pure. */
import { type Json, type JsonObject, objectAt } from "../config-dump.ts";
import { differences, fieldOf } from "./contains.ts";

/** A patch of clusters that is for this proxy. */
export interface Rival {
  /** `EnvoyFilter NAMESPACE/NAME` */
  resource: string;
  context: string;
  patch: JsonObject;
}

export const REMOVE = "REMOVE";

/** Who sets what was found at a path, as {@link differences} has it; null: nobody does. */
export function setterOf(rivals: readonly Rival[], path: string, found: Json | undefined): string | null {
  const setter = rivals.find(({ patch }) => {
    const { operation, value } = objectAt(patch, "patch");
    const wanted = path.split(".").reduce<Json | undefined>((at, key) => fieldOf(objectAt(at), key), value);
    return (
      operation !== REMOVE &&
      wanted !== undefined &&
      found !== undefined &&
      differences(wanted, found, path).length === 0
    );
  });
  return setter?.resource ?? null;
}

export function removerOf(rivals: readonly Rival[]): string | null {
  return rivals.find(({ patch }) => objectAt(patch, "patch").operation === REMOVE)?.resource ?? null;
}

/** Of Sidecars that select one pod the one that was made first holds, of those of one second the first by name. */
export function isBefore(one: JsonObject, other: JsonObject): boolean {
  const [mine, theirs] = [one, other].map((object) => {
    const { creationTimestamp = "", name = "" } = objectAt(object, "metadata");
    return [String(creationTimestamp), String(name)];
  }) as [string[], string[]];
  const at = mine[0] === theirs[0] ? 1 : 0;
  return String(mine[at]) < String(theirs[at]);
}
