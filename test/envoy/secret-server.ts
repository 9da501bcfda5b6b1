/**
 * Secrets for an Envoy of a test mesh, in place of Istio's agent: the certificate of a workload ("default") and the mesh's authority
 * ("ROOTCA"), over a Unix socket. Envoy's secret discovery service (envoy/service/secret/v3/sds.proto), as much as istiod's
 * configuration asks of it.
 */
import { chmodSync } from "node:fs";
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { decodeFields, encodeFields, type Field } from "#control/criu/protobuf.ts";
import type { WorkloadCertificate } from "./certificates.ts";

const SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const AUTHORITY = "ROOTCA";
const bytes = (message: Buffer): Buffer => message;

/** Resolves when it answers. @param path of a socket that any user may connect to */
export async function serveSecrets(path: string, certificate: WorkloadCertificate): Promise<Server> {
  const server = new Server();
  const method = {
    path: "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
    requestStream: true,
    responseStream: true,
    requestSerialize: bytes,
    requestDeserialize: bytes,
    responseSerialize: bytes,
    responseDeserialize: bytes,
  } as const;
  server.addService(
    { StreamSecrets: method },
    { StreamSecrets: (stream: ServerDuplexStream<Buffer, Buffer>) => answerAll(stream, certificate) },
  );
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${path}`, ServerCredentials.createInsecure(), (error) =>
      error === null ? resolve() : reject(error),
    );
  });
  chmodSync(path, 0o777);
  return server;
}

function answerAll(stream: ServerDuplexStream<Buffer, Buffer>, certificate: WorkloadCertificate): void {
  const sent = new Set<string>();
  stream.on("error", () => {}); // its Envoy has ended
  stream.on("end", () => stream.end());
  // DiscoveryRequest: 3 resource_names
  stream.on("data", (request: Buffer) => {
    const names = decodeFields(request)
      .filter(({ number }) => number === 3)
      .map((field) => field.bytes.toString());
    // the rest are acknowledgements
    if (names.every((name) => sent.has(name))) return;
    for (const name of names) sent.add(name);
    const version = String(sent.size);
    // DiscoveryResponse: 1 version_info, 2 resources (Any: 1 type_url, 2 value), 4 type_url, 5 nonce
    const resources = names.map((name): Field => {
      const secret = encodeFields(secretOf(name, certificate));
      return [
        2,
        [
          [1, SECRET],
          [2, secret],
        ],
      ];
    });
    stream.write(encodeFields([[1, version], ...resources, [4, SECRET], [5, version]]));
  });
}

/** Secret: 1 name, 2 tls_certificate (1 certificate_chain, 2 private_key), 4 validation_context (1 trusted_ca); DataSource: 2 inline_bytes */
function secretOf(name: string, { authority, certificate, key }: WorkloadCertificate): Field[] {
  const inline = (pem: Buffer): Field[] => [[2, pem]];
  const content: Field = name.startsWith(AUTHORITY)
    ? [4, [[1, inline(authority)]]]
    : [
        2,
        [
          [1, inline(certificate)],
          [2, inline(key)],
        ],
      ];
  return [[1, name], content];
}
