/** What the phases of one move share. What one of them hands to the next is what it returns. */
import type { Report } from "../../api/migration.ts";
import type { MigrationHost } from "../host.ts";
import type { Rehearsal } from "../rehearsal.ts";
import { takeEach } from "../steps.ts";
import type { Progress } from "./progress.ts";
import type { Reached } from "./reached.ts";
import type { Stop } from "./stop.ts";

export interface DepartureOptions {
  to: string;
  /** from the first held client to the commit */
  deadlineMs: number;
  report: Report;
  /** somebody wants it stopped: rolls back unless it is too late */
  signal: AbortSignal;
  /** goes as far as it can without holding anybody, undoes it all, and says how long a move would make clients wait */
  rehearse: boolean;
}

export interface Move {
  readonly id: string;
  readonly host: MigrationHost;
  readonly options: DepartureOptions;
  readonly stop: Stop;
  readonly progress: Progress;
  readonly rehearsal: Rehearsal;
  readonly reached: Reached;
  readonly opened: Opened;
  /** … also while the application's processes here are ended */
  readonly openToTheEnd: Opened;
  /** what CRIU was at work at when it died in the middle of the dump: PIDs, the application's root first */
  inHand: readonly number[];
}

/** What the phases have opened: closed when the move has ended, whichever way and however far it came. */
export class Opened {
  #closers: (() => Promise<void> | void)[] = [];
  #readers: (() => Promise<void>)[] = [];

  /** @param close safe to repeat */
  add(close: () => Promise<void> | void): void {
    this.#closers.push(close);
  }

  /** @param stop ends what reads the application: before it goes on. Safe to repeat */
  addReader(stop: () => Promise<void>): void {
    this.#readers.push(stop);
  }

  /** Of a move that goes back. Never rejects. @param onFailure called once for each that fails */
  async stopReading(onFailure: (error: unknown) => void): Promise<void> {
    await takeEach(Object.fromEntries(this.#readers.entries()), (_, error) => onFailure(error));
  }

  /** The last opened first. Never rejects: one that fails keeps none of the others open. @param onFailure called once for each that fails */
  async close(onFailure: (error: unknown) => void): Promise<void> {
    await takeEach(Object.fromEntries(this.#closers.toReversed().entries()), (_, error) => onFailure(error));
  }
}

export function imagesDirOf({ container }: MigrationHost): string {
  return container.hostPath("images");
}
