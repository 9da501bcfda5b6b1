/**
 * The proxy of a workload on this node: started, or found in the application's pod, found again by the next agent, given its keys and its
 * way to the application, and replaced when it ends outside of a move.
 */
import { randomBytes } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { endpointText } from "#proxy/contract/address.ts";
import {
  CONTAINER_PORT_FIRST,
  type Configure,
  type ListSessions,
  type SessionInfo,
  type SessionPage,
  SIDECAR_FOLDER,
  SIDECAR_LINK_PORT,
  SIDECAR_NAME,
} from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { joinKeys, linkKeysOf, type SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import { hasSidecar, isToBeApart, type WorkloadConfig } from "../config/config.ts";
import { proxyLimitsOf } from "../config/limits.ts";
import { leadClients } from "../runtime/led-clients.ts";
import { hasOwnNetwork, makeHandedSockets } from "../runtime/network-namespace.ts";
import type { Runtime } from "../runtime/runtime.ts";
import type { Problem } from "./claim.ts";
import type { SharedKeyRing } from "./context.ts";
import type { Journal } from "./journal.ts";
import { endProxy, ProxyClient } from "./proxy-client.ts";

/** Whose proxy it is. */
export interface ProxyHost {
  readonly name: string;
  readonly config: WorkloadConfig;
  readonly context: {
    readonly node: string;
    readonly host: string;
    readonly links: "encrypted" | "plain";
    readonly ring: SharedKeyRing;
    readonly gatewayRing: SharedKeyRing;
    readonly proxyGroups: readonly string[];
    readonly runtime: Pick<Runtime, "sidecar">;
    readonly log: Logger;
  };
  /** of its own on this node */
  readonly folder: string;
  readonly journal: Readonly<Journal>;
  record(patch: Partial<Journal>): void;
  /** A proxy that ends now ends on purpose, or is looked after by somebody else: by a move, or by whoever stops the workload. */
  readonly isProxyExpectedToEnd: boolean;
  /** Owned, and nobody is at it. */
  readonly isAtRest: boolean;
  /** of the application, and it has not ended */
  hasContainer(): Promise<boolean>;
}

const SESSIONS_PAGE = 1_000;
/** kubelet begins with it, and waits for no more: a busy node takes so long to start a process */
const SIDECAR_MS_MAX = 60_000;
const SIDECAR_RETRY_MS = 100;
const REPLACE_AGAIN_MS = 500;

interface FoundProxy {
  proxy: ProxyClient;
  /** where other proxies' links arrive */
  linkAddress: string;
  spillDir: string;
}

export class ProxyKeeper {
  readonly #host: ProxyHost;
  #client: ProxyClient | null = null;
  /** which proxy knows which keys */
  #keysTold: { proxy: ProxyClient; keys: SharedKeys } | null = null;
  #keysUntold: ProxyClient | null = null;
  /** forward, owner: where this proxy takes links */
  #ownLink: { proxy: ProxyClient; link: Endpoint | null } | null = null;
  #problem: Problem | null = null;
  #isReplacing = false;
  /** for a move that may be given up meanwhile */
  #standby: { readonly made: Promise<Endpoint>; readonly end: AbortController } | null = null;

  constructor(host: ProxyHost) {
    this.#host = host;
  }

  /** null: there is none */
  get client(): ProxyClient | null {
    return this.#client;
  }

  /** What keeps clients waiting for one. */
  get problem(): Problem | null {
    return this.#problem;
  }

  /** The one that the last agent has started. */
  async find(): Promise<void> {
    const { proxy } = this.#host.journal;
    if (proxy === null) return;
    const found = await ProxyClient.find(proxy);
    if (found !== null) this.#use(found);
    else await endProxy(proxy, 0); // it never came so far as to listen
  }

  /**
   * @param found else it is started, or found in the pod
   * @param signal ends that as long as it has not answered
   * @throws HoldfastError `PROXY_START`
   */
  async start(found?: FoundProxy, signal?: AbortSignal): Promise<ProxyClient> {
    const { name, config, context } = this.#host;
    const { proxy, linkAddress, spillDir } =
      found ?? (hasSidecar(config) ? await this.#findSidecar(signal) : await this.#startProcess(signal));
    this.#use(proxy);
    this.#host.record({ proxy: proxy.record });
    const configure: Configure = {
      workload: name,
      node: context.node,
      network: this.#isApart ? "own" : "host",
      downstream: config.downstream,
      listenAddress: config.listenAddress,
      listenIn: config.listenIn,
      listenDevice: config.vip?.device ?? null,
      ports: config.ports,
      linkAddress,
      links: context.links,
      spillDir,
      limits: proxyLimitsOf(config.limits),
    };
    const keys = this.#keys;
    await proxy.command("configure", configure, this.#linkKeys(keys));
    this.#keysTold = { proxy, keys };
    await this.handNetwork();
    return proxy;
  }

  async #startProcess(signal?: AbortSignal): Promise<FoundProxy> {
    const { context, folder } = this.#host;
    const proxy = await ProxyClient.start(
      join(folder, "proxy.sock"),
      join(folder, "proxy.log"),
      (record) => this.#host.record({ proxy: record }),
      context.proxyGroups,
      signal,
    );
    const spillDir = join(folder, "spill");
    mkdirSync(spillDir, { recursive: true, mode: 0o700 });
    return { proxy, linkAddress: context.host, spillDir };
  }

  /** kubelet has begun it before the application's container; one that has ended it starts again. */
  async #findSidecar(signal?: AbortSignal): Promise<FoundProxy> {
    const deadline = performance.now() + SIDECAR_MS_MAX;
    for (;;) {
      const found = await this.#tryToFindSidecar(() => signal?.aborted !== true);
      if (found !== null) return found;
      signal?.throwIfAborted();
      if (performance.now() > deadline)
        throw fail(
          "PROXY_START",
          `container ${SIDECAR_NAME} of the pod of ${this.#host.name} does not answer: look at its log`,
          { retryable: true },
        );
      await delay(SIDECAR_RETRY_MS);
    }
  }

  /** @param isWanted is it still, when it is there */
  async #tryToFindSidecar(isWanted: () => boolean): Promise<FoundProxy | null> {
    const { config, context } = this.#host;
    const sidecar = await context.runtime.sidecar(config);
    const proxy = sidecar === null ? null : await ProxyClient.of(sidecar);
    if (sidecar === null || proxy === null) return null;
    if (!isWanted()) {
      proxy.disconnect();
      return null;
    }
    // what an agent that died has left there
    await proxy.command("stop", {});
    const linkAddress = endpointText(sidecar.address, SIDECAR_LINK_PORT);
    return { proxy, linkAddress, spillDir: SIDECAR_FOLDER };
  }

  /** It is no longer looked after: its end is no accident. */
  leave(): ProxyClient | null {
    const left = this.#client;
    this.#client = null;
    return left;
  }

  /** Ends it, as it is known here or in the journal. Its clients get RST. */
  async stop(): Promise<void> {
    const { proxy: record } = this.#host.journal;
    const proxy = this.leave();
    if (proxy !== null) await proxy.stop();
    else if (record !== null) await endProxy(record, 0);
  }

  /** Ends a proxy that is of no use any more (its clients get RST) and starts one that serves. One that fails is none: {@link lookAgain} */
  async replace(epoch: number): Promise<void> {
    const others = this.#isReplacing;
    this.#isReplacing = true;
    try {
      await this.leave()?.stop();
      await this.start();
      await this.serve(epoch);
    } catch (error) {
      await this.leave()
        ?.stop()
        .catch(() => {});
      throw error;
    } finally {
      this.#isReplacing = others;
    }
  }

  /**
   * As {@link replace}, of one that has ended. A sidecar is kubelet's to start again, later each time: that is waited for beside, as long as
   * there is an application that it would be for.
   */
  async replaceLost(): Promise<void> {
    if (hasSidecar(this.#host.config)) void this.#replaceSidecar();
    else await this.replace(this.#host.journal.epoch);
  }

  /** One that was not found when it was looked for is looked for again. Called about every second, of an owner at rest. */
  lookAgain(): void {
    if (hasSidecar(this.#host.config)) void this.#replaceSidecar();
    else void this.#replaceProcess();
  }

  /** One whose replacement did not start, for want of whatever it was. */
  async #replaceProcess(): Promise<void> {
    if (this.#isReplacing || !(await this.#isMissed()) || this.#isReplacing) return;
    try {
      await this.replace(this.#host.journal.epoch);
      this.#problem = null;
    } catch (error) {
      const what = `its proxy does not start, and nobody is served: ${messageOf(error)}`;
      if (this.#problem?.what !== what) this.#warn("start another proxy", error);
      this.#problem = { id: "proxy.ended", what, cure: "free what it lacks: it is tried again each second" };
    }
  }

  async #replaceSidecar(): Promise<void> {
    if (this.#isReplacing) return;
    this.#isReplacing = true;
    try {
      while (await this.#isMissed()) {
        this.#problem = {
          id: "proxy.ended",
          what: `container ${SIDECAR_NAME} of its pod has ended: nobody is served until kubelet has started it again`,
          cure: `see why: \`kubectl describe pod\`, \`kubectl logs -c ${SIDECAR_NAME} --previous\``,
        };
        const found = await this.#tryToFindSidecar(() => this.#host.isAtRest);
        if (found !== null) {
          await this.start(found);
          return await this.serve(this.#host.journal.epoch);
        }
        await delay(REPLACE_AGAIN_MS, undefined, { ref: false });
      }
    } catch (error) {
      this.#warn("use the sidecar", error);
    } finally {
      this.#isReplacing = false;
      this.#problem = null;
    }
  }

  /** The owner has none, nobody else looks after it, and there is an application that it would be for. */
  async #isMissed(): Promise<boolean> {
    if (!this.#host.isAtRest || this.#client?.isOpen) return false;
    return await this.#host.hasContainer();
  }

  /** Clients are served from now on. */
  async serve(epoch: number): Promise<void> {
    await this.#client?.command("serve", { epoch });
    await this.#leadClients();
  }

  /** To where the proxy listens: it does by now. */
  async #leadClients(): Promise<void> {
    const { config, journal } = this.#host;
    if (config.listenIn !== "container" || journal.container === null) return;
    const ports = config.ports.map(({ listen }, index) => [listen, CONTAINER_PORT_FIRST + index] as const);
    await leadClients(journal.container.init.pid, new Map(ports));
  }

  // ---- in a move ----

  /** → where the links of anchors arrive @throws HoldfastError `MIGRATION_ABORTED`: it was discarded meanwhile */
  async standby(epoch: number): Promise<Endpoint> {
    const end = new AbortController();
    const made = this.#makeStandby(epoch, end.signal);
    this.#standby = { made, end };
    return await made;
  }

  async #makeStandby(epoch: number, signal: AbortSignal): Promise<Endpoint> {
    let proxy = this.#client;
    if (proxy?.isOpen) await this.handNetwork();
    else proxy = await this.start(undefined, signal);
    signal.throwIfAborted();
    const { result } = await proxy.command<"standby", { link: Endpoint }>("standby", { epoch });
    // a sidecar cannot turn clients away before the release
    if (!proxy.record.isSidecar) await this.#leadClients();
    return result.link;
  }

  /**
   * What a move has made of it: a proxy that has not answered yet is ended rather than waited for. An anchor stays what it was. May be
   * repeated where it has failed.
   */
  async discard(epoch: number): Promise<void> {
    const standby = this.#standby;
    this.#standby = null;
    standby?.end.abort(fail("MIGRATION_ABORTED", "the move was given up"));
    await standby?.made.catch(() => {}); // whoever has asked for it is told
    await this.#client?.command("discard", { epoch }).catch(() => {});
    if (this.#client !== null && this.#host.journal.role === "anchor") return;
    await this.stop();
    const { proxy, role } = this.#host.journal;
    if (proxy !== null) this.#host.record({ proxy: null, role: role === "anchor" ? "none" : role });
  }

  /** A proxy that refuses is asked where it is: the command may have been cut off after it had arrived. */
  async goOn(command: "release" | "rollback", epoch: number): Promise<void> {
    const from = command === "release" ? ["adopted"] : ["held", "captured", "departed"];
    try {
      const proxy = this.#client;
      if (proxy === null) throw new Error("there is none");
      await proxy.command(command, { epoch }).catch(async (error: unknown) => {
        const { result } = await proxy.command<"status", { role: string }>("status", {});
        if (from.includes(result.role)) throw error; // else it had done so before
      });
      if (proxy.record.isSidecar) await this.#leadClients();
    } catch (error) {
      // its sessions are lost; the application is not, and its next clients need not be
      const { name, context } = this.#host;
      context.log.error({ workload: name, command, reason: messageOf(error) }, "the proxy failed");
      await this.replace(epoch).catch((failed: unknown) => this.#warn("start another proxy", failed));
    }
  }

  // ---- what it is told ----

  /** Tells a proxy that has been running the keys there are now, if it does not know them. Called again until it does. */
  async tellKeys(): Promise<void> {
    const proxy = this.#client;
    const keys = this.#keys;
    const told = this.#keysTold;
    if (proxy === null || !proxy.isOpen || (told?.proxy === proxy && told.keys === keys)) return;
    this.#keysTold = { proxy, keys };
    try {
      await proxy.command("keys", {}, this.#linkKeys(keys));
      this.#keysUntold = null;
    } catch (error) {
      if (this.#keysTold?.keys === keys && this.#keysTold.proxy === proxy) this.#keysTold = told;
      // a proxy of an older version knows no such command, and is asked again each second
      if (this.#keysUntold === this.#client) return;
      this.#keysUntold = this.#client;
      this.#warn("tell the proxy the keys", error);
    }
  }

  /** What those of its links are derived from. */
  get #keys(): SharedKeys {
    const { config, context } = this.#host;
    return (config.downstream === "gateway" ? context.gatewayRing : context.ring).keys;
  }

  #linkKeys(keys: SharedKeys): Buffer {
    return joinKeys(linkKeysOf(keys, this.#host.name));
  }

  /** The application is in a network namespace of its own. Of the container there is, whatever the configuration says by now. */
  get #isApart(): boolean {
    const { container, proxy } = this.#host.journal;
    if (proxy?.isSidecar ?? hasSidecar(this.#host.config)) return false; // it is in there, too
    const isApart = container === null ? null : hasOwnNetwork(container.init.pid);
    return isApart ?? isToBeApart(this.#host.config);
  }

  /** Gives the proxy what it connects to the application by, where that has a network of its own: after each new container. */
  async handNetwork(): Promise<void> {
    const { container } = this.#host.journal;
    const proxy = this.#client;
    if (container === null || proxy === null || !this.#isApart) return;
    const made = makeHandedSockets(container.init.pid);
    const token = randomBytes(16).toString("hex");
    try {
      proxy.hand({ token, sockets: [...made.keys()] }, [...made.values()]);
    } finally {
      for (const fd of made.values()) descriptor.close(fd);
    }
    await proxy.command("network", { token });
  }

  // ---- what it says ----

  /** Where it takes links. null: it takes none, or does not say */
  async linkEndpoint(): Promise<Endpoint | null> {
    const proxy = this.#client;
    if (proxy === null || !proxy.isOpen) return null;
    if (this.#ownLink?.proxy !== proxy || this.#ownLink.link === null) {
      const status = await proxy
        .command<"status", { link?: Endpoint | null }>("status", {})
        .catch(() => null);
      this.#ownLink = { proxy, link: status?.result.link ?? null };
    }
    return this.#ownLink.link;
  }

  /** Where it takes links, and the epoch at which it does. null: it takes none, or does not say */
  async linkStatus(): Promise<{ link: Endpoint; epoch: number } | null> {
    const proxy = this.#client;
    if (proxy === null || !proxy.isOpen) return null;
    const { result } = await proxy.command<"status", { link?: Endpoint | null; epoch: number }>("status", {});
    return result.link == null ? null : { link: result.link, epoch: result.epoch };
  }

  /** A page at a time, so that the proxy never spends long on it. */
  async *sessionPages(): AsyncGenerator<SessionInfo[]> {
    for (let after: number | null = 0; after !== null && this.#client !== null; ) {
      const params: ListSessions = { after, max: SESSIONS_PAGE };
      const { result }: { result: SessionPage } = await this.#client.command("sessions", params);
      yield result.sessions;
      after = result.next ?? null; // a proxy of the version before gives all at once
    }
  }

  async countSessions(): Promise<number> {
    if (this.#client === null) return 0;
    return (await this.#client.command<"status", { sessions: number }>("status", {})).result.sessions;
  }

  // ---- inside ----

  #use(proxy: ProxyClient): void {
    this.#client = proxy;
    void proxy.closed.then(() =>
      this.#isGone(proxy).catch((error: unknown) => this.#warn("start another proxy", error)),
    );
  }

  /** The connection to a proxy broke. Outside a move, one whose process has ended is replaced. */
  async #isGone(proxy: ProxyClient): Promise<void> {
    if (this.#client !== proxy || this.#host.isProxyExpectedToEnd) return;
    const again = await ProxyClient.find(proxy.record);
    if (again !== null) return this.#use(again);
    const { name, context, journal } = this.#host;
    // kubelet ends a sidecar when the application's container has ended, with its pod
    const isAccident = !proxy.record.isSidecar || (await this.#host.hasContainer());
    const level = isAccident ? "error" : "info";
    context.log[level]({ workload: name, pid: proxy.record.process.pid }, "the proxy has ended");
    if (journal.role === "owner") await this.replaceLost();
    else {
      this.#client = null;
      this.#host.record({ role: "none", proxy: null });
    }
  }

  #warn(what: string, error: unknown): void {
    const { name, context } = this.#host;
    context.log.warn({ workload: name, what, reason: messageOf(error) }, `${what} failed; continuing`);
  }
}
