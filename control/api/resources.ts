/**
 * The objects that Holdfast adds to a cluster, each once: types, what is checked where they are read, and (by `crd.ts`) the
 * definitions that the API server checks them by. The conventions are Kubernetes' own (sig-architecture/api-conventions.md), the
 * shape of a Migration's status that of KubeVirt's VirtualMachineInstanceMigration.
 *
 * A Migration is also how controller and agents talk. Each of them writes its status only at the version that it has read:
 *
 *   controller   phase and everything beside it; leaves Moving only when no agent is at work on it (`move.state` Running)
 *   agent        `status.move`, and begins a move only after Running has been written while the phase was Moving
 *
 * so that the two cannot disagree whether a move may have begun.
 */
import * as z from "zod";

/** the container of a pod that its proxy is in */
export { SIDECAR_NAME } from "#proxy/contract/commands.ts";

export const GROUP = "holdfast.dev";
export const VERSION = "v1alpha1";
export const API_VERSION = `${GROUP}/${VERSION}`;

/** on a Migration until nothing is left of it but the object */
export const FINALIZER = `${GROUP}/standby`;
/** condition of a pod, and its readiness gate: the application is owned and runs here; written by the agent of its node */
export const SERVING = `${GROUP}/serving`;
/** condition of an injected pod, and no readiness gate: could its application move now; written by the agent of its node */
export const MOVABLE = `${GROUP}/movable`;
/** written by the injector or by hand; see the README of `control/kubernetes` */
export const ANNOTATION = {
  injected: `${GROUP}/injected`,
  container: `${GROUP}/container`,
  /** what agents call the application, wherever it is */
  workload: `${GROUP}/workload`,
  /** "gateway": clients come to gateways; else to nodes or pods */
  mode: `${GROUP}/mode`,
  /** "pod": clients come to the pod's own address; else to that of the node it is first on */
  listen: `${GROUP}/listen`,
  /** "sidecar": the proxy is a container of the pod; else a process of the node's agent */
  proxy: `${GROUP}/proxy`,
  /** "true": a pod that waits for the application of another */
  standby: `${GROUP}/standby`,
  /** of a standby: JSON, the labels and the owner that it gets when it has the application */
  becomes: `${GROUP}/becomes`,
  /** "true": of a pod that keeps a StatefulSet's application until its own pod is made anew, and no longer */
  between: `${GROUP}/between`,
  /** JSON: nodeSelector and affinity as they were before the pod was first moved, without what pinned it since */
  scheduling: `${GROUP}/scheduling`,
  /** "false", of a pod that is made for a dry run alone: "true" comes back where the API server asks `/ordinal` about a StatefulSet's pods */
  seen: `${GROUP}/seen`,
  /** of a pod that keeps a StatefulSet's application: the pods made anew in a row that `/ordinal` did not see, see `controller/returning.ts` */
  unseen: `${GROUP}/unseen`,
  /** of such a pod: since when dry runs say that `/ordinal` is not asked, see `controller/returning.ts` */
  silent: `${GROUP}/silent`,
  /** when the application last came to this pod by a Migration */
  moved: `${GROUP}/moved`,
  /** JSON: what annotations had before the pod was kept from being disrupted, see `controller/disruption.ts` */
  undisturbed: `${GROUP}/undisturbed`,
} as const;
/** label of a source and of a standby: the uid of the Migration that has to do with them */
export const MIGRATION_LABEL = `${GROUP}/migration`;
/** label of a Migration that nobody made by hand, see `kubernetes/triggers/caused.ts` */
export const CAUSE_LABEL = `${GROUP}/cause`;
/** lower goes first where a ReplicaSet has a pod too many */
export const DELETION_COST = "controller.kubernetes.io/pod-deletion-cost";

const podName = z
  .string()
  .min(1)
  .max(253)
  .regex(/^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/);
const nodeName = podName;
const uid = z.string().max(64);
const time = z.string().max(40).meta({ format: "date-time" });
const count = z.int().min(0).max(Number.MAX_SAFE_INTEGER);
const text = (max: number) => z.string().max(max);
/** CamelCase, for programs */
const reason = text(100);
const message = text(2_000);

const DAY_S = 86_400;
const deadlineSeconds = z.int().min(5).max(DAY_S);
const attemptsMax = z.int().min(1).max(10);

// ---- Migration ----

export const PHASES = [
  "Pending",
  "Preparing",
  "Moving",
  "Adopting",
  "Succeeded",
  "Failed",
  "Aborted",
] as const;
export type MigrationPhase = (typeof PHASES)[number];

const target = z
  .object({
    node: nodeName.optional().describe("name of the node"),
    nodeSelector: z
      .record(z.string(), text(63))
      .meta({ maxProperties: 16 })
      .optional()
      .describe("labels that the node must have, beside those that the pod asks for"),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "!(has(self.node) && has(self.nodeSelector))",
        message: "name a node or give a nodeSelector, not both; without either the scheduler chooses",
      },
    ],
  });

export const migrationSpec = z
  .object({
    pod: podName.describe("name of the pod that moves, in the namespace of this object"),
    podUid: uid.min(1).optional().describe("only this pod is meant, not one of the same name after it"),
    target: target.optional().describe("where to; without it any other node that the scheduler finds"),
    deadlineSeconds: deadlineSeconds
      .optional()
      .describe("from the creation of this object; what has not moved by then stays. Default: the policy's"),
    attemptsMax: attemptsMax
      .optional()
      .describe("how often a move that may succeed later is tried. Default: the policy's"),
    dryRun: z.boolean().optional().describe("only say in status.plan what would be done"),
    abort: z.boolean().optional().describe("give up, unless the application has moved already"),
    ttlSecondsAfterFinished: z
      .int()
      .min(0)
      .max(365 * DAY_S)
      .optional()
      .describe("this object is deleted so long after its end; without it, never"),
  })
  .meta({
    "x-kubernetes-validations": [
      { rule: "self.pod == oldSelf.pod", message: "pod cannot be changed: make another Migration" },
      ...["podUid", "target", "dryRun"].map((key) => ({
        rule: `has(self.${key}) == has(oldSelf.${key}) && (!has(self.${key}) || self.${key} == oldSelf.${key})`,
        message: `${key} cannot be changed: make another Migration`,
      })),
      {
        rule: "!(has(oldSelf.abort) && oldSelf.abort) || (has(self.abort) && self.abort)",
        message: "abort cannot be taken back: make another Migration",
      },
    ],
  });
export type MigrationSpec = z.infer<typeof migrationSpec>;

const conditions = z
  .array(
    z.object({
      type: text(316),
      status: z.enum(["True", "False", "Unknown"]),
      reason: text(1_024),
      message: text(32_768),
      lastTransitionTime: time,
      observedGeneration: count.optional(),
    }),
  )
  .max(16)
  .meta({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"] });
export type Condition = z.infer<typeof conditions>[number];

const place = z.object({
  pod: text(253),
  podUid: uid.optional(),
  node: text(253).optional(),
});
const targetPlace = place.extend({ attempt: count.describe("that this pod was made for") });

/** What the agents have to say. @property attempt that it is about; older than `status.attempt` it is history */
export const moveStatus = z.object({
  attempt: count,
  state: z.enum(["Running", "Moved", "Failed"]),
  reason: reason.optional(),
  message: message.optional(),
  retryable: z.boolean().optional(),
  phase: text(40).optional().describe("of the move under way, as the agent names it"),
  downstream: text(40).optional().describe("how clients follow: gateway, forward, or takeover"),
  sessions: count.optional(),
  pauseMs: z.number().min(0).optional().describe("from the first client that waits to the release"),
  predictedPauseMs: z.number().min(0).optional(),
  bytes: count.optional().describe("of memory and files, sent from node to node"),
  anchored: count.optional().describe("clients that are still connected by the source (forward)"),
});
export type MoveStatus = z.infer<typeof moveStatus>;

const origin = place.extend({
  attempt: count.describe("the first into the pod that is made anew"),
  move: moveStatus.optional().describe("of the way to source"),
});

export const migrationStatus = z.object({
  observedGeneration: count.optional(),
  phase: z.enum(PHASES).optional(),
  phaseTransitionTimestamps: z
    .array(z.object({ phase: z.enum(PHASES), timestamp: time }))
    .max(64)
    .meta({ "x-kubernetes-list-type": "atomic" })
    .optional(),
  reason: reason.optional().describe("why it waits, or ended as it did"),
  message: message.optional(),
  attempt: count.optional().describe("from 1"),
  serial: count.optional().describe("of standby pods; a part of their names"),
  retryAt: time.optional().describe("the next attempt does not begin before"),
  cancel: z
    .enum(["Aborted", "Deadline"])
    .optional()
    .describe("the agent that moves is asked to give up, unless the application has moved already"),
  source: place.optional(),
  target: targetPlace.optional(),
  origin: origin
    .optional()
    .describe(
      "of a StatefulSet's pod: where it was. Its application waits in source until the StatefulSet has made the pod anew",
    ),
  move: moveStatus.optional(),
  plan: z.array(text(1_000)).max(32).optional().describe("with dryRun: what would be done"),
  conditions: conditions.optional(),
});
export type MigrationStatus = z.infer<typeof migrationStatus>;

const meta = z.object({
  name: text(253),
  namespace: text(63),
  uid,
  resourceVersion: text(64),
  generation: count.default(1),
  creationTimestamp: time,
  deletionTimestamp: time.optional(),
  finalizers: z.array(z.string()).default([]),
  labels: z.record(z.string(), z.string()).optional(),
  annotations: z.record(z.string(), z.string()).optional(),
});

export const migration = z.object({
  metadata: meta,
  spec: migrationSpec,
  status: migrationStatus.default({}),
});
export type Migration = z.infer<typeof migration>;

// ---- ContinuityPolicy ----

/** As KubeVirt names them. */
export const EVICTION_STRATEGIES = ["LiveMigrate", "LiveMigrateIfPossible", "External", "None"] as const;
export type EvictionStrategy = (typeof EVICTION_STRATEGIES)[number];

const trigger = z
  .object({
    taint: z
      .object({
        key: text(316).min(1),
        value: text(63).optional().describe("without it any"),
        effect: z.enum(["NoSchedule", "PreferNoSchedule", "NoExecute"]).optional().describe("without it any"),
      })
      .optional(),
    condition: z
      .object({
        type: text(316).min(1),
        status: z.enum(["True", "False", "Unknown"]).optional().describe('Default: "True"'),
      })
      .optional(),
  })
  .meta({
    "x-kubernetes-validations": [
      {
        rule: "has(self.taint) != has(self.condition)",
        message: "name a taint or a condition of nodes: one of them",
      },
    ],
  });
export type Trigger = z.infer<typeof trigger>;

export const policySpec = z.object({
  evictionStrategy: z
    .enum(EVICTION_STRATEGIES)
    .optional()
    .describe(
      "what an eviction of an injected pod does. LiveMigrate: the pod moves first, and one that cannot stays until " +
        "evictionDeadlineSeconds. LiveMigrateIfPossible (default): the pod moves first, and is evicted where it cannot. " +
        "External: somebody else moves it; it stays until evictionDeadlineSeconds. None: evicted as without Holdfast.",
    ),
  evictionDeadlineSeconds: z
    .int()
    .min(10)
    .max(DAY_S)
    .optional()
    .describe("an eviction is denied for so long at most, from the first. Default: 600"),
  deadlineSeconds: deadlineSeconds.optional().describe("of a Migration that says nothing. Default: 600"),
  attemptsMax: attemptsMax.optional().describe("of a Migration that says nothing. Default: 3"),
  movesPerNode: z
    .int()
    .min(1)
    .max(100)
    .optional()
    .describe("that go from or to one node at a time, of this namespace. Default: 2"),
  movesPerCluster: z
    .int()
    .min(1)
    .max(1_000)
    .optional()
    .describe("while so many are under way in the cluster, none begins in this namespace. Default: 5"),
  movesPerHour: z
    .int()
    .min(1)
    .max(10_000)
    .optional()
    .describe(
      "of this namespace, for evictions and triggers; by hand one moves all the same. Default: no limit",
    ),
  cooldownSeconds: z
    .int()
    .min(0)
    .max(DAY_S)
    .optional()
    .describe(
      "a pod that has moved is not moved again for so long by an eviction or a trigger; by hand it is. Default: 0",
    ),
  triggers: z
    .array(trigger)
    .max(32)
    .meta({ "x-kubernetes-list-type": "atomic" })
    .optional()
    .describe(
      "what of a node has the pods on it moved, before anybody evicts them, where evictionStrategy is LiveMigrate or LiveMigrateIfPossible. " +
        "[]: nothing. Default: the taints karpenter.sh/disrupted, aws-node-termination-handler/spot-itn, " +
        "cloud.google.com/impending-node-termination and node.kubernetes.io/out-of-service, and the condition MaintenancePlanned",
    ),
  anchorSeconds: z
    .int()
    .min(0)
    .max(DAY_S)
    .optional()
    .describe(
      "where clients are connected to the pod itself (forward, with listen: pod): how long it stays for them when its application has moved. " +
        "Those that are connected then are reset. Default: 60",
    ),
});
export type PolicySpec = z.infer<typeof policySpec>;

export const policyStatus = z.object({
  observedGeneration: count.optional(),
  conditions: conditions.optional(),
});

export const continuityPolicy = z.object({ metadata: meta, spec: policySpec });
export type ContinuityPolicy = z.infer<typeof continuityPolicy>;

/** What holds in a namespace. */
export type Policy = { [Key in keyof PolicySpec]-?: NonNullable<PolicySpec[Key]> };

const DEFAULT_POLICY: Policy = {
  evictionStrategy: "LiveMigrateIfPossible",
  evictionDeadlineSeconds: 600,
  deadlineSeconds: 600,
  attemptsMax: 3,
  movesPerNode: 2,
  movesPerCluster: 5,
  movesPerHour: Number.POSITIVE_INFINITY,
  cooldownSeconds: 0,
  triggers: [
    { taint: { key: "karpenter.sh/disrupted" } },
    { taint: { key: "aws-node-termination-handler/spot-itn" } },
    { taint: { key: "cloud.google.com/impending-node-termination" } },
    { taint: { key: "node.kubernetes.io/out-of-service" } },
    { condition: { type: "MaintenancePlanned" } },
  ],
  anchorSeconds: 60,
};

/** @param policies of the namespace: the first by name says what it says, the next the rest */
export function policyOf(policies: readonly ContinuityPolicy[]): Policy {
  const byName = [...policies].sort((one, other) => (one.metadata.name < other.metadata.name ? 1 : -1));
  const said = byName.flatMap(({ spec }) => Object.entries(spec).filter(([, value]) => value !== undefined));
  return { ...DEFAULT_POLICY, ...(Object.fromEntries(said) as Partial<Policy>) };
}

/** Those that are understood: what is of a later version is nobody's here. */
export function migrationsIn(objects: Iterable<unknown>): Migration[] {
  return [...objects].flatMap((object) => migration.safeParse(object).data ?? []);
}

/** … and policies: one that is not understood says nothing, as if it were not there. */
export function policiesIn(objects: Iterable<unknown>): ContinuityPolicy[] {
  return [...objects].flatMap((object) => continuityPolicy.safeParse(object).data ?? []);
}

/** Its application, or its standby, is on the way. */
export function isUnderWay({ status: { phase } }: Migration): boolean {
  return phase === "Preparing" || phase === "Moving" || phase === "Adopting";
}

export function isFinal(phase: MigrationPhase | undefined): boolean {
  return phase === "Succeeded" || phase === "Failed" || phase === "Aborted";
}
