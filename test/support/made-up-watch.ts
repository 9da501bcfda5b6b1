/** A watch of an API server that is made up: what it is told comes in its order, until the signal is aborted. */
import type { WatchEvent } from "#control/kubernetes/client/api.ts";

/** Tells the watch of an object. */
export type Tell = (event: WatchEvent<object>) => void;

/** @param begun what tells it, as soon as somebody reads it */
export async function* madeUpWatch<T>(
  signal: AbortSignal,
  begun: (tell: Tell) => void,
): AsyncGenerator<WatchEvent<T>> {
  const events: WatchEvent<object>[] = [];
  let wake = (): void => {};
  begun((event) => {
    events.push(event);
    wake();
  });
  signal.addEventListener("abort", () => wake());
  while (!signal.aborted) {
    const event = events.shift();
    if (event !== undefined) yield event as WatchEvent<T>;
    else
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
  }
}
