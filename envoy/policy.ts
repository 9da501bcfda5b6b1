/**
 * What somebody wants of a mesh for one application: the policy of `holdfast envoy`, its shape and its defaults. What it comes to in Istio,
 * Envoy Gateway or a plain Envoy is made of it in `generate/`, and read back there. Pure.
 */
import * as z from "zod";
import { CONTAINER_PORT_FIRST } from "#proxy/contract/commands.ts";

/**
 *   sidecar      Istio: a Sidecar resource, which also pins the inbound listener
 *   envoyfilter  Istio, without a Sidecar: the inbound clusters are patched
 *   plain        the bootstrap of an Envoy of your own
 *   gateway      Envoy Gateway, in front of a Service
 *   ambient      Istio without sidecars: a waypoint
 */
export const MODES = ["sidecar", "envoyfilter", "plain", "gateway", "ambient"] as const;
export type Mode = (typeof MODES)[number];

export const PROTOCOLS = ["tcp", "http", "websocket", "h2"] as const;
const PORTS_MAX = 64;
const WORKLOADS_MAX = 64;
const SECONDS_MAX = 31_536_000;

const NAME = /^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$/;
const NAME_EXPECTED = "expected a name of 1-53 small letters, digits and dashes";
const LABEL_KEY = /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$/;
const LABEL_VALUE = /^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$/;
/** of RFC 6265, but for %: in a header that Envoy adds it begins a command */
const COOKIE = /^[A-Za-z0-9!#$&'*+.^_`|~-]{1,60}$/;

const name = z.string(NAME_EXPECTED).regex(NAME, NAME_EXPECTED);
const WORKLOAD_EXPECTED = "expected the name of a workload, as chat-0, or games.chat-0 of a pod";
const workload = z
  .string(WORKLOAD_EXPECTED)
  .regex(/^(?=.{1,63}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/, WORKLOAD_EXPECTED);
const port = (what: string) => {
  const expected = `expected ${what} 1-65535`;
  return z.int(expected).min(1, expected).max(65_535, expected);
};
const seconds = (what: string) => {
  const expected = `expected ${what} in seconds 1-${SECONDS_MAX}`;
  return z.int(expected).min(1, expected).max(SECONDS_MAX, expected);
};
const LABELS_EXPECTED = "expected labels, as { app: chat }";
const labels = z
  .record(
    z.string().regex(LABEL_KEY, LABELS_EXPECTED),
    z.string(LABELS_EXPECTED).regex(LABEL_VALUE),
    LABELS_EXPECTED,
  )
  .refine((all) => Object.keys(all).length > 0, LABELS_EXPECTED);

const policyPort = z.strictObject(
  {
    /** of the application, as the mesh knows it: a Service's targetPort */
    port: port("a port"),
    /** of the Service, where its clients come; default: the same */
    servicePort: port("a port").optional(),
    /** websocket: HTTP whose connections are held open; h2: HTTP/2 without TLS, as gRPC */
    protocol: z.enum(PROTOCOLS, "expected tcp, http, websocket or h2"),
    /** where Holdfast's proxy listens, on the loopback device of the pod. Default: 15900 for the first port, and so on */
    proxy: port("a port").optional(),
    /** proxy-v2: each connection begins with a header that says whose it is */
    identity: z.enum(["none", "proxy-v2"], "expected none or proxy-v2").default("none"),
  },
  "expected a port, as { port: 8080, protocol: http }",
);

const ADDRESS_EXPECTED = "expected IP:PORT";
const address = z
  .string(ADDRESS_EXPECTED)
  .regex(/^\d{1,3}(\.\d{1,3}){3}:[1-9]\d{0,4}$/, ADDRESS_EXPECTED)
  .refine((text) => Number(text.split(":")[1]) <= 65_535, ADDRESS_EXPECTED);

const stickiness = z.strictObject(
  {
    cookie: z
      .string("expected the name of a cookie")
      .regex(COOKIE, "expected the name of a cookie of 1-60 letters, digits and !#$&'*+-.^_`|~ (not %)"),
    path: z
      .string("expected a path, as /")
      .regex(/^\/[A-Za-z0-9._~/-]{0,200}$/, "expected a path, as /")
      .default("/"),
    /** workload: the cookie names the application, wherever it has moved to; address: where it was when it was given out */
    key: z.enum(["workload", "address"], "expected workload or address").default("workload"),
    /** key: workload: each application of the Service by name; in Istio with the labels that its pod has, wherever it is */
    workloads: z
      .array(
        z.strictObject({ name: workload, labels: labels.optional() }),
        "expected workloads, as [{ name: chat-0, labels: { pod: chat-0 } }]",
      )
      .max(WORKLOADS_MAX, `expected at most ${WORKLOADS_MAX} workloads`)
      .refine((all) => new Set(all.map((one) => one.name)).size === all.length, "expected each name once")
      .default([]),
    /** key: address, where istiod has no persistent sessions: labels of the pods whose sidecars set the cookie */
    clients: labels.optional(),
    /** key: address, as before: how long the cookie is kept; null: as long as the browser runs */
    ttlSeconds: seconds("a time").nullable().default(null),
  },
  "expected stickiness, as { cookie: hf }",
);

const EGRESS_EXPECTED = "expected egress of a Sidecar, as [{ hosts: ['./*', 'istio-system/*'] }]";
const egress = z
  .array(
    z.looseObject(
      {
        hosts: z
          .array(
            z.string(EGRESS_EXPECTED).regex(/^(\*|\.|~|[a-z0-9][-a-z0-9]*)\/\S{1,253}$/, EGRESS_EXPECTED),
          )
          .min(1, EGRESS_EXPECTED),
      },
      EGRESS_EXPECTED,
    ),
    EGRESS_EXPECTED,
  )
  .min(1, EGRESS_EXPECTED);
const OUTBOUND_EXPECTED = "expected outboundTrafficPolicy of a Sidecar, as { mode: REGISTRY_ONLY }";
const outboundTrafficPolicy = z.looseObject(
  { mode: z.enum(["REGISTRY_ONLY", "ALLOW_ANY"], OUTBOUND_EXPECTED).optional() },
  OUTBOUND_EXPECTED,
);

export const policySchema = z
  .strictObject(
    {
      /** of what is made: NAME-holdfast… */
      name,
      namespace: name.default("default"),
      /** labels of the pods */
      selector: labels,
      ports: z
        .array(policyPort, "expected ports, as [{ port: 8080, protocol: http }]")
        .min(1, "expected at least one port")
        .max(PORTS_MAX, `expected at most ${PORTS_MAX} ports`),
      /** of the application; default: the policy's name */
      service: name.optional(),
      /** how long a connection may be silent, which Envoy else ends after an hour; null: as Envoy has it */
      idleSeconds: seconds("a time").nullable().default(null),
      /** how long Envoy keeps what a changed listener had; null: as Istio has it (45 s) */
      drainSeconds: seconds("a time").nullable().default(null),
      /** sidecar: what the pods may reach, as a Sidecar of Istio says it. null: all of the mesh; of a cluster's Services: what they may without ours */
      egress: egress.nullable().default(null),
      /** sidecar: … and what becomes of the rest, as a Sidecar says it. null: as the mesh has it; of a cluster's Services: as it is without ours */
      outboundTrafficPolicy: outboundTrafficPolicy.nullable().default(null),
      stickiness: stickiness.nullable().default(null),
      istio: z
        .strictObject(
          {
            /** istiod runs with PILOT_ENABLE_PERSISTENT_SESSION_FILTER=true */
            persistentSessions: z.boolean("expected true or false").default(false),
            /** PILOT_ALLOW_SIDECAR_SERVICE_INBOUND_LISTENER_MERGE=true: ports that the Sidecar leaves out stay those of the Service */
            mergesIngress: z.boolean("expected true or false").default(false),
          },
          "expected what istiod is started with, as { persistentSessions: true }",
        )
        .default({ persistentSessions: false, mergesIngress: false }),
      plain: z
        .strictObject(
          {
            /** where Envoy's clients come: the ports' numbers at this address */
            listen: z.ipv4("expected an IPv4 address").default("0.0.0.0"),
            /** folder of the endpoints' files, of `holdfast envoy endpoints`; or ADS, below */
            folder: z
              .string("expected a folder")
              .regex(/^\/[!-~]{0,200}$/, "expected the absolute path of a folder")
              .default("/var/lib/holdfast/envoy"),
            /** in the place of the folder: where `holdfast envoy endpoints` is asked over gRPC; null: files */
            ads: address.nullable().default(null),
            admin: address.default("127.0.0.1:9901"),
          },
          "expected what an Envoy of your own is to have, as { folder: /var/lib/envoy }",
        )
        .default({
          listen: "0.0.0.0",
          folder: "/var/lib/holdfast/envoy",
          ads: null,
          admin: "127.0.0.1:9901",
        }),
      gateway: z
        .strictObject(
          {
            /** Gateway API, whose Gateway the policies attach to */
            name,
            /** the HTTPRoute of the HTTP ports; default: the policy's name */
            route: name.optional(),
          },
          "expected a Gateway, as { name: eg }",
        )
        .optional(),
      /** ambient: the waypoint's Gateway */
      waypoint: name.optional(),
    },
    "expected a policy with name, selector and ports",
  )
  .superRefine(({ ports, stickiness }, context) => {
    const once = (key: "port" | "proxy", values: (number | undefined)[]): void => {
      for (const [index, value] of values.entries())
        if (value !== undefined && values.indexOf(value) < index)
          context.addIssue({
            code: "custom",
            path: ["ports", index, key],
            message: "expected a port of its own",
          });
    };
    once(
      "port",
      ports.map((one) => one.port),
    );
    once("proxy", proxiesOf(ports));
    if (stickiness !== null && !ports.some(({ protocol }) => protocol !== "tcp"))
      context.addIssue({
        code: "custom",
        path: ["stickiness"],
        message: "expected a port of HTTP or WebSocket beside it: a cookie is nothing of TCP",
      });
  });

export type Policy = z.output<typeof policySchema>;
export type PolicyPort = Policy["ports"][number];

/** Where Holdfast's proxy listens for each port, in their order: as in a pod whose ports have the same order. */
export function proxiesOf(ports: readonly { proxy?: number | undefined }[]): number[] {
  return ports.map(({ proxy }, index) => proxy ?? CONTAINER_PORT_FIRST + index);
}

export function isHttp({ protocol }: Pick<PolicyPort, "protocol">): boolean {
  return protocol !== "tcp";
}

export interface WholePolicy extends Policy {
  service: string;
  ports: (PolicyPort & { proxy: number; servicePort: number })[];
}

/** With what is left out written out, so that two policies that mean the same are the same. */
export function normalised(policy: Policy): WholePolicy {
  const proxies = proxiesOf(policy.ports);
  return {
    ...policy,
    service: policy.service ?? policy.name,
    ports: policy.ports.map((one, index) => ({
      ...one,
      proxy: proxies[index] as number,
      servicePort: one.servicePort ?? one.port,
    })),
  };
}
