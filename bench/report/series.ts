/**
 * Which figures belong together. A series is a peer with what is told of it in words (`downstream: forward`), a column what
 * is told in numbers (32 connections); a phase is neither, but a part of one figure.
 */
import type { Figure } from "../results.ts";
import { showParameter } from "./metric.ts";

type Parameters = Figure["parameters"];

/** "32 connections, 1,000/s", in the order of the names; "" without any */
export function parametersText(parameters: Parameters): string {
  return Object.entries(parameters)
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([name, value]) => showParameter(name, value))
    .join(", ");
}

/** "holdfast, forward" */
export function seriesOf({ peer, parameters }: Figure): string {
  const said = words(parameters).map(([, value]) => value);
  return [peer, ...said.filter((word) => !peer.includes(word))].join(", ");
}

export function columnOf({ parameters }: Figure): string {
  return parametersText(Object.fromEntries(numbers(parameters)));
}

/** Columns as they grow, numbers by size. */
export function columnsOf(figures: Figure[]): string[] {
  const sorted = [...figures].sort((one, other) => {
    const [a, b] = [one, other].map(({ parameters }) => numbers(parameters));
    for (const [name, value] of a ?? []) {
      const there = b?.find(([key]) => key === name)?.[1] ?? value;
      if (value !== there) return value - there;
    }
    return 0;
  });
  return unique(sorted.map(columnOf));
}

/** Numbers that are not the same in all of these figures: what something can grow with. */
export function growingWith(figures: Figure[]): string[] {
  const names = unique(figures.flatMap(({ parameters }) => numbers(parameters).map(([name]) => name)));
  return names.filter((name) => new Set(figures.map(({ parameters }) => parameters[name])).size > 1);
}

export function metricsOf(figures: Figure[]): string[] {
  return unique(figures.map(({ metric }) => metric));
}

export function unique<Value>(values: Value[]): Value[] {
  return [...new Set(values)];
}

/** Of ours, whatever it was asked to do. */
export function isOurs(peer: string): boolean {
  return peer === "holdfast" || peer.startsWith("holdfast-");
}

function words(parameters: Parameters): [string, string][] {
  return Object.entries(parameters)
    .filter((each): each is [string, string] => typeof each[1] === "string" && each[0] !== "phase")
    .sort(([one], [other]) => (one < other ? -1 : 1));
}

function numbers(parameters: Parameters): [string, number][] {
  return Object.entries(parameters)
    .filter((each): each is [string, number] => typeof each[1] === "number")
    .sort(([one], [other]) => (one < other ? -1 : 1));
}
