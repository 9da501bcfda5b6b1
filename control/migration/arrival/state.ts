/**
 * How far an arrival has come, and what there is in each state. It goes forward; up to the release it may be given up from any of
 * them.
 *
 *   preparing    its container is being made, and filled
 *   standby      container, proxy and CRIU wait for the dump
 *   informed     what the source froze is known too: the restored application is compared with it
 *   restored     the application is there as it was, and has not run yet
 *   releasing    the store, or the source, is asked to let this node have the workload
 *   released     it goes on here
 *   gave-up      what was made is being removed
 *   forgotten    no trace is left
 */
import { fail } from "#proxy/contract/error-codes.ts";
import type { Fingerprint } from "../../audit/fingerprint.ts";
import type { ProcessDigest } from "../../criu/memory-digest.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import { givenUp } from "./given-up.ts";
import type { Release } from "./release.ts";
import type { RestoringCriu } from "./restoring-criu.ts";

export interface Standby {
  readonly container: Sandbox;
  readonly criu: RestoringCriu;
}

export interface Informed extends Standby {
  /** the application as the source froze it */
  readonly before: Fingerprint;
}

/** The application, complete and not running. */
export interface Application {
  /** of its processes, as this agent sees it */
  readonly root: number;
  /** Digests of its memory, in which nothing has changed since CRIU made it. */
  readMemory(): Promise<ProcessDigest[]>;
  /** how long CRIU took */
  readonly criuMs: number;
}

export interface Restored extends Standby {
  readonly application: Application;
}

interface Known {
  preparing: object;
  standby: Standby;
  informed: Informed;
  restored: Restored;
  releasing: Restored & { readonly release: Release };
  /** at which epoch */
  released: { readonly epoch: number };
  /** settles when no trace is left */
  "gave-up": { readonly forgetting: Promise<void> };
  forgotten: object;
}
type Name = keyof Known;
export type State<At extends Name = Name> = { [Each in At]: { readonly at: Each } & Known[Each] }[At];

/** The one record of it: calls run side by side, and the end may overtake any of them. */
export class ArrivalState {
  #now: State = { at: "preparing" };
  readonly #end = Promise.withResolvers<never>();

  constructor() {
    this.#end.promise.catch(() => {}); // mostly nobody waits
  }

  get now(): State {
    return this.#now;
  }

  /** @throws HoldfastError `MIGRATION_ORDER` in any other state */
  expect<At extends Name>(...allowed: [At, ...At[]]): State<At> {
    const { at } = this.#now;
    if (!allowed.some((name) => name === at))
      throw fail("MIGRATION_ORDER", `the target is ${at}, not ${allowed[0]}`);
    return this.#now as State<At>;
  }

  standby(standby: Standby): void {
    this.expect("preparing");
    this.#now = { ...standby, at: "standby" };
  }

  /** May be repeated. */
  informed(before: Fingerprint): void {
    const { container, criu } = this.expect("standby", "informed");
    this.#now = { at: "informed", container, criu, before };
  }

  restored(application: Application): void {
    const { container, criu } = this.expect("informed");
    this.#now = { at: "restored", container, criu, application };
  }

  releasing(release: Release): void {
    this.#now = { ...this.expect("restored"), at: "releasing", release };
  }

  released(epoch: number): void {
    this.expect("releasing");
    this.#now = { at: "released", epoch };
  }

  giveUp(forgetting: Promise<void>): void {
    this.#now = { at: "gave-up", forgetting };
    this.#end.reject(givenUp());
  }

  forgotten(): void {
    this.expect("gave-up");
    this.#now = { at: "forgotten" };
  }

  get isGivenUp(): boolean {
    return this.#now.at === "gave-up" || this.#now.at === "forgotten";
  }

  /** @throws HoldfastError `MIGRATION_ABORTED` */
  throwIfGivenUp(): void {
    if (this.isGivenUp) throw givenUp();
  }

  /** For work that may take as long as the source does. It goes on, unheard. @throws HoldfastError `MIGRATION_ABORTED` */
  untilGivenUp<T>(work: Promise<T>): Promise<T> {
    return Promise.race([work, this.#end.promise]);
  }
}
