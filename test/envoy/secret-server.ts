/**
 * Secrets for an Envoy of a test mesh, in place of Istio's agent: the certificate of a workload ("default") and the mesh's authority
 * ("ROOTCA"), over a Unix socket. Envoy's secret discovery service (envoy/service/secret/v3/sds.proto), as much as istiod's
 * configuration asks of it.
 */
import { chmodSync } from "node:fs";
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import type { WorkloadCertificate } from "./certificates.ts";

const SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const AUTHORITY = "ROOTCA";
const LENGTH_DELIMITED = 2;
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
    const names = fieldsOf(request, 3).map(String);
    // the rest are acknowledgements
    if (names.every((name) => sent.has(name))) return;
    for (const name of names) sent.add(name);
    const version = String(sent.size);
    // DiscoveryResponse: 1 version_info, 2 resources (Any: 1 type_url, 2 value), 4 type_url, 5 nonce
    const resources = names.map((name) =>
      field(2, Buffer.concat([field(1, SECRET), field(2, secretOf(name, certificate))])),
    );
    stream.write(Buffer.concat([field(1, version), ...resources, field(4, SECRET), field(5, version)]));
  });
}

/** Secret: 1 name, 2 tls_certificate (1 certificate_chain, 2 private_key), 4 validation_context (1 trusted_ca); DataSource: 2 inline_bytes */
function secretOf(name: string, { authority, certificate, key }: WorkloadCertificate): Buffer {
  const inline = (pem: Buffer): Buffer => field(2, pem);
  const content = name.startsWith(AUTHORITY)
    ? field(4, field(1, inline(authority)))
    : field(2, Buffer.concat([field(1, inline(certificate)), field(2, inline(key))]));
  return Buffer.concat([field(1, name), content]);
}

/** One field of a Protocol Buffers message that has a length. */
function field(number: number, value: Buffer | string): Buffer {
  const content = Buffer.from(value as Buffer);
  return Buffer.concat([varint((number << 3) | LENGTH_DELIMITED), varint(content.length), content]);
}

function varint(value: number): Buffer {
  const out: number[] = [];
  let rest = value;
  for (; rest > 127; rest >>>= 7) out.push((rest & 127) | 128);
  return Buffer.from([...out, rest]);
}

/** The values of a repeated field that has a length, of a message whose other fields may be of any wire type. */
function fieldsOf(message: Buffer, wanted: number): Buffer[] {
  const found: Buffer[] = [];
  let at = 0;
  const next = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = message[at++] ?? 0;
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = next();
    if ((tag & 7) === 0) next();
    else if ((tag & 7) === LENGTH_DELIMITED) {
      const length = next();
      if (tag >> 3 === wanted) found.push(message.subarray(at, at + length));
      at += length;
    } else at += (tag & 7) === 5 ? 4 : 8;
  }
  return found;
}
