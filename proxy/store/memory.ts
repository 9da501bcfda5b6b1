/**
 * The store of an agent that is alone (`store: memory:`): nothing survives it, nobody else sees it. It says in
 * TypeScript what `scripts.ts` says in Lua; one test runs both against each other.
 */
import assert from "node:assert/strict";
import {
  assertRequest,
  CANCELLED_MAX,
  type Commit,
  type LinkRecord,
  type Owned,
  type Ownership,
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
  epochMin?: number;
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
  readonly #links = new Map<string, LinkRecord>();
  readonly #watchers = new Set<(workload: string | null) => void>();
  readonly #nowMs: () => number;
  #mark: string | null = null;

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

  async raise(request: Owned): Promise<Ownership> {
    return this.#step({ step: "raise", ...request });
  }

  async takeBack(request: { workload: string; node: string; migration: string }): Promise<Ownership> {
    return this.#step({ step: "takeBack", ...request });
  }

  async held(request: { workload: string; epoch: number }): Promise<Buffer | null> {
    assertRequest(request);
    return this.#get(heldKey(request.workload, request.epoch));
  }

  async stop(request: Owned): Promise<Ownership> {
    const after = this.#step({ step: "stop", ...request });
    this.#bytes.delete(heldKey(request.workload, request.epoch));
    this.#bytes.delete(sessionsKey(request.workload));
    this.#names.delete(request.workload);
    if (this.#links.delete(request.workload)) this.#tell(request.workload);
    return after;
  }

  async mark(): Promise<string | null> {
    return this.#mark;
  }

  async setMark(mark: string): Promise<string> {
    this.#mark ??= mark;
    return this.#mark;
  }

  async putSessions(request: PutSessions): Promise<void> {
    this.#step({ step: "sessions", ...request });
    const { workload, sessions, gone, anew, ttlMs } = request;
    const known = new Map(
      (anew ? [] : await this.sessions(workload)).map((session) => [session.id, session]),
    );
    for (const session of sessions) known.set(session.id, session);
    for (const id of gone) known.delete(id);
    this.#put(sessionsKey(workload), Buffer.from(JSON.stringify([...known.values()])), ttlMs);
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

  async putLink(request: PutLink): Promise<void> {
    const { workload, record } = request;
    this.#step({ step: "link", ...request });
    const isNews = JSON.stringify(this.#links.get(workload)) !== JSON.stringify(record);
    this.#links.set(workload, structuredClone(record));
    if (isNews) this.#tell(workload);
  }

  async link(workload: string): Promise<LinkRecord | null> {
    assertRequest({ workload });
    return structuredClone(this.#links.get(workload) ?? null);
  }

  watchLinks(onChange: (workload: string | null) => void): StoreWatch {
    this.#watchers.add(onChange);
    setImmediate(() => {
      if (this.#watchers.has(onChange)) onChange(null);
    });
    return { close: () => this.#watchers.delete(onChange) };
  }

  #tell(workload: string): void {
    for (const onChange of this.#watchers) setImmediate(onChange, workload);
  }

  async close(): Promise<void> {
    this.#links.clear();
    this.#watchers.clear();
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
    const isOver = request.step === "takeBack" ? before?.state === "committed" : request.step === "raise";
    if (isOver && before !== undefined && before !== after)
      this.#bytes.delete(heldKey(request.workload, before.epoch));
    assertNext(before, after);
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

const BLANK: Workload = {
  owner: "",
  epoch: 0,
  state: "released",
  previous: null,
  migration: null,
  committed: null,
  returned: null,
  cancelled: [],
  top: 0,
};

/** One step on one record; never changes its argument. */
function transition(
  w: Workload | undefined,
  request: StepRequest,
): { status: Status; after: Workload | undefined } {
  const { step, node = "", migration: id = "", target = "" } = request;
  const same = (status: Status) => ({ status, after: w });
  if (step === "claim") {
    if (w !== undefined && w.state !== "stopped") return same("ok");
    const epoch = Math.max(request.epoch ?? 1, (w?.top ?? 0) + 1);
    return { status: "ok", after: { ...(w ?? BLANK), owner: node, epoch, state: "released", top: epoch } };
  }
  if (step === "raise") {
    const { epoch = 1 } = request;
    const has = w !== undefined && w.owner === node;
    if (has && w.state === "released" && w.epoch >= epoch) return same("ok");
    const refused = w?.epoch === epoch && (!has || w.state === "stopped");
    if (w !== undefined && (w.epoch > epoch || refused)) return same("fenced");
    const from = w ?? BLANK;
    const previous = w === undefined || has ? from.previous : w.owner;
    const top = Math.max(epoch, from.top);
    const committed = from.epoch === epoch ? from.committed : null;
    return {
      status: "ok",
      after: { ...from, owner: node, epoch, state: "released", previous, migration: null, committed, top },
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
      const top = Math.max(w.top + 1, request.epochMin ?? 1);
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
      if (!mine || w.state === "stopped") return same("fenced");
      if (w.state === "released") return same("ok");
      return { status: "ok", after: { ...w, state: "released", migration: null } };
    case "takeBack": {
      if (w.returned === id && w.owner === node && w.state === "released") return same("ok");
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
    case "stop":
      if (!mine) return same("fenced");
      if (w.migration !== null) return same("busy");
      return { status: "ok", after: { ...w, state: "stopped" } };
    case "lookup":
      return same("ok");
    case "sessions":
    case "link":
    case "names":
      return same(mine && w.state !== "stopped" ? "ok" : "fenced");
  }
}

/** What no step may come to; a Redis says so of its records in the script (`corrupt`). */
function assertNext(before: Workload | undefined, after: Workload): void {
  const { epoch, top, state, migration, owner } = after;
  assert(epoch >= (before?.epoch ?? 1) && top >= (before?.top ?? 1), "epochs never fall");
  assert(epoch <= top, "an epoch was given out before somebody has it");
  assert(migration === null || migration.epoch <= top, "… and before somebody is promised it");
  if (state === "stopped") assert(migration === null, "what is stopped does not move");
  else if (state === "committed")
    assert(
      migration?.epoch === epoch && migration.target === owner,
      "what is committed belongs to its target",
    );
  else assert(migration === null || migration.epoch > epoch, "what is promised is above what there is");
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
