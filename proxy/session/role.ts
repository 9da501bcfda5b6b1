/**
 * The life of a workload's proxy on one node, pure: which command is possible in which role, and what it makes of it.
 *
 *   idle ──serve──▶ owner ──hold──▶ held ──captureUpstream──▶ captured ──captureDownstream──▶ departed
 *     │               ▲              └──────────┴─rollback──▶ owner ◀─rollback─┴──────────────────┘
 *     │               │                                                        └─retire──▶ anchor (forward) | gone
 *     └─standby─▶ standby ─adoptUpstream─▶ adopted ─release─▶ owner
 *   owner ──pause──▶ paused ──resume──▶ owner (a restart of the application in place)
 *   anchor ─standby─▶ standby (it goes on serving its clients' links meanwhile); discard ─▶ anchor or idle
 */
import assert from "node:assert/strict";

export type Role =
  | "idle"
  | "owner"
  | "held"
  | "captured"
  | "departed"
  | "standby"
  | "adopted"
  | "paused"
  | "anchor"
  | "gone";
export type RoleCommand =
  | "configure"
  | "serve"
  | "standby"
  | "prepareLinks"
  | "shorten"
  | "hold"
  | "captureUpstream"
  | "captureDownstream"
  | "takeCaptured"
  | "settleLinks"
  | "adoptUpstream"
  | "adoptDownstream"
  | "release"
  | "rollback"
  | "discard"
  | "retire"
  | "switchOwner"
  | "pause"
  | "resume";

const FROM: Record<RoleCommand, readonly Role[]> = {
  configure: ["idle"],
  serve: ["idle"],
  standby: ["idle", "anchor", "standby"],
  prepareLinks: ["owner", "held", "captured", "anchor"],
  shorten: ["owner"],
  hold: ["owner"],
  captureUpstream: ["held"],
  captureDownstream: ["captured"],
  takeCaptured: ["captured", "departed"],
  settleLinks: ["captured"],
  adoptUpstream: ["standby", "adopted"],
  adoptDownstream: ["adopted"],
  release: ["adopted"],
  rollback: ["held", "captured", "departed"],
  discard: ["standby", "adopted"],
  retire: ["captured", "departed"],
  switchOwner: ["anchor"],
  pause: ["owner"],
  resume: ["owner", "paused"],
};

/** Where the command leads; `anchor` says whether this proxy is also an anchor of another owner, or becomes one. */
export function nextRole(command: RoleCommand, role: Role, anchor: boolean): Role {
  assert.ok(isAllowed(command, role), `${command} is not possible as ${role}`);
  switch (command) {
    case "serve":
    case "release":
    case "rollback":
    case "resume":
      return "owner";
    case "pause":
      return "paused";
    case "standby":
      return "standby";
    case "hold":
      return "held";
    case "captureUpstream":
      return "captured";
    case "captureDownstream":
      return "departed";
    case "adoptUpstream":
      return "adopted";
    case "discard":
      return anchor ? "anchor" : "idle";
    case "retire":
      return anchor ? "anchor" : "gone";
    case "configure":
    case "prepareLinks":
    case "shorten":
    case "takeCaptured":
    case "settleLinks":
    case "adoptDownstream":
    case "switchOwner":
      return role;
  }
}

export function isAllowed(command: RoleCommand, role: Role): boolean {
  return FROM[command].includes(role);
}

export function allowedRoles(command: RoleCommand): readonly Role[] {
  return FROM[command];
}
