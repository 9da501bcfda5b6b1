/** A program of the matrix as tests of `npm test`: the same clients and checks, with fewer moves. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { type Downstream, lacking } from "../support/moved-program.ts";
import { missing, type Program } from "./program.ts";
import { moveProgram } from "./run.ts";

const MOVES = 2;

/** One test a mode. It skips, and says so, where set-up could not install the program. */
export function testProgram(program: Program, modes: Downstream[]): void {
  const absent = missing(program.needs);
  const skip = absent.length > 0 ? `needs ${absent.join(", ")}` : lacking();
  for (const downstream of modes)
    test(`${program.title} moves ${MOVES} times in use (${downstream}): ${program.keeps}`, {
      skip,
    }, async () => {
      const { moved, moves, reason, story } = await moveProgram(program, downstream, MOVES);
      if (story !== null) process.stderr.write(`${story}\n`);
      assert.equal(reason, null);
      assert.ok(moved);
      assert.equal(moves, MOVES);
    });
}
