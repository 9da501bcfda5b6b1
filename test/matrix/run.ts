/** Moves one program of the matrix in one mode, with its clients, and says how that went. */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Downstream, withProgram } from "../support/moved-program.ts";
import { inside, missing, type Program, upstream } from "./program.ts";
import { Stage } from "./stage.ts";

export interface Outcome {
  program: string;
  title: string;
  version: string;
  keeps: string;
  downstream: Downstream;
  /** ISO 8601 */
  date: string;
  moved: boolean;
  /** moves made, of those asked for */
  moves: number;
  asked: number;
  longestPauseMs: number | null;
  /** of each move, how long its phases took */
  phasesMs: Record<string, number>[];
  /** why it did not move, or what its clients missed, in one line */
  reason: string | null;
  /** everything that was said, where it failed */
  story: string | null;
}

const REASON_CHARS_MAX = 300;

/** What is known of a program before it was moved, or when it cannot be. */
export function notTried(program: Program, downstream: Downstream, asked: number, reason: string): Outcome {
  return {
    program: program.name,
    title: program.title,
    version: "?",
    keeps: program.keeps,
    downstream,
    date: new Date().toISOString(),
    moved: false,
    moves: 0,
    asked,
    longestPauseMs: null,
    phasesMs: [],
    reason,
    story: null,
  };
}

/** Never throws for what the program does. */
export async function moveProgram(
  program: Program,
  downstream: Downstream,
  moves: number,
  limits: Record<string, unknown> = {},
): Promise<Outcome> {
  const outcome: Outcome = { ...notTried(program, downstream, moves, ""), reason: null };
  const lacking = missing(program.needs);
  if (lacking.length > 0)
    return { ...outcome, reason: `not tried: this machine has no ${lacking.join(", ")}` };
  const folder = mkdtempSync(join(tmpdir(), `hf-${program.name}-`));
  chmodSync(folder, 0o755);
  try {
    outcome.version = program.version();
    program.prepare?.(folder);
    const { command, env = {}, port } = program;
    const container = {
      command,
      env,
      rootfs: "host",
      mounts: [{ source: folder, target: inside, readonly: true }],
    };
    const workload = { container, ports: [{ listen: port, upstream }], limits };
    await withProgram({ downstream, workload }, async (moved) => {
      const stage = new Stage(moved, folder, moves);
      try {
        await program.use(stage);
        outcome.moved = true;
      } catch (error) {
        outcome.reason = oneLine(error);
        outcome.story = `${error instanceof Error ? error.stack : error}\n${moved.story()}`;
      } finally {
        outcome.moves = stage.moved;
        outcome.longestPauseMs = stage.longestPauseMs;
        outcome.phasesMs = stage.phasesMs;
        stage.close();
      }
    });
  } catch (error) {
    outcome.moved = false;
    outcome.reason ??= oneLine(error);
    outcome.story ??= error instanceof Error ? (error.stack ?? error.message) : String(error);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  return outcome;
}

function oneLine(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replace(/\s+/g, " ").trim().slice(0, REASON_CHARS_MAX);
}
