/** What a pod's annotations ask for. The injector refuses what the agent could not use; the agent reads the same text later. */
import * as z from "zod";
import { DOWNSTREAMS, PROXY_PLACES } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { type Limit, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import { MOVE_LIMITS } from "../../config/limits.ts";
import { type SaidResources, saidResources } from "../../config/proxy-resources.ts";
import { ANNOTATION_PREFIX, MADE, SETTINGS } from "./names.ts";
import { annotationPath, type Container, type Pod, type Problem } from "./pod.ts";

const PORTS_MAX = 64;
const PORT_MAX = 65_535;
const PROTOCOLS = ["auto", "tcp", "http", "websocket", "h2", "tls"] as const;
/** nothing of these can be sent again to another instance */
const OPAQUE: readonly string[] = ["tcp", "tls", "h2"];
const CONTINUITIES = ["none", "replay"] as const;
/** an address that moves along is no pod's */
const MODES = DOWNSTREAMS.filter((mode) => mode !== "takeover");
const WORKLOAD_CHARS_MAX = 63;

export type Protocol = (typeof PROTOCOLS)[number];

export interface InjectedPort {
  /** where clients come */
  listen: number;
  /** where the application listens in its pod */
  upstream: number;
  protocol: Protocol;
}

export interface Settings {
  /** null: the only one that moves */
  container: string | null;
  /** null: those that the container declares */
  ports: InjectedPort[] | null;
  protocol: Protocol;
  /** containers that stay behind: the standby's pod has its own */
  stateless: string[];
  mode: "forward" | "gateway";
  /** null: wherever the proxy is */
  listen: "node" | "pod" | null;
  /** where the proxy is; null: as the injector has it for all */
  proxy: (typeof PROXY_PLACES)[number] | null;
  /** of the proxy in the pod, in the place of the injector's; null: those */
  proxyResources: SaidResources | null;
  /** null: as without us, where the container's first process has the orphans of all others */
  subreaper: boolean | null;
}

const oneOf = (values: readonly string[]) => {
  const expected = `expected ${values.slice(0, -1).join(", ")} or ${values.at(-1)}`;
  return z.string().refine((value) => values.includes(value), expected);
};

const names = z
  .string()
  .transform((value) => value.split(",").map((name) => name.trim()))
  .refine((all) => all.every((name) => /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name)), {
    message: "expected names of containers with commas between them, as sidecar,exporter",
  });

const limitKeys = Object.entries<Limit>({ ...PROXY_LIMITS, ...MOVE_LIMITS }).map(([name, limit]) => {
  const expected = `expected ${name} as a number of ${limit.unit} ${limit.min}-${limit.max}`;
  return [name, z.int(expected).min(limit.min, expected).max(limit.max, expected).optional()] as const;
});
const limitsSchema = z.strictObject(
  {
    ...Object.fromEntries(limitKeys),
    verifyMemory: z.boolean("expected verifyMemory as true or false").optional(),
  },
  { error: (issue) => (issue.code === "unrecognized_keys" ? `${issue.keys?.[0]} is no limit` : undefined) },
);

const WORKLOAD_EXPECTED = `expected a name of 1-${WORKLOAD_CHARS_MAX} small letters, digits, dots and dashes`;

/** One schema for each annotation, of its text. */
const SCHEMAS: Record<keyof typeof SETTINGS, z.ZodType> = {
  container: z.string().min(1, "expected the name of a container"),
  ports: z.string().transform(parsePorts),
  protocol: oneOf(PROTOCOLS),
  continuity: oneOf(CONTINUITIES),
  mode: oneOf(MODES),
  listen: oneOf(["node", "pod"]),
  proxy: oneOf(PROXY_PLACES),
  proxyResources: z.string().transform(parseResources),
  limits: z.string().transform(parseLimits),
  stateless: names,
  workload: z
    .string()
    .max(WORKLOAD_CHARS_MAX, WORKLOAD_EXPECTED)
    .regex(/^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/, WORKLOAD_EXPECTED),
  standby: oneOf(["true", "false"]),
  subreaper: oneOf(["true", "false"]),
};

/** What the pod says, or what is wrong with it. */
export function settingsOf(pod: Pod): Settings | Problem {
  const said = pod.metadata?.annotations ?? {};
  const values: Partial<Record<keyof typeof SETTINGS, unknown>> = {};
  for (const [key, annotation] of Object.entries(SETTINGS) as [keyof typeof SETTINGS, string][]) {
    if (said[annotation] === undefined) continue;
    const parsed = SCHEMAS[key].safeParse(said[annotation]);
    if (!parsed.success)
      return {
        at: annotationPath(annotation),
        message: `${parsed.error.issues[0]?.message}, got ${JSON.stringify(said[annotation])}`,
      };
    values[key] = parsed.data;
  }
  const namespace = pod.metadata?.namespace ?? null;
  const workload = values.workload as string | undefined;
  if (namespace !== null && workload !== undefined && !workload.startsWith(`${namespace}.`))
    return {
      at: annotationPath(SETTINGS.workload),
      message: `expected a name that begins with "${namespace}.", as a pod stands for those of its namespace, got ${JSON.stringify(workload)}`,
    };
  const settings: Settings = {
    container: (values.container as string | undefined) ?? null,
    ports: (values.ports as InjectedPort[] | undefined) ?? null,
    protocol: (values.protocol as Protocol | undefined) ?? "auto",
    stateless: (values.stateless as string[] | undefined) ?? [],
    mode: (values.mode as Settings["mode"] | undefined) ?? "forward",
    listen: (values.listen as Settings["listen"] | undefined) ?? null,
    proxy: (values.proxy as Settings["proxy"] | undefined) ?? null,
    proxyResources: (values.proxyResources as SaidResources | undefined) ?? null,
    subreaper: values.subreaper === undefined ? null : values.subreaper === "true",
  };
  if (values.protocol !== undefined && settings.ports !== null)
    return {
      at: annotationPath(SETTINGS.protocol),
      message: `expected it without ${SETTINGS.ports}, where each port says its own, as 8080/http: take one of them out`,
    };
  const protocols = [settings.protocol, ...(settings.ports ?? []).map(({ protocol }) => protocol)];
  const opaque = protocols.find((protocol) => OPAQUE.includes(protocol));
  if (values.continuity === "replay" && opaque !== undefined)
    return {
      at: annotationPath(SETTINGS.continuity),
      message: `expected none (nothing of protocol ${opaque} can be sent again), got "replay"`,
    };
  return settings;
}

/** Annotations of ours that nothing reads: misspelt, or of a newer version. */
export function unknownAnnotations(pod: Pod): string[] {
  const known = new Set<string>([...Object.values(SETTINGS), ...Object.values(MADE)]);
  return Object.keys(pod.metadata?.annotations ?? {}).filter(
    (name) => name.startsWith(ANNOTATION_PREFIX) && !known.has(name),
  );
}

/** The TCP ports that a container declares, in the annotation's words; null: it declares none. */
export function declaredPorts({ ports }: Container, protocol: Protocol): string | null {
  const tcp = (ports ?? []).filter((port) => (port.protocol ?? "TCP") === "TCP");
  const numbers = [...new Set(tcp.map(({ containerPort }) => containerPort))];
  if (numbers.length === 0) return null;
  return numbers.map((port) => (protocol === "auto" ? `${port}` : `${port}/${protocol}`)).join(",");
}

/** "8080:9000/http, 9001": LISTEN[:UPSTREAM][/PROTOCOL] with commas between. */
function parsePorts(text: string, context: z.RefinementCtx<string>): InjectedPort[] {
  const refuse = (message: string): never => {
    context.addIssue({ code: "custom", message });
    return z.NEVER;
  };
  const parts = text.split(",").map((part) => part.trim());
  if (parts.length > PORTS_MAX) return refuse(`expected at most ${PORTS_MAX} ports`);
  const ports: InjectedPort[] = [];
  for (const part of parts) {
    const match = /^(\d{1,5})(?::(\d{1,5}))?(?:\/([a-z0-9]+))?$/.exec(part);
    if (match === null) return refuse('expected ports as "8080" or "8080:9000/http, 9001"');
    const [listen, upstream] = [Number(match[1]), Number(match[2] ?? match[1])];
    const protocol = match[3] ?? "auto";
    if ([listen, upstream].some((port) => port < 1 || port > PORT_MAX))
      return refuse(`expected port numbers 1-${PORT_MAX}`);
    if (!PROTOCOLS.some((one) => one === protocol))
      return refuse(`expected one of the protocols ${PROTOCOLS.join(", ")} after the slash`);
    if (ports.some((port) => port.listen === listen)) return refuse(`expected port ${listen} once`);
    ports.push({ listen, upstream, protocol: protocol as Protocol });
  }
  return ports;
}

const RESOURCES_EXPECTED = 'expected resources as {"requests":{"cpu":"50m"},"limits":{"memory":"256Mi"}}';
const LIMITS_EXPECTED = 'expected limits as {"deadlineMs": 10000}';

function parseResources(text: string, context: z.RefinementCtx<string>): unknown {
  return parseObject(text, context, saidResources, RESOURCES_EXPECTED, ({ path, message }) =>
    path.length > 1 ? `${path.join(".")}: ${message}` : RESOURCES_EXPECTED,
  );
}

function parseLimits(text: string, context: z.RefinementCtx<string>): unknown {
  return parseObject(text, context, limitsSchema, LIMITS_EXPECTED, ({ message }) =>
    message.startsWith("Invalid") ? LIMITS_EXPECTED : message,
  );
}

/** JSON of an annotation. @param said what its first issue comes to */
function parseObject(
  text: string,
  context: z.RefinementCtx<string>,
  schema: z.ZodType,
  expected: string,
  said: (issue: z.core.$ZodIssue) => string,
): unknown {
  const refuse = (message: string): never => {
    context.addIssue({ code: "custom", message });
    return z.NEVER;
  };
  let raw: unknown;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    return refuse(`${expected} (${messageOf(error)})`);
  }
  const parsed = schema.safeParse(raw);
  return parsed.success ? parsed.data : refuse(said(parsed.error.issues[0] as z.core.$ZodIssue));
}
