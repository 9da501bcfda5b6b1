/** Who is who in a test cluster: an authority, certificates, tokens and kubeconfig files (openssl(1)). */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface CredentialOptions {
  folder: string;
  /** of the API server, as an IP address */
  server: string;
  /** the first address of the range of Services: where pods find the API server */
  service: string;
  nodes: string[];
}

export const API_PORT = 6443;

/** Users and their groups, in the file of tokens. */
function usersOf(nodes: string[]): { user: string; file: string; groups: string }[] {
  return [
    { user: "admin", file: "admin", groups: "system:masters" },
    { user: "system:kube-proxy", file: "kube-proxy", groups: "" },
    ...nodes.map((node) => ({ user: `system:node:${node}`, file: `node-${node}`, groups: "system:nodes" })),
  ];
}

/** Writes them all; kubeconfig files are named `USER.kubeconfig`, of nodes `node-NAME.kubeconfig`. */
export function writeCredentials(options: CredentialOptions): void {
  const { folder, server, service, nodes } = options;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const openssl = (...args: string[]): void => {
    execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
  };
  const key = (name: string): void =>
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", `${name}.key`);
  const certificate = (name: string, subject: string, names: string): void => {
    key(name);
    openssl("req", "-new", "-key", `${name}.key`, "-subj", subject, "-out", `${name}.csr`);
    const extensions = `${names === "" ? "" : `subjectAltName=${names}\n`}extendedKeyUsage=serverAuth,clientAuth\n`;
    writeFileSync(join(folder, `${name}.ext`), extensions);
    const signing = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30"];
    openssl(
      "x509",
      "-req",
      "-in",
      `${name}.csr`,
      ...signing,
      "-extfile",
      `${name}.ext`,
      "-out",
      `${name}.crt`,
    );
  };
  key("ca");
  openssl(
    "req",
    "-x509",
    "-new",
    "-key",
    "ca.key",
    "-days",
    "30",
    "-subj",
    "/CN=test-cluster",
    "-out",
    "ca.crt",
  );
  const serverNames = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
  const names = [
    ...["127.0.0.1", server, service].map((address) => `IP:${address}`),
    ...serverNames.map((name) => `DNS:${name}`),
  ];
  certificate("apiserver", "/CN=kube-apiserver", names.join(","));
  certificate("kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client", "");
  key("service-account");
  openssl("ec", "-in", "service-account.key", "-pubout", "-out", "service-account.pub");

  const tokens: string[] = [];
  for (const { user, file, groups } of usersOf(nodes)) {
    const token = randomBytes(16).toString("hex");
    tokens.push(`${token},${user},${user},"${groups}"`);
    writeFileSync(join(folder, `${file}.kubeconfig`), kubeconfig(folder, server, token), { mode: 0o600 });
  }
  writeFileSync(join(folder, "tokens.csv"), `${tokens.join("\n")}\n`, { mode: 0o600 });
}

function kubeconfig(folder: string, server: string, token: string): string {
  return JSON.stringify({
    apiVersion: "v1",
    kind: "Config",
    clusters: [
      {
        name: "cluster",
        cluster: { server: `https://${server}:${API_PORT}`, "certificate-authority": join(folder, "ca.crt") },
      },
    ],
    users: [{ name: "user", user: { token } }],
    contexts: [{ name: "context", context: { cluster: "cluster", user: "user" } }],
    "current-context": "context",
  });
}
