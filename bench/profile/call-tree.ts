/**
 * A CPU profile as V8 writes it (DevTools protocol, `Profiler.Profile`) as a tree of calls with their times, and as a list of
 * functions by what they took themselves. Pure.
 */
import { relative } from "node:path";
import { fileURLToPath } from "node:url";

export interface CpuProfile {
  nodes: {
    id: number;
    callFrame: { functionName: string; url: string; lineNumber: number };
    children?: number[];
  }[];
  startTime: number;
  endTime: number;
  /** which node was running, and how long after the sample before, in µs */
  samples: number[];
  timeDeltas: number[];
}

/** whose files call the kernel */
const FFI = "/proxy/kernel/";

/** whose code it is; `idle`: the process waited */
export type Owner = "holdfast" | "package" | "node" | "native" | "gc" | "idle";

export interface Call {
  name: string;
  /** "proxy/stream/pump.ts:41"; "" where there is none */
  place: string;
  owner: Owner;
  selfUs: number;
  /** with everything it called */
  totalUs: number;
  calls: Call[];
}

export interface SelfTime {
  name: string;
  place: string;
  owner: Owner;
  selfUs: number;
}

/** The root, without the time in which nothing ran. @param root of the checkout: what is below it is ours */
export function callTree({ nodes, samples, timeDeltas }: CpuProfile, root: string): Call {
  const selfUs = new Map<number, number>();
  // A delta is the time before its sample, so it is the running time of the sample before it.
  for (const [index, id] of samples.entries())
    selfUs.set(id, (selfUs.get(id) ?? 0) + Math.max(0, timeDeltas[index + 1] ?? 0));
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const build = (node: CpuProfile["nodes"][number], caller?: CpuProfile["nodes"][number]): Call => {
    const { url, lineNumber } = node.callFrame;
    const functionName = nameOf(node, caller);
    const calls = merge(
      (node.children ?? [])
        .map((id) => byId.get(id))
        .filter((child) => child !== undefined)
        .map((child) => build(child, node))
        .filter(({ owner, totalUs }) => owner !== "idle" && totalUs > 0),
    );
    const own = selfUs.get(node.id) ?? 0;
    return {
      name: functionName || "(anonymous)",
      ...placeOf(functionName, url, lineNumber, root),
      selfUs: own,
      totalUs: calls.reduce((sum, { totalUs }) => sum + totalUs, own),
      calls,
    };
  };
  const top = nodes[0];
  if (top === undefined) throw new TypeError("a profile without a node");
  return build(top);
}

/** Functions by the time they took themselves, wherever they were called from; most first. */
export function selfTimes(tree: Call): SelfTime[] {
  const all = new Map<string, SelfTime>();
  const visit = ({ name, place, owner, selfUs, calls }: Call): void => {
    const key = `${name} ${place}`;
    const known = all.get(key);
    if (known === undefined) all.set(key, { name, place, owner, selfUs });
    else known.selfUs += selfUs;
    calls.forEach(visit);
  };
  visit(tree);
  return [...all.values()].filter(({ selfUs }) => selfUs > 0).sort((one, other) => other.selfUs - one.selfUs);
}

/** V8 has a node for each way to a call that it optimised anew: they are one function. */
function merge(calls: Call[]): Call[] {
  const all = new Map<string, Call>();
  for (const call of calls) {
    const key = `${call.name} ${call.place}`;
    const known = all.get(key);
    if (known === undefined) {
      all.set(key, call);
      continue;
    }
    known.selfUs += call.selfUs;
    known.totalUs += call.totalUs;
    known.calls = merge([...known.calls, ...call.calls]);
  }
  return [...all.values()].sort((one, other) => other.totalUs - one.totalUs);
}

/** V8 knows all of koffi's functions by the name of one of them; the one that is meant is named by who calls it. */
function nameOf(
  { callFrame: { functionName, url } }: CpuProfile["nodes"][number],
  caller: CpuProfile["nodes"][number] | undefined,
): string {
  const isForeign = url === "" && !functionName.startsWith("(") && caller?.callFrame.url.includes(FFI);
  return isForeign ? `system call of ${caller?.callFrame.functionName}` : functionName;
}

function placeOf(name: string, url: string, line: number, root: string): Pick<Call, "place" | "owner"> {
  if (url === "")
    return {
      place: "",
      owner: name === "(garbage collector)" ? "gc" : name === "(idle)" ? "idle" : "native",
    };
  const at = (path: string): string => `${path}:${line + 1}`;
  if (url.startsWith("node:")) return { place: at(url), owner: "node" };
  const path = url.startsWith("file:") ? relative(root, fileURLToPath(url)) : url;
  return { place: at(path), owner: path.startsWith("node_modules/") ? "package" : "holdfast" };
}
