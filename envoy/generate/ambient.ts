/**
 * What a policy comes to where Istio has no sidecars. Pure. There is nothing in the pod to come in between: ztunnel passes connections on by
 * the loopback device, past where the agent leads clients to Holdfast's proxy. So clients have to come to Holdfast's gateways, whose
 * Services the waypoint knows; what a policy can have here is stickiness at the waypoint.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { isHttp, type WholePolicy } from "../policy.ts";
import { envoyFilter, metadataOf, waypointFilterPatch } from "./envoy-filter.ts";
import { type Document, POLICY_LABEL, type Rendered } from "./resource.ts";
import { byWorkload, hostOf, type Sticky, statefulSession } from "./stickiness.ts";

const WAYPOINT_PORT = 15_008;

export function renderAmbient(policy: WholePolicy): Rendered {
  const { ports, stickiness, idleSeconds, drainSeconds, waypoint } = policy;
  if (ports.some(({ identity }) => identity !== "none"))
    throw fail(
      "CONFIG_INVALID",
      "ports.identity: expected none in ambient: istiod patches no clusters by which a waypoint reaches pods; ztunnel keeps the client's address",
    );
  if (idleSeconds !== null || drainSeconds !== null)
    throw fail(
      "CONFIG_INVALID",
      "idleSeconds, drainSeconds: expected neither in ambient: ztunnel ends no silent connection and drains none for a change of routes",
    );
  if (stickiness === null)
    throw fail(
      "CONFIG_INVALID",
      "stickiness: expected it in ambient, where nothing else is to be made: ztunnel passes connections through",
    );
  if (waypoint === undefined)
    throw fail("CONFIG_INVALID", "waypoint: expected the name of the waypoint's Gateway, got nothing");
  return { documents: [gatewayOf(policy, waypoint), ...sticky(policy, stickiness, waypoint)], marks: [] };
}

function gatewayOf({ name, namespace }: WholePolicy, waypoint: string): Document {
  return {
    object: {
      apiVersion: "gateway.networking.k8s.io/v1",
      kind: "Gateway",
      metadata: {
        name: waypoint,
        namespace,
        labels: { [POLICY_LABEL]: name, "istio.io/waypoint-for": "service" },
      },
      spec: {
        gatewayClassName: "istio-waypoint",
        listeners: [{ name: "mesh", port: WAYPOINT_PORT, protocol: "HBONE" }],
      },
    },
    reasons: [
      {
        path: ["spec", "gatewayClassName"],
        text: "The Service or its namespace has to name it: label istio.io/use-waypoint.",
      },
    ],
  };
}

function sticky(policy: WholePolicy, stickiness: Sticky, waypoint: string): Document[] {
  if (stickiness.key === "workload") return byWorkload(policy, stickiness);
  const { cookie, path, ttlSeconds } = stickiness;
  return [
    {
      object: envoyFilter(
        metadataOf(policy, "-session"),
        { gateway: waypoint },
        policy.ports
          .filter(isHttp)
          .map(({ servicePort }) =>
            waypointFilterPatch(hostOf(policy), servicePort, statefulSession(cookie, path, ttlSeconds)),
          ),
      ),
      reasons: [
        {
          path: ["spec"],
          text: "By targetRefs: a waypoint takes no notice of EnvoyFilters that select workloads. And by the name of a chain, as an inbound one: a waypoint's\nlistener has no port. istiod 1.31 puts the filter there (seen in its own tests' server); that an Envoy keeps clients by it was not run.",
        },
      ],
    },
  ];
}
