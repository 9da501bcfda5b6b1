/**
 * The store in Redis: one server, a Sentinel group or a Cluster. The only file that talks to Redis.
 *
 *   hf:{WORKLOAD}:owner         hash, see scripts.ts
 *   hf:{WORKLOAD}:held:<epoch>  bytes sealed by the caller, with expiry
 *   hf:{WORKLOAD}:staged:<migration>  the same before the commit, where they are large
 *   hf:{WORKLOAD}:registry      hash: a session's id, what it is as JSON; with expiry
 *   hf:{WORKLOAD}:names         sorted set: names of sessions by when they expire
 *   hf:{WORKLOAD}:link          where its owner takes links, as JSON; changes are published on hf:links
 *   hf:mark                     says which store this is; not in a Cluster
 *
 * What can go wrong is told apart, because the next step of a migration depends on it:
 *   STORE_UNREACHABLE  the request was not carried out (or only read)
 *   STORE_UNKNOWN      a change was sent and no answer came: it may have happened. Repeat it, or `cancel`/`takeBack`.
 * A call is over within `callMs`, whatever Redis does (held bytes: and as long as they take at 20 MB/s). There is no queue of calls for later: reconnecting is the client's
 * business, repeating a call is the caller's.
 *
 * Replication in Redis is asynchronous, so a fail-over may forget the last writes. Where a server has replicas, a change of
 * ownership counts only when all of them that keep up have it (WAIT); fewer, and its outcome is STORE_UNKNOWN. That makes a
 * loss rare, not impossible, and a Cluster's servers are not waited for: so every node guards its own epoch too.
 */
import { Cluster, Redis } from "ioredis";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { type HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { LINKS_CHANNEL, OWNERSHIP_KEYS, OWNERSHIP_SCRIPT } from "./scripts.ts";
import {
  assertRequest,
  type Commit,
  corrupt,
  type LinkRecord,
  linkRecordSchema,
  MARK,
  type Owned,
  type Ownership,
  ownershipSchema,
  type PutLink,
  type PutNames,
  type PutSessions,
  type Reserve,
  refusal,
  type SessionRecord,
  type Status,
  type Step,
  type Store,
  type StoreWatch,
  sessionsSchema,
} from "./store.ts";

export interface RedisAddress {
  host: string;
  port: number;
}

export interface RedisTarget {
  servers: RedisAddress[];
  kind: { type: "single"; db: number } | { type: "sentinel"; name: string; db: number } | { type: "cluster" };
  username?: string;
  password?: string;
  tls: boolean;
}

export interface RedisStoreOptions {
  /** a call settles within this, default 500 */
  callMs?: number;
  /** told once when Redis is lost and once when it is back */
  onDown?(reason: string): void;
  onUp?(): void;
}

const CALL_MS = 500;
/** held bytes up to this travel with the commit */
const COMMIT_BYTES_MAX = 256 * 1024;
/** what a store must take of large held bytes: 20 MB/s */
const HELD_BYTES_PER_MS = 20_000;
const MARK_KEY = "hf:mark";
/** how many replicas there are is asked again after this */
const REPLICAS_MS = 1_000;
/** a replica that was last heard of longer ago is not waited for (Redis hears of each every second) */
const REPLICA_LAG_S_MAX = 2;
/** steps that others build upon */
const WAITED_FOR: ReadonlySet<Step> = new Set([
  "claim",
  "raise",
  "reserve",
  "cancel",
  "commit",
  "markReleased",
  "takeBack",
  "stop",
]);
const WATCH_PING_MS = 5_000;
const RECONNECT_MS_MIN = 50;
const RECONNECT_MS_MAX = 1_000;

type Scripted = { ownershipStep(...args: (string | Buffer)[]): Promise<unknown> };
type Client = (Redis | Cluster) & Scripted;

const replySchema = z
  .tuple([z.enum(["ok", "fenced", "busy", "absent", "corrupt"] satisfies Status[])])
  .rest(z.string());

export class RedisStore implements Store {
  readonly #client: Client;
  readonly #callMs: number;
  readonly #target: RedisTarget;
  readonly #where: string;
  readonly #isCluster: boolean;
  #reason = "no connection yet";
  #down = false;
  /** which connection it is: WAIT speaks only of what was written on its own */
  #connection = 0;
  #replicas = { connection: -1, atMs: 0, count: 0 };

  constructor(target: RedisTarget, options: RedisStoreOptions = {}) {
    this.#callMs = options.callMs ?? CALL_MS;
    this.#target = target;
    this.#isCluster = target.kind.type === "cluster";
    this.#where = target.servers.map(({ host, port }) => `${host}:${port}`).join(",");
    this.#client = connect(target, this.#callMs) as Client;
    this.#client.defineCommand("ownershipStep", { numberOfKeys: OWNERSHIP_KEYS, lua: OWNERSHIP_SCRIPT });
    const lost = (reason: string) => {
      this.#reason = reason;
      if (this.#down) return;
      this.#down = true;
      options.onDown?.(`Redis at ${this.#where}: ${reason}`);
    };
    // Without a listener an 'error' event would end the process.
    this.#client.on("error", (error: Error) => lost(messageOf(error)));
    this.#client.on("close", () => {
      this.#connection++;
    });
    this.#client.on("close", () => lost(this.#down ? this.#reason : "connection closed"));
    this.#client.on("ready", () => {
      if (this.#down) options.onUp?.();
      this.#down = false;
    });
  }

  async ping(): Promise<void> {
    await this.#run("ping", { changes: false }, () => this.#client.ping());
  }

  async ownership(workload: string): Promise<Ownership | null> {
    const { status, found } = await this.#tryStep("read", { workload });
    return status === "absent" ? null : found;
  }

  async claim(request: { workload: string; node: string; epoch?: number }): Promise<Ownership> {
    return this.#step("claim", request);
  }

  async raise(request: Owned): Promise<Ownership> {
    return this.#step("raise", request);
  }

  async reserve(request: Reserve): Promise<Ownership> {
    return this.#step("reserve", request);
  }

  async cancel(request: { workload: string; migration: string }): Promise<Ownership> {
    return this.#step("cancel", request);
  }

  async commit(request: Commit): Promise<Ownership> {
    const { workload, migration, held, ttlMs } = request;
    if (held.length <= COMMIT_BYTES_MAX) return this.#step("commit", request, { where: "here", bytes: held });
    assertRequest(request);
    // Not fenced, and nothing but expiry undoes it; the commit that makes it count is short.
    const key = stagedKey(workload, migration);
    const run = { changes: false, key, callMs: this.#callMs + held.length / HELD_BYTES_PER_MS };
    await this.#run("commit", run, () => this.#client.set(key, held, "PX", ttlMs));
    return this.#step("commit", request, { where: "staged" });
  }

  async markReleased(request: Owned): Promise<Ownership> {
    return this.#step("markReleased", request);
  }

  async takeBack(request: { workload: string; node: string; migration: string }): Promise<Ownership> {
    return this.#step("takeBack", request);
  }

  async held(request: { workload: string; epoch: number }): Promise<Buffer | null> {
    assertRequest(request);
    const key = heldKey(request.workload, request.epoch);
    const sizeBytes = await this.#run("held", { changes: false, key }, () => this.#client.strlen(key));
    const run = { changes: false, key, callMs: this.#callMs + sizeBytes / HELD_BYTES_PER_MS };
    return this.#run("held", run, () => this.#client.getBuffer(key));
  }

  async stop(request: Owned): Promise<Ownership> {
    return this.#step("stop", request);
  }

  async mark(): Promise<string | null> {
    if (this.#isCluster) return null;
    const text = await this.#run("mark", { changes: false }, () => this.#client.get(MARK_KEY));
    if (text !== null && !MARK.test(text)) throw corrupt(MARK_KEY, "not a mark");
    return text;
  }

  async setMark(mark: string): Promise<string | null> {
    if (this.#isCluster) return null;
    await this.#run("mark", { changes: true }, () => this.#client.setnx(MARK_KEY, mark));
    return this.mark();
  }

  async putSessions(request: PutSessions): Promise<void> {
    const { sessions, gone, anew } = request;
    const pairs = sessions.flatMap((session) => [session.id, JSON.stringify(session)]);
    const bytes = Buffer.from(JSON.stringify({ anew, sessions: pairs, gone }));
    await this.#step("sessions", request, { where: "here", bytes });
  }

  async sessions(workload: string): Promise<SessionRecord[]> {
    assertRequest({ workload });
    const key = sessionsKey(workload);
    const texts = await this.#run("sessions", { changes: false, key }, () => this.#client.hvals(key));
    let value: unknown;
    try {
      value = texts.map((text) => JSON.parse(text) as unknown);
    } catch {
      throw corrupt(key, "not JSON");
    }
    const checked = sessionsSchema.safeParse(value);
    if (!checked.success) throw corrupt(key, "not a list of sessions");
    return checked.data;
  }

  async putNames(request: PutNames): Promise<void> {
    const bytes = Buffer.from(JSON.stringify(request.names));
    await this.#step("names", request, { where: "here", bytes });
  }

  async putLink(request: PutLink): Promise<void> {
    const bytes = Buffer.from(JSON.stringify(request.record));
    await this.#step("link", request, { where: "here", bytes });
  }

  async link(workload: string): Promise<LinkRecord | null> {
    assertRequest({ workload });
    const key = linkKey(workload);
    const text = await this.#run("link", { changes: false, key }, () => this.#client.get(key));
    if (text === null) return null;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      throw corrupt(key, "not JSON");
    }
    const checked = linkRecordSchema.safeParse(value);
    if (!checked.success) throw corrupt(key, `field ${checked.error.issues[0]?.path.join(".")}`);
    return checked.data;
  }

  /** On a connection of its own: one that has subscribed takes no other commands. */
  watchLinks(onChange: (workload: string | null) => void): StoreWatch {
    const client = connect(this.#target, this.#callMs);
    client.on("error", () => {}); // the other connection tells
    client.on("message", (_channel: string, workload: string) => onChange(workload));
    const subscribe = (): void => {
      client.subscribe(LINKS_CHANNEL).then(
        () => onChange(null),
        () => client.disconnect(true),
      );
    };
    client.on("ready", subscribe);
    // a server that is gone without a word sends no messages either: it is noticed by a command that it does not answer
    const timer = setInterval(() => {
      if (client.status === "ready" && client instanceof Redis) client.ping().catch(() => {});
    }, WATCH_PING_MS).unref();
    return {
      close: () => {
        clearInterval(timer);
        client.disconnect();
      },
    };
  }

  async lookup({ workload, name }: { workload: string; name: string }): Promise<Ownership | null> {
    const bytes = Buffer.from(name);
    const { status, found } = await this.#tryStep("lookup", { workload }, { where: "here", bytes });
    return status === "ok" ? found : null;
  }

  /** Calls still under way end with an error. */
  async close(): Promise<void> {
    this.#client.disconnect();
  }

  async #step(step: Step, request: StepRequest, payload?: Payload): Promise<Ownership> {
    const { status, found } = await this.#tryStep(step, request, payload);
    if (status !== "ok" || found === null) throw refusal(status, step, request.workload, found);
    return found;
  }

  async #tryStep(
    step: Step,
    request: StepRequest,
    payload: Payload = { where: "here", bytes: "" },
  ): Promise<{ status: Status; found: Ownership | null }> {
    assertRequest(request);
    const { workload, node = "", epoch = "", migration = "", target = "", ttlMs = "" } = request;
    const { namesMax = "", epochMin = "" } = request;
    const key = ownerKey(workload);
    const keys = [
      key,
      heldKey(workload, ""),
      sessionsKey(workload),
      stagedKey(workload, migration),
      namesKey(workload),
      linkKey(workload),
    ];
    const bytes = payload.where === "here" ? payload.bytes : "";
    const move = [step, node, `${epoch}`, migration, target];
    const args = [...move, `${ttlMs}`, payload.where, bytes, `${namesMax}`, `${epochMin}`];
    const changes = step !== "read" && step !== "lookup";
    const reply = await this.#run(step, { changes, key }, async (deadlineMs) => {
      const connection = this.#connection;
      const answer = await this.#client.ownershipStep(...keys, ...args);
      if (WAITED_FOR.has(step)) await this.#untilReplicated(connection, deadlineMs);
      return answer;
    });
    return readReply(key, reply);
  }

  /** @throws Error when a replica that keeps up has not said in time that it has what was written */
  async #untilReplicated(connection: number, deadlineMs: number): Promise<void> {
    if (this.#isCluster) return;
    const known = this.#replicas;
    if (known.connection !== connection || performance.now() - known.atMs > REPLICAS_MS) {
      const count = countReplicas(await this.#client.info("replication"));
      this.#replicas = { connection, atMs: performance.now(), count };
    }
    const { count } = this.#replicas;
    if (count === 0) return;
    const waitMs = Math.max(1, Math.floor((deadlineMs - performance.now()) / 2)); // 0 would wait for ever
    const acknowledged = await this.#client.wait(count, waitMs);
    if (this.#connection !== connection)
      throw new Error("the connection was lost before the replicas had it");
    if (acknowledged >= count) return;
    this.#replicas.connection = -1; // perhaps one has left
    throw new Error(`${acknowledged} of ${count} replicas have it after ${waitMs} ms`);
  }

  /** @throws HoldfastError, always one of ours, at most `callMs` from now */
  async #run<T>(
    what: string,
    { changes, key, callMs = this.#callMs }: { changes: boolean; key?: string; callMs?: number },
    send: (deadlineMs: number) => Promise<T>,
  ): Promise<T> {
    const deadlineMs = performance.now() + callMs;
    await this.#ready(what, deadlineMs);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      const leftMs = Math.max(1, deadlineMs - performance.now());
      timer = setTimeout(() => reject(new Error(`no answer within ${Math.round(callMs)} ms`)), leftMs);
    });
    try {
      return await Promise.race([send(deadlineMs), late]);
    } catch (error) {
      throw this.#explain(what, changes, error as Error, key);
    } finally {
      clearTimeout(timer);
    }
  }

  async #ready(what: string, deadlineMs: number): Promise<void> {
    if (this.#client.status === "ready") return;
    const { promise, resolve } = Promise.withResolvers<boolean>();
    const onReady = () => resolve(true);
    this.#client.once("ready", onReady);
    const timer = setTimeout(() => resolve(false), deadlineMs - performance.now());
    if (this.#client.status === "end") resolve(false);
    const ready = await promise;
    clearTimeout(timer);
    this.#client.off("ready", onReady);
    if (!ready) throw this.#unreachable(what, this.#reason);
  }

  #explain(what: string, changes: boolean, error: Error, key: string | undefined): HoldfastError {
    const text = messageOf(error);
    if (error.name === "ReplyError") {
      if (key !== undefined && text.startsWith("WRONGTYPE")) return corrupt(key, "another type of key");
      return this.#unreachable(what, `it answers ${text}`, !/^(NOAUTH|WRONGPASS|NOPERM)/.test(text));
    }
    if (!changes || /enableOfflineQueue/.test(text)) return this.#unreachable(what, text);
    return fail(
      "STORE_UNKNOWN",
      `Redis at ${this.#where}: ${what} was sent and not answered (${text}): it may or may not have happened`,
    );
  }

  #unreachable(what: string, reason: string, retryable = true): HoldfastError {
    return fail(
      "STORE_UNREACHABLE",
      `Redis at ${this.#where} cannot be used, ${what} was not done: ${reason}`,
      { retryable },
    );
  }
}

type Payload = { where: "here"; bytes: Buffer | "" } | { where: "staged" };

type StepRequest = {
  workload: string;
  node?: string;
  epoch?: number;
  migration?: string;
  target?: string;
  epochMin?: number;
  ttlMs?: number;
  names?: readonly string[];
  namesMax?: number;
};

function connect(target: RedisTarget, callMs: number): Redis | Cluster {
  const retryStrategy = (attempt: number) =>
    Math.min(RECONNECT_MS_MIN * 2 ** Math.min(attempt - 1, 10), RECONNECT_MS_MAX);
  const common = {
    ...(target.username === undefined ? {} : { username: target.username }),
    ...(target.password === undefined ? {} : { password: target.password }),
    ...(target.tls ? { tls: {} } : {}),
    connectTimeout: 2 * callMs,
    // A server that is gone without a word (a lost node) would keep the connection "up" for a quarter of an hour.
    socketTimeout: 2 * callMs,
    // In-flight calls fail at once when the connection is lost, and are never sent again behind the caller's back.
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    // After a fail-over the old master answers READONLY: ask for the address, Sentinel or the Cluster again.
    reconnectOnError: (error: Error) => (isOfReplica(error.message) ? (1 as const) : false),
  };
  const { kind, servers } = target;
  switch (kind.type) {
    case "single": {
      const { host, port } = servers[0] as RedisAddress;
      return new Redis({ ...common, host, port, db: kind.db, retryStrategy, enableOfflineQueue: false });
    }
    case "sentinel":
      return new Redis({
        ...common,
        sentinels: servers,
        name: kind.name,
        db: kind.db,
        retryStrategy,
        sentinelRetryStrategy: retryStrategy,
        enableOfflineQueue: false,
        failoverDetector: true,
      });
    case "cluster":
      return new Cluster(servers, {
        redisOptions: common,
        enableOfflineQueue: false,
        clusterRetryStrategy: retryStrategy,
        maxRedirections: 5,
        slotsRefreshTimeout: 2 * callMs,
      });
  }
}

/** Of INFO replication: `slaveN:ip=…,port=…,state=online,offset=…,lag=SECONDS`, those that keep up. */
function countReplicas(info: string): number {
  const replicas = info.matchAll(/^slave\d+:.*\bstate=online\b.*\blag=(\d+)/gm);
  return [...replicas].filter(([, lag]) => Number(lag) <= REPLICA_LAG_S_MAX).length;
}

/**
 * The server is a replica now. Redis up to 6 hides that in what its scripts answer: "ERR Error running script (call to f_…):
 * @user_script:5: @user_script: 5: -READONLY You can't write against a read only replica."
 */
export function isOfReplica(error: string): boolean {
  return /^(READONLY|MASTERDOWN) /.test(error) || /@user_script:.*-(READONLY|MASTERDOWN) /.test(error);
}

function readReply(key: string, reply: unknown): { status: Status; found: Ownership | null } {
  const parsed = replySchema.safeParse(reply);
  if (!parsed.success) throw corrupt(key, "the script's answer cannot be read");
  const [status, owner, epoch, state, previous, id, target, migrationEpoch] = parsed.data;
  if (status === "corrupt") throw corrupt(key, "fields are missing or contradict each other");
  if (owner === undefined) return { status, found: null };
  const record = ownershipSchema.safeParse({
    owner,
    epoch: Number(epoch),
    state,
    previous: previous === "" ? null : previous,
    migration: id === "" ? null : { id, target, epoch: Number(migrationEpoch) },
  });
  if (!record.success) throw corrupt(key, `field ${record.error.issues[0]?.path.join(".")}`);
  return { status, found: record.data };
}

function ownerKey(workload: string): string {
  return `hf:{${workload}}:owner`;
}

function heldKey(workload: string, epoch: number | ""): string {
  return `hf:{${workload}}:held:${epoch}`;
}

function stagedKey(workload: string, migration: string): string {
  return `hf:{${workload}}:staged:${migration}`;
}

function linkKey(workload: string): string {
  return `hf:{${workload}}:link`;
}

function namesKey(workload: string): string {
  return `hf:{${workload}}:names`;
}

function sessionsKey(workload: string): string {
  return `hf:{${workload}}:registry`;
}
