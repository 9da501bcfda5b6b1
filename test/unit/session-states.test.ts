/** The two state machines: which step is possible when, and that impossible ones are refused. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { isAllowed, nextRole, type Role, type RoleCommand } from "#proxy/session/role.ts";
import { canStep, nextState, type SessionState, type SessionStep } from "#proxy/session/session-state.ts";

const STEPS: SessionStep[] = [
  "dial",
  "dialled",
  "abort",
  "finish",
  "capture",
  "resume",
  "release",
  "renew",
  "close",
];
const COMMANDS: RoleCommand[] = [
  "serve",
  "standby",
  "prepareLinks",
  "hold",
  "captureUpstream",
  "captureDownstream",
  "takeCaptured",
  "adoptUpstream",
  "adoptDownstream",
  "release",
  "rollback",
  "discard",
  "retire",
  "switchOwner",
];

describe("a session's states", () => {
  it("end in closed and nowhere else, whatever happens", () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...STEPS)), (steps) => {
        let state: SessionState = "waiting";
        for (const step of steps) {
          if (canStep(state, step)) state = nextState(state, step);
          else assert.throws(() => nextState(state, step), /cannot/);
        }
        assert.ok(state === "closed" || canStep(state, "close"));
      }),
    );
  });

  it("never let a captured session be dialled", () => {
    assert.equal(canStep("captured", "dial"), false);
    assert.equal(canStep("adopted", "dial"), false);
  });
});

describe("a proxy's roles", () => {
  it("own after serve, release and rollback only, and only hold leads to a capture", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom(...COMMANDS), { maxLength: 40 }),
        fc.boolean(),
        (commands, anchor) => {
          let role: Role = "idle";
          for (const command of commands) {
            if (!isAllowed(command, role)) continue;
            const before: Role = role;
            role = nextRole(command, role, anchor);
            if (role === "owner" && before !== "owner") {
              assert.ok(command === "serve" || command === "release" || command === "rollback");
            }
            if (role === "captured" && before !== "captured") assert.equal(before, "held");
            if (role === "gone") assert.ok(COMMANDS.every((other) => !isAllowed(other, "gone")));
          }
        },
      ),
    );
  });
});
