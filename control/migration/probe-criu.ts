/** CRIU is started twice on each side of a move: once to see that it can work here, and once to wait for its one request. */
import { CriuWorker, type WorkerOptions } from "../criu/worker.ts";

/**
 * Starts a CRIU that only looks at the kernel, and waits for its end.
 * @param asked called with what asks it
 * @throws HoldfastError `CRIU_START`, `CRIU_UNFIT`, `CRIU_FAILED`, `CRIU_DIED`
 */
export async function probeCriu(
  options: WorkerOptions,
  asked: (ask: () => Promise<unknown>) => Promise<unknown> = (ask) => ask(),
): Promise<void> {
  const probe = await CriuWorker.start({ ...options, inherit: [], outlivesAgent: false });
  try {
    await asked(() => probe.request("FEATURE_CHECK"));
  } finally {
    await probe.close();
  }
}
