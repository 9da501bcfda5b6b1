/**
 * Makes Migrations for pods whose node says that it is going away (`node-triggers.ts`). Level-triggered: whenever nodes, policies or Migrations have
 * changed, and every few seconds while a node says so, what is there is looked at again.
 */
import { migrationsIn, type Policy, policiesIn, policyOf } from "../../api/resources.ts";
import { isCode, type KubernetesApi } from "../client/api.ts";
import type { KubernetesObject, Node, Pod } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import type { Reflector } from "../client/reflector.ts";
import type { Watches } from "../client/watches.ts";
import { manifestOf } from "./caused.ts";
import { nodeMigrations, triggerOf } from "./node-triggers.ts";

const LOOK_AGAIN_MS = 5_000;

export interface NodeWatchOptions {
  api: KubernetesApi;
  /** they are closed with it, and this before */
  watches: Watches;
  /** those of the controller */
  migrations: Reflector<KubernetesObject>;
  /** what has been made */
  onMade(migration: { namespace: string; name: string; trigger: string }): void;
  /** Migrations of its pods are to be looked at */
  onNode(node: Node): void;
  onProblem(what: string, error: unknown): void;
}

export class NodeWatch {
  readonly #options: NodeWatchOptions;
  readonly #nodes: Reflector<Node>;
  readonly #policies: Reflector<KubernetesObject>;
  readonly #timer: NodeJS.Timeout;
  #round: Promise<void> | null = null;
  #isAgain = false;
  #isClosed = false;

  constructor(options: NodeWatchOptions) {
    this.#options = options;
    const { watches, onNode } = options;
    this.#nodes = watches.open<Node>("nodes", {
      path: pathOf("nodes"),
      onChange: (now, before) => {
        // kubelets write every few seconds that they are there
        if (now === null || saysOf(now) === saysOf(before)) return;
        onNode(now);
        this.look();
      },
    });
    this.#policies = watches.open("continuitypolicies", {
      path: pathOf("continuitypolicies"),
      onChange: () => this.look(),
    });
    this.#timer = setInterval(() => this.look(), LOOK_AGAIN_MS);
  }

  /** Soon: something has changed. */
  look(): void {
    if (this.#isClosed) return;
    this.#isAgain = true;
    this.#round ??= this.#rounds().finally(() => {
      this.#round = null;
    });
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    clearInterval(this.#timer);
    await this.#round;
  }

  async #rounds(): Promise<void> {
    const { migrations, onProblem } = this.#options;
    while (this.#isAgain && !this.#isClosed) {
      this.#isAgain = false;
      // what is not known yet could say otherwise
      const known = [this.#nodes, this.#policies, migrations].map(({ synced }) => synced);
      if ((await Promise.allSettled(known)).some(({ status }) => status === "rejected")) return;
      const policies = this.#policiesByNamespace();
      for (const node of this.#nodes.objects.values())
        if ([...policies.values(), policyOf([])].some(({ triggers }) => triggerOf(node, triggers) !== null))
          await this.#empty(node, policies).catch((error: unknown) =>
            onProblem(`pods of node ${node.metadata.name} are not moved yet`, error),
          );
    }
  }

  async #empty(node: Node, policies: ReadonlyMap<string, Policy>): Promise<void> {
    const { api, migrations, onMade } = this.#options;
    const { name } = node.metadata;
    const { items } = await api.list<Pod>(pathOf("pods"), { fieldSelector: `spec.nodeName=${name}` });
    const wanted = nodeMigrations(
      {
        node,
        pods: items,
        migrations: migrationsIn(migrations.objects.values()),
        policyOf: (namespace) => policies.get(namespace) ?? policyOf([]),
      },
      Date.now(),
    );
    for (const made of wanted) {
      try {
        await api.create(pathOf("migrations", { namespace: made.namespace }), manifestOf(made));
        onMade({ namespace: made.namespace, name: made.name, trigger: made.cause.trigger });
      } catch (error) {
        // made before, and not seen yet
        if (!isCode(error, "KUBERNETES_EXISTS")) throw error;
      }
    }
  }

  /** By namespace. */
  #policiesByNamespace(): ReadonlyMap<string, Policy> {
    const said = policiesIn(this.#policies.objects.values());
    return new Map(
      [...Map.groupBy(said, ({ metadata }) => metadata.namespace)].map(([namespace, policies]) => [
        namespace,
        policyOf(policies),
      ]),
    );
  }
}

/** All of it that decides anything. */
function saysOf(node: Node | null): string {
  const conditions = (node?.status?.conditions ?? []).map(({ type, status }) => `${type}=${status}`);
  return JSON.stringify([node?.spec.unschedulable === true, node?.spec.taints ?? [], conditions]);
}
