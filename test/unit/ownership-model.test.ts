/**
 * The ownership protocol of a move as a model: a source, a target and the real in-memory store, with agents that crash and
 * start again, a network between them that breaks, requests to the store that are lost, late or answered to nobody, and a
 * store that forgets. fast-check chooses what happens next.
 *
 *   always      the application is never let go on at both nodes
 *   at the end  (faults over, everything that can happen has) it goes on at exactly one, and the store names that one;
 *               where the store has forgotten everything in mid-move, only the first is promised
 *
 * The model says what `Departure`, `Arrival`, `settle.ts` and their recovery decide, not how they do it.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import type { Ownership, Store } from "#proxy/store/store.ts";

const W = "chat";
const MIGRATION = "m1";
const HELD_TTL_MS = 1_000_000;
const CODES = ["STORE_FENCED", "STORE_ABSENT", "STORE_BUSY"];

type Answer = Ownership | "fenced" | "absent";

interface Request {
  run(store: Store): Promise<Ownership>;
  /** null: whoever asked has died or does not wait any more */
  reply: ((answer: Answer) => void) | null;
}

class World {
  store = new MemoryStore();
  requests: Request[] = [];
  /** between the agents: nothing passes while broken; the channel of the move ends and does not come back */
  broken = false;
  channel = false;
  readonly forgetful: boolean;
  wiped = false;
  source = {
    alive: true,
    running: true,
    waits: null as Request | null,
    goingBack: false,
    mayRelease: false,
    // the journal
    step: "idle" as "idle" | "reserving" | "reserved" | "held" | "committing" | "granted" | "here" | "there",
    epoch: 1,
    target: 0,
    owed: null as "cancelled" | "taken-back" | null,
    /** the store contradicted the owed */
    raises: false,
  };
  target = {
    alive: true,
    running: false,
    waits: null as Request | null,
    asked: false,
    // the journal
    step: "none" as "none" | "restored" | "releasing" | "released" | "gave-up",
    /** at which it goes on */
    epoch: 0,
    owed: false,
  };

  constructor(forgetful: boolean) {
    this.forgetful = forgetful;
  }

  async begin(): Promise<void> {
    await this.store.claim({ workload: W, node: "a" });
  }

  check(): void {
    assert.ok(!(this.source.running && this.target.running), "the application goes on at both nodes");
  }

  // ---- what may happen next

  actions(faults: boolean): [string, () => Promise<void> | void][] {
    const { source, target } = this;
    const list: [string, () => Promise<void> | void][] = [];
    const add = (name: string, when: boolean, act: () => Promise<void> | void): void => {
      if (when) list.push([name, act]);
    };
    for (const request of this.requests) {
      add("the store carries out and answers", true, () => this.#carryOut(request, true));
      if (faults) {
        add("the store carries out, the answer is lost", true, () => this.#carryOut(request, false));
        add("a request is lost", true, () => this.#drop(request));
        add("nobody waits any longer for a request", request.reply !== null, () =>
          this.#giveUpWaiting(request),
        );
      }
    }
    if (faults) {
      add("the source's agent dies", source.alive, () => this.#crashSource());
      add("the target's agent dies", target.alive, () => this.#crashTarget());
      add("the store forgets", this.forgetful && !this.wiped, () => {
        this.wiped = true;
        this.store = new MemoryStore();
      });
      add("the network breaks", !this.broken, () => {
        this.broken = true;
        this.channel = false;
      });
    }
    add("the source's agent starts", !source.alive, () => this.#startSource());
    add("the target's agent starts", !target.alive, () => {
      target.alive = true;
      if (target.step === "released") target.running = true;
    });
    add("the network heals", this.broken, () => {
      this.broken = false;
    });
    this.#sourceActions(add, faults);
    this.#targetActions(add);
    return list;
  }

  #sourceActions(
    add: (name: string, when: boolean, act: () => Promise<void> | void) => void,
    faults: boolean,
  ): void {
    const { source, target } = this;
    const idle = source.alive && source.waits === null;
    add("reserve", idle && source.step === "idle", () => {
      source.step = "reserving";
      source.waits = this.#ask(
        (store) =>
          store.reserve({ workload: W, node: "a", epoch: source.epoch, migration: MIGRATION, target: "b" }),
        (answer) => {
          source.waits = null;
          if (typeof answer === "string") return this.#goOnHere(null);
          source.step = "reserved";
          source.target = answer.migration?.epoch ?? 0;
        },
      );
    });
    add("give up reserving", idle && source.step === "reserving", () => this.#goOnHere(null));
    add(
      "prepare, hold, dump, restore",
      idle && source.step === "reserved" && target.alive && !this.broken,
      () => {
        this.channel = true;
        source.running = false;
        source.step = "held";
        if (target.step === "none") target.step = "restored";
      },
    );
    add("cannot prepare", idle && source.step === "reserved" && (!target.alive || this.broken), () =>
      this.#goOnHere(null),
    );
    add("commit", idle && source.step === "held" && this.channel, () => {
      source.step = "committing";
      source.waits = this.#ask(
        (store) =>
          store.commit({
            workload: W,
            node: "a",
            epoch: source.epoch,
            migration: MIGRATION,
            held: Buffer.alloc(0),
            ttlMs: HELD_TTL_MS,
          }),
        (answer) => {
          source.waits = null;
          if (typeof answer === "string") source.goingBack = true;
          else source.mayRelease = true;
        },
      );
    });
    add("roll back before the commit", idle && source.step === "held" && (faults || !this.channel), () =>
      this.#goOnHere(null),
    );
    const unclear = idle && (source.step === "committing" || source.step === "granted");
    add("release", unclear && source.mayRelease && this.channel && !target.asked, () => {
      target.asked = true;
    });
    add("go back", unclear && !source.goingBack && (faults || !this.channel || !source.mayRelease), () => {
      source.goingBack = true;
    });
    add("ask the target", unclear && source.goingBack && target.alive && !this.broken, () => {
      const word = this.#targetsWord();
      if (word === "gave-up") this.#goOnHere(null);
      else if (word === "released") source.step = "there";
    });
    const isUnsure = target.step === "releasing" && target.waits === null;
    const grants = unclear && source.goingBack && target.alive && !this.broken && isUnsure;
    // whatever has been asked of the store before, and may still be carried out, has a lower epoch
    const grant = (answered: boolean) => () => {
      source.step = "granted";
      this.#comeAlive(source.target + 2, true);
      if (answered) source.step = "there";
    };
    add("give word to a target that is unsure", grants, grant(true));
    add("give word to a target that is unsure, whose answer is lost", grants && faults, grant(false));
    add("take back", unclear && source.goingBack && source.step === "committing", () => {
      source.waits = this.#takeBack((answer) => {
        source.waits = null;
        if (answer === "fenced") this.#look();
        else if (answer !== "absent") this.#goOnHere(answer.epoch);
      });
    });
    add("look into the store", unclear && source.goingBack && source.step === "granted", () => this.#look());
    add("tell the store that it was cancelled", idle && source.owed === "cancelled", () => {
      source.waits = this.#ask(
        (store) => store.cancel({ workload: W, migration: MIGRATION }),
        () => {
          source.waits = null;
          source.owed = null;
        },
      );
    });
    add("tell the store that it was taken back", idle && source.owed === "taken-back", () => {
      source.waits = this.#takeBack((answer) => {
        source.waits = null;
        if (typeof answer === "string") source.raises = true;
        else source.owed = null;
        if (typeof answer !== "string") source.epoch = answer.epoch;
      });
    });
    add("raise the record", idle && source.raises, () => {
      source.waits = this.#ask(
        (store) => store.raise({ workload: W, node: "a", epoch: source.epoch }),
        () => {
          Object.assign(source, { waits: null, raises: false, owed: null });
        },
      );
    });
  }

  /** What the record says of the target; of one that says nothing of it, nothing follows. */
  #look(): void {
    const { source } = this;
    source.waits = this.#ask(
      (store) => store.ownership(W) as Promise<Ownership>,
      (answer) => {
        source.waits = null;
        if (typeof answer === "string" || answer === null || answer.owner === "a") return;
        if (answer.state === "released" && answer.epoch >= source.target) source.step = "there";
      },
    );
  }

  #targetActions(add: (name: string, when: boolean, act: () => Promise<void> | void) => void): void {
    const { source, target } = this;
    const idle = target.alive && target.waits === null;
    const owned = { workload: W, node: "b", epoch: source.target };
    const markReleased = (): void => {
      target.step = "releasing";
      target.waits = this.#ask(
        (store) => store.markReleased(owned),
        (answer) => {
          target.waits = null;
          if (answer === "fenced") target.step = "gave-up";
          else if (answer !== "absent" && target.step === "releasing") this.#comeAlive(source.target, false);
        },
      );
    };
    add("mark released", idle && target.step === "restored" && target.asked, markReleased);
    add("mark released again", idle && target.step === "releasing" && target.asked, markReleased);
    const grants = source.alive && !source.goingBack && ["committing", "granted"].includes(source.step);
    add("be granted", idle && target.step === "releasing" && target.asked && this.channel && grants, () => {
      source.step = "granted";
      this.#comeAlive(source.target, true);
    });
    add("grant whose answer is lost", idle && target.step === "releasing" && this.channel && grants, () => {
      source.step = "granted";
      this.channel = false;
    });
    const alone =
      !this.channel && !target.asked && (target.step === "restored" || target.step === "releasing");
    add("ask the store alone", idle && alone, () => {
      target.waits = this.#ask(
        (store) => store.cancel({ workload: W, migration: MIGRATION }),
        (answer) => {
          target.waits = null;
          if (target.step === "gave-up") return;
          const mine = typeof answer !== "string" && answer.owner === "b" && answer.epoch === source.target;
          if (mine) target.asked = true;
          else target.step = "gave-up";
        },
      );
    });
    add("tell the store that it is released", idle && target.owed, () => {
      target.waits = this.#ask(
        (store) => store.raise({ ...owned, epoch: target.epoch }),
        () => {
          target.waits = null;
          target.owed = false;
        },
      );
    });
  }

  // ---- what they do

  /** Given up by being asked, unless the store may have been told already. null: it cannot say yet */
  #targetsWord(): "gave-up" | "released" | null {
    const { target } = this;
    if (target.step === "released") return "released";
    if (target.step === "releasing") return null;
    target.step = "gave-up";
    return "gave-up";
  }

  #comeAlive(epoch: number, owed: boolean): void {
    this.target.epoch = epoch;
    this.target.step = "released";
    this.target.running = true;
    this.target.owed = owed;
  }

  #goOnHere(epoch: number | null): void {
    const { source } = this;
    const held = !["reserving", "reserved"].includes(source.step);
    source.running = true;
    source.step = "here";
    source.goingBack = false;
    if (epoch === null) source.owed = held ? "taken-back" : "cancelled";
    if (epoch !== null) source.epoch = epoch;
    else if (held) source.epoch = source.target + 1;
    this.channel = false;
  }

  #crashSource(): void {
    const { source } = this;
    if (source.waits !== null) source.waits.reply = null;
    Object.assign(source, { alive: false, waits: null, goingBack: false, mayRelease: false, raises: false });
    this.channel = false;
  }

  #startSource(): void {
    const { source } = this;
    source.alive = true;
    if (["reserving", "reserved", "held"].includes(source.step)) this.#goOnHere(null);
    else if (source.step === "committing" || source.step === "granted") source.goingBack = true;
  }

  /** What CRIU restored stays stopped without its agent; one that goes on, goes on. */
  #crashTarget(): void {
    const { target } = this;
    if (target.waits !== null) target.waits.reply = null;
    Object.assign(target, { alive: false, waits: null, asked: false });
    this.channel = false;
  }

  // ---- the store and the way to it

  #ask(run: Request["run"], reply: (answer: Answer) => void): Request {
    const request: Request = { run, reply };
    this.requests.push(request);
    return request;
  }

  #takeBack(reply: (answer: Answer) => void): Request {
    return this.#ask((store) => store.takeBack({ workload: W, node: "a", migration: MIGRATION }), reply);
  }

  async #carryOut(request: Request, answered: boolean): Promise<void> {
    this.requests.splice(this.requests.indexOf(request), 1);
    let answer: Answer;
    try {
      answer = await request.run(this.store);
    } catch (error) {
      assert.ok(error instanceof HoldfastError && CODES.includes(error.code), String(error));
      answer = error.code === "STORE_ABSENT" ? "absent" : "fenced";
    }
    if (answered) request.reply?.(answer);
    else this.#forget(request);
  }

  #drop(request: Request): void {
    this.requests.splice(this.requests.indexOf(request), 1);
    this.#forget(request);
  }

  /** STORE_UNKNOWN: it may still be carried out. */
  #giveUpWaiting(request: Request): void {
    request.reply = null;
    this.#forget(request);
  }

  #forget(request: Request): void {
    if (this.source.waits === request) {
      this.source.waits = null;
      if (this.source.step === "committing" && !this.source.mayRelease) this.source.goingBack = true;
    }
    if (this.target.waits === request) this.target.waits = null;
  }
}

const RUNS = 5_000;
const FAULT_EVERY = 4;
const FAULTY_STEPS_MIN = 10;
const FAULTY_STEPS_MAX = 60;
const CALM_STEPS_MAX = 2_000;

async function play(choices: number[], forgetful: boolean): Promise<void> {
  const world = new World(forgetful);
  await world.begin();
  const trace: string[] = [];
  const step = async (actions: [string, () => Promise<void> | void][], choice: number): Promise<void> => {
    const [name, act] = actions[choice % actions.length] as [string, () => Promise<void> | void];
    trace.push(name);
    await act();
    world.check();
  };
  try {
    for (const choice of choices) {
      // a fault now and then: with more of them few moves would come far
      const calm = world.actions(false);
      const names = new Set(calm.map(([name]) => name));
      const faults = world.actions(true).filter(([name]) => !names.has(name));
      const actions = calm.length === 0 || choice % FAULT_EVERY === 0 ? faults : calm;
      if (actions.length === 0) break;
      await step(actions, Math.floor(choice / FAULT_EVERY));
    }
    let calm = 0;
    for (; calm < CALM_STEPS_MAX; calm++) {
      const actions = world.actions(false);
      if (actions.length === 0) break;
      await step(actions, calm * 7 + (choices[calm % Math.max(1, choices.length)] ?? 0));
    }
    if (world.wiped) return;
    assert.ok(calm < CALM_STEPS_MAX, "it never comes to rest");
    const { source, target } = world;
    assert.equal(Number(source.running) + Number(target.running), 1, "exactly one goes on at the end");
    const record = await world.store.ownership(W);
    assert.equal(record?.owner, source.running ? "a" : "b", "the store names another node");
    assert.equal(record?.state, "released");
    assert.equal(record?.migration, null);
  } catch (error) {
    throw new Error(`${(error as Error).message}\n  ${trace.join("\n  ")}`, { cause: error });
  }
}

const choices = fc.array(fc.nat(999), {
  minLength: FAULTY_STEPS_MIN,
  maxLength: FAULTY_STEPS_MAX,
  size: "max",
});

describe("the ownership of a workload in a move, as a model", () => {
  it("is one node's at any time, and one node's at the end, whatever is lost, late or dead", () =>
    fc.assert(
      fc.asyncProperty(choices, (chosen) => play(chosen, false)),
      { numRuns: RUNS },
    ));

  it("is never two nodes', even where the store forgets it", () =>
    fc.assert(
      fc.asyncProperty(choices, (chosen) => play(chosen, true)),
      { numRuns: RUNS },
    ));

  it("moves when nothing goes wrong", () => play([], false));
});
