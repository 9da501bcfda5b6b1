/** Memory images as they come in: the first that cannot be taken is remembered until somebody waits for an answer. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { ImagesEvent } from "../../api/migration.ts";
import { type ImageManifest, ImageReceiver } from "../../criu/images.ts";

type Intake =
  | { readonly is: "closed" }
  | { readonly is: "open"; readonly receiver: ImageReceiver }
  | { readonly is: "failed"; readonly error: unknown };

export class ImageIntake {
  #intake: Intake = { is: "closed" };
  readonly #onFailure: (image: string, error: unknown) => void;

  /** @param onFailure called once, with the image that could not be taken */
  constructor(onFailure: (image: string, error: unknown) => void) {
    this.#onFailure = onFailure;
  }

  /** @param dir where CRIU will read, and nothing is yet */
  open(dir: string, bytesMax: number): void {
    if (this.#intake.is === "closed")
      this.#intake = { is: "open", receiver: new ImageReceiver(dir, bytesMax) };
  }

  /** Nobody waits for the outcome of an event, and one that fails would end the channel: `complete` says why. */
  take({ pieces }: ImagesEvent, body: Buffer): void {
    let at = 0;
    for (const { name, offset, bytes, from } of pieces) {
      if (this.#intake.is === "failed") return;
      try {
        const receiver = this.#receiver();
        if (from !== undefined) receiver.copy(name, offset, bytes, from);
        else receiver.write(name, offset, body.subarray(at, at + bytes));
      } catch (error) {
        this.close();
        this.#intake = { is: "failed", error };
        this.#onFailure(name, error);
      }
      if (from === undefined) at += bytes;
    }
  }

  /** These are there, and may be changed; others follow. @throws HoldfastError as {@link complete} */
  completeSome(manifest: ImageManifest): void {
    this.#receiver().verifySome(manifest);
  }

  /** All are there, as CRIU wants them. @throws HoldfastError what kept one from being taken; `IMAGE_REFUSED` */
  complete(manifest: ImageManifest): void {
    const receiver = this.#receiver();
    receiver.verify(manifest);
    receiver.close();
    receiver.linkLayers();
  }

  /** Safe at any time. */
  close(): void {
    if (this.#intake.is === "open") this.#intake.receiver.close();
  }

  #receiver(): ImageReceiver {
    if (this.#intake.is === "failed") throw this.#intake.error;
    if (this.#intake.is === "open") return this.#intake.receiver;
    throw fail("MIGRATION_ORDER", "a step of the move came out of order");
  }
}
