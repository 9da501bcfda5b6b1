/**
 * Who an agent is by certificate (X.509, RFC 5280), in place of the shared key: whoever holds node a's certificate and its private
 * key is node a, and no other node. The name is a DNS name in the subject alternative names, `a.holdfast`; there must be exactly one of
 * that kind. Both sides of a stream show theirs, and ask for a chain to one of their authorities.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { messageOf } from "#proxy/contract/errors.ts";

const NAME = /^([a-z0-9.-]{1,63})\.holdfast$/;
const FILE_BYTES_MAX = 1_048_576;
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

export interface IdentityFiles {
  certificate: string;
  key: string;
  authorities: string;
}

/** PEM, as TLS takes it. */
export interface IdentityText {
  cert: string;
  key: string;
  ca: string;
}

/** null: it names no node, or more than one */
export function nodeOf(certificate: X509Certificate): string | null {
  const names = (certificate.subjectAltName ?? "")
    .split(", ")
    .flatMap((entry) => (entry.startsWith("DNS:") ? [entry.slice("DNS:".length)] : []))
    .filter((name) => name.endsWith(".holdfast"));
  const [name = ""] = names;
  return names.length === 1 ? (NAME.exec(name)?.[1] ?? null) : null;
}

/** As certificates are listed in a file of revoked ones: capital hex digits without leading zeros. */
export function serialOf(text: string): string {
  return text.replaceAll(":", "").replace(/^0+/, "").toUpperCase();
}

/** @throws Error one line: what is wrong with which file, and the cure */
export function readIdentity(files: IdentityFiles, node: string): IdentityText {
  const text = {
    cert: read(files.certificate, "certificate", false),
    key: read(files.key, "key", true),
    ca: read(files.authorities, "authorities", false),
  };
  const certificate = parsed(files.certificate, () => new X509Certificate(text.cert));
  const key = parsed(files.key, () => createPrivateKey(text.key));
  const authorities = authoritiesIn(text.ca);
  if (authorities.length === 0) throw new Error(`${files.authorities}: no certificate in it`);
  const named = nodeOf(certificate);
  if (named !== node)
    throw new Error(
      `${files.certificate}: it names ${named === null ? "no node" : `node ${named}`}, this is node ${node} (holdfast keys issue ${node})`,
    );
  if (!certificate.checkPrivateKey(key))
    throw new Error(`${files.key} is not the key of ${files.certificate}`);
  if (Date.parse(certificate.validTo) < Date.now())
    throw new Error(`${files.certificate}: it was valid until ${certificate.validTo}`);
  if (Date.parse(certificate.validFrom) > Date.now())
    throw new Error(`${files.certificate}: it is valid from ${certificate.validFrom} on`);
  // OpenSSL refuses more than a parser does: the rest of a chain, weak keys
  parsed(Object.values(files).join(", "), () => createSecureContext(text));
  return text;
}

export function authoritiesIn(text: string): X509Certificate[] {
  return (text.match(CERTIFICATE) ?? []).map((one) => new X509Certificate(one));
}

/** Of a peer that has been let in: whether one of these has signed its certificate itself. */
export function isVouchedFor(certificate: X509Certificate, authorities: X509Certificate[]): boolean {
  return authorities.some(
    (authority) => certificate.checkIssued(authority) && certificate.verify(authority.publicKey),
  );
}

function read(path: string, what: string, isSecret: boolean): string {
  const found = statSync(path);
  if (!found.isFile()) throw new Error(`${path}: it is not a file`);
  if (found.size > FILE_BYTES_MAX) throw new Error(`${path}: it has ${found.size} bytes`);
  if (isSecret && (found.mode & 0o007) !== 0)
    throw new Error(`${path}: expected a ${what} only its owner can read (chmod 600 ${path})`);
  return readFileSync(path, "utf8");
}

function parsed<T>(path: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new Error(`${path}: expected PEM: ${messageOf(error)}`);
  }
}
