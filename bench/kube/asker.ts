/**
 * Asks at a fixed rate, whether the last question is answered or not, and says what each answer took: an {@link AskOptions} in the first argument,
 * an {@link Answers} on standard output, both as JSON. A process of its own, as what it asks is in another network namespace.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import { Agent, request } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";

export interface AskOptions {
  host: string;
  port: number;
  path: string;
  /** as the certificate has it */
  serverName: string;
  /** file: who has signed it */
  authority: string;
  /** file: a kubeconfig, as JSON, with the token of who asks, where somebody wants to know */
  kubeconfig?: string;
  /** file: a list of texts, which are asked in turn */
  bodies: string;
  perSecond: number;
  seconds: number;
}

export interface Answers {
  /** of each, from when it was sent */
  ms: number[];
  /** how late each was sent */
  lateMs: number[];
  /** not 2xx, or none: the first few */
  failures: string[];
}

/** before the first that counts */
const WARM = 100;
const FAILURES_MAX = 5;

async function main(): Promise<void> {
  const options = JSON.parse(process.argv[2] ?? "{}") as AskOptions;
  const { host, port, path, serverName: servername, authority, kubeconfig, perSecond, seconds } = options;
  const bodies = JSON.parse(readFileSync(options.bodies, "utf8")) as string[];
  const headers = { "content-type": "application/json", ...authorization(kubeconfig) };
  const agent = new Agent({ keepAlive: true, servername, ca: readFileSync(authority) });
  const failures: string[] = [];
  const failed = (why: string): void => void (failures.length < FAILURES_MAX && failures.push(why));
  const ask = async (index: number): Promise<number> => {
    const startedMs = performance.now();
    try {
      const asked = request({ host, port, path, method: "POST", agent, headers });
      asked.end(bodies[index % bodies.length]);
      const [response] = (await once(asked, "response")) as [IncomingMessage];
      const { statusCode = 0 } = response;
      response.resume();
      await once(response, "end");
      if (statusCode >= 300) failed(`question ${index} was answered with ${statusCode}`);
    } catch (error) {
      failed(`question ${index}: ${(error as Error).message}`);
    }
    return performance.now() - startedMs;
  };
  for (let index = 0; index < WARM; index++) await ask(index);
  const beganMs = performance.now();
  const lateMs: number[] = [];
  const under: Promise<number>[] = [];
  for (let index = 0; index < perSecond * seconds; index++) {
    const dueMs = beganMs + (index * 1_000) / perSecond;
    await sleep(Math.max(0, dueMs - performance.now()));
    lateMs.push(performance.now() - dueMs);
    under.push(ask(index));
  }
  const answers: Answers = { ms: await Promise.all(under), lateMs, failures };
  agent.destroy();
  process.stdout.write(`${JSON.stringify(answers)}\n`);
}

function authorization(kubeconfig: string | undefined): { authorization?: string } {
  if (kubeconfig === undefined) return {};
  const { users } = JSON.parse(readFileSync(kubeconfig, "utf8")) as { users: { user: { token: string } }[] };
  return { authorization: `Bearer ${users[0]?.user.token}` };
}

await main();
