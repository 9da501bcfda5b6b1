/** The Envoy of a pod's sidecar, by kubectl: which port its admin interface has, and what to do where a pod cannot tell. */
import { parse } from "yaml";
import { askEnvoy, type DumpedProxy } from "#envoy/config-dump.ts";
import { PROXY_CONFIG_ANNOTATION } from "#envoy/generate/resource.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import { isCode } from "../kubernetes/client/api.ts";
import type { Pod } from "../kubernetes/client/objects.ts";
import { type ForwardOptions, forwarded } from "./port-forward.ts";

const SIDECAR = "istio-proxy";
/** of the sidecar's container: what Istio's injector has made of the mesh's ProxyConfig and of the pod's annotation */
const PROXY_CONFIG = "PROXY_CONFIG";
/** of Istio, on pods: an Envoy's own bootstrap, which may say anything */
const BOOTSTRAP_ANNOTATION = "sidecar.istio.io/bootstrapOverride";
/** Istio's own; the injector leaves it out */
const PORT = 15_000;

interface AdminPort {
  port: number;
  /** who says so */
  by: string;
}

/** Source: pilot-agent's ConstructProxyConfig, and cleanProxyConfig of Istio's injector. Its pods keep what they were injected with. */
export function adminPortOf({ metadata, spec }: Pod): AdminPort {
  const { [PROXY_CONFIG_ANNOTATION]: annotation, [BOOTSTRAP_ANNOTATION]: bootstrap } =
    metadata.annotations ?? {};
  const sidecar = [...(spec.initContainers ?? []), ...spec.containers].find(({ name }) => name === SIDECAR);
  const env = (sidecar?.env ?? []) as { name: string; value?: string }[];
  const injected = env.find(({ name }) => name === PROXY_CONFIG)?.value;
  const [text, by] =
    injected === undefined
      ? [annotation, `annotation ${PROXY_CONFIG_ANNOTATION}`]
      : [injected, `${PROXY_CONFIG} of ${SIDECAR}`];
  const port = portIn(text);
  const isOverridden = bootstrap === undefined ? "" : `; ${BOOTSTRAP_ANNOTATION} may say another`;
  return { port: port ?? PORT, by: `${port === null ? "Istio's own" : by}${isOverridden}` };
}

/** of a ProxyConfig, JSON or YAML; null: it says none */
function portIn(text: string | undefined): number | null {
  try {
    const port = (parse(text ?? "", { logLevel: "silent" }) as { proxyAdminPort?: unknown } | null)
      ?.proxyAdminPort;
    return typeof port === "number" && port > 0 ? port : null;
  } catch {
    return null; // pilot-agent does not start with it
  }
}

/** @throws HoldfastError `KUBECTL_MISSING`, `ENVOY_UNREACHABLE` */
export function askSidecar(pod: Pod, options: Omit<ForwardOptions, "port">): Promise<DumpedProxy> {
  const { port, by } = adminPortOf(pod);
  const { namespace = "default", name } = pod.metadata;
  return forwarded(pod, { ...options, port }, async (url) => {
    try {
      return await askEnvoy(url);
    } catch (cause) {
      if (!isCode(cause, "ENVOY_UNREACHABLE", "CONFIG_INVALID")) throw cause;
      throw fail(
        "ENVOY_UNREACHABLE",
        `no Envoy answers at port ${port} of pod ${namespace}/${name} (${by}): where its admin interface is elsewhere, lead there by kubectl port-forward, and give holdfast envoy verify that URL as --admin and what render --from-cluster prints as -f (${messageOf(cause)})`,
        { cause },
      );
    }
  });
}
