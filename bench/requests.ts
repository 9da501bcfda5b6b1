/**
 * Requests a second that each peer carries, on connections that are kept alive: by wrk, and by our own generator
 * where the two are compared. Both in a closed loop: what is found is the rate at which something is full.
 */
import { fixed, median, showSpread, spreadOf, table, thousands } from "./figures.ts";
import { runWrk } from "./load/wrk.ts";
import type { Relays, Sample } from "./relays.ts";

/** the peer's CPU is the limit from here on */
const BUSY_MIN = 0.9;
/** by how much two tools may differ before anybody calls it a disagreement, where the rounds differ less */
const NOISE = 0.1;
const COMPARED_CONNECTIONS = 32;

export interface RequestSample extends Sample {
  tool: "wrk" | "own";
  perSecond: number;
}

/** One round over all peers. @param say progress, a line a sample */
export async function measureRequests(
  relays: Relays,
  options: { round: number; connections: number[]; seconds: number; wrk: boolean },
  say: (line: string) => void,
): Promise<RequestSample[]> {
  const { round, seconds } = options;
  const samples: RequestSample[] = [];
  const loads = options.connections.flatMap((connections) => [
    ...(options.wrk ? [{ tool: "wrk" as const, connections }] : []),
    // Without wrk our own generator has to do for all of it.
    ...(!options.wrk || connections === COMPARED_CONNECTIONS ? [{ tool: "own" as const, connections }] : []),
  ]);
  for (const { tool, connections } of loads) {
    for (const peer of relays.inTurn(round)) {
      const at = { round, peer, connections, load: tool };
      const measured = await relays.measure(at, (port) =>
        tool === "wrk"
          ? runWrk(relays.stage, { port, connections, seconds })
          : relays.generate({ port, connections, perSecond: null, seconds }),
      );
      if (measured === null) continue;
      const { sample, report } = measured;
      samples.push({ ...sample, tool, perSecond: report.perSecond });
      say(`${peer.name}, ${connections} connections, ${tool}: ${thousands(report.perSecond)}/s`);
    }
  }
  return samples;
}

export function renderRequests(samples: RequestSample[]): string[] {
  const tool = samples.some((each) => each.tool === "wrk") ? "wrk" : "own";
  const main = samples.filter((each) => each.tool === tool);
  const peers = unique(main.map(({ peer }) => peer));
  const connections = unique(main.map((each) => each.connections));
  const of = (peer: string, count: number): RequestSample[] =>
    main.filter((each) => each.peer === peer && each.connections === count);
  const cells = (pick: (of: RequestSample[]) => string): string[][] => [
    ["", ...connections.map((count) => `${count} connections`)],
    ...peers.map((peer) => [peer, ...connections.map((count) => pick(of(peer, count)))]),
  ];
  return [
    `HTTP/1.1 requests a second, kept alive (${tool === "wrk" ? "wrk" : "our own generator, wrk is missing"}; median, least-greatest)`,
    "",
    ...table(cells((each) => showSpread(spreadOf(each.map(({ perSecond }) => perSecond)), thousands))),
    "",
    "CPU of the peer's process: µs a request, and share of its CPU in use",
    "",
    ...table(
      cells((each) => {
        const us = each.map(({ cpuUsPerRequest }) => cpuUsPerRequest).filter((value) => value !== null);
        const busy = each.map((sample) => sample.busy).filter((value) => value !== null);
        return us.length === 0 ? "-" : `${median(us).toFixed(1)}  ${Math.round(median(busy) * 100)}%`;
      }),
    ),
    ...peers
      .filter((peer) => peer.startsWith("holdfast-"))
      .flatMap((ours) => [
        "",
        `${ours}, requests a second as a multiple of … (each in its own round)`,
        "",
        ...table([
          ["", ...connections.map((count) => `${count} connections`)],
          ...peers
            .filter((peer) => peer !== ours)
            .map((peer) => [
              peer,
              ...connections.map((count) => showSpread(spreadOf(ratios(main, ours, peer, count)), fixed(2))),
            ]),
        ]),
      ]),
    ...(tool === "wrk" ? compareTools(samples) : []),
  ];
}

/** Of requests a second, round by round. @returns empty where one of them was not measured */
export function ratios(samples: RequestSample[], one: string, other: string, connections: number): number[] {
  const of = (peer: string, round: number): number | undefined =>
    samples.find((each) => each.peer === peer && each.connections === connections && each.round === round)
      ?.perSecond;
  return unique(samples.map(({ round }) => round)).flatMap((round) => {
    const [a, b] = [of(one, round), of(other, round)];
    return a === undefined || b === undefined || b === 0 ? [] : [a / b];
  });
}

/** wrk beside our own generator, at the same load. */
function compareTools(samples: RequestSample[]): string[] {
  const at = samples.filter((each) => each.connections === COMPARED_CONNECTIONS);
  const lines: string[] = [];
  const notComparable: string[] = [];
  let agreed = 0;
  for (const peer of unique(at.map((each) => each.peer))) {
    const of = (tool: RequestSample["tool"]): RequestSample[] =>
      at.filter((each) => each.peer === peer && each.tool === tool);
    const [wrk, own] = [of("wrk"), of("own")];
    if (wrk.length === 0 || own.length === 0) continue;
    if (median([...wrk, ...own].map(({ busy }) => busy ?? 0)) < BUSY_MIN) {
      notComparable.push(peer);
      continue;
    }
    const [theirs, ours] = [wrk, own].map((each) => spreadOf(each.map(({ perSecond }) => perSecond)));
    if (!theirs || !ours) continue;
    const noise = Math.max(NOISE, ...[theirs, ours].map(({ median, min, max }) => (max - min) / median));
    const apart = ours.median / theirs.median - 1;
    if (Math.abs(apart) <= noise) agreed++;
    else
      lines.push(
        `  DISAGREEMENT at ${peer}: wrk ${thousands(theirs.median)}/s, our generator ${thousands(ours.median)}/s, ` +
          `${Math.round(apart * 100)} % apart with ${Math.round(noise * 100)} % noise`,
      );
  }
  return [
    "",
    `wrk and our generator, closed loop at ${COMPARED_CONNECTIONS} connections: they agree on ${agreed} peers` +
      (notComparable.length > 0
        ? `; not comparable, as the peer's CPU was not the limit: ${notComparable.join(", ")}`
        : ""),
    ...lines,
  ];
}

function unique<Value>(values: Value[]): Value[] {
  return [...new Set(values)];
}
