/**
 * The emptiest Kubernetes API: every list is empty, every watch silent. istiod 1.31 does not start without one (it uses a client
 * of its own cluster whatever `--registries` says), and takes its configuration from files all the same.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";

const VERSION = { major: "1", minor: "37", gitVersion: "v1.37.2", platform: "linux/amd64" };
/** of the resources that istiod asks for; others it takes with any kind */
const KINDS: Record<string, string> = {
  configmaps: "ConfigMap",
  customresourcedefinitions: "CustomResourceDefinition",
  endpoints: "Endpoints",
  endpointslices: "EndpointSlice",
  gateways: "Gateway",
  ingressclasses: "IngressClass",
  ingresses: "Ingress",
  leases: "Lease",
  mutatingwebhookconfigurations: "MutatingWebhookConfiguration",
  namespaces: "Namespace",
  nodes: "Node",
  pods: "Pod",
  secrets: "Secret",
  serviceaccounts: "ServiceAccount",
  services: "Service",
  validatingwebhookconfigurations: "ValidatingWebhookConfiguration",
};
/** /api/v1/RESOURCE, /apis/GROUP/VERSION/RESOURCE, in a namespace or not, with a name or not */
const PATH = /^\/(?:api\/v1|apis\/([^/]+)\/([^/]+))\/(?:namespaces\/[^/]+\/)?([a-z]+)(?:\/([^/]+))?$/;

/** @param fd a socket that listens */
export function serveKubeStub(fd: number): Server {
  return createServer(answer).listen({ fd });
}

function answer(request: IncomingMessage, response: ServerResponse): void {
  const { pathname, searchParams } = new URL(request.url ?? "/", "http://stub");
  const isWatch = ["true", "1"].includes(searchParams.get("watch") ?? "");
  const [, group, version, resource, name] = PATH.exec(pathname) ?? [];
  if (pathname === "/version") json(response, 200, VERSION);
  else if (pathname === "/api") json(response, 200, { kind: "APIVersions", versions: ["v1"] });
  else if (pathname === "/apis") json(response, 200, { kind: "APIGroupList", apiVersion: "v1", groups: [] });
  else if (resource === undefined || name !== undefined) status(response, 404, "NotFound");
  else if (request.method !== "GET") status(response, 403, "Forbidden");
  else {
    const onlyMetadata = (request.headers.accept ?? "").includes("PartialObjectMetadata");
    const of = onlyMetadata
      ? { kind: "PartialObjectMetadata", apiVersion: "meta.k8s.io/v1" }
      : {
          kind: KINDS[resource] ?? resource,
          apiVersion: group === undefined ? "v1" : `${group}/${version}`,
        };
    if (isWatch) watch(response, of, searchParams.get("sendInitialEvents") === "true");
    else
      json(response, 200, { ...of, kind: `${of.kind}List`, metadata: { resourceVersion: "1" }, items: [] });
  }
}

/** Stays open, and says nothing but that there was nothing. */
function watch(response: ServerResponse, of: object, saysWhatIsThere: boolean): void {
  response.writeHead(200, { "content-type": "application/json" });
  response.flushHeaders();
  const metadata = { resourceVersion: "1", annotations: { "k8s.io/initial-events-end": "true" } };
  if (saysWhatIsThere)
    response.write(`${JSON.stringify({ type: "BOOKMARK", object: { ...of, metadata } })}\n`);
}

function status(response: ServerResponse, code: number, reason: string): void {
  json(response, code, { kind: "Status", apiVersion: "v1", status: "Failure", reason, code });
}

function json(response: ServerResponse, code: number, value: object): void {
  response.writeHead(code, { "content-type": "application/json" });
  response.end(JSON.stringify(value));
}
