/**
 * A long task of the agent, followed line by line. The agent does the work; if this process goes away, it goes on. The
 * first Ctrl-C asks the agent to cancel and waits for the outcome, the second one leaves.
 */
import * as z from "zod";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Progress } from "../api/admin.ts";
import type { AdminClient } from "./admin-client.ts";
import { PhaseRenderer, plain, type Terminal } from "./terminal.ts";

/** Tells of Ctrl-C; `leave` is called for the second one. */
export type OnInterrupt = (first: () => void, leave: () => void) => () => void;

export interface Clients {
  agent: AdminClient;
  /** a connection of its own, as the first one is busy with the task */
  canceller: AdminClient;
}

export interface Task {
  workload: string;
  name: "migrate" | "restart" | "check";
  body: object;
  /** longest wait between two lines */
  silentMsMax: number;
}

/** → the line with the result; null: the agent ended without one */
export async function followTask(
  { agent, canceller }: Clients,
  task: Task,
  json: boolean,
  terminal: Terminal,
  onInterrupt: OnInterrupt,
): Promise<Extract<Progress, { type: "result" }> | null> {
  const path = `/v1/workloads/${encodeURIComponent(task.workload)}`;
  const phases = json ? null : new PhaseRenderer(terminal.out);
  let cancelling: Promise<void> = Promise.resolve();
  const tell = (line: string) => (phases === null ? terminal.err.write(`${line}\n`) : phases.note(line));
  const cancel = async () => {
    tell("cancelling; waiting for the outcome (Ctrl-C again to leave, the agent goes on)");
    try {
      await canceller.ask("POST", `${path}/cancel`, z.looseObject({}));
    } catch (error) {
      tell(`the agent did not cancel: ${plain(messageOf(error))}`);
    }
  };
  const stopListening = onInterrupt(
    () => {
      cancelling = cancel();
    },
    () => phases?.stop(),
  );
  try {
    for await (const line of agent.follow(`${path}/${task.name}`, task.body, task.silentMsMax)) {
      if (line.type === "result") return line;
      if (line.type !== "phase") continue;
      phases?.show(line);
      if (line.state === "start" && line.note !== undefined) tell(`  ${plain(line.note)}`);
    }
    return null;
  } finally {
    phases?.stop();
    stopListening();
    await cancelling;
  }
}
