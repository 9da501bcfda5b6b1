/**
 * What a load process and whoever started it say to each other: one JSON object a line, commands on the load's
 * standard input, events on its standard output. A load ends when its standard input ends.
 */
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import type { Blackout } from "./gaps.ts";

export interface LoadOptions {
  target: { address: string; port: number };
  sessions: number;
  /** between two messages of one client; the first ones are spread over it */
  intervalMs: number;
  /** … while nobody counts: before the first mark, and from a report to the next mark. null: no less than otherwise */
  restMs: number | null;
  /** ws: messages a client may have unanswered */
  window: number;
  /** lives: each so many requests one is a POST; 0: none */
  postEvery: number;
  /** tcp: bytes a client sends each `intervalMs` */
  chunkBytes: number;
  /** tcp: bytes a client may have unanswered */
  windowBytes: number;
  /** how long `report` waits for what is unanswered before it calls it lost */
  drainMsMax: number;
}

export const loadDefaults: Omit<LoadOptions, "target"> = {
  sessions: 100,
  intervalMs: 25,
  restMs: null,
  window: 4,
  postEvery: 10,
  chunkBytes: 512,
  windowBytes: 64 * 1024,
  drainMsMax: 5_000,
};

export type LoadCommand =
  /** an interval begins */
  | { type: "mark" }
  /** the interval ends: stop sending, wait for what is unanswered, tell, go on sending */
  | { type: "report" }
  /** clients stop reading (their windows fill), and start again */
  | { type: "pauseReading" }
  | { type: "resumeReading" }
  /** close every client in order */
  | { type: "stop" };

export interface LoadReport {
  sessions: number;
  /** clients that still have their connection */
  alive: number;
  /** ws: answers; tcp: chunks of bytes that came back */
  messages: number;
  /** sent and not answered, or not seen by the application. tcp: bytes */
  lost: number;
  /** answered, or counted by the application, more than once. tcp: bytes */
  repeated: number;
  /** answers that contradict what was sent: state lost, or bytes altered */
  corrupt: number;
  resets: number;
  blackoutMs: Blackout;
  /** when the longest gaps began (`waitingSince`), Unix time */
  waitingSinceMs: number;
  durationMs: number;
  /** the first few things that went wrong */
  problems: string[];
}

/** Connections that clients have no more. `resets` has those that went since the last mark, and a client does not come again. */
export function goneIn({ sessions, alive, resets }: LoadReport): number {
  return Math.max(resets, sessions - alive);
}

export type LoadEvent =
  | { type: "ready"; sessions: number }
  | { type: "failed"; reason: string }
  | { type: "progress"; messages: number; alive: number }
  | { type: "marked" }
  | { type: "report"; report: LoadReport }
  | { type: "done" };

export function sendLine(to: Writable, value: LoadCommand | LoadEvent): void {
  to.write(`${JSON.stringify(value)}\n`);
}

/** Calls `onValue` for each line; a line that is no JSON goes to `onNoise` (dropped without it). */
export function readLines<T>(
  from: Readable,
  onValue: (value: T) => void,
  onNoise?: (line: string) => void,
): void {
  createInterface({ input: from }).on("line", (line) => {
    let value: T;
    try {
      value = JSON.parse(line);
    } catch {
      onNoise?.(line);
      return;
    }
    onValue(value);
  });
}
