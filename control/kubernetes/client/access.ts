/**
 * Where the API server is and who asks it: the ServiceAccount of the pod that this process runs in, or a kubeconfig, read as
 * kubectl reads it (client-go, tools/clientcmd): the first of several files wins, `exec` plug-ins are started for a token.
 */
import { execFile } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { parse } from "yaml";
import * as z from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";

export interface Credentials {
  token?: string;
  /** PEM */
  certificate?: string;
  key?: string;
}

export interface Access {
  /** e.g. `https://10.96.0.1:443` */
  server: string;
  /** PEM; undefined: those that the system trusts */
  authorities?: string;
  /** checked in the certificate in place of the server's address */
  serverName?: string;
  /** kubeconfig's `insecure-skip-tls-verify` */
  isUnchecked: boolean;
  /** of this pod, or of the kubeconfig's context */
  namespace: string;
  /** Asked before each request: tokens are replaced while we run. */
  credentials(): Promise<Credentials>;
}

const ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount";
/** kubelet replaces a token when a fifth of its life, ten minutes at least, is left */
const TOKEN_MS = 30_000;
/** a token of a plug-in is not used in its last moments */
const EXPIRY_MARGIN_MS = 30_000;
const EXEC_MS_MAX = 60_000;

/**
 * `--kubeconfig`, else `KUBECONFIG`, else the pod's ServiceAccount, else `~/.kube/config`.
 * @throws HoldfastError `KUBERNETES_CONFIG`
 */
export function findAccess(
  env: Record<string, string | undefined>,
  options: { kubeconfig?: string; context?: string } = {},
): Access {
  const named = options.kubeconfig ?? env.KUBECONFIG;
  if (named === undefined || named === "") {
    const own = inCluster(env);
    if (own !== null) return own;
  }
  const files = named ? named.split(delimiter).filter((file) => file !== "") : [];
  return fromKubeconfig(files.length > 0 ? files : [join(homedir(), ".kube/config")], options.context);
}

/** null: this process does not run in a pod */
export function inCluster(env: Record<string, string | undefined>, folder = ACCOUNT_FOLDER): Access | null {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port = "443" } = env;
  const tokenFile = join(folder, "token");
  if (!host || !existsSync(tokenFile)) return null;
  let read: { token: string; atMs: number } | null = null;
  return {
    server: `https://${host.includes(":") ? `[${host}]` : host}:${port}`,
    authorities: readText(join(folder, "ca.crt")),
    isUnchecked: false,
    namespace: existsSync(join(folder, "namespace")) ? readText(join(folder, "namespace")).trim() : "default",
    async credentials() {
      if (read === null || Date.now() - read.atMs > TOKEN_MS)
        read = { token: readText(tokenFile).trim(), atMs: Date.now() };
      return { token: read.token };
    },
  };
}

// kubectl reads files with much more in them than we need: what is not named here is let through
const execSchema = z.object({
  apiVersion: z.string(),
  command: z.string(),
  args: z.array(z.string()).nullish(),
  env: z.array(z.object({ name: z.string(), value: z.string() })).nullish(),
  installHint: z.string().nullish(),
  provideClusterInfo: z.boolean().nullish(),
});
type Exec = z.infer<typeof execSchema>;

const clusterSchema = z.object({
  server: z.string(),
  "certificate-authority": z.string().optional(),
  "certificate-authority-data": z.string().optional(),
  "insecure-skip-tls-verify": z.boolean().optional(),
  "tls-server-name": z.string().optional(),
});
const userSchema = z.object({
  token: z.string().optional(),
  tokenFile: z.string().optional(),
  "client-certificate": z.string().optional(),
  "client-certificate-data": z.string().optional(),
  "client-key": z.string().optional(),
  "client-key-data": z.string().optional(),
  exec: execSchema.nullish(),
});
const contextSchema = z.object({
  cluster: z.string(),
  user: z.string().default(""),
  namespace: z.string().optional(),
});

const fileSchema = z.object({
  "current-context": z.string().nullish(),
  clusters: z.array(z.object({ name: z.string(), cluster: clusterSchema })).nullish(),
  users: z.array(z.object({ name: z.string(), user: userSchema.nullish() })).nullish(),
  contexts: z.array(z.object({ name: z.string(), context: contextSchema })).nullish(),
});

/** @throws HoldfastError `KUBERNETES_CONFIG` */
export function fromKubeconfig(files: string[], contextName?: string): Access {
  const present = files.filter((file) => existsSync(file));
  if (present.length === 0)
    throw fail(
      "KUBERNETES_CONFIG",
      `no kubeconfig: ${files.join(", ")} is not there; give --kubeconfig or set KUBECONFIG`,
    );
  const parsed = present.map((file) => ({ folder: dirname(resolve(file)), content: readKubeconfig(file) }));
  const shown = present.join(", ");
  const named = contextName ?? parsed.map(({ content }) => content["current-context"]).find(Boolean);
  if (!named) throw fail("KUBERNETES_CONFIG", `${shown}: no current-context: give --context`);

  const context = find(parsed, "contexts", named)?.entry.context;
  if (context === undefined)
    throw fail("KUBERNETES_CONFIG", `${shown}: there is no context ${JSON.stringify(named)}`);
  const cluster = find(parsed, "clusters", context.cluster);
  if (cluster === null)
    throw fail(
      "KUBERNETES_CONFIG",
      `${shown}: context ${named} names cluster ${context.cluster}, which is not there`,
    );
  const user = find(parsed, "users", context.user);
  const { server, ...rest } = cluster.entry.cluster;
  const authorities = dataOrFile(
    cluster.folder,
    rest["certificate-authority-data"],
    rest["certificate-authority"],
  );
  return {
    server: checkedServer(server, shown),
    ...(authorities === undefined ? {} : { authorities }),
    ...(rest["tls-server-name"] === undefined ? {} : { serverName: rest["tls-server-name"] }),
    isUnchecked: rest["insecure-skip-tls-verify"] === true,
    namespace: context.namespace || "default",
    credentials: credentialsOf(user?.entry.user ?? {}, user?.folder ?? "."),
  };
}

type Kubeconfig = z.infer<typeof fileSchema>;
type Named<Key extends "clusters" | "users" | "contexts"> = NonNullable<Kubeconfig[Key]>[number];

function find<Key extends "clusters" | "users" | "contexts">(
  files: { folder: string; content: Kubeconfig }[],
  key: Key,
  name: string,
): { folder: string; entry: Named<Key> } | null {
  for (const { folder, content } of files) {
    const entries = (content[key] ?? []) as Named<Key>[];
    const entry = entries.find((one) => one.name === name);
    if (entry !== undefined) return { folder, entry };
  }
  return null;
}

function readKubeconfig(file: string): Kubeconfig {
  let raw: unknown;
  try {
    raw = parse(readText(file), { logLevel: "error" });
  } catch (cause) {
    throw fail("KUBERNETES_CONFIG", `${file}: not YAML: ${messageOf(cause)}`, { cause });
  }
  const parsed = fileSchema.safeParse(raw);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw fail("KUBERNETES_CONFIG", `${file}: ${issue?.path.join(".") || "the file"}: ${issue?.message}`);
}

function checkedServer(server: string, shown: string): string {
  if (URL.canParse(server) && /^https?:$/.test(new URL(server).protocol)) return server.replace(/\/+$/, "");
  throw fail(
    "KUBERNETES_CONFIG",
    `${shown}: server: expected https://HOST:PORT, got ${JSON.stringify(server)}`,
  );
}

function credentialsOf(user: z.infer<typeof userSchema>, folder: string): () => Promise<Credentials> {
  const certificate = dataOrFile(folder, user["client-certificate-data"], user["client-certificate"]);
  const key = dataOrFile(folder, user["client-key-data"], user["client-key"]);
  const fixed: Credentials = {
    ...(certificate === undefined ? {} : { certificate }),
    ...(key === undefined ? {} : { key }),
    ...(user.token === undefined ? {} : { token: user.token }),
  };
  const { exec, tokenFile } = user;
  if (exec) return plugIn(exec, folder);
  if (tokenFile === undefined) return async () => fixed;
  return async () => ({ ...fixed, token: readText(resolve(folder, tokenFile)).trim() });
}

const execAnswer = z.object({
  status: z.object({
    token: z.string().optional(),
    clientCertificateData: z.string().optional(),
    clientKeyData: z.string().optional(),
    expirationTimestamp: z.string().optional(),
  }),
});

/** client.authentication.k8s.io: the plug-in prints an ExecCredential, which is good until its expirationTimestamp. */
function plugIn(exec: Exec, folder: string): () => Promise<Credentials> {
  let had: { credentials: Credentials; untilMs: number } | null = null;
  const command = exec.command.includes("/") ? resolve(folder, exec.command) : exec.command;
  return async () => {
    if (had !== null && Date.now() < had.untilMs) return had.credentials;
    const info = { apiVersion: exec.apiVersion, kind: "ExecCredential", spec: { interactive: false } };
    const extra = Object.fromEntries((exec.env ?? []).map(({ name, value }) => [name, value]));
    let printed: string;
    try {
      const { stdout } = await promisify(execFile)(command, exec.args ?? [], {
        env: { ...process.env, ...extra, KUBERNETES_EXEC_INFO: JSON.stringify(info) },
        timeout: EXEC_MS_MAX,
      });
      printed = stdout;
    } catch (cause) {
      const hint = exec.installHint ? `; ${exec.installHint.trim()}` : "";
      throw fail("KUBERNETES_CONFIG", `${exec.command} gives no credentials: ${messageOf(cause)}${hint}`, {
        cause,
      });
    }
    const parsed = execAnswer.safeParse(parseJson(printed));
    if (!parsed.success)
      throw fail("KUBERNETES_CONFIG", `${exec.command} printed no ExecCredential: ${parsed.error.message}`);
    const { token, clientCertificateData, clientKeyData, expirationTimestamp } = parsed.data.status;
    const credentials: Credentials = {
      ...(token === undefined ? {} : { token }),
      ...(clientCertificateData === undefined ? {} : { certificate: clientCertificateData }),
      ...(clientKeyData === undefined ? {} : { key: clientKeyData }),
    };
    const expiryMs = expirationTimestamp === undefined ? Number.NaN : Date.parse(expirationTimestamp);
    had = {
      credentials,
      untilMs: Number.isNaN(expiryMs) ? Number.POSITIVE_INFINITY : expiryMs - EXPIRY_MARGIN_MS,
    };
    return credentials;
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function dataOrFile(folder: string, data: string | undefined, file: string | undefined): string | undefined {
  if (data) return Buffer.from(data, "base64").toString("utf8");
  return file ? readText(resolve(folder, file)) : undefined;
}

function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw fail("KUBERNETES_CONFIG", `${file} cannot be read: ${messageOf(cause)}`, { cause });
  }
}
