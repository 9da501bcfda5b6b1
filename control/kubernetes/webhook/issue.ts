/**
 * A certificate of a server and the authority that has signed it, which signs nothing else: its key is gone when this returns. X.509 version 3
 * (RFC 5280) in DER, keys of P-256, ECDSA with SHA-256 (RFC 5758); as little of it as Go's verifier needs.
 */
import {
  createHash,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
} from "node:crypto";

export interface Issued {
  /** PEM, all of them */
  authority: string;
  cert: string;
  key: string;
}

const SEQUENCE = 0x30;
const SET = 0x31;
const [BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, UTF8_STRING] = [0x01, 0x02, 0x03, 0x04, 0x0c];
const [UTC_TIME, GENERALIZED_TIME] = [0x17, 0x18];
/** [n], constructed; [2] of GeneralName (dNSName) and [0] of AuthorityKeyIdentifier (keyIdentifier), primitive */
const [VERSION, EXTENSIONS, DNS_NAME, KEY_IDENTIFIER] = [0xa0, 0xa3, 0x82, 0x80];
const OID = {
  ecdsaWithSha256: Buffer.from("06082a8648ce3d040302", "hex"),
  commonName: Buffer.from("0603550403", "hex"),
  subjectKeyIdentifier: Buffer.from("0603551d0e", "hex"),
  authorityKeyIdentifier: Buffer.from("0603551d23", "hex"),
  subjectAltName: Buffer.from("0603551d11", "hex"),
  basicConstraints: Buffer.from("0603551d13", "hex"),
  keyUsage: Buffer.from("0603551d0f", "hex"),
  extKeyUsage: Buffer.from("0603551d25", "hex"),
  serverAuth: Buffer.from("06082b06010505070301", "hex"),
};
const TRUE = tlv(BOOLEAN, Buffer.from([0xff]));
/** unused bits, then the bits from the left: keyCertSign is the sixth, digitalSignature the first (RFC 5280, 4.2.1.3) */
const KEY_CERT_SIGN = tlv(BIT_STRING, Buffer.from([2, 0x04]));
const DIGITAL_SIGNATURE = tlv(BIT_STRING, Buffer.from([7, 0x80]));
const SERIAL_BYTES = 16;
const NAME_BYTES = 4;
const KEY_ID_BYTES = 20;
/** clocks differ */
const EARLIER_MS = 300_000;
const DAY_MS = 86_400_000;
/** years from then on are written with four digits (RFC 5280, 4.1.2.5) */
const GENERALIZED_YEAR = 2050;

/** @param names of DNS, that clients connect to @param nowMs Unix time */
export function issueCertificate(names: readonly string[], days: number, nowMs: number): Issued {
  const [authority, server] = [keyPair(), keyPair()];
  // each has another name, so that a verifier that trusts two takes the right one
  const issuer = nameOf(
    `${names[0]?.split(".")[0] ?? "holdfast"} ${randomBytes(NAME_BYTES).toString("hex")}`,
  );
  const validity = tlv(SEQUENCE, timeOf(nowMs - EARLIER_MS), timeOf(nowMs + days * DAY_MS));
  const certificate = (subject: Buffer, key: KeyObject, extensions: Buffer[]): string => {
    const serial = randomBytes(SERIAL_BYTES);
    serial[0] = ((serial[0] ?? 0) & 0x7f) | 0x40; // positive, and of one length
    const content = tlv(
      SEQUENCE,
      tlv(VERSION, tlv(INTEGER, Buffer.from([2]))),
      tlv(INTEGER, serial),
      tlv(SEQUENCE, OID.ecdsaWithSha256),
      issuer,
      validity,
      subject,
      publicKeyOf(key),
      tlv(
        EXTENSIONS,
        tlv(
          SEQUENCE,
          ...extensions,
          extension(OID.subjectKeyIdentifier, tlv(OCTET_STRING, idOf(key))),
          extension(OID.authorityKeyIdentifier, tlv(SEQUENCE, tlv(KEY_IDENTIFIER, idOf(authority)))),
        ),
      ),
    );
    const signature = sign("sha256", content, authority);
    const der = tlv(
      SEQUENCE,
      content,
      tlv(SEQUENCE, OID.ecdsaWithSha256),
      tlv(BIT_STRING, Buffer.from([0]), signature),
    );
    return pem(der);
  };
  return {
    authority: certificate(issuer, authority, [
      extension(OID.basicConstraints, tlv(SEQUENCE, TRUE), { critical: true }),
      extension(OID.keyUsage, KEY_CERT_SIGN, { critical: true }),
    ]),
    cert: certificate(nameOf(names[0] ?? ""), server, [
      extension(OID.basicConstraints, tlv(SEQUENCE), { critical: true }),
      extension(OID.keyUsage, DIGITAL_SIGNATURE, { critical: true }),
      extension(OID.extKeyUsage, tlv(SEQUENCE, OID.serverAuth)),
      extension(
        OID.subjectAltName,
        tlv(SEQUENCE, ...names.map((name) => tlv(DNS_NAME, Buffer.from(name, "latin1")))),
      ),
    ]),
    key: String(server.export({ type: "pkcs8", format: "pem" })),
  };
}

function publicKeyOf(key: KeyObject): Buffer {
  return createPublicKey(key).export({ type: "spki", format: "der" });
}

/** Of a key; how it is made is the issuer's affair (RFC 7093). */
function idOf(key: KeyObject): Buffer {
  return createHash("sha256").update(publicKeyOf(key)).digest().subarray(0, KEY_ID_BYTES);
}

function keyPair(): KeyObject {
  return generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
}

function extension(oid: Buffer, value: Buffer, { critical = false } = {}): Buffer {
  return tlv(SEQUENCE, oid, ...(critical ? [TRUE] : []), tlv(OCTET_STRING, value));
}

function nameOf(commonName: string): Buffer {
  // an upper bound of the standard (ub-common-name)
  const value = tlv(UTF8_STRING, Buffer.from(commonName.slice(0, 64)));
  return tlv(SEQUENCE, tlv(SET, tlv(SEQUENCE, OID.commonName, value)));
}

function timeOf(ms: number): Buffer {
  const date = new Date(Math.floor(ms / 1_000) * 1_000);
  const digits = date.toISOString().replaceAll(/[-:T]|\.\d+/g, "");
  return date.getUTCFullYear() < GENERALIZED_YEAR
    ? tlv(UTC_TIME, Buffer.from(digits.slice(2)))
    : tlv(GENERALIZED_TIME, Buffer.from(digits));
}

/** Tag, length, value (X.690, 8.1). */
function tlv(tag: number, ...parts: Buffer[]): Buffer {
  const value = Buffer.concat(parts);
  const { length } = value;
  const bytes: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  const head = length < 128 ? [tag, length] : [tag, 0x80 | bytes.length, ...bytes];
  return Buffer.concat([Buffer.from(head), value]);
}

function pem(der: Buffer): string {
  const lines = der.toString("base64").match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join("\n")}\n-----END CERTIFICATE-----\n`;
}
