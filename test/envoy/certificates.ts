/** Who is who in a test mesh: an authority, and for each service account a certificate with its SPIFFE name (openssl(1)). */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** PEM, all of them */
export interface WorkloadCertificate {
  authority: Buffer;
  certificate: Buffer;
  key: Buffer;
}

const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];

export class MeshAuthority {
  readonly #folder: string;
  readonly #made = new Map<string, WorkloadCertificate>();

  constructor(folder: string) {
    this.#folder = folder;
    mkdirSync(folder, { mode: 0o700 });
    this.#request("authority", "/O=test mesh", [
      "basicConstraints=critical,CA:TRUE",
      "keyUsage=critical,keyCertSign",
    ]);
  }

  /** Of spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT. */
  certificateOf(namespace: string, account: string): WorkloadCertificate {
    const name = `${namespace}-${account}`;
    let made = this.#made.get(name);
    if (made === undefined) {
      this.#request(
        name,
        "/",
        [
          `subjectAltName=critical,URI:spiffe://cluster.local/ns/${namespace}/sa/${account}`,
          "extendedKeyUsage=clientAuth,serverAuth",
          "keyUsage=critical,digitalSignature",
        ],
        ["-CA", this.#file("authority.pem"), "-CAkey", this.#file("authority.key")],
      );
      const [authority, certificate, key] = ["authority.pem", `${name}.pem`, `${name}.key`].map((file) =>
        readFileSync(this.#file(file)),
      ) as [Buffer, Buffer, Buffer];
      made = { authority, certificate, key };
      this.#made.set(name, made);
    }
    return made;
  }

  #file(name: string): string {
    return join(this.#folder, name);
  }

  #request(name: string, subject: string, extensions: string[], signing: string[] = []): void {
    const files = ["-keyout", this.#file(`${name}.key`), "-out", this.#file(`${name}.pem`)];
    const added = extensions.flatMap((extension) => ["-addext", extension]);
    execFileSync("openssl", ["req", "-x509", ...KEY, "-subj", subject, ...files, ...added, ...signing], {
      stdio: "pipe",
    });
  }
}
