import { setTimeout as delay } from "node:timers/promises";
import { SHORTAGE_MS_MAX, withRoom } from "../runtime/read-text.ts";

const AGAIN_MS = 100;
const AGAIN_MS_MAX = 2_000;

/** Steps that undo something: one that fails must not keep the others from being taken. */
export type Steps = Record<string, () => Promise<unknown> | unknown>;

/**
 * Takes each in its order, whatever becomes of those before; one that fails for want of descriptors or memory is tried again, all of them
 * together for ten seconds. Never rejects. @param onFailure called once for each that fails
 */
export async function takeEach(
  steps: Steps,
  onFailure: (what: string, error: unknown) => void,
): Promise<void> {
  const lateMs = performance.now() + SHORTAGE_MS_MAX;
  for (const [what, step] of Object.entries(steps)) {
    try {
      await withRoom(step, lateMs);
    } catch (error) {
      onFailure(what, error);
    }
  }
}

/**
 * What has to come about, however often it fails: the next try is a moment later, and later each time.
 * @param onFailure told of each reason once @param throwIfOver ends it
 */
export async function untilDone<T>(
  step: () => Promise<T> | T,
  onFailure: (error: unknown) => void,
  throwIfOver: () => void,
): Promise<T> {
  const tell = eachOnce(onFailure);
  for (let againMs = AGAIN_MS; ; againMs = Math.min(againMs * 1.5, AGAIN_MS_MAX)) {
    try {
      return await step();
    } catch (error) {
      throwIfOver();
      tell(error);
      await delay(againMs);
    }
  }
}

/** For what fails again and again: each reason is told the first time. */
export function eachOnce(tell: (error: unknown) => void): (error: unknown) => void {
  const told = new Set<string>();
  return (error) => {
    if (!told.has(String(error))) tell(error);
    told.add(String(error));
  };
}
