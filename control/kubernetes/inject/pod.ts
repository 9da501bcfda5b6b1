/**
 * As much of a pod as injection looks at (https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/). Everything
 * else passes through. null is as good as absent: YAML has it where a key has no value.
 */
import * as z from "zod";

const text = z.string("expected text");
const truth = z.boolean("expected true or false").nullish();
const words = z.array(text, "expected a list of words").nullish();
const labels = z.record(z.string(), text, "expected names and values (numbers in quotes)").nullish();

function objects<T extends z.ZodRawShape>(shape: T, what: string) {
  return z.array(z.looseObject(shape, `expected ${what}`), `expected a list of ${what}s`).nullish();
}

const seccompProfile = z.looseObject({ type: text.nullish() }, "expected a seccomp profile").nullish();
const quantities = z.record(z.string(), z.union([text, z.number()], "expected a quantity")).nullish();

const resources = z.looseObject({ limits: quantities, requests: quantities }, "expected resources").nullish();

const container = z.looseObject(
  {
    name: text,
    command: words,
    args: words,
    ports: objects(
      {
        containerPort: z.int("expected a port number").min(1).max(65_535),
        protocol: text.nullish(),
      },
      "port",
    ),
    resources,
    volumeMounts: objects({ name: text, mountPath: text, readOnly: truth }, "mount"),
    volumeDevices: objects({}, "device"),
    securityContext: z
      .looseObject(
        {
          privileged: truth,
          readOnlyRootFilesystem: truth,
          runAsNonRoot: truth,
          runAsUser: z.number().nullish(),
          runAsGroup: z.number().nullish(),
          seccompProfile,
        },
        "expected a security context",
      )
      .nullish(),
    lifecycle: z
      .looseObject({ postStart: z.unknown(), preStop: z.unknown() }, "expected hooks")
      .partial()
      .nullish(),
    restartPolicy: text.nullish(),
    stdin: truth,
    tty: truth,
  },
  "expected a container",
);

export const metadataSchema = z.looseObject(
  {
    name: text.nullish(),
    generateName: text.nullish(),
    namespace: text.nullish(),
    labels,
    annotations: labels,
    ownerReferences: objects({ kind: text, name: text, controller: truth }, "owner"),
  },
  "expected metadata",
);

export const podSchema = z.looseObject(
  {
    metadata: metadataSchema.nullish(),
    spec: z.looseObject(
      {
        containers: z
          .array(container, "expected a list of containers")
          .min(1, "expected at least one container"),
        initContainers: z.array(container, "expected a list of containers").nullish(),
        volumes: objects({ name: text }, "volume"),
        securityContext: z.looseObject({ seccompProfile }, "expected a security context").nullish(),
        nodeSelector: labels,
        os: z.looseObject({ name: text.nullish() }, "expected an operating system").nullish(),
        restartPolicy: text.nullish(),
        hostNetwork: truth,
        hostPID: truth,
        hostIPC: truth,
        hostUsers: truth,
        shareProcessNamespace: truth,
        // of all containers together
        resources,
        evictionResponders: objects({ name: text }, "responder"),
        schedulingGroup: z.unknown().optional(),
      },
      "expected the spec of a pod",
    ),
  },
  "expected a pod",
);

export type Pod = z.infer<typeof podSchema>;
export type Container = z.infer<typeof container>;

/** What is not as Kubernetes has it, or cannot be moved: where in the pod, and one sentence with what to do. */
export interface Problem {
  at: string;
  message: string;
}

/** "metadata.annotations[holdfast.dev/ports]" */
export function annotationPath(name: string): string {
  return `metadata.annotations[${name}]`;
}
