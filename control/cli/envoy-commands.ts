/** What can be typed after `holdfast envoy`, and which function does it. */
import { type Command, Option } from "commander";
import type { EndpointsFile } from "#envoy/endpoints/config.ts";
import { MODES, type Mode, type Policy } from "#envoy/policy.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { EXIT_HELP } from "../api/exit-status.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import type { ProxySource } from "./envoy.ts";
import { LOG_LEVELS } from "./log-levels.ts";
import type { Terminal } from "./terminal.ts";

const POLICY_HELP = `
A policy:
  name: chat                           # of what is made: chat-holdfast…
  namespace: games
  selector: { app: chat }              # of the pods
  ports:
    - { port: 8080, protocol: websocket }                # tcp, http, websocket or h2; proxy: where Holdfast listens (15900 and on)
    - { port: 9000, protocol: tcp, identity: proxy-v2 }  # a header says whose each connection is
  egress: [{ hosts: ["./*"] }]          # what they may reach, and outboundTrafficPolicy: a Sidecar of theirs alone says it (sidecar)
  idleSeconds: 86400                   # how long a connection may be silent
  drainSeconds: 86400                  # how long one goes on that a changed listener had
  stickiness: { cookie: hf, workloads: [{ name: chat-0, labels: { statefulset.kubernetes.io/pod-name: chat-0 } }] }

More of it, and what was run: envoy/README.md.`;

interface RenderOptions {
  policy?: string;
  fromCluster?: boolean;
  service: string[];
  namespace?: string;
  kubeconfig?: string;
  context?: string;
  mode: Mode;
  istioVersion?: string;
  output: "yaml" | "json";
}

interface VerifyOptions extends ProxySource {
  policy?: string;
  fromCluster?: boolean;
  service: string[];
  namespace?: string;
  kubeconfig?: string;
  context?: string;
  mode: Mode;
  filename: string[];
  json?: boolean;
}

interface AuditOptions extends ProxySource {
  filename: string[];
  json?: boolean;
}

/** How commands about a cluster reach it. */
export interface ClusterAccess {
  inCluster(command: Command): Command;
  withCluster(
    options: { kubeconfig?: string; context?: string; namespace?: string },
    use: (api: KubernetesApi, namespace: string) => Promise<number>,
  ): Promise<void>;
  /** for kubectl, as it was given */
  accessOf(options: { kubeconfig?: string; context?: string }): string[];
}

export interface EndpointsRunner {
  /** until it is told to end by a signal */
  runEndpoints(config: EndpointsFile, options: { logLevel: string }): Promise<void>;
}

const ENDPOINTS_HELP = `
The file:
  store: redis://10.99.0.1:6379        # that of the nodes
  folder: /var/lib/holdfast/envoy      # CLUSTER.json each, for path_config_source with watched_directory
  ads: 127.0.0.1:18000                 # and, or in its place: ADS over gRPC, without TLS
  admin: 127.0.0.1:9402                # /healthz, /readyz, /metrics
  clusters:
    - { cluster: chat-8080, workloads: [chat], port: 8080 }   # names as of render --mode plain

Of workloads in forward mode. What Envoys were told stays when it ends, and while the store is away.`;

export function addEnvoyCommands(
  program: Command,
  terminal: Terminal & EndpointsRunner & { env: Record<string, string | undefined> },
  done: (status: number) => void,
  cluster: ClusterAccess,
): void {
  const envoy = program.command("envoy").description("Istio and Envoy in front of workloads that move");
  const collect = (value: string, before: string[]): string[] => [...before, value];
  const mode = () =>
    new Option("--mode <mode>", "what the policy is made into").choices(MODES).default("sidecar");
  const ofProxy = (command: Command): Command =>
    command
      .option("--config-dump <file>", "what the proxy answers to GET /config_dump")
      .option("--admin <url>", "its admin interface, as http://127.0.0.1:15000; says more than a file");
  cluster
    .inCluster(
      envoy
        .command("render")
        .description("print the resources that a policy takes, each explained")
        .option("--policy <file>", "YAML or JSON")
        .option("--from-cluster", "of the Services whose pods Holdfast and Istio have injected")
        .option("--service <name>", "of a cluster: of this one; may be repeated", collect, [])
        .option("-n, --namespace <name>", "of a cluster; default: the context's"),
    )
    .addOption(mode())
    .option("--istio-version <version>", "of istiod; default: the one that was run")
    .addOption(
      new Option("-o, --output <format>", "what is printed").choices(["yaml", "json"]).default("yaml"),
    )
    .addHelpText("after", `${POLICY_HELP}\n${EXIT_HELP}`)
    .action(async ({ policy, fromCluster = false, service, ...options }: RenderOptions) => {
      if ((policy !== undefined) === fromCluster)
        throw fail("USAGE_ENVOY", "expected exactly one of --policy FILE and --from-cluster");
      const { policiesInCluster, readPolicy, renderPolicies } = await import("./envoy.ts");
      const { mode, istioVersion, output: format } = options;
      const print = (policies: Policy[]) =>
        renderPolicies({ policies, mode, istioVersion, format }, terminal);
      if (policy !== undefined) return done(print([readPolicy(policy)]));
      return cluster.withCluster(options, async (api, namespace) => {
        const { policies } = await policiesInCluster(api, { namespace, services: service, mode }, terminal);
        return print(policies);
      });
    });

  cluster
    .inCluster(
      ofProxy(
        envoy
          .command("verify")
          .description("say of each patch whether a proxy has it, and if not why")
          .option("--policy <file>", "what it comes to is looked for")
          .addOption(mode())
          .option(
            "-f, --filename <file>",
            "EnvoyFilters and Sidecars of anybody; may be repeated",
            collect,
            [],
          ),
      )
        .option(
          "--from-cluster",
          "what Services ask for: is it in the cluster, and in the Envoy of each of their pods",
        )
        .option("--service <name>", "of a cluster: of this one; may be repeated", collect, [])
        .option("-n, --namespace <name>", "of a cluster; default: the context's"),
    )
    .option("--json", "print one JSON object")
    .addHelpText(
      "after",
      `
1 where something that is for this proxy is not in it, or nothing of it is for this proxy. With --from-cluster kubectl leads to
the Envoys (port-forward), and 1 is also where something is not in the cluster, or a pod is not reached.
${EXIT_HELP}`,
    )
    .action(async ({ policy, filename, json = false, ...options }: VerifyOptions) => {
      if (options.fromCluster === true) {
        const { admin, configDump, mode } = options;
        if (policy !== undefined || filename.length > 0 || admin !== undefined || configDump !== undefined)
          throw fail(
            "USAGE_ENVOY",
            "--from-cluster reads all it needs there: leave out --policy, -f, --admin and --config-dump",
          );
        if (mode !== "sidecar" && mode !== "envoyfilter")
          throw fail("USAGE_ENVOY", "of a cluster: expected --mode sidecar or envoyfilter");
        return cluster.withCluster(options, async (api, namespace) => {
          const [{ verifyCluster }, { askSidecar }] = await Promise.all([
            import("./verify-cluster.ts"),
            import("./sidecar-envoy.ts"),
          ]);
          const forward = { access: cluster.accessOf(options), env: terminal.env };
          const request = { namespace, services: options.service, mode };
          return verifyCluster(api, (pod) => askSidecar(pod, forward), request, json, terminal);
        });
      }
      const { readPolicy, verifyProxy } = await import("./envoy.ts");
      const wanted = policy === undefined ? null : readPolicy(policy);
      done(await verifyProxy({ ...options, policy: wanted, files: filename }, json, terminal));
    });

  ofProxy(
    envoy
      .command("audit")
      .description("say which pushes would cut which sessions of a proxy, and what to do about each")
      .option("-f, --filename <file>", "resources of the mesh; may be repeated", collect, []),
  )
    .option("--json", "print one JSON object")
    .addHelpText("after", EXIT_HELP)
    .action(async ({ filename, json = false, ...source }: AuditOptions) => {
      const { auditProxy } = await import("./envoy.ts");
      done(await auditProxy({ ...source, files: filename }, json, terminal));
    });

  envoy
    .command("endpoints")
    .description("tell Envoys where workloads are, at once when they have moved, in the foreground")
    .requiredOption("--config <file>", "YAML file")
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addHelpText("after", `${ENDPOINTS_HELP}\n${EXIT_HELP}`)
    .action(async (options: { config: string; logLevel: string }) => {
      const { loadEndpointsConfig } = await import("#envoy/endpoints/config.ts");
      await terminal.runEndpoints(loadEndpointsConfig(options.config), { logLevel: options.logLevel });
    });
}
