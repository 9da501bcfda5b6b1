/** Which eventfds of a fingerprint count as semaphores (eventfd(2), EFD_SEMAPHORE): what the target has to make by itself. */
import type { SemaphoreEventfd } from "../criu/semaphores.ts";
import type { Fingerprint } from "./fingerprint.ts";

/** One for each file description. */
export function semaphoresOf(fingerprint: Fingerprint): SemaphoreEventfd[] {
  return Object.entries(fingerprint.subjects).flatMap(([subject, facts]) => {
    const [, pid, fd] = /^descriptor (\d+)\/(\d+)$/.exec(subject) ?? [];
    if (facts["eventfd-semaphore"] !== "1" || pid === undefined || fd === undefined) return [];
    return [
      {
        pid: Number(pid),
        fd: Number(fd),
        flags: Number.parseInt(facts.flags ?? "0", 8),
        count: BigInt(`0x${facts["eventfd-count"] ?? "0"}`),
      },
    ];
  });
}
