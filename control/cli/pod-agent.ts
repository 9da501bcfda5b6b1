/** Commands about one pod that its node's agent answers: the same command is run beside that agent, by kubectl exec. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import { isActive, type Pod } from "../kubernetes/client/objects.ts";
import { pathOf } from "../kubernetes/client/paths.ts";
import { workloadOf } from "./cluster-view.ts";
import type { Terminal } from "./terminal.ts";

/** As it is typed, without "kubectl"; its output goes where ours does. Resolves with its exit status. */
export type Kubectl = (args: string[]) => Promise<number>;

const AGENTS = "app.kubernetes.io/name=holdfast,app.kubernetes.io/component=agent";
const HOLDFAST = "/holdfast/bin/holdfast";

export interface PodCommand {
  namespace: string;
  pod: string;
  /** of kubectl: --kubeconfig and --context as they were given */
  access: string[];
  command(workload: string): string[];
}

/** @throws HoldfastError `KUBERNETES_NOT_FOUND`: no such pod, or no agent on its node */
export async function askAgentOf(api: KubernetesApi, kubectl: Kubectl, request: PodCommand): Promise<number> {
  const { namespace, pod: name, access, command } = request;
  const pod = await api.find<Pod>(pathOf("pods", { namespace, name }));
  if (pod === null) throw fail("KUBERNETES_NOT_FOUND", `there is no pod ${name} in namespace ${namespace}`);
  const node = pod.spec.nodeName;
  const { items } = await api.list<Pod>(pathOf("pods"), {
    labelSelector: AGENTS,
    fieldSelector: `spec.nodeName=${node ?? ""}`,
  });
  const agent = items.find(isActive);
  if (agent === undefined)
    throw fail(
      "KUBERNETES_NOT_FOUND",
      `there is no agent on node ${node ?? "(none yet)"} of pod ${namespace}/${name}`,
    );
  const where = ["--namespace", agent.metadata.namespace ?? "", agent.metadata.name, "--container", "agent"];
  return await kubectl([...access, "exec", ...where, "--", HOLDFAST, ...command(workloadOf(pod))]);
}

/** What the agent in a pod says of its node, as JSON. */
export function agentStatus(
  kubectl: (args: string[], terminal: Terminal) => Promise<number>,
  access: string[],
): (pod: Pod) => Promise<string> {
  return async ({ metadata: { name, namespace = "" } }) => {
    const said: string[] = [];
    const why: string[] = [];
    const out = { write: (text: string) => said.push(text) };
    const err = { write: (text: string) => why.push(text) };
    const exec = ["exec", "--namespace", namespace, name, "--container", "agent", "--", HOLDFAST];
    const status = await kubectl([...access, ...exec, "status", "--json"], { out, err });
    if (status !== 0) throw fail("KUBERNETES_BUSY", `agent ${name} was not asked: ${why.join("").trim()}`);
    return said.join("");
  };
}
