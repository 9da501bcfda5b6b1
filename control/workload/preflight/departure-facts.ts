/**
 * What a source tells a target of a workload that may move there, so that the target can say beforehand what does not fit
 * (`check`, and again `prepare`). Gathered by looking only.
 */
import { readFile, statfs } from "node:fs/promises";
import type { DepartureFacts } from "../../api/check.ts";
import { reservedBytes } from "../../migration/traced-tree.ts";
import { unixPeersOutside } from "../../migration/unix-peers.ts";
import { openIn, using } from "../../runtime/inside.ts";
import { imageBytes } from "../../runtime/processes.ts";
import { agreementOf } from "./agreement.ts";
import type { CheckedWorkload } from "./checked-workload.ts";
import { profileOf } from "./node-profile.ts";
import { usedFiles } from "./same-files.ts";
import { securityLabels } from "./security-labels.ts";

/** linux/magic.h */
const TMPFS_MAGIC = 0x0102_1994;

export async function departureFactsOf(workload: CheckedWorkload, pids: number[]): Promise<DepartureFacts> {
  const { container, config, context } = workload;
  const spec = await container.spec();
  const shared = (config.container?.mounts ?? []).filter((mount) => mount.shared);
  const tmpfs = await Promise.all(
    container.travels.map((path) => using(() => openIn(container, path), usedBytes)),
  );
  return {
    profile: await profileOf(context),
    agreement: agreementOf(config, spec, context.ring.first),
    files: await usedFiles(
      container,
      pids,
      shared.map(({ target }) => target),
      spec.parts?.files ?? [],
    ),
    upstreamPorts: config.ports.map(({ upstream }) => upstream.port),
    unixPeers: await unixPeersOutside(pids),
    imageBytes: await imageBytes(pids),
    reservedBytes: await reservedBytes(pids),
    layerBytes: await usedBytes(container.hostPath()),
    tmpfsBytes: sum(tmpfs.map((bytes) => bytes ?? 0)),
    otherUser: await otherUserOf(pids),
    labels: await securityLabels(pids),
  };
}

/** The first process whose real user is not root. */
export async function otherUserOf(pids: number[]): Promise<{ pid: number; uid: number } | null> {
  for (const pid of pids) {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "");
    const uid = Number(/^Uid:\s*(\d+)/m.exec(status)?.[1] ?? 0);
    if (uid !== 0) return { pid, uid };
  }
  return null;
}

/** Of a tmpfs that is one instance's own: memory. What is on a disk (a pod's emptyDir) takes none. */
export async function usedBytes(path: string): Promise<number> {
  const found = await statfs(path).catch(() => null);
  return found === null || found.type !== TMPFS_MAGIC ? 0 : (found.blocks - found.bfree) * found.bsize;
}

function sum(numbers: number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}
