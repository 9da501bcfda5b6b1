/**
 * The agents of other nodes, as the cluster's pods name them, in the place of `peers` in the file. Kept on disk: an agent that starts asks the same
 * others as the one before it, whether or not the API server answers.
 *
 * One that is no longer there stays for a while: while an agent is replaced there is no pod of it, and its node may own workloads.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import type { Logger } from "pino";
import { z } from "zod";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { agentsAt } from "../kubernetes/node/agent-pods.ts";

const GONE_MS = 60_000;
const LOOK_MS = 5_000;

const keptSchema = z.record(z.string(), z.strictObject({ address: z.string(), port: z.number().int() }));

export interface PodPeersOptions {
  node: string;
  /** where every agent listens */
  port: number;
  /** what is kept */
  file: string;
  log: Logger;
  /** for tests; default {@link GONE_MS} */
  goneMs?: number;
}

export class PodPeers {
  /** Changes in place. */
  readonly peers: Record<string, Endpoint> = {};
  readonly #options: PodPeersOptions;
  readonly #goneAtMs = new Map<string, number>();
  readonly #known = Promise.withResolvers<void>();
  readonly #timer: NodeJS.Timeout;

  constructor(options: PodPeersOptions) {
    this.#options = options;
    try {
      Object.assign(this.peers, keptSchema.parse(JSON.parse(readFileSync(options.file, "utf8"))));
      this.#known.resolve();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT")
        options.log.warn({ reason: messageOf(error) }, "what was kept of other agents cannot be used");
    }
    this.#timer = setInterval(() => this.#forget(), Math.min(LOOK_MS, options.goneMs ?? GONE_MS)).unref();
  }

  /** When it is known who they are, be it by an earlier agent. */
  get known(): Promise<void> {
    return this.#known.promise;
  }

  /** @param pods all agents' (core/v1), this node's too */
  update(pods: readonly unknown[]): void {
    const { node, port, log } = this.#options;
    try {
      const found = agentsAt(pods, port);
      found.delete(node);
      const before = JSON.stringify(this.peers);
      for (const [name, endpoint] of found) {
        this.peers[name] = endpoint;
        this.#goneAtMs.delete(name);
      }
      for (const name of Object.keys(this.peers))
        if (!found.has(name) && !this.#goneAtMs.has(name)) this.#goneAtMs.set(name, performance.now());
      if (JSON.stringify(this.peers) !== before) this.#keep();
      this.#known.resolve();
    } catch (error) {
      log.error({ reason: messageOf(error) }, "the agents' pods are not understood");
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #forget(): void {
    const { goneMs = GONE_MS } = this.#options;
    let isChanged = false;
    for (const [name, atMs] of this.#goneAtMs) {
      if (performance.now() - atMs < goneMs) continue;
      this.#goneAtMs.delete(name);
      delete this.peers[name];
      isChanged = true;
    }
    if (isChanged) this.#keep();
  }

  #keep(): void {
    const { file, log } = this.#options;
    writeFileSync(`${file}.new`, JSON.stringify(this.peers), { mode: 0o600 });
    renameSync(`${file}.new`, file);
    log.info({ peers: Object.keys(this.peers) }, "the agents of other nodes");
  }
}
