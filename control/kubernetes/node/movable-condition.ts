/**
 * The condition `holdfast.dev/movable` of an injected pod: could its application leave now, why not, and how long would clients wait. Pure. The
 * agent of its node writes it; the controller reads the memory in it, to move small applications first.
 */
import { MOVABLE } from "../../api/resources.ts";
import { conditionOf, type Pod, type PodCondition } from "../client/objects.ts";

export interface MovableFacts {
  /** null: the application is not here */
  application: {
    /** what makes a move impossible, the first first */
    obstacles: { id: string; what: string; cure: string }[];
    estimate: { pauseMs: { low: number; likely: number; high: number }; memoryBytes: number } | null;
  } | null;
  /** of its volumes */
  volume: { reason: string; message: string } | null;
}

const MESSAGE_MAX = 1_000;
const MEGABYTE = 1e6;
/** figures that differ by less are not worth a write */
const NEWS = 0.25;
const FIGURES = /^clients would wait about (\d+) ms .* (\d+) MB of memory$/;

export function movableCondition({
  application,
  volume,
}: MovableFacts): Omit<PodCondition, "lastTransitionTime"> {
  const no = (reason: string, message: string) => ({
    type: MOVABLE,
    status: "False" as const,
    reason,
    message: message.slice(0, MESSAGE_MAX),
  });
  if (application === null) return no("NoApplication", "the application is not in this pod");
  if (volume !== null) return no(volume.reason, volume.message);
  const { obstacles, estimate } = application;
  const [first] = obstacles;
  if (first !== undefined)
    return no(reasonOf(first.id), obstacles.map(({ what, cure }) => `${what}: ${cure}`).join("; "));
  if (estimate === null) return no("NoApplication", "nothing that could move is running");
  const { low, likely, high } = estimate.pauseMs;
  const memory = Math.ceil(estimate.memoryBytes / MEGABYTE);
  const [least, about, most] = [low, likely, high].map(Math.round);
  return {
    type: MOVABLE,
    status: "True",
    reason: "Movable",
    message: `clients would wait about ${about} ms (${least} to ${most}), with ${memory} MB of memory`,
  };
}

/** Whether it says something else than what is there. */
export function isNews(
  next: Pick<PodCondition, "status" | "reason" | "message">,
  before: PodCondition | null,
): boolean {
  if (before === null || next.status !== before.status || next.reason !== before.reason) return true;
  const [now, then] = [figuresIn(next.message), figuresIn(before.message)];
  if (now === null || then === null) return next.message !== before.message;
  return now.some(
    (figure, at) => Math.abs(figure - (then[at] ?? 0)) > NEWS * Math.max(figure, then[at] ?? 0),
  );
}

/** Of its application, in bytes; null: its agent has not said. */
export function memoryOf(pod: Pod): number | null {
  const [, megabytes] = figuresIn(conditionOf(pod, MOVABLE)?.message) ?? [];
  return megabytes === undefined ? null : megabytes * MEGABYTE;
}

function figuresIn(message: string | undefined): [number, number] | null {
  const [, ms, megabytes] = FIGURES.exec(message ?? "") ?? [];
  return ms === undefined ? null : [Number(ms), Number(megabytes)];
}

/** descriptor.io-uring → DescriptorIoUring, as reasons of conditions are written */
function reasonOf(id: string): string {
  return id.replaceAll(/(?:^|[^A-Za-z0-9]+)([A-Za-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
