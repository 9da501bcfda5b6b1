/**
 * A session's watch as bytes, for the trip to another node.
 *
 *   u32 length, JSON (small things)   u32 length, observer   u32 length, log   u32 length, request of the handshake
 *
 * It travels inside a session snapshot, which has the checksum and the version.
 */
import * as z from "zod";
import { HoldfastError } from "../contract/errors.ts";
import type { SavedReplay } from "./session-replay.ts";

const NO_BYTES: Buffer = Buffer.alloc(0);
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
    })
    .nullable(),
});

export interface SavedWatch {
  observer: Buffer;
  name: string | null;
  noTakeover: boolean;
  replay: SavedReplay | null;
}

export function encodeWatch(watch: SavedWatch): Buffer {
  const { replay } = watch;
  const json: z.infer<typeof small> = {
    name: watch.name,
    noTakeover: watch.noTakeover,
    replay:
      replay === null
        ? null
        : {
            sentUpTo: replay.sentUpTo,
            losses: replay.losses,
            swallows: replay.swallows,
            isAnsweredEarly: replay.isAnsweredEarly,
            logBase: replay.logBase,
            messageEnds: replay.messageEnds,
            agreed: replay.handshake?.agreed ?? null,
          },
  };
  const parts = [
    Buffer.from(JSON.stringify(json)),
    watch.observer,
    replay?.log ?? NO_BYTES,
    replay?.handshake?.request ?? NO_BYTES,
  ];
  return Buffer.concat(
    parts.flatMap((part) => {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(part.length);
      return [length, part];
    }),
  );
}

/** @throws HoldfastError `SNAPSHOT_INVALID` */
export function decodeWatch(bytes: Buffer): SavedWatch {
  try {
    let at = 0;
    const next = (): Buffer => {
      const length = bytes.readUInt32BE(at);
      const start = at + 4;
      at = start + length;
      if (at > bytes.length) throw new Error("it is cut off");
      return bytes.subarray(start, at);
    };
    const json = small.parse(JSON.parse(next().toString()));
    const observer = next();
    const log = next();
    const request = next();
    if (at !== bytes.length) throw new Error("bytes are left over");
    const { replay } = json;
    return {
      observer,
      name: json.name,
      noTakeover: json.noTakeover,
      replay:
        replay === null
          ? null
          : {
              sentUpTo: replay.sentUpTo,
              losses: replay.losses,
              swallows: replay.swallows,
              isAnsweredEarly: replay.isAnsweredEarly,
              logBase: replay.logBase,
              log,
              messageEnds: replay.messageEnds,
              handshake: replay.agreed === null ? null : { request, agreed: replay.agreed },
            },
    };
  } catch (cause) {
    throw new HoldfastError(
      "what is known of a session's bytes is damaged; both nodes must run the same version",
      {
        code: "SNAPSHOT_INVALID",
        source: "peer",
        cause,
      },
    );
  }
}
