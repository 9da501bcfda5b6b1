/**
 * What a request passes in a mesh: the client's Envoy, mutual TLS, the server's Envoy, and the application, or Holdfast before it. Set up
 * by hand as istiod sets them up where it counts for a request: the HTTP connection manager and router in both, a connection pool each.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { MeshAuthority, type WorkloadCertificate } from "#test/envoy/certificates.ts";
import type { Stage } from "../stage.ts";
import { httpFilter, startEnvoy } from "./envoy.ts";
import { startHoldfast } from "./holdfast.ts";
import type { Peer } from "./peer.ts";

const TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const NOTE = "two Envoys with mutual TLS between on the CPU; its CPU time is that of the first";

export const meshAlone: Peer = mesh("mesh", false);
export const meshHoldfast: Peer = mesh("holdfast-mesh", true);

function mesh(name: string, withHoldfast: boolean): Peer {
  return {
    name,
    carries: ["http"],
    async start(stage, to) {
      const holdfast = { name: `${name}-proxy`, ports: [{ to: to.port, ...OBSERVED }] };
      const port = withHoldfast ? ((await startHoldfast(stage, holdfast)).ports[0] as number) : to.port;
      const common = commonTls(stage, name);
      const server = await startEnvoy(stage, {
        name: `${name}-server`,
        to: port,
        filter: httpFilter(),
        transport: {
          downstream: transport("DownstreamTlsContext", { ...common, require_client_certificate: true }),
        },
      });
      const client = await startEnvoy(stage, {
        name: `${name}-client`,
        to: server.port,
        filter: httpFilter(),
        transport: { upstream: transport("UpstreamTlsContext", common) },
      });
      const version = `${client.version}${withHoldfast ? `, this checkout, Node ${process.version}` : ""}`;
      return { ...client, name, version, note: NOTE };
    },
  };
}

const OBSERVED = { protocol: "http", continuity: "transplant" } as const;

/** The same certificate at both ends. */
function commonTls(stage: Stage, name: string): Record<string, unknown> {
  const folder = join(stage.directory, `${name}-certificates`);
  const made = new MeshAuthority(folder).certificateOf("bench", "default");
  const file = (part: keyof WorkloadCertificate): object => {
    const path = join(folder, `${part}.of-both`);
    writeFileSync(path, made[part], { mode: 0o600 });
    return { filename: path };
  };
  return {
    common_tls_context: {
      tls_certificates: [{ certificate_chain: file("certificate"), private_key: file("key") }],
      validation_context: { trusted_ca: file("authority") },
    },
  };
}

function transport(type: "DownstreamTlsContext" | "UpstreamTlsContext", context: object): object {
  return {
    name: "envoy.transport_sockets.tls",
    typed_config: { "@type": `${TLS}.${type}`, ...context },
  };
}
