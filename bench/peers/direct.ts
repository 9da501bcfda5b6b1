/** The yardstick: nothing between client and application, both on the load's CPU. */
import type { Peer } from "./peer.ts";

export const direct: Peer = {
  name: "direct",
  start: async (_stage, to) => ({ name: "direct", version: "-", port: to.port, pid: null, note: null }),
};
