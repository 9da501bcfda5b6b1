/** Objects of a cluster that is not there, for what is decided by them. */

export const START = "2026-01-01T00:00:00Z";
/** milliseconds since the epoch, a second after {@link START} */
export const NOW = Date.parse(START) + 1_000;

export function metaOf(name: string, more: object = {}) {
  return {
    name,
    namespace: "shop",
    uid: `${name}-uid`,
    resourceVersion: "7",
    generation: 1,
    creationTimestamp: START,
    ...more,
  };
}
