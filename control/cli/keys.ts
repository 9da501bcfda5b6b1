/**
 * `holdfast keys`: an authority of one's own and the nodes' certificates, made by openssl(1). The authority's key belongs on no node: who
 * has it is any node.
 */
import { execFileSync } from "node:child_process";
import { randomBytes, X509Certificate } from "node:crypto";
import { linkSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError, messageOf } from "#proxy/contract/errors.ts";
import { NODE_NAME, WORKLOAD_NAME } from "#proxy/store/store.ts";
import { EXIT } from "../api/exit-status.ts";
import { readKeyFile } from "../config/key-file.ts";
import { linkKeyLines } from "../config/link-key-file.ts";
import type { Terminal } from "./terminal.ts";

const SERIAL_BYTES = 16;
const EC_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"];
const AUTHORITY = ["basicConstraints=critical,CA:TRUE,pathlen:0", "keyUsage=critical,keyCertSign,cRLSign"];

export interface KeysOptions {
  folder: string;
  days: number;
}

/** Makes authority.pem and authority.key. @throws HoldfastError `KEYS` */
export function makeAuthority({ folder, days }: KeysOptions, terminal: Terminal): number {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const made = making(folder, (dir) => {
    const [key, pem] = [join(dir, "key"), join(dir, "pem")];
    const extensions = AUTHORITY.flatMap((extension) => ["-addext", extension]);
    openssl(["req", "-x509", ...EC_KEY, "-subj", "/CN=Holdfast authority", ...extensions], {
      key,
      pem,
      days,
    });
    return { "authority.key": key, "authority.pem": pem };
  });
  terminal.out.write(
    `${made.join("\n")}\nKeep authority.key away from every node: who has it can be any of them. authority.pem goes to all.\n`,
  );
  return EXIT.ok;
}

/** Prints what a gateway's file of link keys has to say of these workloads. @throws HoldfastError `KEYS` */
export function showLinkKeys(workloads: string[], keyFile: string, terminal: Terminal): number {
  for (const workload of workloads)
    if (!WORKLOAD_NAME.test(workload))
      throw failed(
        `expected a workload's name of 1-63 lower-case letters, digits and "-", with dots between, got "${workload}"`,
      );
  try {
    terminal.out.write(linkKeyLines(readKeyFile(keyFile), workloads));
  } catch (error) {
    throw failed(`${keyFile}: ${messageOf(error)}`);
  }
  return EXIT.ok;
}

/** Makes NODE.pem and NODE.key. @throws HoldfastError `KEYS` */
export function issueCertificate(node: string, { folder, days }: KeysOptions, terminal: Terminal): number {
  if (!NODE_NAME.test(node))
    throw failed(
      `expected a node's name of 1-63 lower-case letters, digits and "-", with dots between, got "${node}"`,
    );
  const [authority, authorityKey] = [join(folder, "authority.pem"), join(folder, "authority.key")];
  let serial = "";
  const made = making(folder, (dir) => {
    const [key, request, pem, extensions] = ["key", "request", "pem", "extensions"].map((name) =>
      join(dir, name),
    ) as [string, string, string, string];
    for (const path of [authority, authorityKey]) {
      try {
        readFileSync(path);
      } catch (error) {
        throw failed(
          `${path} cannot be read: ${messageOf(error)} (holdfast keys init --folder ${folder} makes an authority)`,
        );
      }
    }
    openssl(["req", "-new", ...EC_KEY, "-subj", `/CN=${node}`], { key, pem: request });
    writeFileSync(
      extensions,
      `subjectAltName=DNS:${node}.holdfast\nbasicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n`,
    );
    const number = randomBytes(SERIAL_BYTES);
    number[0] = ((number[0] ?? 0) & 0x7f) | 0x40; // positive, and of one length
    openssl(
      [
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        authority,
        "-CAkey",
        authorityKey,
        "-extfile",
        extensions,
      ].concat(["-set_serial", `0x${number.toString("hex")}`]),
      { pem, days },
    );
    serial = new X509Certificate(readFileSync(pem)).serialNumber;
    return { [`${node}.key`]: key, [`${node}.pem`]: pem };
  });
  terminal.out.write(
    `${made.join("\n")}\nBoth go to node ${node}, with authority.pem. Serial number, for a file of revoked ones: ${serial}\n`,
  );
  return EXIT.ok;
}

/** Everything is there, with mode 600, or nothing is; what is there already stays. */
function making(folder: string, make: (dir: string) => Record<string, string>): string[] {
  let dir = "";
  const made: string[] = [];
  try {
    dir = mkdtempSync(join(folder, ".new-"));
    for (const [name, from] of Object.entries(make(dir))) {
      linkSync(from, join(folder, name));
      made.push(join(folder, name));
    }
    return made;
  } catch (error) {
    for (const path of made) rmSync(path, { force: true });
    if (error instanceof HoldfastError) throw error;
    if ((error as NodeJS.ErrnoException).code === "EEXIST")
      throw failed(`${(error as { dest?: string }).dest} is there already: move it away first`);
    throw failed(`${folder}: ${messageOf(error)}`);
  } finally {
    if (dir !== "") rmSync(dir, { recursive: true, force: true });
  }
}

/** @throws HoldfastError with what openssl has said */
function openssl(args: string[], out: { key?: string; pem: string; days?: number }): void {
  const all = [...args, "-out", out.pem];
  if (out.key !== undefined) all.push("-keyout", out.key);
  if (out.days !== undefined) all.push("-days", String(out.days));
  for (const path of [out.key, out.pem]) if (path !== undefined) writeFileSync(path, "", { mode: 0o600 });
  try {
    execFileSync("openssl", all, { stdio: ["ignore", "ignore", "pipe"], encoding: "utf8" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT")
      throw failed("the program openssl is missing (apt-get install openssl)");
    const said = String((error as { stderr?: unknown }).stderr ?? "").trim();
    throw failed(`openssl ${args[0]} failed: ${said.split("\n").at(-1) || messageOf(error)}`);
  }
}

function failed(message: string): HoldfastError {
  return fail("KEYS", message);
}
