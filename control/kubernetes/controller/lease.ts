/**
 * Which of several controllers works: the holder of a Lease (coordination.k8s.io/v1), as client-go's leaderelection has it. Two at a time for
 * a moment do no harm (each action is done by the version it was decided by): it only saves work.
 */
import { setTimeout as delay } from "node:timers/promises";
import { isCode, type KubernetesApi } from "../client/api.ts";
import type { KubernetesObject } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";

interface Lease extends KubernetesObject {
  spec?: {
    holderIdentity?: string | null;
    leaseDurationSeconds?: number;
    acquireTime?: string;
    renewTime?: string;
    leaseTransitions?: number;
  };
}

const DURATION_S = 15;
/** parts of that: when it is renewed; not renewed for so long it stops, before another may begin; another tries so often */
const RENEW = 1 / 3;
const GIVE_UP = 2 / 3;
const TRY = 2 / 15;

export interface LeaderOptions {
  api: Pick<KubernetesApi, "find" | "create" | "patch">;
  namespace: string;
  name: string;
  /** of this process, and of no other */
  identity: string;
  onProblem(error: unknown): void;
  /** default {@link DURATION_S} */
  durationS?: number;
}

/**
 * Works while it holds the lease, again and again, until the signal is aborted; then it gives the lease back.
 * @param work is to end soon when its signal is aborted
 */
export async function whileLeader(
  options: LeaderOptions,
  signal: AbortSignal,
  work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const durationMs = (options.durationS ?? DURATION_S) * 1_000;
  const term = new LeaseTerm(options);
  const wait = (ms: number) => delay(ms, undefined, { signal }).catch(() => {});
  while (!signal.aborted) {
    if (!(await term.take())) {
      await wait(durationMs * TRY);
      continue;
    }
    const lost = new AbortController();
    // a renewal that is not answered takes longer than the lease lasts
    const giveUp = setTimeout(() => lost.abort(), durationMs * GIVE_UP);
    const working = work(AbortSignal.any([signal, lost.signal]));
    while (!signal.aborted && !lost.signal.aborted) {
      await Promise.race([wait(durationMs * RENEW), working]);
      if (signal.aborted || lost.signal.aborted) break;
      if (await term.take()) giveUp.refresh();
      else if (term.isAnothers) break;
    }
    clearTimeout(giveUp);
    lost.abort();
    await working;
  }
  await term.giveBack();
}

class LeaseTerm {
  readonly #options: LeaderOptions;
  readonly #path: string;
  #isHeld = false;
  /** what another wrote, and when it was first seen here: clocks of two machines are not compared */
  #seen: { version: string; atMs: number } | null = null;
  #isAnothers = false;

  constructor(options: LeaderOptions) {
    this.#options = options;
    this.#path = pathOf("leases", { namespace: options.namespace, name: options.name });
  }

  /** another had it when it was last read */
  get isAnothers(): boolean {
    return this.#isAnothers;
  }

  /** Takes or renews it. False: it is another's, or the API server does not answer. */
  async take(): Promise<boolean> {
    const { api, identity, name, namespace, onProblem, durationS = DURATION_S } = this.#options;
    const time = new Date().toISOString().replace("Z", "000Z");
    try {
      const lease = await api.find<Lease>(this.#path);
      if (lease === null) {
        const spec = {
          holderIdentity: identity,
          leaseDurationSeconds: durationS,
          acquireTime: time,
          renewTime: time,
        };
        await api.create(pathOf("leases", { namespace }), {
          apiVersion: "coordination.k8s.io/v1",
          kind: "Lease",
          metadata: { name, namespace },
          spec: { ...spec, leaseTransitions: 0 },
        });
        this.#isHeld = true;
        return true;
      }
      const { holderIdentity: holder, leaseTransitions = 0 } = lease.spec ?? {};
      const isMine = holder === identity;
      this.#isAnothers = !isMine && Boolean(holder) && !this.#isOver(lease);
      if (this.#isAnothers) return false;
      await api.patch(this.#path, {
        metadata: { resourceVersion: lease.metadata.resourceVersion },
        spec: {
          holderIdentity: identity,
          leaseDurationSeconds: durationS,
          renewTime: time,
          ...(isMine ? {} : { acquireTime: time, leaseTransitions: leaseTransitions + 1 }),
        },
      });
      this.#isHeld = true;
      return true;
    } catch (error) {
      if (!isCode(error, "KUBERNETES_CONFLICT", "KUBERNETES_EXISTS")) onProblem(error);
      return false;
    }
  }

  /** So that the next one need not wait. */
  async giveBack(): Promise<void> {
    const { api, identity } = this.#options;
    if (!this.#isHeld) return;
    try {
      const lease = await api.find<Lease>(this.#path);
      if (lease?.spec?.holderIdentity !== identity) return;
      const { resourceVersion } = lease.metadata;
      await api.patch(this.#path, { metadata: { resourceVersion }, spec: { holderIdentity: null } });
    } catch {
      // it runs out
    }
  }

  #isOver({ metadata: { resourceVersion }, spec }: Lease): boolean {
    const nowMs = performance.now();
    if (this.#seen?.version !== resourceVersion) this.#seen = { version: resourceVersion, atMs: nowMs };
    return nowMs - this.#seen.atMs > (spec?.leaseDurationSeconds ?? DURATION_S) * 1_000;
  }
}
