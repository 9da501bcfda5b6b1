/** The container of an arrival, while it is made: its layer is filled from outside, and that it is full ends the making. */
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import type { MigrationHost } from "../host.ts";

export class StandbyContainer {
  readonly #layer = Promise.withResolvers<string>();
  readonly #filled = Promise.withResolvers<void>();
  #created: Promise<Sandbox | null> = Promise.resolve(null);

  constructor() {
    for (const { promise } of [this.#layer, this.#filled]) promise.catch(() => {}); // mostly nobody waits
  }

  /** Resolves when its layer can be filled. */
  async begin(host: Pick<MigrationHost, "createContainer">): Promise<void> {
    this.#created = host.createContainer(async (layer) => {
      this.#layer.resolve(layer);
      await this.#filled.promise;
    });
    this.#created.catch((error: unknown) => this.#layer.reject(error));
    await this.#layer.promise;
  }

  /** → the folder of its writable layer, as this agent sees it, while the container is made */
  get layer(): Promise<string> {
    return this.#layer.promise;
  }

  /** null: it has not been begun. @throws HoldfastError when it could not be made, or was given up before it was */
  get created(): Promise<Sandbox | null> {
    return this.#created;
  }

  /** Its layer is complete. May be repeated. */
  filled(): void {
    this.#filled.resolve();
  }

  /** What is not complete will not be. Without effect on a container that is. */
  giveUp(error: HoldfastError): void {
    this.#layer.reject(error);
    this.#filled.reject(error);
  }
}
