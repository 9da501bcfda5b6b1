/**
 * Adds fields to the first answer of a connection, or replaces them: a session's cookie. Everything else passes as it came.
 *
 * Only a head that is complete, bounded and strict HTTP/1.x is edited; of anything else not a byte is changed.
 */
import { strict as assert } from "node:assert";
import { Buffer } from "node:buffer";
import { HEAD_BYTES_MAX, HeadParser, HttpHead } from "./http-head.ts";
import { PartialBytes } from "./partial-bytes.ts";

export interface HeadEdit {
  /** whole lines to add behind the last field, without their CRLF */
  append?: string[];
  /** [name, value]: takes the place of the first field of that name; others of that name go; added where there is none */
  replace?: [name: string, value: string][];
  /** names of fields that go */
  remove?: string[];
}

const NO_BYTES: Buffer = Buffer.alloc(0);
const CRLF = "\r\n";
const LF = 0x0a;
/** after so many the client will not wait for our cookie */
const INTERIM_ANSWERS_MAX = 16;

export class ResponseHeadEditor {
  readonly #edit: (head: HttpHead) => HeadEdit;
  #held: PartialBytes | null = null;
  #parser: HeadParser;
  #interim = 0;
  #done = false;

  /** @param edit called at most once, with the first answer that is not 1xx (101 is a final one) */
  constructor(edit: (head: HttpHead) => HeadEdit) {
    this.#edit = edit;
    this.#parser = answerParser();
  }

  /** Nothing more will be held back: `push` gives what it gets. */
  get done(): boolean {
    return this.#done;
  }

  /** → what may go on now, possibly nothing */
  push(chunk: Buffer): Buffer {
    if (this.#done || chunk.length === 0) return chunk;
    const passed: Buffer[] = [];
    let bytes = chunk;
    while (!this.#done && bytes.length > 0) {
      const before = this.#held?.length ?? 0;
      this.#held ??= new PartialBytes(bytes.length);
      const taken = Math.min(bytes.length, HEAD_BYTES_MAX - before);
      this.#held.append(bytes, 0, taken);
      // a line is judged when its end is there, so it is not read again for every part of it
      if (before > 0 && this.#held.length < HEAD_BYTES_MAX && !bytes.includes(LF)) break;
      const verdict = this.#parser.parse(this.#held.bytes, 0, this.#held.length);
      if (verdict === "incomplete") break;
      const { status, headBytes } = this.#parser;
      const isInterim = verdict === "complete" && status < 200 && status !== 101;
      if (verdict === "wrong" || (isInterim && ++this.#interim > INTERIM_ANSWERS_MAX)) {
        passed.push(this.flush(), bytes.subarray(taken));
        break;
      }
      const head = this.#held.bytes.subarray(0, headBytes);
      bytes = bytes.subarray(headBytes - before);
      this.#held = null;
      if (isInterim) {
        passed.push(head);
        this.#parser = answerParser();
      } else {
        this.#done = true;
        passed.push(editHead(head, this.#edit(new HttpHead(head, 0, headBytes))), bytes);
      }
    }
    return passed.length === 1 ? (passed[0] as Buffer) : Buffer.concat(passed);
  }

  /** Gives up: → what was held back; `done` from here on. */
  flush(): Buffer {
    const held = this.#held?.bytes ?? NO_BYTES;
    this.#held = null;
    this.#done = true;
    return held;
  }
}

function answerParser(): HeadParser {
  const parser = new HeadParser();
  parser.reset(false);
  return parser;
}

/** @param head strict HTTP/1.x, with its empty line */
export function editHead(head: Buffer, { append = [], replace = [], remove = [] }: HeadEdit): Buffer {
  if (append.length === 0 && replace.length === 0 && remove.length === 0) return head;
  const gone = remove.map((name) => `${name.toLowerCase()}:`);
  const lines = head
    .toString("latin1", 0, head.length - 2 * CRLF.length)
    .split(CRLF)
    .filter((line, index) => index === 0 || !gone.some((prefix) => line.toLowerCase().startsWith(prefix)));
  for (const [name, value] of replace) {
    const line = `${name}: ${value}`;
    const prefix = `${name.toLowerCase()}:`;
    const isSame = (each: string, index: number) => index > 0 && each.toLowerCase().startsWith(prefix);
    const at = lines.findIndex(isSame);
    if (at < 0) lines.push(line);
    else {
      lines[at] = line;
      for (let index = lines.length - 1; index > at; index--)
        if (isSame(lines[index] as string, index)) lines.splice(index, 1);
    }
  }
  lines.push(...append);
  for (const line of lines) assert.ok(!/[\r\n\0]/.test(line), "a header line is one line");
  return Buffer.from(lines.join(CRLF) + CRLF + CRLF, "latin1");
}
