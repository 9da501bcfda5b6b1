/** The laboratory's agents and application, as the demo talks to them. */
import { request } from "node:http";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import type { Lab, LabAgent } from "../test/lab/lab.ts";

const commandMsMax = 120_000;
const appReadyMsMax = 60_000;

export interface PhaseEvent {
  type: "phase";
  phase: string;
  state: "start" | "done";
  ms?: number;
}

/** What an agent streams during a move or a restart, one JSON object a line. */
type AgentEvent<T> =
  | PhaseEvent
  | ({ type: "result" } & T)
  | { type: "error"; error: { code: string; message: string } };

/** Posts a command that takes a while, and follows it to its result. */
export function follow<T extends object>(
  agent: LabAgent,
  path: string,
  body: object,
  onPhase: (event: PhaseEvent) => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const call = request(
      {
        socketPath: agent.socketPath,
        path,
        method: "POST",
        headers: { host: "agent", "content-type": "application/json" },
        timeout: commandMsMax,
      },
      (response) => {
        let result: T | undefined;
        let problem = `HTTP ${response.statusCode}`;
        createInterface({ input: response })
          .on("line", (line) => {
            if (line.trim() === "") return;
            try {
              const event = JSON.parse(line) as AgentEvent<T>;
              if (event.type === "result") result = event;
              else if (event.type === "error") problem = event.error.message;
              else if (event.type === "phase") onPhase(event);
              else problem = line;
            } catch {
              problem = line;
            }
          })
          .on("close", () => {
            if (result === undefined) reject(new Error(`the agent of node ${agent.node}: ${problem}`));
            else resolve(result);
          });
        response.on("error", reject);
      },
    );
    call.on("timeout", () => call.destroy(new Error(`${path} took longer than ${commandMsMax} ms`)));
    call.on("error", reject);
    call.end(JSON.stringify(body));
  });
}

export async function untilAppAnswers(lab: Lab, url: string): Promise<void> {
  const until = Date.now() + appReadyMsMax;
  while ((await lab.run("client", ["curl", "--silent", "--fail", "--max-time", "1", url])).status !== 0) {
    if (Date.now() > until) throw new Error(`the application does not answer at ${url}`);
    await sleep(50);
  }
}
