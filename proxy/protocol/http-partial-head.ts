/** Heads of HTTP messages that come in any number of chunks, of either side; and how a part of one travels. */
import type { ByteReader, ByteWriter } from "#proxy/contract/byte-codec.ts";
import { HEAD_BYTES_MAX, HeadParser, type HeadVerdict, HttpHead } from "./http-head.ts";
import { PartialBytes } from "./partial-bytes.ts";

const LF = 0x0a;

/** For heads that come in one piece, so for most: a conversation at rest has none of its own. */
let scratch = new HeadParser();

/** A head that has not come completely, and how far it has been read. */
export class PartialHead {
  readonly held: PartialBytes;
  readonly parser: HeadParser;
  /** offset of its first byte in the stream */
  readonly start: number;

  constructor(parser: HeadParser, start: number, chunk: Buffer, from: number) {
    this.parser = parser;
    this.start = start;
    this.held = new PartialBytes(chunk.length - from);
    this.held.append(chunk, from, chunk.length);
  }

  /** taken: how many bytes of `chunk` from `from` on are the head's */
  feed(chunk: Buffer, from: number): { verdict: HeadVerdict; taken: number } {
    const before = this.held.length;
    const to = Math.min(chunk.length, from + HEAD_BYTES_MAX - before);
    this.held.append(chunk, from, to);
    const lineEnd = chunk.indexOf(LF, from);
    if ((lineEnd < 0 || lineEnd >= to) && this.held.length < HEAD_BYTES_MAX)
      return { verdict: "incomplete", taken: to - from };
    const verdict = this.parser.parse(this.held.bytes, 0, this.held.length);
    return { verdict, taken: verdict === "complete" ? this.parser.headBytes - before : to - from };
  }
}

export interface HeadRead {
  verdict: HeadVerdict;
  /** what it has read; good until the next head is read */
  parser: HeadParser;
  /** where the chunk goes on after the head, or after the part of it */
  end: number;
  /** the head, unless it is complete: for the next chunk */
  rest: PartialHead | null;
}

/**
 * Reads a head, or more of one, at `from` of the chunk.
 * @param partial what earlier chunks had of it; null: it begins here
 * @param start offset in the stream of its first byte, where it begins here
 */
export function readHead(
  isRequest: boolean,
  partial: PartialHead | null,
  chunk: Buffer,
  from: number,
  start: number,
): HeadRead {
  if (partial !== null) {
    const { verdict, taken } = partial.feed(chunk, from);
    const rest = verdict === "complete" ? null : partial;
    return { verdict, parser: partial.parser, end: from + taken, rest };
  }
  const parser = scratch;
  parser.reset(isRequest);
  const verdict = parser.parse(chunk, from, chunk.length);
  if (verdict !== "incomplete") return { verdict, parser, end: from + parser.headBytes, rest: null };
  scratch = new HeadParser();
  return { verdict, parser, end: chunk.length, rest: new PartialHead(parser, start, chunk, from) };
}

/** @param partial as it was before the chunk; from, end: the head in the chunk, or the last part of it */
export function headOf(partial: PartialHead | null, chunk: Buffer, from: number, end: number): HttpHead {
  if (partial === null) return new HttpHead(chunk, from, end);
  return new HttpHead(partial.held.bytes, 0, partial.parser.headBytes);
}

export function writePartial(writer: ByteWriter, partial: PartialHead | null): void {
  writer.flag(partial !== null);
  if (partial === null) return;
  writer.count(partial.start);
  writer.bytes(partial.held.bytes);
}

export function readPartial(reader: ByteReader, isRequest: boolean): PartialHead | null {
  if (!reader.flag()) return null;
  const start = reader.count();
  const bytes = reader.bytes(HEAD_BYTES_MAX);
  const parser = new HeadParser();
  parser.reset(isRequest);
  reader.check(
    bytes.length > 0 && parser.parse(bytes, 0, bytes.length) === "incomplete",
    "what should be a part of a head is not",
  );
  return new PartialHead(parser, start, bytes, 0);
}
