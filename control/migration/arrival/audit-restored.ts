/** Of the restored tree, complete and not running: what is not as it was is repaired, or nothing goes on here. */
import { fail } from "#proxy/contract/error-codes.ts";
import type { RestoreReply } from "../../api/migration.ts";
import { type Fingerprint, fingerprintSchema } from "../../audit/fingerprint.ts";
import { notWhatItWas, sessionsAt, type Verified, verifyRestored } from "../../audit/verify.ts";
import { stopSignalOf } from "../../criu/image-file.ts";
import { readImage } from "../../criu/image-files.ts";
import { inNetworkOf } from "../../runtime/network-namespace.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import { audited } from "../audited.ts";
import type { MigrationHost } from "../host.ts";
import { type OwnSockets, ownSubjects } from "../own-sockets.ts";

/** each is one line of the log's entry; the move's own line has the first few */
const DIFFERENCES_LOGGED_MAX = 100;

/**
 * @param root of the restored processes
 * @param ownSockets null: the application had none that are restored apart
 * @throws HoldfastError `AUDIT_DIFFERENCE`
 */
export async function auditRestored(
  { context, config, name }: Pick<MigrationHost, "context" | "config" | "name">,
  { container, root, ownSockets }: { container: Sandbox; root: number; ownSockets: OwnSockets | null },
  before: Fingerprint,
): Promise<RestoreReply> {
  const options = await audited(config, container, root);
  // where the source ends what clients have to the application, to be replayed here
  const portsCut = config.ports
    .filter(({ moveBy }) => moveBy === "replay")
    .map(({ upstream }) => upstream.port);
  const verify = (): Verified =>
    verifyRestored(before, options, {
      ownSockets: new Set([
        ...(ownSockets === null ? [] : ownSubjects(ownSockets)),
        ...sessionsAt(portsCut, before),
      ]),
      stopSignalOf: (pid) => stopSignalOf(readImage(container.hostPath(`images/core-${pid}.img`))),
    });
  const { ms, facts, repaired, differences, losses } = inNetworkOf([container.init.pid], verify);
  const told = { workload: name, ms: Math.round(ms), facts, repaired: tally(repaired), notKept: losses };
  if (differences.length > 0) {
    context.log.warn({ ...told, differences: differences.slice(0, DIFFERENCES_LOGGED_MAX) }, "audit failed");
    throw notWhatItWas(before, differences);
  }
  context.log.info(told, "audit passed");
  return { auditMs: ms, notKept: losses };
}

/** The source's, as it was sent. @throws HoldfastError `FINGERPRINT_INVALID` */
export function parseFingerprint(body: Buffer): Fingerprint {
  let value: unknown;
  try {
    value = JSON.parse(body.toString("utf8"));
  } catch (cause) {
    throw fail("FINGERPRINT_INVALID", "the source's fingerprint is not JSON", { cause });
  }
  const checked = fingerprintSchema.safeParse(value);
  if (checked.success) return checked.data;
  throw fail(
    "FINGERPRINT_INVALID",
    "the source's fingerprint is not one: both agents must be of one version",
  );
}

/** How often each thing was set again: of a thousand connections as well one entry. */
function tally(repaired: string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const text of repaired) {
    const name = text.slice(text.indexOf(": ") + 2);
    counts[name] = (counts[name] ?? 0) + 1;
  }
  return counts;
}
