/** A session that has no way to its owner, or to its anchor, is reset after a while. */
import type { Configure } from "#proxy/contract/commands.ts";
import type { LiveSession } from "./live-session.ts";

export interface LinkWaitHost {
  readonly config: Pick<Configure, "limits">;
  readonly counters: { linkFailures: number };
}

/** Does nothing where it waits already. {@link endLinkWait} ends it. */
export function beginLinkWait({ config, counters }: LinkWaitHost, session: LiveSession): void {
  session.linkTimer ??= setTimeout(() => {
    session.linkTimer = null;
    counters.linkFailures++;
    session.guard(() => session.reset("no owner in time"));
  }, config.limits.lingerMsMax);
}

export function endLinkWait(session: LiveSession): void {
  if (session.linkTimer !== null) clearTimeout(session.linkTimer);
  session.linkTimer = null;
}
