/** The certificate that the API server sees, in two PEM files that somebody else renews. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";

export interface Certificate {
  /** with those that lead to the authority, if any */
  cert: string;
  key: string;
  /** Unix time */
  validFromMs: number;
  validToMs: number;
}

/** @throws HoldfastError `CONFIG_INVALID`: which file, and what is wrong with it */
export function readCertificate(files: { certificate: string; key: string }): Certificate {
  const cert = read(files.certificate);
  const key = read(files.key);
  const first = parsed(files.certificate, "a certificate", () => new X509Certificate(cert));
  const own = parsed(files.key, "a private key", () => createPrivateKey(key));
  if (!first.checkPrivateKey(own))
    throw fail(
      "CONFIG_INVALID",
      `${files.key}: expected the key of the certificate in ${files.certificate}, got another's`,
    );
  return { cert, key, validFromMs: Date.parse(first.validFrom), validToMs: Date.parse(first.validTo) };
}

export function isSameCertificate(one: Certificate, other: Certificate): boolean {
  return one.cert === other.cert && one.key === other.key;
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw fail("CONFIG_INVALID", `${file}: cannot be read: ${messageOf(cause)}`, { cause });
  }
}

function parsed<T>(file: string, what: string, parse: () => T): T {
  try {
    return parse();
  } catch (cause) {
    throw fail("CONFIG_INVALID", `${file}: expected ${what} as PEM: ${messageOf(cause)}`, { cause });
  }
}
