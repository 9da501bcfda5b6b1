/** Captured legs on their way from this node's proxy to the target's. */
import type { Channel } from "#proxy/contract/channel.ts";
import type { AdoptResult, CapturedPiece } from "#proxy/contract/commands.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import { decodeSessions, encodeSessions } from "#proxy/contract/snapshot-codec.ts";
import type { MigrationHost } from "../host.ts";
import type { Move } from "./move.ts";

/** what a proxy has captured, or a piece of it */
export interface CapturedBody {
  result: CapturedPiece;
  body: Buffer;
}

/** A piece at a time: the target adopts one while the proxy gives the next. @param first as the capture has returned it */
export async function carryLegs(
  { host, stop }: Move,
  channel: Channel,
  method: "adopt" | "adoptDownstream",
  first: CapturedBody,
): Promise<AdoptResult> {
  const sum: AdoptResult = { sessions: 0, legs: 0, lost: 0, adoptUs: 0 };
  for (let piece = first; ; ) {
    const { body, result: more } = piece;
    const isLast = more.left === 0;
    // of the only one nothing is said: an agent of the version before knows no other
    const params = isLast ? (piece === first ? {} : { last: true }) : { last: false };
    const adopting = stop.call<AdoptResult>(channel, method, params, body);
    adopting.catch(() => {}); // looked at below
    const next = isLast ? null : await takeCaptured(host);
    let result: AdoptResult;
    try {
      result = (await adopting).result;
    } catch (error) {
      if (piece !== first || next === null || !isRefusedParameter(error)) throw error;
      const whole = await asOnePiece(host, [piece, next]);
      return (await stop.call<AdoptResult>(channel, method, {}, whole)).result;
    }
    sum.sessions += result.sessions;
    sum.legs += result.legs;
    sum.lost += result.lost;
    sum.adoptUs += result.adoptUs;
    if (next === null) return sum;
    piece = next;
  }
}

function takeCaptured({ proxy, journal }: MigrationHost): Promise<CapturedBody> {
  return proxy.command<"takeCaptured", CapturedPiece>("takeCaptured", { epoch: journal.epoch });
}

/** For an agent of the version before, which takes no pieces. */
async function asOnePiece(host: MigrationHost, pieces: CapturedBody[]): Promise<Buffer> {
  while ((pieces.at(-1)?.result.left ?? 0) > 0) pieces.push(await takeCaptured(host));
  const limits = { sessionsMax: Number.MAX_SAFE_INTEGER, bytesMax: Number.MAX_SAFE_INTEGER };
  return encodeSessions(pieces.flatMap(({ body }) => decodeSessions(body, limits)));
}

/** Its schema, of another version, knows something else. */
function isRefusedParameter(error: unknown): boolean {
  return error instanceof HoldfastError && error.code === "CHANNEL_PARAMS";
}
