/** The container's files on their way to the target: all of them while nobody waits, then what changed since. */
import { closeSync } from "node:fs";
import type { Channel } from "#proxy/contract/channel.ts";
import {
  besideMounts,
  confirmed,
  difference,
  packPaths,
  type Scan,
  scan,
  withRoot,
} from "../../runtime/files.ts";
import { filesMappedForWriting, takeForChanged } from "../../runtime/mapped-files.ts";
import { coveredIn, mountedBelow, mountsOf } from "../../runtime/mounted.ts";
import { TarMembers } from "../../runtime/tar-members.ts";
import { tracedTree } from "../traced-tree.ts";
import type { Move } from "./move.ts";

/** the container's writable layer among the files that are sent; the others are tmpfs mounts, named by where they are */
export const LAYER = "layer";

export class FileSender {
  readonly #move: Move;
  readonly #channel: Channel;
  readonly #root: number;
  readonly #scans = new Map<string, Scan>();
  #sending = 0;

  /** @param root of the application's processes */
  constructor(move: Move, channel: Channel, root: number) {
    this.#move = move;
    this.#channel = channel;
    this.#root = root;
  }

  get isSending(): boolean {
    return this.#sending > 0;
  }

  /** While the application runs. @param name {@link LAYER} or a tmpfs mount */
  async sendAll(name: string): Promise<void> {
    const before = await this.#move.rehearsal.timed("scanMs", () => this.#scan(name));
    // after the scan, and before anything is read: see mapped-files.ts
    const mapped = filesMappedForWriting((await tracedTree(this.#root)).map(({ pid }) => pid));
    takeForChanged(before, name === LAYER ? "/" : name, mapped);
    let sent: readonly string[] = [...before.keys()];
    if (name === LAYER && this.#move.host.container.layerInUse) {
      // whiteouts and opaque folders are the overlay's own to make
      const { gone, changed } = difference(new Map(), before);
      if (gone.length > 0) await this.#move.stop.call(this.#channel, "filesGone", { root: name, gone });
      sent = changed;
    }
    const members = new TarMembers();
    await this.#sendTar(name, sent, members);
    this.#scans.set(name, confirmed(before, sent, members.found));
  }

  /** While it stands still: of all that were sent. */
  async sendChanged(): Promise<void> {
    const { stop } = this.#move;
    for (const [name, before] of this.#scans) {
      const { gone, changed } = difference(before, await this.#scan(name));
      if (gone.length > 0) await stop.call(this.#channel, "filesGone", { root: name, gone });
      if (changed.length > 0) await this.#sendTar(name, changed, null);
    }
  }

  async #scan(name: string): Promise<Scan> {
    const { container } = this.#move.host;
    const root = this.#openTree(name);
    try {
      const found = await scan(root);
      const mounts = mountsOf(container.init.pid);
      if (name !== LAYER) return withRoot(besideMounts(found, coveredIn(mounts, name)), root);
      return container.layerInUse ? besideMounts(found, mountedBelow(mounts, "/")) : found;
    } finally {
      closeSync(root);
    }
  }

  /** Seen from the container, whose root is as far as any link or ".." leads. */
  #openTree(name: string): number {
    const { container } = this.#move.host;
    return name === LAYER ? container.openLayer() : container.openFolder(name);
  }

  /** @param members of a first round: gets to know what tar reads. null: nothing changes while it does */
  async #sendTar(name: string, paths: Iterable<string>, members: TarMembers | null): Promise<void> {
    const fd = this.#openTree(name);
    const { stream, done } = await packPaths(
      { fd, initPid: this.#move.host.container.init.pid },
      paths,
      members !== null,
    ).finally(() => closeSync(fd));
    done.catch(() => {}); // looked at below; must not be unhandled meanwhile
    this.#sending += 1;
    try {
      for await (const piece of stream) {
        members?.take(piece as Buffer);
        await this.#channel.send("files", { root: name }, piece as Buffer);
      }
      for (const path of await done) members?.cutShort(path);
      await this.#channel.send("files", { root: name }, Buffer.alloc(0));
    } finally {
      this.#sending -= 1;
    }
  }
}
