/** The file of `holdfast envoy endpoints`: its shape and its defaults. */
import * as z from "zod";
import { count, endpoint, list, name, storeUrl } from "#control/config/schema.ts";
import { invalid, parseFile, readFile } from "#control/config/yaml-file.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";

/** One cluster of Envoy's: where clients of these workloads' port come. */
export interface ServedCluster {
  /** as Envoy asks for it: `service_name` of its EDS */
  cluster: string;
  /** each once */
  workloads: string[];
  /** `listen` of the workloads' port */
  port: number;
}

export interface EndpointsFile {
  store: string;
  /** where files are written, CLUSTER.json; null: none are */
  folder: string | null;
  /** where Envoys ask over gRPC; null: nowhere */
  ads: Endpoint | null;
  /** `/healthz`, `/readyz`, `/metrics` */
  admin: Endpoint | null;
  clusters: ServedCluster[];
}

const CLUSTER_EXPECTED = "expected the name of a cluster of 1-120 letters, digits and .-_";
const FOLDER_EXPECTED = "expected the absolute path of a folder";

const cluster = z.strictObject(
  {
    cluster: z.string(CLUSTER_EXPECTED).regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,119}$/, CLUSTER_EXPECTED),
    workloads: list(name, "expected a list of 1-1000 workloads", 1, 1_000),
    port: count("the port of the workloads (their listen:)", 1, 65_535),
  },
  "expected a cluster, as { cluster: chat-8080, workloads: [chat], port: 8080 }",
);

const schema = z.strictObject(
  {
    store: storeUrl,
    folder: z
      .string(FOLDER_EXPECTED)
      .regex(/^\/[!-~]*$/, FOLDER_EXPECTED)
      .optional(),
    ads: endpoint.optional(),
    admin: endpoint.optional(),
    clusters: list(cluster, "expected a list of 1-1000 clusters", 1, 1_000),
  },
  "expected a mapping with store, clusters, and folder or ads",
);

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadEndpointsConfig(fileName: string): EndpointsFile {
  return parseEndpointsConfig(readFile(fileName), fileName);
}

/** @param fileName for messages. @throws HoldfastError `CONFIG_INVALID` */
export function parseEndpointsConfig(contents: string, fileName: string): EndpointsFile {
  const { store, folder, ads, admin, clusters } = parseFile(schema, contents, fileName);
  if (store === "memory:")
    throw invalid(fileName, "store", "expected the Redis that the nodes of the workloads use, got memory:");
  if (folder === undefined && ads === undefined)
    throw invalid(fileName, "", "expected where Envoy finds endpoints: folder, ads or both, got neither");
  for (const [index, one] of clusters.entries()) {
    if (clusters.findIndex((other) => other.cluster === one.cluster) < index)
      throw invalid(fileName, `clusters[${index}].cluster`, "expected a name of its own");
    if (new Set(one.workloads).size < one.workloads.length)
      throw invalid(fileName, `clusters[${index}].workloads`, "expected each name once");
  }
  return { store, folder: folder ?? null, ads: ads ?? null, admin: admin ?? null, clusters };
}
