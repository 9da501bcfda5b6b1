/**
 * Nodes that are no longer trusted: a file with one name of a node, or one serial number of a certificate, a line. It is read again when it
 * changes. What cannot be understood is told; the other lines count all the same, and so does what was read before from a file that cannot be read.
 */
import { readFileSync, statSync } from "node:fs";
import { messageOf } from "#proxy/contract/errors.ts";
import { serialOf } from "./identity.ts";

const FILE_BYTES_MAX = 1_048_576;
const LINE = /^([a-z0-9.-]{1,63}|[0-9A-Fa-f:]{1,80})$/;

export class Revocations {
  #nodes = new Set<string>();
  #serials = new Set<string>();
  #problem: string | null = null;
  #text: string | null = null;
  readonly #path: string | null;

  /** @param path null: nobody is revoked. @throws Error when there is no such file, so that a mistake in its name lets nobody in */
  constructor(path: string | null) {
    this.#path = path;
    if (path === null) return;
    this.readAgain();
    if (this.#text === null) throw new Error(this.#problem ?? path);
  }

  get problem(): string | null {
    return this.#problem;
  }
  get nodes(): string[] {
    return [...this.#nodes];
  }

  /** @returns why, or null */
  refuses(node: string, serial: string): string | null {
    if (this.#nodes.has(node)) return `node ${node} is revoked`;
    if (this.#serials.has(serialOf(serial))) return `certificate ${serial} of node ${node} is revoked`;
    return null;
  }

  /** @returns whether anything is different now */
  readAgain(): boolean {
    if (this.#path === null) return false;
    const before = this.#problem;
    try {
      const { size } = statSync(this.#path);
      if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} bytes`);
      const text = readFileSync(this.#path, "utf8");
      if (text === this.#text) {
        if (before?.startsWith("line", this.#path.length + 2) !== true) this.#problem = null;
        return this.#problem !== before;
      }
      this.#text = text;
      this.#take(text, this.#path);
      return true;
    } catch (error) {
      this.#problem = `${this.#path} cannot be read, who was revoked stays so: ${messageOf(error)}`;
      return this.#problem !== before;
    }
  }

  #take(text: string, path: string): void {
    this.#nodes = new Set();
    this.#serials = new Set();
    this.#problem = null;
    for (const [index, whole] of text.split("\n").entries()) {
      const line = (whole.split("#")[0] ?? "").trim();
      if (line === "") continue;
      if (!LINE.test(line)) {
        this.#problem ??= `${path}: line ${index + 1} is neither a node's name nor a serial number; the others count`;
        continue;
      }
      // a name of hex digits alone may be meant as either
      this.#nodes.add(line);
      if (/^[0-9A-Fa-f:]+$/.test(line)) this.#serials.add(serialOf(line));
    }
  }
}
