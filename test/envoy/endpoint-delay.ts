/**
 * How long it takes an Envoy to hear of a change of endpoints: of an EndpointSlice by istiod, and of a store by `holdfast envoy endpoints`.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { startEndpoints } from "#envoy/endpoints/main.ts";
import { render } from "#envoy/generate/render.ts";
import { yamlOf } from "#envoy/generate/text.ts";
import { policySchema } from "#envoy/policy.ts";
import { MemoryStore } from "#proxy/store/memory.ts";
import type { Lab, Place } from "../lab/lab.ts";
import { until } from "../support/moved-program.ts";
import { ADMIN } from "./bootstrap.ts";
import { hostOf, NAMESPACE } from "./istio-objects.ts";
import { endpointSlice, kubeService, put, remove } from "./kube-objects.ts";
import { HELD } from "./kube-stage.ts";
import type { Mesh } from "./mesh.ts";
import { ENVOY } from "./mesh-tools.ts";
import type { ServicePort } from "./several-workload.ts";
import { askAdmin } from "./sidecar.ts";

export const CHANGES = 8;
const NAME = "measured";
const PORT: ServicePort = { number: 7_000, protocol: "tcp" };
const CLUSTER = `${NAME}-${PORT.number}`;

/** From the API's answer on, to the client's sidecar; the median in ms. */
export async function delayOfIstiod({ mesh }: { mesh: Mesh }): Promise<number> {
  const { api, lab } = mesh;
  const objects = [kubeService(NAME, "10.96.0.30", [PORT]), endpointSlice(NAME, [HELD], [PORT])];
  await mesh.push(() => put(api, ...objects));
  const path = `/apis/discovery.k8s.io/v1/namespaces/${NAMESPACE}/endpointslices/${NAME}`;
  const median = await medianOf(lab.client, `outbound|${PORT.number}||${hostOf(NAME)}`, (address) =>
    api.api("PATCH", path, { endpoints: [{ addresses: [address] }] }, "application/merge-patch+json"),
  );
  await mesh.push(async () => {
    for (const object of objects) await remove(api, object);
  });
  return median;
}

/** By files, from a store in this process, to an Envoy that runs at a place for as long; the median in ms. */
export async function delayOfOwn(lab: Lab, at: string): Promise<number> {
  const policy = policySchema.parse({
    name: NAME,
    selector: { app: NAME },
    ports: [{ port: PORT.number, protocol: PORT.protocol }],
    plain: { listen: "127.0.0.1", folder: lab.dir, admin: `${ADMIN.address}:${ADMIN.port}` },
  });
  const bootstrap = join(lab.dir, "plain.yaml");
  writeFileSync(bootstrap, yamlOf(render(policy, "plain"), NAMESPACE));
  const store = new MemoryStore();
  const clusters = [{ cluster: CLUSTER, workloads: [NAME], port: PORT.number }];
  const config = { folder: lab.dir, ads: null, admin: null, clusters };
  const endpoints = await startEndpoints(config, store, pino({ level: "silent" }));
  const envoy = lab.spawn(at, [ENVOY, "-c", bootstrap, "--disable-hot-restart", "--concurrency", "1"]);
  const place = lab.place(at);
  const isReady = () =>
    askAdmin(place, "/ready").then(
      () => true,
      () => false,
    );
  try {
    await until("Envoy is ready", isReady);
    return await medianOf(place, CLUSTER, async (address) => {
      const { epoch } = await store.claim({ workload: NAME, node: "n" });
      const [link, clients] = [{ address, port: 1 }, [{ address, port: PORT.number }]];
      const record = { node: "n", epoch, link, ports: [PORT.number], clients };
      await store.putLink({ workload: NAME, node: "n", epoch, record });
    });
  } finally {
    await envoy.stop("SIGKILL");
    await endpoints.close();
    await store.close();
  }
}

/** Each change is told, and is over when the Envoy at the place has the address. */
async function medianOf(
  place: Place,
  cluster: string,
  tell: (address: string) => Promise<unknown>,
): Promise<number> {
  const tookMs: number[] = [];
  for (let change = 0; change < CHANGES; change++) {
    const address = `10.99.0.${200 + change}`;
    await tell(address);
    const began = performance.now();
    while (!(await askAdmin(place, "/clusters")).includes(`${cluster}::${address}:`)) await sleep(1);
    tookMs.push(performance.now() - began);
  }
  return tookMs.sort((one, other) => one - other)[CHANGES / 2] as number;
}
