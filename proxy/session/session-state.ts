/**
 * The life of one session, pure: which steps are possible when. A step that is not possible is a bug of ours.
 *
 *   waiting ──dial──▶ dialling ──dialled──▶ open ──capture──▶ captured ──resume──▶ open
 *      ▲                  │                  │                   │
 *      └──────abort───────┘                  └──finish──▶ lingering ──capture──▶ captured
 *   adopted ──release──▶ open ; ──renew──▶ waiting (never dialled)       any ──close──▶ closed
 *
 * waiting: accepted, and neither dialled nor linked (held, or the owner has not answered yet).
 * lingering: both FINs were passed on; the legs stay until their last bytes are acknowledged.
 * captured: at the source of a move; silent. adopted: at its target; silent.
 */
import assert from "node:assert/strict";

export type SessionState = "waiting" | "dialling" | "open" | "lingering" | "captured" | "adopted" | "closed";
export type SessionStep =
  | "dial"
  | "dialled"
  | "abort"
  | "finish"
  | "capture"
  | "resume"
  | "release"
  | "renew"
  | "close";

const STEPS: Record<SessionState, Partial<Record<SessionStep, SessionState>>> = {
  waiting: { dial: "dialling", capture: "captured", dialled: "open", close: "closed" },
  dialling: { dialled: "open", abort: "waiting", close: "closed" },
  open: { finish: "lingering", renew: "waiting", capture: "captured", close: "closed" },
  lingering: { capture: "captured", close: "closed" },
  captured: { resume: "open", abort: "waiting", close: "closed" },
  adopted: { release: "open", renew: "waiting", close: "closed" },
  closed: {},
};

export function canStep(state: SessionState, step: SessionStep): boolean {
  return STEPS[state][step] !== undefined;
}

export function nextState(state: SessionState, step: SessionStep): SessionState {
  const next = STEPS[state][step];
  assert.ok(next !== undefined, `a session that is ${state} cannot ${step}`);
  return next;
}
