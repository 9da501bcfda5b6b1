/** A port of a pod, by kubectl: at the pod's loopback address too, where Envoy's admin interface is. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Pod } from "../kubernetes/client/objects.ts";
import { kubectlMissing } from "./kubectl.ts";

const READY_MS_MAX = 20_000;
const SAID_CHARACTERS_MAX = 2_000;

export interface ForwardOptions {
  port: number;
  /** of kubectl: --kubeconfig and --context as they were given */
  access: string[];
  env: Record<string, string | undefined>;
}

/**
 * As long as `use` takes it is at the URL that this is given.
 * @throws HoldfastError `KUBECTL_MISSING`, `ENVOY_UNREACHABLE`
 */
export async function forwarded<T>(
  { metadata: { namespace = "default", name } }: Pod,
  { port, access, env }: ForwardOptions,
  use: (url: string) => Promise<T>,
): Promise<T> {
  const to = ["--namespace", namespace, `pod/${name}`, `:${port}`, "--address", "127.0.0.1"];
  const child = spawn("kubectl", [...access, "port-forward", ...to], {
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  const closed = once(child, "close").catch(() => {});
  const ready = Promise.withResolvers<string>();
  let said = "";
  const hear = (text: string): void => {
    said = (said + text).slice(-SAID_CHARACTERS_MAX);
    const local = /^Forwarding from 127\.0\.0\.1:(\d+) /m.exec(said)?.[1];
    if (local !== undefined) ready.resolve(`http://127.0.0.1:${local}`);
  };
  const giveUp = (why: string): void =>
    ready.reject(fail("ENVOY_UNREACHABLE", `no port of pod ${namespace}/${name}: ${said.trim() || why}`));
  child.stdout.setEncoding("utf8").on("data", hear);
  child.stderr.setEncoding("utf8").on("data", hear);
  child.on("error", (cause) => ready.reject(kubectlMissing(cause, "it leads to pods")));
  child.on("close", () => giveUp("kubectl ended"));
  const late = setTimeout(() => giveUp(`nothing in ${READY_MS_MAX / 1_000} s`), READY_MS_MAX);
  try {
    return await use(await ready.promise);
  } catch (error) {
    child.kill();
    await closed;
    const words = refusalIn(said);
    if (words === null) throw error;
    throw fail("ENVOY_UNREACHABLE", `${messageOf(error)}: kubectl: ${words}`, { cause: error });
  } finally {
    clearTimeout(late);
    child.kill();
    await closed;
  }
}

/** What kubectl says of a connection that came to nothing, as "… err=\"an error occurred forwarding 1 -> 2: error forwarding …\""; null: nothing. */
function refusalIn(said: string): string | null {
  const found = /\b(error forwarding port .*?)"?$/m.exec(said)?.[1];
  return found?.replaceAll('\\"', '"').trim() ?? null;
}
