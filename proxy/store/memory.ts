/**
 * The store of an agent that is alone (`store: memory:`): nothing survives it, nobody else sees it. It says in
 * TypeScript what `scripts.ts` says in Lua; one test runs both against each other.
 */
import {
  assertRequest,
  CANCELLED_MAX,
  type Commit,
  type Owned,
  type Ownership,
  type PutNames,
  type PutSessions,
  type Reserve,
  refusal,
  type SessionRecord,
  type Status,
  type Step,
  type Store,
} from "./store.ts";

interface Workload extends Ownership {
  committed: string | null;
  returned: string | null;
  cancelled: string[];
  top: number;
}

interface Expiring {
  bytes: Buffer;
  expiresAtMs: number;
}

interface StepRequest {
  step: Step;
  workload: string;
  node?: string;
  epoch?: number;
  migration?: string;
  target?: string;
  names?: readonly string[];
  namesMax?: number;
}

export class MemoryStore implements Store {
  readonly #workloads = new Map<string, Workload>();
  readonly #bytes = new Map<string, Expiring>();
  /** names of sessions by when they expire, by workload; the one seen longest ago comes first */
  readonly #names = new Map<string, Map<string, number>>();
  readonly #nowMs: () => number;

  constructor(nowMs: () => number = () => performance.now()) {
    this.#nowMs = nowMs;
  }

  async ping(): Promise<void> {}

  async ownership(workload: string): Promise<Ownership | null> {
    assertRequest({ workload });
    return copy(this.#workloads.get(workload));
  }

  async claim(request: { workload: string; node: string; epoch?: number }): Promise<Ownership> {
    return this.#step({ step: "claim", ...request });
  }

  async reserve(request: Reserve): Promise<Ownership> {
    return this.#step({ step: "reserve", ...request });
  }

  async cancel(request: { workload: string; migration: string }): Promise<Ownership> {
    return this.#step({ step: "cancel", ...request });
  }

  async commit(request: Commit): Promise<Ownership> {
    const before = this.#workloads.get(request.workload)?.committed;
    const after = this.#step({ step: "commit", ...request });
    if (before !== request.migration) {
      this.#put(heldKey(request.workload, after.epoch), request.held, request.ttlMs);
    }
    return after;
  }

  async markReleased(request: Owned): Promise<Ownership> {
    const after = this.#step({ step: "markReleased", ...request });
    this.#bytes.delete(heldKey(request.workload, after.epoch));
    return after;
  }

  async takeBack(request: { workload: string; node: string; migration: string }): Promise<Ownership> {
    return this.#step({ step: "takeBack", ...request });
  }

  async held(request: { workload: string; epoch: number }): Promise<Buffer | null> {
    assertRequest(request);
    return this.#get(heldKey(request.workload, request.epoch));
  }

  async forget(request: Owned): Promise<void> {
    assertRequest(request);
    if (!this.#workloads.has(request.workload)) return;
    this.#step({ step: "forget", ...request });
    this.#workloads.delete(request.workload);
    this.#bytes.delete(heldKey(request.workload, request.epoch));
    this.#bytes.delete(sessionsKey(request.workload));
    this.#names.delete(request.workload);
  }

  async putSessions(request: PutSessions): Promise<void> {
    this.#step({ step: "sessions", ...request });
    this.#put(sessionsKey(request.workload), Buffer.from(JSON.stringify(request.sessions)), request.ttlMs);
  }

  async sessions(workload: string): Promise<SessionRecord[]> {
    assertRequest({ workload });
    const bytes = this.#get(sessionsKey(workload));
    return bytes === null ? [] : (JSON.parse(bytes.toString()) as SessionRecord[]);
  }

  async putNames(request: PutNames): Promise<void> {
    const { workload, names, ttlMs, namesMax } = request;
    this.#step({ step: "names", ...request });
    const known = this.#names.get(workload) ?? new Map<string, number>();
    this.#names.set(workload, known);
    const nowMs = this.#nowMs();
    for (const name of names) {
      known.delete(name);
      known.set(name, nowMs + ttlMs);
    }
    for (const [name, expiresAtMs] of known)
      if (expiresAtMs <= nowMs || known.size > namesMax) known.delete(name);
  }

  async lookup({ workload, name }: { workload: string; name: string }): Promise<Ownership | null> {
    assertRequest({ workload });
    const expiresAtMs = this.#names.get(workload)?.get(name) ?? 0;
    return expiresAtMs > this.#nowMs() ? copy(this.#workloads.get(workload)) : null;
  }

  async close(): Promise<void> {
    this.#names.clear();
    this.#workloads.clear();
    this.#bytes.clear();
  }

  #step(request: StepRequest): Ownership {
    assertRequest(request);
    const before = this.#workloads.get(request.workload);
    const { status, after } = transition(before, request);
    const shown = copy(after);
    if (status !== "ok" || after === undefined || shown === null) {
      throw refusal(status, request.step, request.workload, shown);
    }
    if (request.step === "takeBack" && before?.state === "committed") {
      this.#bytes.delete(heldKey(request.workload, before.epoch));
    }
    this.#workloads.set(request.workload, after);
    return shown;
  }

  #put(key: string, bytes: Buffer, ttlMs: number): void {
    this.#bytes.set(key, { bytes: Buffer.from(bytes), expiresAtMs: this.#nowMs() + ttlMs });
  }

  #get(key: string): Buffer | null {
    const found = this.#bytes.get(key);
    if (found === undefined) return null;
    if (found.expiresAtMs > this.#nowMs()) return Buffer.from(found.bytes);
    this.#bytes.delete(key);
    return null;
  }
}

/** One step on one record; never changes its argument. */
function transition(
  w: Workload | undefined,
  request: StepRequest,
): { status: Status; after: Workload | undefined } {
  const { step, node = "", migration: id = "", target = "" } = request;
  const same = (status: Status) => ({ status, after: w });
  if (step === "claim") {
    if (w !== undefined) return same("ok");
    const epoch = request.epoch ?? 1;
    const fresh = { committed: null, returned: null, cancelled: [], top: epoch };
    return {
      status: "ok",
      after: { owner: node, epoch, state: "released", previous: null, migration: null, ...fresh },
    };
  }
  if (w === undefined) return same("absent");
  const mine = w.owner === node && w.epoch === request.epoch;
  const wasCancelled = w.cancelled.includes(id);
  const cancelled = wasCancelled ? w.cancelled : [...w.cancelled, id].slice(-CANCELLED_MAX);
  switch (step) {
    case "read":
      return same("ok");
    case "reserve": {
      if (!mine || w.state !== "released" || wasCancelled) return same("fenced");
      if (w.migration !== null) {
        return same(w.migration.id === id && w.migration.target === target ? "ok" : "busy");
      }
      const top = w.top + 1;
      return { status: "ok", after: { ...w, top, migration: { id, target, epoch: top } } };
    }
    case "cancel":
      if (w.committed === id) return same("ok");
      return {
        status: "ok",
        after: { ...w, cancelled, migration: w.migration?.id === id ? null : w.migration },
      };
    case "commit":
      if (w.committed === id) return same("ok");
      if (!mine || w.migration?.id !== id) return same("fenced");
      return {
        status: "ok",
        after: {
          ...w,
          previous: node,
          owner: w.migration.target,
          epoch: w.migration.epoch,
          state: "committed",
          committed: id,
        },
      };
    case "markReleased":
      if (!mine) return same("fenced");
      if (w.state === "released") return same("ok");
      return { status: "ok", after: { ...w, state: "released", migration: null } };
    case "takeBack": {
      if (w.returned === id && w.owner === node) return same("ok");
      const undoes = w.state === "committed" && w.migration?.id === id && w.previous === node;
      const keeps =
        w.owner === node &&
        w.state === "released" &&
        w.committed !== id &&
        (w.migration === null ? wasCancelled : w.migration.id === id);
      if (!undoes && !keeps) return same("fenced");
      const top = w.top + 1;
      const undone = undoes ? { previous: w.owner, committed: null } : {};
      return {
        status: "ok",
        after: {
          ...w,
          ...undone,
          owner: node,
          epoch: top,
          top,
          state: "released",
          migration: null,
          returned: id,
          cancelled,
        },
      };
    }
    case "forget":
      if (!mine) return same("fenced");
      return same(w.migration === null ? "ok" : "busy");
    case "lookup":
      return same("ok");
    case "sessions":
    case "names":
      return same(mine ? "ok" : "fenced");
  }
}

function copy(w: Workload | undefined): Ownership | null {
  if (w === undefined) return null;
  const { owner, epoch, state, previous, migration } = w;
  return { owner, epoch, state, previous, migration: migration === null ? null : { ...migration } };
}

function heldKey(workload: string, epoch: number): string {
  return `${workload}:held:${epoch}`;
}

function sessionsKey(workload: string): string {
  return `${workload}:sessions`;
}
