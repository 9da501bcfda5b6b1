/** What a benchmark knows of a peer: a way for a client's bytes to the application, and how to have it. */
import { execFileSync } from "node:child_process";
import type { Protocol } from "../load/load.ts";
import type { Stage } from "../stage.ts";

export interface Peer {
  readonly name: string;
  /** what can be sent through it, where that is not everything */
  readonly carries?: readonly Protocol[];
  /**
   * Resolves when it listens; it ends with the stage. One peer may be started for several applications.
   * @param to the application, at 127.0.0.1, and what it speaks
   * @throws MissingPeer
   */
  start(stage: Stage, to: Behind): Promise<RunningPeer>;
}

export interface Behind {
  port: number;
  /** http where it is left out */
  protocol?: Protocol;
}

export interface RunningPeer {
  name: string;
  version: string;
  /** where clients connect, at 127.0.0.1 */
  port: number;
  /** the process that is measured; null: there is none between */
  pid: number | null;
  /** what a reader of the figures must know */
  note: string | null;
}

/** It is not installed on this machine: the figures name it instead of leaving it out. */
export class MissingPeer extends Error {
  override name = "MissingPeer";
}

/**
 * What a program says of its version.
 * @param pattern its first group is the version
 * @throws MissingPeer where there is no such program
 */
export function versionOf(argv: [string, ...string[]], pattern: RegExp): string {
  const [command, ...args] = argv;
  let said: string;
  try {
    // nginx writes to stderr
    said = execFileSync("/bin/sh", ["-c", 'exec "$@" 2>&1', "sh", command, ...args], { encoding: "utf8" });
  } catch (cause) {
    throw new MissingPeer(`${command} does not run; scripts/setup.sh bench installs it`, { cause });
  }
  return pattern.exec(said)?.[1] ?? said.trim();
}
