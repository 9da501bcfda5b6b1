/** The definitions of our resources for the API server, made of the schemas in `resources.ts`: `scripts/crds.ts` writes them into the chart. */
import * as z from "zod";
import { GROUP, migrationSpec, migrationStatus, policySpec, policyStatus, VERSION } from "./resources.ts";

interface Column {
  name: string;
  type: "string" | "integer" | "number" | "date";
  jsonPath: string;
  /** 1: with `-o wide` only */
  priority?: 1;
}

interface Resource {
  kind: string;
  plural: string;
  singular: string;
  shortNames: string[];
  description: string;
  spec: z.ZodType;
  status: z.ZodType;
  columns: Column[];
}

const RESOURCES: Resource[] = [
  {
    kind: "Migration",
    plural: "migrations",
    singular: "migration",
    shortNames: ["hfm"],
    description: "Moves the application of a pod to another node, with its clients' sessions.",
    spec: migrationSpec,
    status: migrationStatus,
    columns: [
      { name: "Pod", type: "string", jsonPath: ".spec.pod" },
      { name: "From", type: "string", jsonPath: ".status.source.node" },
      { name: "To", type: "string", jsonPath: ".status.target.node" },
      { name: "Phase", type: "string", jsonPath: ".status.phase" },
      { name: "Reason", type: "string", jsonPath: ".status.reason" },
      { name: "Sessions", type: "integer", jsonPath: ".status.move.sessions" },
      { name: "Pause ms", type: "number", jsonPath: ".status.move.pauseMs" },
      { name: "New pod", type: "string", jsonPath: ".status.target.pod", priority: 1 },
      { name: "Message", type: "string", jsonPath: ".status.message", priority: 1 },
      { name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" },
    ],
  },
  {
    kind: "ContinuityPolicy",
    plural: "continuitypolicies",
    singular: "continuitypolicy",
    shortNames: ["hfp"],
    description: "How the injected pods of its namespace move, and what an eviction of one does.",
    spec: policySpec,
    status: policyStatus,
    columns: [
      { name: "Eviction", type: "string", jsonPath: ".spec.evictionStrategy" },
      { name: "Moves per node", type: "integer", jsonPath: ".spec.movesPerNode" },
      { name: "Moves per hour", type: "integer", jsonPath: ".spec.movesPerHour", priority: 1 },
      { name: "Cooldown s", type: "integer", jsonPath: ".spec.cooldownSeconds", priority: 1 },
      { name: "Age", type: "date", jsonPath: ".metadata.creationTimestamp" },
    ],
  },
];

export interface CustomResourceDefinition {
  apiVersion: "apiextensions.k8s.io/v1";
  kind: "CustomResourceDefinition";
  metadata: { name: string };
  spec: object;
}

/** One for each resource, in the order in which they are to be applied. */
export function customResourceDefinitions(): CustomResourceDefinition[] {
  return RESOURCES.map((resource) => ({
    apiVersion: "apiextensions.k8s.io/v1",
    kind: "CustomResourceDefinition",
    metadata: { name: `${resource.plural}.${GROUP}` },
    spec: {
      group: GROUP,
      names: {
        kind: resource.kind,
        listKind: `${resource.kind}List`,
        plural: resource.plural,
        singular: resource.singular,
        shortNames: resource.shortNames,
        categories: ["holdfast"],
      },
      scope: "Namespaced",
      versions: [
        {
          name: VERSION,
          served: true,
          storage: true,
          additionalPrinterColumns: resource.columns,
          subresources: { status: {} },
          schema: {
            openAPIV3Schema: {
              type: "object",
              description: resource.description,
              required: ["spec"],
              properties: {
                apiVersion: { type: "string" },
                kind: { type: "string" },
                metadata: { type: "object" },
                spec: structural(resource.spec),
                status: structural(resource.status),
              },
            },
          },
        },
      ],
    },
  }));
}

/**
 * The structural schema that the API server wants: an object has either `properties` or `additionalProperties`, and what is not
 * named is pruned, not refused.
 */
function structural(schema: z.ZodType): unknown {
  return settled(z.toJSONSchema(schema, { target: "openapi-3.0", io: "input" }));
}

function settled(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(settled);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).filter(
    ([key]) => key !== "$schema" && !(key === "additionalProperties" && Object.hasOwn(value, "properties")),
  );
  const next = Object.fromEntries(entries.map(([key, inner]) => [key, settled(inner)]));
  // what an integer of JavaScript can be needs 64 bits
  if (next.type === "integer") next.format = "int64";
  return next;
}
