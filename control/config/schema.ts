/**
 * The shape of the configuration file and its defaults, one zod schema. What keys must agree with each other is checked in
 * `config.ts` and `port.ts`. Messages say `expected …`; who reads the issue adds the path and what was there.
 */
import { isIP } from "node:net";
import * as z from "zod";
import { DOWNSTREAMS, PROXY_PLACES } from "#proxy/contract/commands.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { type Limit, MS_MAX, PROXY_LIMITS } from "#proxy/contract/limits.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { parseStoreUrl } from "#proxy/store/open.ts";
import { NODE_NAME } from "#proxy/store/store.ts";
import { CAPABILITY_NAMES } from "./capabilities.ts";
import { parseEndpoint } from "./endpoint.ts";
import { AGENT_LIMITS, DEFAULT_AGENT_LIMITS, DEFAULT_LIMITS, MOVE_LIMITS } from "./limits.ts";

/** sun_path is 108 bytes, and sockets live below stateDir */
const STATE_DIR_CHARS_MAX = 70;
const STOP_MS = 10_000;
const SESSIONS_MAX = 50_000;
/** routers that keep an entry for each connection forget idle ones after a minute or more */
const KEEP_ALIVE_MS = 15_000;
const USER_TIMEOUT_MS = 120_000;
/** a load balancer sends its header at once; one lost packet of it comes again within three seconds */
const HEADER_MS = 5_000;
const WEEK_MS = 604_800_000;

const NAME_EXPECTED = "expected a name of 1-63 small letters, digits and dashes, with dots between";
const ENDPOINT_EXPECTED = "expected IP:PORT ([IP]:PORT for IPv6)";
export const name = z.string(NAME_EXPECTED).regex(NODE_NAME, NAME_EXPECTED);

function text(expected: string): z.ZodString {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a NUL would cut the string short in the kernel.
  return z.string(expected).regex(/^[^\u0000]*$/, `${expected} without a NUL`);
}

function path(what: string): z.ZodType<string> {
  const expected = `expected the absolute path of ${what}`;
  return text(expected).refine((value) => value.startsWith("/"), expected);
}

export function count(what: string, min: number, max: number): z.ZodNumber {
  const expected = `expected ${what} ${min}-${max}`;
  return z.number(expected).int(expected).min(min, expected).max(max, expected);
}

export function list<T>(schema: z.ZodType<T>, expected: string, min: number, max: number) {
  return z.array(schema, expected).min(min, expected).max(max, expected);
}

export function oneOf<const T extends readonly [string, ...string[]]>(...values: T) {
  const [last, ...others] = values.toReversed();
  const expected = `expected ${others.length === 0 ? "" : `${others.reverse().join(", ")} or `}${last}`;
  return z.enum(values, expected);
}

export const truth = z.boolean("expected true or false");

export const endpoint = z.string(ENDPOINT_EXPECTED).transform((value, context): Endpoint => {
  const parsed = parseEndpoint(value);
  if (parsed !== null) return parsed;
  context.addIssue({ code: "custom", message: ENDPOINT_EXPECTED });
  return z.NEVER;
});

const VIP_EXPECTED = "expected IP/PREFIX, as 10.99.0.50/24";
const vipAddress = z.string(VIP_EXPECTED).transform((value, context) => {
  const match = /^([0-9A-Fa-f:.]+)\/(\d{1,3})$/.exec(value);
  const family = isIP(match?.[1] ?? "");
  const prefix = Number(match?.[2]);
  if (match !== null && family !== 0 && prefix >= 1 && prefix <= (family === 4 ? 32 : 128)) {
    return { address: match[1] as string, prefix };
  }
  context.addIssue({ code: "custom", message: VIP_EXPECTED });
  return z.NEVER;
});

export const storeUrl = z.string("expected the address of a store").superRefine((value, context) => {
  try {
    parseStoreUrl(value);
  } catch (error) {
    context.addIssue({ code: "custom", message: messageOf(error) });
  }
});

export const milliseconds = count("milliseconds", 1, MS_MAX);

const UNITS: Record<Limit["unit"], string> = {
  ms: "milliseconds",
  bytes: "a number of bytes",
  MiB: "a number of MiB",
  sessions: "a number of sessions",
};

/** A key of the file for each, with its default. */
function keysOf<Name extends string>(all: Record<Name, Limit>): Record<Name, z.ZodDefault<z.ZodNumber>> {
  const keys = Object.entries<Limit>(all).map(([name, limit]) => [
    name,
    count(UNITS[limit.unit], limit.min, limit.max).default(limit.default),
  ]);
  return Object.fromEntries(keys) as Record<Name, z.ZodDefault<z.ZodNumber>>;
}

const limits = z.strictObject(
  { ...keysOf(PROXY_LIMITS), ...keysOf(MOVE_LIMITS), verifyMemory: truth.default(false) },
  "expected limits, as { deadlineMs: 10000 }",
);

const agentLimits = z.strictObject(
  keysOf(AGENT_LIMITS),
  "expected limits of the agent, as { heldMbMax: 512 }",
);

const mount = z.strictObject(
  {
    source: path("a folder or file of this node"),
    target: path("where the container sees it"),
    shared: truth.default(false),
    readonly: truth.default(false),
  },
  "expected a mount, as { source: /data, target: /data }",
);

const CAPABILITY_EXPECTED =
  "expected the name of a capability without CAP_, as NET_RAW (capabilities(7)); drop also knows ALL";
const CAPABILITIES_EXPECTED = "expected a list of capabilities, as [NET_RAW]";

const NETWORK_EXPECTED =
  "expected host, own or an address of its own, as { address: 169.254.7.2/30, gateway: 169.254.7.1 }";
const network = z.union(
  [
    z.enum(["host", "own"]),
    z.strictObject({
      address: vipAddress,
      gateway: z.ipv4(),
    }),
  ],
  NETWORK_EXPECTED,
);

const container = z.strictObject(
  {
    command: list(text("expected a word of the command"), "expected a command as a list of words", 1, 1_000),
    cwd: path("the working directory").default("/"),
    env: z
      .record(
        z.string().regex(/^[^=\s]{1,200}$/),
        text("expected a string (numbers in quotes)"),
        "expected names and values",
      )
      .default({}),
    rootfs: text("expected host or an absolute path").refine(
      (value) => value === "host" || value.startsWith("/"),
      "expected host or an absolute path",
    ),
    mounts: list(mount, "expected a list of at most 100 mounts", 0, 100).default([]),
    network: network.default("host"),
    capabilities: z
      .strictObject(
        {
          add: list(z.enum(CAPABILITY_NAMES, CAPABILITY_EXPECTED), CAPABILITIES_EXPECTED, 0, 41).default([]),
          drop: list(
            z.enum([...CAPABILITY_NAMES, "ALL"], CAPABILITY_EXPECTED),
            CAPABILITIES_EXPECTED,
            0,
            42,
          ).default([]),
        },
        "expected capabilities, as { add: [NET_RAW], drop: [KILL] }",
      )
      .default({ add: [], drop: [] }),
  },
  "expected a container, as { command: [node, server.js], rootfs: host }",
);

const pod = z
  .strictObject(
    {
      namespace: text("expected a namespace").default("default"),
      name: text("expected the name of a pod on this node"),
      container: text("expected the name of a container of that pod"),
      command: list(
        text("expected a word of the command"),
        "expected a command as a list of words",
        1,
        1_000,
      ).optional(),
      cwd: path("the working directory").optional(),
      uid: text("expected the uid of a pod").optional(),
      /** default: node; where the proxy is in the pod: pod */
      listen: oneOf("node", "pod").optional(),
      proxy: oneOf(...PROXY_PLACES).default("node"),
    },
    "expected a pod, as { name: chat-a, container: app, command: [node, server.js] }",
  )
  .refine(({ listen, proxy }) => proxy === "node" || listen !== "node", {
    path: ["listen"],
    message: "expected pod, as a proxy in the pod cannot listen at the node",
  });

/** RFC 9110, section 5.6.2; names of fields and of cookies (RFC 6265, 4.1.1), and subprotocols (RFC 6455, 4.1) are such */
function token(what: string) {
  const expected = `expected ${what} of 1-100 letters, digits and !#$%&'*+-.^_\`|~`;
  return z.string(expected).regex(/^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$/, expected);
}

const QUERY_EXPECTED = "expected the name of a query parameter, 1-100 letters, digits and -._~";
export const session = z.strictObject(
  {
    cookie: token("the name of a cookie").optional(),
    header: token("the name of a header").optional(),
    query: z
      .string(QUERY_EXPECTED)
      .regex(/^[A-Za-z0-9._~-]{1,100}$/, QUERY_EXPECTED)
      .optional(),
    subprotocol: token("the beginning of a subprotocol").optional(),
    issue: truth.default(false),
  },
  "expected where a session's name is, as { cookie: sid }",
);

const PROBE_EXPECTED = "expected the path of a health check, as /healthz";
const probe = z.string(PROBE_EXPECTED).regex(/^\/[!-~]{0,1023}$/, PROBE_EXPECTED);

const RANGE_EXPECTED = "expected a network or an address, as 10.0.0.0/8 or fd00::1";
const range = z.string(RANGE_EXPECTED).transform((value, context) => {
  const match = /^([0-9A-Fa-f:.]+)(?:\/(\d{1,3}))?$/.exec(value);
  const family = isIP(match?.[1] ?? "");
  const bits = family === 4 ? 32 : 128;
  const prefix = Number(match?.[2] ?? bits);
  if (match !== null && family !== 0 && prefix <= bits) return { address: match[1] as string, prefix };
  context.addIssue({ code: "custom", message: RANGE_EXPECTED });
  return z.NEVER;
});

const proxyProtocol = z.strictObject(
  {
    from: list(range, "expected a list of 1-64 networks, as [10.0.0.0/8]", 1, 64),
    headerMsMax: milliseconds.default(HEADER_MS),
  },
  "expected who sends headers of the PROXY protocol, as { from: [10.0.0.0/8] }",
);

const SET_UP_EXPECTED = "expected auto, close, none or a number of messages (1 to 16)";
const setUp = z.union(
  [
    z.enum(["auto", "close", "none"]),
    z.int(SET_UP_EXPECTED).min(1, SET_UP_EXPECTED).max(16, SET_UP_EXPECTED),
  ],
  SET_UP_EXPECTED,
);

/** Where clients come: a workload's port, or a gateway's. */
export const clientKeys = {
  proxyProtocol: proxyProtocol.optional(),
  sessionsMax: count("a number of sessions", 1, 100_000).default(SESSIONS_MAX),
  // half of sessionsMax, so that no client keeps all the others out
  sessionsPerClientMax: count("a number of sessions", 1, 100_000).optional(),
  keepAliveMs: count("milliseconds", 0, MS_MAX).default(KEEP_ALIVE_MS),
  userTimeoutMs: count("milliseconds", 0, MS_MAX).default(USER_TIMEOUT_MS),
  idleMsMax: count("milliseconds", 0, WEEK_MS).default(0),
};

const port = z.strictObject(
  {
    listen: count("a port number", 1, 65_535),
    upstream: endpoint,
    protocol: oneOf("auto", "tcp", "http", "websocket", "h2", "tls").default("auto"),
    continuity: oneOf("transplant", "replay").default("transplant"),
    moveBy: oneOf("transplant", "replay").default("transplant"),
    replayUnsafe: truth.default(false),
    // no default: given without replay it is a mistake, whatever it says
    delivery: oneOf("atMostOnce", "atLeastOnce").optional(),
    setUp: setUp.optional(),
    session: session.optional(),
    ...clientKeys,
    probes: list(probe, "expected a list of at most 16 paths", 0, 16).default([]),
  },
  'expected a port, as { listen: 8080, upstream: "127.0.0.1:9000" }',
);
export type FileSession = z.infer<typeof session>;
export type FilePort = z.infer<typeof port>;

const vip = z.strictObject(
  {
    address: vipAddress,
    device: z.string("expected a network device").regex(/^[^\s/:]{1,15}$/, "expected a network device"),
  },
  "expected a VIP, as { address: 10.99.0.50/24, device: eth0 }",
);

export const workloadSchema = z.strictObject(
  {
    name,
    start: truth.default(false),
    container: container.optional(),
    bundle: path("an OCI bundle").optional(),
    pod: pod.optional(),
    ports: list(port, "expected a list of 1-64 ports", 1, 64),
    vip: vip.optional(),
    downstream: oneOf(...DOWNSTREAMS).optional(),
    outbound: oneOf("close", "keep").default("close"),
    restart: oneOf("always", "on-failure", "never").default("on-failure"),
    subreaper: truth.default(false),
    stopSignal: oneOf(
      "SIGTERM",
      "SIGINT",
      "SIGQUIT",
      "SIGHUP",
      "SIGUSR1",
      "SIGUSR2",
      "SIGWINCH",
      "SIGKILL",
    ).default("SIGTERM"),
    stopMsMax: milliseconds.default(STOP_MS),
    limits: limits.default(DEFAULT_LIMITS),
  },
  "expected a workload",
);

const pemFile = z.string("expected the path of a PEM file").min(1, "expected the path of a PEM file");

export const links = oneOf("encrypted", "plain").default("encrypted");
export const key = z.string("expected file:PATH").regex(/^file:./, "expected file:PATH");

export const fileSchema = z.strictObject(
  {
    node: name,
    store: storeUrl,
    listen: endpoint,
    peers: z
      .record(name, endpoint, "expected nodes and their addresses, as { b: 10.99.0.3:7400 }")
      .default({}),
    stateDir: path("a folder of this agent's own").refine(
      (value) => value.length <= STATE_DIR_CHARS_MAX,
      `expected a path of at most ${STATE_DIR_CHARS_MAX} characters (sockets live below it)`,
    ),
    identity: z
      .strictObject(
        { certificate: pemFile, key: pemFile, authorities: pemFile },
        "expected files: { certificate: PATH, key: PATH, authorities: PATH }",
      )
      .optional(),
    revoked: z.string("expected the path of a file").min(1, "expected the path of a file").optional(),
    links,
    cri: path("the Unix socket of a container runtime (CRI)").optional(),
    key,
    gatewayKey: key.optional(),
    pods: truth.default(false),
    agents: text("expected labels of the agents' pods, as app=holdfast-agent").optional(),
    workloads: list(workloadSchema, "expected a list of at most 100 workloads", 0, 100),
    limits: agentLimits.default(DEFAULT_AGENT_LIMITS),
    admin: endpoint.optional(),
    metrics: endpoint.optional(),
  },
  "expected a mapping with node, store, listen, stateDir, key and workloads",
);
/** What the file says, with defaults, before its parts have been compared. */
export type File = z.infer<typeof fileSchema>;
export type FileWorkload = z.infer<typeof workloadSchema>;
