/**
 * The agent's commands (see `contract/commands.ts`): which is possible when, at which epoch, one at a time. Connections
 * of agents come and go; what they left behind stays.
 */
import type { Logger } from "pino";
import { checked, type Handler, type Reply } from "#proxy/contract/channel.ts";
import type { CapturedPiece, CaptureResult, Configure } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { LegSurgeon } from "#proxy/contract/leg-surgeon.ts";
import { KEY_BYTES, KEYS_MAX, type SharedKeys, splitKeys } from "#proxy/contract/shared-keys.ts";
import { decodeSessions } from "#proxy/contract/snapshot-codec.ts";
import { allowedRoles, isAllowed, nextRole, type RoleCommand } from "#proxy/session/role.ts";
import type { LegKernel } from "#proxy/workload/leg-kernel.ts";
import { HoldWatch, LET_GO, type LetGoLimits } from "#proxy/workload/let-go.ts";
import { sessionPage, statusOf } from "#proxy/workload/view.ts";
import { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";
import { adoptDownstream, adoptUpstream } from "./adopt.ts";
import { prepareLinks, switchOwner } from "./anchors.ts";
import { type Captured, captureDownstream, captureUpstream } from "./capture.ts";
import {
  configureSchema,
  epochOnly,
  pageSchema,
  withDrain,
  withOwner,
  withOwnerOrNone,
  withTarget,
  withToken,
} from "./command-schemas.ts";
import { announceMove, leaveGateways, settleLinks } from "./gateways.ts";
import { hold } from "./hold.ts";
import { Pieces } from "./pieces.ts";
import { discard, release } from "./release.ts";
import { pause, resume } from "./restart.ts";
import { retire } from "./retire.ts";
import { refuseLateRollback, rollback } from "./rollback.ts";
import { shorten } from "./shorten.ts";
import { warmUp } from "./warm-up.ts";

const SNAPSHOT_LIMITS = { sessionsMax: 100_000, bytesMax: 1 << 30 };

/** Where the application is; see `proxy/kernel/network.ts`. */
export interface NetworkOfApplication {
  set(where: "host" | "own"): void;
  /** @throws HoldfastError `NETWORK_NOT_HANDED` */
  take(token: string): void;
}

export interface CommandsOptions {
  kernel: LegKernel;
  surgeon: LegSurgeon;
  log: Logger;
  /** default: the application is in our own network namespace */
  network?: NetworkOfApplication;
  /** after the reply to `stop`, or to `retire` where nothing is left. null: it stays, and can be configured anew */
  onExit: ((reason: string) => void) | null;
  /** default: {@link LET_GO} */
  letGo?: LetGoLimits;
}

export class Commands {
  readonly #options: CommandsOptions;
  readonly #holdWatch: HoldWatch;
  #proxy: WorkloadProxy | null = null;
  #configuration = "";
  /** of the last capture, not yet taken by the agent */
  #captured = new Pieces([]);
  /** commands run one after another, whichever connection they come from */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: CommandsOptions) {
    this.#options = options;
    this.#holdWatch = new HoldWatch({
      limits: options.letGo ?? LET_GO,
      log: options.log,
      inTurn: (work) => void this.#inTurn(work),
    });
  }

  /** An agent is connected. @returns to be called when it has gone */
  agentCame(): () => void {
    return this.#holdWatch.agentCame();
  }

  get proxy(): WorkloadProxy | null {
    return this.#proxy;
  }

  handlers(): Record<string, Handler> {
    return {
      configure: checked(configureSchema, (params, body) =>
        this.#inTurn(() => this.#configure(params, body)),
      ),
      network: checked(withToken, ({ token }) => this.#inTurn(async () => this.#takeNetwork(token))),
      // no step of a cutover: the keys of a move that is under way may change as well
      keys: (_params, body) => {
        const keys = linkKeysOf(body);
        if (this.#proxy === null) throw fail("PROXY_STATE", "keys before configure");
        this.#proxy.keys = keys;
        this.#options.log.info({ command: "keys", keys: keys.length }, "command done");
        return { result: {} };
      },
      serve: this.#command("serve", epochOnly, async (proxy) => {
        await proxy.openLinks();
        proxy.openListeners();
        return {
          after: () => {
            for (const session of proxy.sessions.values()) proxy.start(session);
          },
          result: () => ({ link: proxy.linkEndpoint, ports: proxy.listeners.map(({ port }) => port) }),
        };
      }),
      standby: this.#command("standby", epochOnly, async (proxy) => {
        if (capturesLegs(proxy)) await warmUp(proxy);
        await proxy.openLinks();
        // Now, while a port that is taken costs nobody anything.
        proxy.openListeners({ shielded: true });
        return { result: () => ({ link: proxy.linkEndpoint }) };
      }),
      prepareLinks: this.#command("prepareLinks", withTarget, async (proxy, params) => {
        const prepare = proxy.config.downstream === "gateway" ? announceMove : prepareLinks;
        const result = await prepare(proxy, params);
        return { result: () => result };
      }),
      shorten: this.#command("shorten", epochOnly, async (proxy) => {
        const result = await shorten(proxy);
        return { result: () => result };
      }),
      hold: this.#command("hold", epochOnly, async (proxy) => {
        // From the first moment on: clients that connect while it waits are held too.
        proxy.role = "held";
        this.#holdWatch.begin(proxy, async () => {
          proxy.counters.holdsLetGo++;
          await rollback(proxy);
        });
        const result = await hold(proxy);
        return { result: () => result };
      }),
      captureUpstream: this.#command("captureUpstream", epochOnly, async (proxy) =>
        this.#firstPiece(await captureUpstream(proxy)),
      ),
      captureDownstream: this.#command("captureDownstream", epochOnly, async (proxy) => {
        requireMode(proxy, "takeover");
        return this.#firstPiece(await captureDownstream(proxy));
      }),
      takeCaptured: this.#command("takeCaptured", epochOnly, async () => this.#nextPiece()),
      settleLinks: this.#command("settleLinks", epochOnly, async (proxy) => {
        requireMode(proxy, "gateway");
        await settleLinks(proxy);
        return { result: () => ({}) };
      }),
      adoptUpstream: this.#command("adoptUpstream", epochOnly, async (proxy, _params, body) => {
        const result = await adoptUpstream(proxy, decodeSessions(body, SNAPSHOT_LIMITS));
        return { result: () => result };
      }),
      adoptDownstream: this.#command("adoptDownstream", epochOnly, async (proxy, _params, body) => {
        requireMode(proxy, "takeover");
        const result = await adoptDownstream(proxy, decodeSessions(body, SNAPSHOT_LIMITS));
        return { result: () => result };
      }),
      release: this.#command("release", epochOnly, async (proxy, params) => {
        const result = await release(proxy, params.epoch);
        return { result: () => result };
      }),
      rollback: this.#command("rollback", epochOnly, async (proxy, params) => {
        refuseLateRollback(proxy);
        this.#captured = new Pieces([]);
        const result = await rollback(proxy, params.epoch);
        return { result: () => result };
      }),
      discard: this.#command("discard", epochOnly, async (proxy) => {
        const result = discard(proxy);
        this.#leaveNetwork(proxy);
        return { result: () => result };
      }),
      retire: this.#command("retire", withOwnerOrNone, async (proxy, params) => {
        proxy.role = proxy.config.downstream === "forward" ? "anchor" : "gone";
        proxy.epoch = params.epoch;
        const result = retire(proxy, params.owner);
        if (proxy.config.downstream === "gateway") await leaveGateways(proxy);
        this.#leaveNetwork(proxy);
        return {
          result: () => result,
          after: () => {
            if (proxy.role === "gone") this.#end("retired");
          },
        };
      }),
      switchOwner: this.#command("switchOwner", withOwner, async (proxy, params) => {
        requireMode(proxy, "forward");
        proxy.epoch = params.epoch;
        const result = switchOwner(proxy, params.owner);
        return { result: () => result };
      }),
      pause: this.#command("pause", withDrain, async (proxy, params) => {
        proxy.role = "paused";
        const result = await pause(proxy, params.drainMs);
        return { result: () => result };
      }),
      resume: this.#command("resume", epochOnly, async (proxy) => {
        proxy.role = "owner";
        const result = await resume(proxy);
        return { result: () => result };
      }),
      sessions: checked(pageSchema, ({ after, max }) => ({
        result: this.#proxy === null ? { sessions: [], next: null } : sessionPage(this.#proxy, after, max),
      })),
      status: () => ({
        result:
          this.#proxy === null
            ? { role: "idle", epoch: 0, sessions: 0, pid: process.pid }
            : statusOf(this.#proxy),
      }),
      stop: () =>
        this.#inTurn(async () => {
          this.#proxy?.stop();
          this.#end("stopped");
          return { result: {} };
        }),
    };
  }

  async #configure(params: Configure, body: Buffer): Promise<Reply> {
    const keys = linkKeysOf(body);
    const configuration = JSON.stringify(params);
    if (this.#proxy !== null && configuration !== this.#configuration && this.#proxy.role !== "idle") {
      throw fail(
        "PROXY_STATE",
        `the proxy is ${this.#proxy.role} and cannot be configured anew; stop it first`,
      );
    }
    if (this.#proxy === null || configuration !== this.#configuration) {
      this.#proxy?.closeDoors();
      this.#options.network?.set(params.network);
      this.#configuration = configuration;
      const { kernel, surgeon, log } = this.#options;
      this.#proxy = new WorkloadProxy({ config: params, keys, kernel, surgeon, log });
    } else this.#proxy.keys = keys;
    return { result: {} };
  }

  #end(reason: string): void {
    const { onExit, network } = this.#options;
    if (onExit !== null) {
      onExit(reason);
      return;
    }
    this.#proxy?.stop();
    this.#proxy = null;
    this.#configuration = "";
    this.#captured = new Pieces([]);
    network?.set("host");
  }

  #firstPiece({ result, sessions }: Captured): { result(): CaptureResult; body: Buffer } {
    this.#captured = new Pieces(sessions);
    const { result: rest, body } = this.#nextPiece();
    return { result: () => ({ ...result, ...rest() }), body };
  }

  #nextPiece(): { result(): CapturedPiece; body: Buffer } {
    const body = this.#captured.take();
    const { left } = this.#captured;
    return { result: () => ({ left }), body };
  }

  async #takeNetwork(token: string): Promise<Reply> {
    const { network, log } = this.#options;
    if (network === undefined || this.#proxy?.config.network !== "own")
      throw fail(
        "PROXY_CONFIG",
        "the proxy was started for an application in the node's network; stop the workload and start it again",
      );
    network.take(token);
    log.info("the container's network is handed over");
    return { result: {} };
  }

  /** The container that it was of goes. */
  #leaveNetwork({ config }: WorkloadProxy): void {
    if (config.network === "own") this.#options.network?.set("own");
  }

  #command<T extends { epoch: number }>(
    name: RoleCommand,
    schema: { parse(value: unknown): T },
    work: (
      proxy: WorkloadProxy,
      params: T,
      body: Buffer,
    ) => Promise<{ result(): unknown; body?: Buffer; after?(): void }>,
  ): Handler {
    return checked(schema, (params, body) =>
      this.#inTurn(async () => {
        const proxy = this.#permit(name, params.epoch);
        const before = proxy.role;
        const startMs = performance.now();
        try {
          const done = await work(proxy, params, body);
          // A command may have taken the role already; the table only knows where it started.
          proxy.role = nextRole(name, before, proxy.isAnchor);
          // Told of an owner to come: nothing is owned at that epoch yet.
          if (name !== "prepareLinks") proxy.epoch = params.epoch;
          done.after?.();
          const ms = Number((performance.now() - startMs).toFixed(3));
          this.#options.log.info(
            { command: name, epoch: params.epoch, role: proxy.role, ms },
            "command done",
          );
          return { result: done.result(), ...(done.body === undefined ? {} : { body: done.body }) };
        } catch (error) {
          this.#options.log.warn(
            { command: name, epoch: params.epoch, role: proxy.role, err: error },
            "command failed",
          );
          throw error;
        }
      }),
    );
  }

  #permit(name: RoleCommand, epoch: number): WorkloadProxy {
    const proxy = this.#proxy;
    if (proxy === null) {
      throw fail("PROXY_STATE", `${name} before configure`);
    }
    if (epoch < proxy.epoch) {
      throw fail(
        "PROXY_FENCED",
        `${name} at epoch ${epoch}, but this proxy has seen ${proxy.epoch}: the workload has had another owner since`,
      );
    }
    if (!isAllowed(name, proxy.role)) {
      throw fail(
        "PROXY_STATE",
        `${name} is not possible while the proxy is ${proxy.role} (possible: ${allowedRoles(name).join(", ")})`,
        { source: "migration" },
      );
    }
    return proxy;
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(work, work);
    this.#last = turn.catch(() => {});
    return turn;
  }
}

/** @throws HoldfastError `PROXY_CONFIG` */
function linkKeysOf(body: Buffer): SharedKeys {
  const keys = splitKeys(body);
  if (keys !== null) return keys;
  throw fail(
    "PROXY_CONFIG",
    `expected 1 to ${KEYS_MAX} link keys of ${KEY_BYTES} bytes each, got ${body.length} bytes`,
  );
}

/** In forward mode a proxy whose ports all move by replay needs no TCP_REPAIR. */
function capturesLegs({ config }: WorkloadProxy): boolean {
  return config.downstream === "takeover" || config.ports.some(({ moveBy }) => moveBy === "transplant");
}

function requireMode(proxy: WorkloadProxy, mode: Configure["downstream"]): void {
  if (proxy.config.downstream === mode) return;
  throw fail("PROXY_STATE", `the workload is configured for ${proxy.config.downstream}, not ${mode}`);
}
