/** Steps that undo something: one that fails must not keep the others from being taken. */
export type Steps = Record<string, () => Promise<unknown> | unknown>;

/** Takes each in its order, whatever becomes of those before. Never rejects. @param onFailure called once for each that fails */
export async function takeEach(
  steps: Steps,
  onFailure: (what: string, error: unknown) => void,
): Promise<void> {
  for (const [what, step] of Object.entries(steps)) {
    try {
      await step();
    } catch (error) {
      onFailure(what, error);
    }
  }
}
