/** Files as they come in: one tar at a time for each folder, unpacked as it arrives. */
import { closeSync } from "node:fs";
import { unpackInto } from "../../runtime/files.ts";

interface Unpacking {
  stream: NodeJS.WritableStream;
  done: Promise<void>;
}

/** Where a tar is unpacked: an open folder, and the container that it is in. null: it is in none yet */
export interface UnpackingPlace {
  /** closed by whom it is given to */
  fd: number;
  initPid: number | null;
}

export class FilesIntake {
  readonly #unpacking = new Map<string, Unpacking>();

  /**
   * Takes a piece of the tar for `root`; an empty one ends it. Resolves when the next may come.
   * @param open called for the first piece
   * @returns whether the tar has ended, and all of it is unpacked
   */
  async take(root: string, body: Buffer, open: () => Promise<UnpackingPlace>): Promise<boolean> {
    const unpacking = this.#unpacking.get(root) ?? (await this.#begin(root, await open()));
    if (body.length > 0) {
      if (!unpacking.stream.write(body)) await Promise.race([drained(unpacking.stream), unpacking.done]);
      return false;
    }
    this.#unpacking.delete(root);
    unpacking.stream.end();
    await unpacking.done;
    return true;
  }

  /** Ends those that are not complete. */
  close(): void {
    for (const { stream } of this.#unpacking.values()) stream.end();
    this.#unpacking.clear();
  }

  async #begin(root: string, place: UnpackingPlace): Promise<Unpacking> {
    const unpacking = await unpackInto(place).finally(() => closeSync(place.fd));
    unpacking.stream.on("error", () => {}); // tar's exit status tells
    unpacking.done.catch(() => {});
    this.#unpacking.set(root, unpacking);
    return unpacking;
  }
}

/** Resolves when the stream takes more, or never will. */
function drained(stream: NodeJS.WritableStream): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      stream.off("drain", done).off("close", done);
      resolve();
    };
    stream.on("drain", done).on("close", done);
  });
}
