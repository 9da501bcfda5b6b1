/** README's table of what istiod's pushes do to long sessions: what pushes.test.ts sees, row by row. Pure. */
import { tableLines } from "#bench/report/markdown.ts";
import type { SessionKind } from "./long-sessions.ts";
import { cutBy, PUSHES } from "./pushes.ts";

const NAMES: Record<SessionKind, string> = {
  tcp: "TCP",
  websocket: "WebSocket",
  grpc: "gRPC",
  http: "HTTP requests",
};

export function pushTable(): string[] {
  const show = (kinds: readonly SessionKind[]): string =>
    kinds.length === 0 ? "none" : `**${kinds.map((kind) => NAMES[kind]).join(", ")}**`;
  return tableLines({
    caption: "",
    head: [
      "istiod pushes, since …",
      "ended: without Holdfast",
      "ended: Holdfast behind the sidecar",
      "ended: and its gateway in front of the mesh",
    ],
    rows: PUSHES.map((push) => [
      push.what,
      show(cutBy(push, false)),
      show(cutBy(push, true)),
      push.cutsLinks ? "none; links went on" : "none",
    ]),
  });
}
