/**
 * Follows where clients of workloads come, by the store: told of changes, and looking now and then, as a gateway does. A lower epoch than
 * it knows is never believed. What is known stays known while the store is away, was emptied, or the workload is stopped: whoever
 * connects there then is refused, as without an endpoint.
 */
import { isDeepStrictEqual } from "node:util";
import type { Logger } from "pino";
import { messageOf } from "#proxy/contract/errors.ts";
import type { LinkRecord, Store, StoreWatch } from "#proxy/store/store.ts";
import type { Assignment, Place } from "./assignment.ts";
import type { ServedCluster } from "./config.ts";

/** in case the store's word of a change was lost */
const LOOK_MS = 10_000;
/** looks at the store at a time */
const LOOKS_MAX = 16;

export interface OwnerPlacesOptions {
  store: Pick<Store, "link" | "watchLinks">;
  clusters: readonly ServedCluster[];
  /** Of a cluster, whenever it is another than before, and the first time that one of its workloads is known and all were asked for. Is not to throw. */
  onChange(assignment: Assignment): void;
  log: Logger;
}

export class OwnerPlaces {
  readonly #options: OwnerPlacesOptions;
  /** by workload: the clusters that have it */
  readonly #clusters = new Map<string, ServedCluster[]>();
  readonly #known = new Map<string, LinkRecord>();
  /** of which the store has said something, be it that it knows nothing */
  readonly #asked = new Set<string>();
  readonly #told = new Map<string, string>();
  readonly #looking = new Set<string>();
  readonly #again = new Set<string>();
  readonly #warned = new Set<string>();
  /** in turn */
  readonly #queue = new Set<string>();
  #watch: StoreWatch | null = null;
  #timer: NodeJS.Timeout | null = null;
  #closed = false;

  constructor(options: OwnerPlacesOptions) {
    this.#options = options;
    for (const cluster of options.clusters)
      for (const workload of cluster.workloads)
        this.#clusters.set(workload, [...(this.#clusters.get(workload) ?? []), cluster]);
  }

  open(): void {
    this.#watch = this.#options.store.watchLinks((workload) => {
      if (workload === null) this.#lookAtAll();
      else if (this.#clusters.has(workload)) this.#look(workload);
    });
    this.#timer = setInterval(() => this.#lookAtAll(), LOOK_MS).unref();
    this.#lookAtAll();
  }

  close(): void {
    this.#closed = true;
    this.#watch?.close();
    if (this.#timer !== null) clearInterval(this.#timer);
  }

  /** of which nobody has told where its clients come */
  get unknown(): string[] {
    return [...this.#clusters.keys()].filter((workload) => !this.#known.has(workload));
  }

  #lookAtAll(): void {
    for (const workload of this.#clusters.keys()) this.#look(workload);
  }

  /** Once more, when it is being looked at: what was read may be old. */
  #look(workload: string): void {
    if (this.#closed) return;
    if (this.#looking.has(workload)) this.#again.add(workload);
    else this.#queue.add(workload);
    this.#next();
  }

  #next(): void {
    for (const workload of this.#queue) {
      if (this.#looking.size >= LOOKS_MAX) return;
      this.#queue.delete(workload);
      this.#looking.add(workload);
      void this.#ask(workload).finally(() => {
        this.#looking.delete(workload);
        if (this.#again.delete(workload)) this.#look(workload);
        this.#next();
      });
    }
  }

  async #ask(workload: string): Promise<void> {
    const { store, log } = this.#options;
    try {
      const record = await store.link(workload);
      if (this.#closed) return;
      const isFirst = !this.#asked.has(workload);
      this.#asked.add(workload);
      const isNews = record !== null && this.#hear(workload, record);
      if (isFirst || isNews) this.#tell(workload);
    } catch (error) {
      log.debug({ workload, reason: messageOf(error) }, "the store does not say where clients come");
    }
  }

  /** @returns whether it is another than before */
  #hear(workload: string, record: LinkRecord): boolean {
    if (record.clients === undefined) {
      this.#warn(
        workload,
        "nobody comes to its nodes: in gateway mode its clients come to gateways, in takeover mode to its vip, and of pods that listen at their own address (without a sidecar) Kubernetes knows it",
      );
      return false;
    }
    const before = this.#known.get(workload);
    if (before !== undefined && (record.epoch < before.epoch || isDeepStrictEqual(record, before)))
      return false;
    this.#known.set(workload, record);
    for (const { port } of this.#clusters.get(workload) ?? [])
      if (!record.ports.includes(port))
        this.#warn(
          `${workload} ${port}`,
          `it has no port ${port}, it has ${record.ports.join(", ")}`,
          workload,
        );
    return true;
  }

  /** Not before each workload of the cluster was asked for: when this process begins anew, an Envoy would lose those that are answered last. */
  #tell(workload: string): void {
    const { log, onChange } = this.#options;
    for (const { cluster, workloads, port } of this.#clusters.get(workload) ?? []) {
      const isAsked = workloads.every((one) => this.#asked.has(one));
      if (!isAsked || !workloads.some((one) => this.#known.has(one))) continue;
      const places = workloads.flatMap((one) => placesOf(one, this.#known.get(one), port));
      const text = JSON.stringify(places);
      if (this.#told.get(cluster) === text) continue;
      this.#told.set(cluster, text);
      const { node, epoch } = this.#known.get(workload) ?? {};
      log.info({ cluster, workload, node, epoch, places: places.length }, "endpoints");
      onChange({ cluster, places });
    }
  }

  #warn(key: string, reason: string, workload = key): void {
    if (this.#warned.has(key)) return;
    this.#warned.add(key);
    this.#options.log.warn({ workload, reason }, "it is no endpoint of any cluster");
  }
}

function placesOf(workload: string, record: LinkRecord | undefined, port: number): Place[] {
  const at = record?.clients?.[record.ports.indexOf(port)];
  return at === undefined ? [] : [{ workload, ...at }];
}
