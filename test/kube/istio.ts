/**
 * Istio in a cluster of this machine, by its own charts: istiod in a pod, with both its webhooks and its authority, and sidecars that pilot-agent
 * starts. Real in every part but two: Envoy is the project's own and has none of Istio's filters, so those that istiod would send are switched
 * off; and redirects are nftables (`global.nativeNftables`), as istio-init makes them where it is not told to use iptables.
 *
 * There is no DNS in the cluster, so pods of the mesh are told where istiod is by {@link istiodAlias}.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { withLibraries } from "../../charts/images/contents.ts";
import { ENVOY, requireEnvoy, requireOfIstio } from "../envoy/mesh-tools.ts";
import type { Cluster, KubeObject } from "./cluster.ts";
import { runHelm } from "./install.ts";
import type { Image } from "./oci-archive.ts";

export const ISTIO = "istio-system";
/** its user in pods, whose own connections are led nowhere */
const USER = "1337:1337";
const HUB = "localhost/istio";
const TAG = "1";
const INSTALL_MS_MAX = 240_000;

/** As pilot/docker/Dockerfile.pilot has it. */
export const PILOT: Image = {
  name: `${HUB}/pilot:${TAG}`,
  contents: () =>
    withLibraries({ files: { "/usr/local/bin/pilot-discovery": requireOfIstio("pilot-discovery") } }),
  entrypoint: ["/usr/local/bin/pilot-discovery"],
  user: USER,
};

/** As pilot/docker/Dockerfile.proxyv2 has it; istio-init runs it too, which starts nft. */
export const PROXY: Image = {
  name: `${HUB}/proxyv2:${TAG}`,
  contents: () => {
    requireEnvoy();
    return withLibraries({
      files: {
        "/usr/local/bin/pilot-agent": requireOfIstio("pilot-agent"),
        "/usr/local/bin/envoy": ENVOY,
        "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json": requireOfIstio("envoy_bootstrap.json"),
        "/usr/sbin/nft": "/usr/sbin/nft",
      },
    });
  },
  entrypoint: ["/usr/local/bin/pilot-agent"],
};

const SMALL = { requests: { cpu: "20m", memory: "64Mi" } };

/** @param edge values of a node for it */
function valuesOf(edge: object): object {
  return {
    autoscaleEnabled: false,
    resources: SMALL,
    ...edge,
    // what an Envoy without Istio's filters would refuse
    telemetry: { enabled: false },
    env: { PILOT_ENABLE_METADATA_EXCHANGE: "false", PILOT_ENABLE_ALPN_FILTER: "false" },
    meshConfig: { enablePrometheusMerge: false },
    global: {
      hub: HUB,
      tag: TAG,
      imagePullPolicy: "Never",
      nativeNftables: true,
      proxy: { resources: SMALL },
    },
  };
}

/** Resolves when it is ready, and its webhooks trusted. @param pool label of the node that it is on */
export async function installIstio(cluster: Cluster, pool: string): Promise<void> {
  const file = join(cluster.lab.dir, "istio.yaml");
  const edge = { nodeSelector: { pool }, tolerations: [{ operator: "Exists" }] };
  writeFileSync(file, JSON.stringify(valuesOf(edge)));
  const wait = ["--wait", "--timeout", `${INSTALL_MS_MAX / 1_000}s`];
  for (const [name, more] of [
    ["base", []],
    ["istiod", ["--values", file, ...wait]],
  ] as const) {
    const chart = requireOfIstio(`charts/${name}`);
    const argv = [
      "helm",
      "install",
      `istio-${name}`,
      chart,
      "--namespace",
      ISTIO,
      "--create-namespace",
      ...more,
    ];
    await runHelm(cluster, ISTIO, argv);
  }
  for (const [kind, name] of [
    ["mutatingwebhookconfigurations", "istio-sidecar-injector"],
    ["validatingwebhookconfigurations", "istio-validator-istio-system"],
  ] as const)
    await cluster.until(`the API server trusts ${name}`, async () => {
      const found = await cluster.find(`/apis/admissionregistration.k8s.io/v1/${kind}/${name}`);
      const webhooks = (found?.webhooks ?? []) as {
        clientConfig: { caBundle?: string };
        failurePolicy: string;
      }[];
      return (
        webhooks.length > 0 &&
        webhooks.every(({ clientConfig, failurePolicy }) => clientConfig.caBundle && failurePolicy === "Fail")
      );
    });
}

/** For pods of the mesh: they look for it by this name. */
export async function istiodAlias(cluster: Cluster): Promise<object[]> {
  const service = (await cluster.api("GET", `/api/v1/namespaces/${ISTIO}/services/istiod`)) as KubeObject;
  return [{ ip: service.spec.clusterIP, hostnames: [`istiod.${ISTIO}.svc`] }];
}
