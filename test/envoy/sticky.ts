/**
 * A service of two applications, "one" and "two", for clients that are to come back to theirs. Each is served by the test's own process
 * at a place of the laboratory that has no sidecar, and says in its answers where that was.
 */
import { createServer, get, type Server } from "node:http";
import { render } from "#envoy/generate/render.ts";
import type { Rendered } from "#envoy/generate/resource.ts";
import { type Policy, policySchema } from "#envoy/policy.ts";
import type { Lab, Place } from "../lab/lab.ts";
import { connectFrom, listenAt } from "./in-network.ts";
import { endpoint, hostOf, NAMESPACE, service } from "./istio-objects.ts";

export const APP = "sticky";
export const ADDRESS = "10.96.0.20";
export const PORT = 8_100;
export const NAMES = ["one", "two"] as const;
type Name = (typeof NAMES)[number];

/** Which application answered, where, and the cookie that it, or a proxy before it, set. */
export interface Answer {
  status: number;
  place: string;
  cookie: string | null;
}

/** Servers at places, until they are closed. */
export function serveAt(places: readonly Place[]): Server[] {
  return places.map((place) =>
    createServer((_request, response) => response.end(place.name)).listen({
      fd: listenAt(place, { address: place.address, port: PORT }),
    }),
  );
}

/** The service and its pods: an application each, with its name as a label. */
export function stickyService(
  where: Record<Name, Place>,
  labels: { service?: Record<string, string>; pods?: Partial<Record<Name, Record<string, string>>> } = {},
): object[] {
  const made = service(APP, ADDRESS, [{ number: PORT, protocol: "http" }]) as { metadata: object };
  return [
    { ...made, metadata: { ...made.metadata, labels: labels.service ?? {} } },
    ...NAMES.map((name) =>
      endpoint(APP, where[name], { account: null, labels: { application: name, ...labels.pods?.[name] } }),
    ),
  ];
}

/** What `holdfast envoy render` makes of that application's policy. */
export function stickyRendered(key: "workload" | "address", cookie: string): Rendered {
  return render(stickyPolicy(key, cookie), "sidecar");
}

export function stickyPolicy(key: "workload" | "address", cookie: string): Policy {
  return policySchema.parse({
    name: APP,
    namespace: NAMESPACE,
    selector: { app: APP },
    ports: [{ port: PORT, protocol: "http" }],
    stickiness: {
      key,
      cookie,
      workloads: NAMES.map((name) => ({ name, labels: { application: name } })),
    },
    istio: { persistentSessions: true },
  });
}

/** One request of a client that has a cookie, or none. */
export function ask({ client }: Lab, cookie: string | null): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const headers = { host: hostOf(APP), connection: "close", ...(cookie === null ? {} : { cookie }) };
    const createConnection = () => connectFrom(client, { address: ADDRESS, port: PORT });
    const asked = get({ path: "/", headers, createConnection }, (response) => {
      let place = "";
      response.setEncoding("utf8").on("data", (chunk: string) => {
        place += chunk;
      });
      response.on("error", reject);
      response.on("end", () => {
        const [set] = response.headers["set-cookie"] ?? [];
        resolve({ status: response.statusCode ?? 0, place, cookie: set?.split(";")[0] ?? null });
      });
    });
    asked.on("error", reject);
  });
}
