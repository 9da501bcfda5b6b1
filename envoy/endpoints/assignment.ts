/**
 * Which endpoints a cluster has, as Envoy reads it: in a file as JSON, over ADS as Protocol Buffers. Pure.
 * Source: envoy/config/endpoint/v3/endpoint.proto, endpoint_components.proto, config/core/v3/{base,address}.proto,
 * service/discovery/v3/discovery.proto; google/protobuf/struct.proto. Field numbers are from there.
 */
import { encodeFields, type Field } from "#control/criu/protobuf.ts";
import { SUBSET_KEY, SUBSET_NAMESPACE } from "../generate/plain.ts";

export const ASSIGNMENT_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

export interface Place {
  /** which Envoy is told as the endpoint's metadata: cookies name it */
  workload: string;
  address: string;
  port: number;
}

export interface Assignment {
  cluster: string;
  /** in the order of the workloads; each once */
  places: readonly Place[];
}

/** A DiscoveryResponse, as a file of `path_config_source` has it. */
export function fileOf({ cluster, places }: Assignment, version: string): string {
  const lb_endpoints = places.map(({ workload, address, port }) => ({
    endpoint: { address: { socket_address: { address, port_value: port } } },
    metadata: { filter_metadata: { [SUBSET_NAMESPACE]: { [SUBSET_KEY]: workload } } },
  }));
  const resource = { "@type": ASSIGNMENT_TYPE, cluster_name: cluster, endpoints: [{ lb_endpoints }] };
  return `${JSON.stringify({ version_info: version, resources: [resource] })}\n`;
}

/** A DiscoveryResponse of these. */
export function responseOf(assignments: readonly Assignment[], version: string, nonce: string): Buffer {
  return encodeFields([
    [1, version],
    ...assignments.map((one): Field => [2, any(encodeFields(assignmentOf(one)))]),
    [4, ASSIGNMENT_TYPE],
    [5, nonce],
  ]);
}

function any(value: Buffer): Field[] {
  return [
    [1, ASSIGNMENT_TYPE],
    [2, value],
  ];
}

function assignmentOf({ cluster, places }: Assignment): Field[] {
  const endpoints = places.map((place): Field => [2, endpointOf(place)]);
  return [
    [1, cluster],
    [2, endpoints],
  ];
}

function endpointOf({ workload, address, port }: Place): Field[] {
  const socketAddress: Field[] = [
    [2, address],
    [3, port],
  ];
  const text: Field[] = [[3, workload]];
  const struct: Field[] = [[1, entry(SUBSET_KEY, text)]];
  return [
    [1, [[1, [[1, socketAddress]]]]],
    [3, [[1, entry(SUBSET_NAMESPACE, struct)]]],
  ];
}

/** of a map */
function entry(key: string, value: Field[]): Field[] {
  return [
    [1, key],
    [2, value],
  ];
}
