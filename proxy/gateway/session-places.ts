/**
 * Which of several workloads a named session belongs to. A cookie that a workload's proxy has issued is signed with that workload's key, so
 * it says so itself; any other name is looked up in the store, where owners tell what they have seen. A name that nobody has, or that cannot
 * be looked up, is led by its hash, so that every gateway leads it alike; who has no name, in turn.
 */
import { createHash } from "node:crypto";
import type { Logger } from "pino";
import type { SessionNaming } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { SharedKeys } from "#proxy/contract/shared-keys.ts";
import type { HttpHead } from "#proxy/protocol/http-head.ts";
import { nameOf } from "#proxy/protocol/session-name.ts";
import type { Store } from "#proxy/store/store.ts";
import { Turns } from "./turns.ts";

/** clients whose session is looked up at a time: each is a question for each workload that it may be of */
export const LOOKUPS_MAX = 64;
/** a name that takes longer cannot be looked up */
const LOOKUP_MS_MAX = 5_000;

export interface SessionPlacesOptions {
  store: Pick<Store, "lookup">;
  cookieKeysOf(workload: string): SharedKeys;
  log: Logger;
}

export class SessionPlaces {
  readonly #options: SessionPlacesOptions;
  readonly #turns = new Turns(LOOKUPS_MAX, LOOKUP_MS_MAX);
  #turn = 0;

  constructor(options: SessionPlacesOptions) {
    this.#options = options;
  }

  /**
   * @param head of the client's first request; good until this returns
   * @param isThere whether the client still waits when it comes to be looked up
   */
  of(
    naming: SessionNaming,
    workloads: readonly string[],
    head: HttpHead,
    isThere: () => boolean,
  ): string | Promise<string> {
    if (naming.issue) return this.#signer(naming, workloads, head) ?? this.#next(workloads);
    const { name } = nameOf(head, naming, NO_KEYS);
    return name === null ? this.#next(workloads) : this.#lookUp(name, workloads, isThere);
  }

  #signer(naming: SessionNaming, workloads: readonly string[], head: HttpHead): string | undefined {
    const { cookieKeysOf } = this.#options;
    return workloads.find((workload) => nameOf(head, naming, cookieKeysOf(workload)).name !== null);
  }

  async #lookUp(name: string, workloads: readonly string[], isThere: () => boolean): Promise<string> {
    const late = Promise.withResolvers<null>();
    const timer = setTimeout(late.resolve, LOOKUP_MS_MAX, null).unref();
    const found = this.#turns.run(async () => (isThere() ? this.#find(name, workloads) : null));
    const workload = await Promise.race([found, late.promise]);
    clearTimeout(timer);
    return workload ?? byHash(name, workloads);
  }

  /** null: nobody has it, or it could not be looked up */
  async #find(name: string, workloads: readonly string[]): Promise<string | null> {
    const { store, log } = this.#options;
    const found = await Promise.all(
      workloads.map((workload) =>
        store.lookup({ workload, name }).catch((error: unknown) => {
          log.debug({ workload, reason: messageOf(error) }, "a session's name was not looked up");
          return null;
        }),
      ),
    );
    return workloads[found.findIndex((ownership) => ownership !== null)] ?? null;
  }

  #next(workloads: readonly string[]): string {
    return workloads[this.#turn++ % workloads.length] as string;
  }
}

/** used only where cookies are issued */
const NO_KEYS: SharedKeys = [Buffer.alloc(32)];

/** The one with the highest hash (rendezvous): where a workload is added, only its share of the names changes. */
function byHash(name: string, workloads: readonly string[]): string {
  let best = "";
  let chosen = workloads[0] as string;
  for (const workload of workloads) {
    const hash = createHash("sha256").update(`${workload}\0${name}`).digest("hex");
    if (hash > best) [best, chosen] = [hash, workload];
  }
  return chosen;
}
