/** How long a restart on command waits for what the application was given; what the application does is a script. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { pause } from "#proxy/cutover/restart.ts";
import type { WorkloadProxy } from "#proxy/workload/workload-proxy.ts";

const LOOKS_BETWEEN_ANSWERS = 60;
const MESSAGES = 3;

/** A pause with one session. @param left what the application has not answered at each look @returns … and had not at the cut */
async function pauseWith(
  session: { isWebSocket: boolean; left: (looks: number) => number },
  drainMs = 60_000,
): Promise<{ looks: number; leftAtCut: number }> {
  let looks = 0;
  let leftAtCut = -1;
  const replay = {
    isWebSocket: session.isWebSocket,
    quiesce: () => {},
    get unanswered() {
      return session.left(looks++);
    },
  };
  const cut = () => {
    leftAtCut = session.left(looks);
    return true;
  };
  const proxy = {
    sessions: new Map([[1, { filter: { replay, cut, info: { requestsInFlight: 0 } } }]]),
    unavailable: { begin: () => {}, end: () => {} },
    availabilities: [],
  };
  await pause(proxy as unknown as WorkloadProxy, drainMs);
  return { looks, leftAtCut };
}

describe("a restart on command", () => {
  it("waits for as long as messages are being answered", async () => {
    const left = (looks: number) => Math.max(0, MESSAGES - Math.floor(looks / LOOKS_BETWEEN_ANSWERS));
    const { looks, leftAtCut } = await pauseWith({ isWebSocket: true, left });
    assert.equal(leftAtCut, 0);
    assert.equal(looks, MESSAGES * LOOKS_BETWEEN_ANSWERS + 1);
  });

  it("gives up messages that nobody answers, which no application need do", async () => {
    const { looks, leftAtCut } = await pauseWith({ isWebSocket: true, left: () => 1 });
    assert.equal(leftAtCut, 1);
    assert.ok(looks > LOOKS_BETWEEN_ANSWERS);
  });

  it("waits for a request until its time is over", async () => {
    const answered = 300;
    const left = (looks: number) => (looks < answered ? 1 : 0);
    assert.deepEqual(await pauseWith({ isWebSocket: false, left }), { looks: answered + 1, leftAtCut: 0 });
    assert.equal((await pauseWith({ isWebSocket: false, left: () => 1 }, 1)).leftAtCut, 1);
  });
});
