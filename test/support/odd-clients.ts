/** The holder of a test/load/odd-clients.ts process: clients that a test leads by the hand. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { type LabProcess, nodeBinary, projectRoot } from "../lab/lab.ts";
import type { OddCommand, OddState } from "../load/odd-clients.ts";
import { readLines } from "../load/protocol.ts";
import type { MoveStage } from "./move-stage.ts";

export class OddClients {
  readonly #process: LabProcess;
  readonly #waiting: ((state: OddState) => void)[] = [];

  constructor(stage: MoveStage) {
    this.#process = stage.lab.spawn(
      "client",
      [nodeBinary, join(projectRoot, "test/load/odd-clients.ts"), JSON.stringify(stage.target)],
      { name: "odd-clients", cwd: projectRoot, stdio: ["pipe", "pipe", "inherit"], keep: false },
    );
    const { stdout } = this.#process.child;
    assert.ok(stdout !== null);
    readLines<OddState>(stdout, (state) => this.#waiting.shift()?.(state));
  }

  tell(id: string, what: OddCommand["do"], bytes = 0): Promise<OddState> {
    const { stdin } = this.#process.child;
    assert.ok(stdin !== null);
    const answer = new Promise<OddState>((resolve) => this.#waiting.push(resolve));
    stdin.write(`${JSON.stringify({ id, do: what, bytes } satisfies OddCommand)}\n`);
    return answer;
  }

  /** Everything the client has sent came back, each byte right. */
  async exact(id: string): Promise<OddState> {
    const state = await this.tell(id, "settle");
    assert.equal(state.corruptAt, -1, `client ${id}: byte ${state.corruptAt} is wrong`);
    assert.equal(state.answeredBytes, state.sentBytes, `client ${id} (${state.over ?? "open"})`);
    return state;
  }

  async close(): Promise<void> {
    this.#process.child.stdin?.end();
    await this.#process.stop("SIGTERM");
  }
}
