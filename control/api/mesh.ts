/** What Services say to Holdfast of a mesh. */

/** On a Service: what its policy has beside what the cluster says (`envoy/policy.ts`), as JSON: `{"idleSeconds":86400}`. */
export const MESH_ANNOTATION = "holdfast.dev/mesh";
/** of Istio's injector, on pods that have its sidecar */
export const ISTIO_STATUS = "sidecar.istio.io/status";

export const UNMESHED = ["all", "made"] as const;
/** Which Services lose the annotation when it is taken away: all, or those for which the controller has made something. */
export type Unmeshed = (typeof UNMESHED)[number];
