/**
 * A session's protocol filter as bytes, for the trip to another node.
 *
 *   u32 length, JSON (small things)   u32 length, observer   u32 length, log   u32 length, request of the handshake
 *
 * It travels inside a session snapshot, which has the checksum and the version.
 */
import * as z from "zod";
import { ByteReader, ByteWriter } from "../contract/byte-codec.ts";
import { fail } from "../contract/error-codes.ts";
import { HoldfastError } from "../contract/errors.ts";
import type { SavedReplay } from "./protocol-replay.ts";

const NO_BYTES: Buffer = Buffer.alloc(0);
/** what is saved is usually shorter */
const SAVED_BYTES_START = 1024;
const offset = z.int().min(0).max(Number.MAX_SAFE_INTEGER);

const small = z.strictObject({
  name: z.string().max(200).nullable(),
  noTakeover: z.boolean(),
  replay: z
    .strictObject({
      sentUpTo: offset,
      losses: offset,
      swallows: z.boolean(),
      isAnsweredEarly: z.boolean(),
      logBase: offset,
      messageEnds: z.array(offset),
      agreed: z
        .strictObject({
          accept: z.string().nullable(),
          protocol: z.string().nullable(),
          extensions: z.string(),
        })
        .nullable(),
      setUp: z.strictObject({
        isKnown: z.boolean(),
        seen: offset,
        isLost: z.boolean(),
        messages: z.array(z.strictObject({ end: offset, bytes: z.base64() })),
      }),
    })
    .nullable(),
});

export interface SavedFilter {
  observer: Buffer;
  name: string | null;
  noTakeover: boolean;
  replay: SavedReplay | null;
}

export function encodeFilter(filter: SavedFilter): Buffer {
  const { observer, replay, ...rest } = filter;
  const json: z.infer<typeof small> = { ...rest, replay: null };
  if (replay !== null) {
    const { log: _, handshake, setUp, ...plain } = replay;
    const messages = setUp.messages.map(({ end, bytes }) => ({ end, bytes: bytes.toString("base64") }));
    json.replay = { ...plain, agreed: handshake?.agreed ?? null, setUp: { ...setUp, messages } };
  }
  const writer = new ByteWriter(SAVED_BYTES_START);
  writer.bytes(Buffer.from(JSON.stringify(json)));
  writer.bytes(observer);
  writer.bytes(replay?.log ?? NO_BYTES);
  writer.bytes(replay?.handshake?.request ?? NO_BYTES);
  return writer.finish();
}

/** @throws HoldfastError `SNAPSHOT_INVALID` */
export function decodeFilter(bytes: Buffer): SavedFilter {
  try {
    const reader = new ByteReader(bytes, invalid);
    const json = small.parse(JSON.parse(reader.bytes().toString()));
    const observer = reader.bytes();
    const log = reader.bytes();
    // A copy: the session keeps it, and would keep the whole snapshot with it.
    const request = Buffer.from(reader.bytes());
    reader.end();
    const { replay, ...rest } = json;
    if (replay === null) return { ...rest, observer, replay };
    const { agreed, setUp, ...plain } = replay;
    const messages = setUp.messages.map(({ end, bytes }) => ({ end, bytes: Buffer.from(bytes, "base64") }));
    const handshake = agreed === null ? null : { request, agreed };
    return { ...rest, observer, replay: { ...plain, log, handshake, setUp: { ...setUp, messages } } };
  } catch (cause) {
    throw cause instanceof HoldfastError ? cause : invalid("it is damaged", cause);
  }
}

function invalid(why: string, cause?: unknown): HoldfastError {
  return fail(
    "SNAPSHOT_INVALID",
    `what is known of a session's bytes is not valid: ${why}; both nodes must run the same version`,
    { cause },
  );
}
