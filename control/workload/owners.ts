/**
 * What agents tell each other of the workloads they have: every second, whether or not there is a store. So two owners find
 * each other, an anchor learns of an owner that could not reach it, and a node knows the epochs that others have seen. Whoever
 * is about to claim a workload of which the store has no record asks the same.
 */

import type { Logger } from "pino";
import type { Channel } from "#proxy/contract/channel.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { Store } from "#proxy/store/store.ts";
import { type Held, ownersCall, type PeerAnswer } from "../api/owners.ts";
import type { ClusterMark } from "./cluster-mark.ts";

const EVERY_MS = 1_000;
const PEER_MS_MAX = 1_000;
/** a peer that refuses us (another key, another version) logs each attempt */
const REFUSED_MS = 30_000;

/** A workload of this node's configuration. */
export interface OwnedWorkload {
  readonly owner: {
    held(): Promise<Held>;
    /** What a peer says of it. */
    hear(peer: string, held: Held): void;
    check(): Promise<void>;
  };
}

/** What it asks others by. */
export interface OwnersContext {
  readonly node: string;
  readonly peers: Record<string, Endpoint>;
  readonly store: Store;
  readonly mark: ClusterMark;
  readonly trust: { onChange(listener: () => void): unknown };
  readonly log: Logger;
  dial(node: string, timeoutMs?: number): Promise<Channel>;
}

export class Owners {
  readonly #context: () => OwnersContext;
  readonly #workloads: ReadonlyMap<string, OwnedWorkload>;
  readonly #channels = new Map<string, Promise<Channel>>();
  /** by performance.now(), when it may be asked again without need */
  readonly #refusedUntilMs = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;
  #isAsking = false;

  constructor(context: () => OwnersContext, workloads: ReadonlyMap<string, OwnedWorkload>) {
    this.#context = context;
    this.#workloads = workloads;
  }

  keep(): void {
    this.#context().trust.onChange(() => this.#refusedUntilMs.clear());
    this.#timer ??= setInterval(() => {
      if (this.#isAsking) return;
      this.#isAsking = true;
      this.#round()
        .catch((error: unknown) =>
          this.#context().log.debug({ reason: messageOf(error) }, "owners were not looked at"),
        )
        .finally(() => {
          this.#isAsking = false;
        });
    }, EVERY_MS).unref();
  }

  close(): void {
    clearInterval(this.#timer);
    for (const dialled of this.#channels.values())
      dialled.then(
        (channel) => channel.close(),
        () => {},
      );
  }

  /** What each peer says of a workload now; within about a second and a half. */
  async ask(workload: string): Promise<PeerAnswer[]> {
    return Promise.all(
      Object.keys(this.#context().peers).map(async (peer): Promise<PeerAnswer> => {
        try {
          const held = (await this.#exchange(peer)).find((one) => one.workload === workload);
          return { peer, held: held ?? null };
        } catch (error) {
          return { peer, silent: messageOf(error) };
        }
      }),
    );
  }

  /** A peer asks, and tells. */
  async answer(peer: string, told: Held[]): Promise<{ workloads: Held[] }> {
    this.#hear(peer, told);
    return { workloads: await this.#own() };
  }

  async #round(): Promise<void> {
    const { peers, mark, store } = this.#context();
    const answers = await Promise.all(
      Object.keys(peers).map(async (peer) => {
        if (performance.now() < (this.#refusedUntilMs.get(peer) ?? 0)) return null;
        return this.#exchange(peer).catch((error: unknown) => {
          if (error instanceof HoldfastError && !error.retryable)
            this.#refusedUntilMs.set(peer, performance.now() + REFUSED_MS);
          return null;
        });
      }),
    );
    await Promise.all([...this.#workloads.values()].map((workload) => workload.owner.check()));
    if (answers.includes(null) || (await mark.isKnown())) return;
    const had = [...answers.flatMap((held) => held ?? []), ...(await this.#own())].filter(
      ({ workload, has }) => has !== "no" && this.#workloads.has(workload),
    );
    const records = await Promise.all(had.map(({ workload }) => store.ownership(workload)));
    if (!records.includes(null)) await mark.remember();
  }

  async #exchange(peer: string): Promise<Held[]> {
    const channel = await this.#channel(peer);
    try {
      const call = { workloads: await this.#own() };
      const { result } = await channel.call("owners", call, { timeoutMs: PEER_MS_MAX });
      const { workloads } = ownersCall.parse(result);
      this.#hear(peer, workloads);
      return workloads;
    } catch (error) {
      channel.close(); // a peer that was lost without a word is dialled again
      throw error;
    }
  }

  /** The one there is, or another. */
  async #channel(peer: string): Promise<Channel> {
    for (;;) {
      const before = this.#channels.get(peer);
      const channel = await before?.catch(() => null);
      if (channel?.isOpen === true) return channel;
      if (this.#channels.get(peer) !== before) continue; // somebody else has dialled meanwhile
      const dialled = this.#context().dial(peer, PEER_MS_MAX);
      this.#channels.set(peer, dialled);
      return dialled;
    }
  }

  #own(): Promise<Held[]> {
    return Promise.all([...this.#workloads.values()].map((workload) => workload.owner.held()));
  }

  #hear(peer: string, told: Held[]): void {
    for (const held of told) {
      try {
        this.#workloads.get(held.workload)?.owner.hear(peer, held);
      } catch (error) {
        // the others are heard of all the same
        this.#context().log.warn({ workload: held.workload, peer, reason: messageOf(error) }, "not heard of");
      }
    }
  }
}

export function isSameEndpoint(one: Endpoint | null, other: Endpoint | null): boolean {
  return one?.address === other?.address && one?.port === other?.port;
}
