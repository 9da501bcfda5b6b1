/**
 * What a program of the matrix is used through: it is moved there and back with clients that go on all the time, each of
 * which says when it got an answer, so that the longest pause any of them saw is known.
 */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { type MovedProgram, until } from "../support/moved-program.ts";
import { Dialogue } from "./dialogue.ts";

/** A client that goes on until it is told that it is over. */
export interface Turn {
  /** an answer came, and was right */
  beat(): void;
  over(): boolean;
  /** lets others run: what a client that does not want all of the machine does between two requests */
  pace(): Promise<void>;
}

interface Pulse {
  name: string;
  beats: number;
  lastMs: number;
  longestMs: number;
  /** when it ended, or failed */
  done: Promise<void>;
}

/** between two requests of a client that paces itself */
const PACE_MS = 5;
/** answers each client has before the first move, and after each */
const BEATS_MIN = 3;
const BEATS_MS_MAX = 30_000;

export class Stage {
  readonly program: MovedProgram;
  /** on this machine what the container sees at /srv */
  readonly folder: string;
  readonly moveCount: number;
  /** moves that were made */
  moved = 0;
  /** of each move, how long its phases took */
  readonly phasesMs: Record<string, number>[] = [];
  /** of any client, from the first move on; null before */
  longestPauseMs: number | null = null;
  readonly #pulses: Pulse[] = [];
  readonly #dialogues: Dialogue[] = [];
  #over = false;
  #failure: unknown = null;

  constructor(program: MovedProgram, folder: string, moveCount: number) {
    this.program = program;
    this.folder = folder;
    this.moveCount = moveCount;
  }

  get address(): string {
    return this.program.address;
  }

  /** Starts a client. Its first error fails the next `moves` or `finish`. */
  client(name: string, run: (turn: Turn) => Promise<void>): void {
    const pulse: Pulse = { name, beats: 0, lastMs: performance.now(), longestMs: 0, done: Promise.resolve() };
    const turn: Turn = {
      beat: () => {
        const nowMs = performance.now();
        pulse.longestMs = Math.max(pulse.longestMs, nowMs - pulse.lastMs);
        pulse.lastMs = nowMs;
        pulse.beats++;
      },
      over: () => this.#over,
      pace: () => sleep(PACE_MS),
    };
    pulse.done = run(turn).then(
      () => {
        if (!this.#over) this.#failure ??= new Error(`client "${name}" ended before it was told to`);
      },
      (error: unknown) => {
        this.#failure ??= new Error(`client "${name}": ${error instanceof Error ? error.message : error}`, {
          cause: error,
        });
      },
    );
    this.#pulses.push(pulse);
  }

  /** A client of the program's own as a process where the clients are, spoken to by lines. It is ended with the stage. */
  talk(argv: string[], env: Record<string, string> = {}): Dialogue {
    const dialogue = Dialogue.ofProcess(this.program, argv, env);
    this.#dialogues.push(dialogue);
    return dialogue;
  }

  /** Lines over a connection of our own. */
  async dial(port: number): Promise<Dialogue> {
    const dialogue = Dialogue.ofSocket(await this.program.connect(port));
    this.#dialogues.push(dialogue);
    return dialogue;
  }

  /** Moves it as often as it was asked for; `after` looks at it after each. */
  async moves(after: (move: number) => Promise<void> = async () => {}): Promise<void> {
    const [first = "a", second = "b"] = this.program.nodes;
    await this.#everyClientIsAnswered();
    for (const pulse of this.#pulses) pulse.longestMs = 0;
    for (let n = 1; n <= this.moveCount; n++) {
      const to = this.program.at === first ? second : first;
      const move = await this.program.tryMove(to);
      this.#throwIfFailed();
      if ("error" in move) throw new Error(`refused: ${move.error.message}`);
      if (move.outcome !== "moved") throw new Error(`rolled back: ${move.reason}`);
      this.moved = n;
      this.phasesMs.push(move.phasesMs);
      await after(n);
      await this.#everyClientIsAnswered();
      const pauses = this.#pulses.map(({ longestMs }) => longestMs);
      this.longestPauseMs = Math.max(this.longestPauseMs ?? 0, ...pauses);
    }
  }

  /** Lets the clients end, and fails when one of them saw anything wrong. */
  async finish(): Promise<void> {
    this.#over = true;
    await Promise.all(this.#pulses.map(({ done }) => done));
    this.#throwIfFailed();
  }

  /** Ends what is left of clients. */
  close(): void {
    this.#over = true;
    for (const dialogue of this.#dialogues) dialogue.close();
  }

  async #everyClientIsAnswered(): Promise<void> {
    const before = this.#pulses.map(({ beats }) => beats);
    for (const [index, pulse] of this.#pulses.entries())
      await until(
        `client "${pulse.name}" is answered`,
        () => this.#failure !== null || pulse.beats >= (before[index] ?? 0) + BEATS_MIN,
        BEATS_MS_MAX,
      );
    this.#throwIfFailed();
  }

  #throwIfFailed(): void {
    if (this.#failure !== null) throw this.#failure;
  }
}

/** A counter's answers are first, first + 1, …, each once. */
export function assertCounted(answers: number[], what: string, first = 1): void {
  const sorted = answers.toSorted((x, y) => x - y);
  const wrong = sorted.findIndex((each, index) => each !== first + index);
  assert.equal(wrong, -1, `${what}: ${sorted[wrong]} in place of ${first + wrong}`);
}
