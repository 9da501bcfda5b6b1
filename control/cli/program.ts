/** The command line: what can be typed, and which file does it. Everything it touches is handed in. */
import { readFileSync } from "node:fs";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import type { ProxyDefault } from "#proxy/contract/commands.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { EXIT, EXIT_HELP, exitStatusOf } from "../api/exit-status.ts";
import { UNMESHED, type Unmeshed } from "../api/mesh.ts";
import type { AgentConfig } from "../config/config.ts";
import { parseEndpoint } from "../config/endpoint.ts";
import type { GatewayFile } from "../config/gateway.ts";
import type { WebhookFile } from "../config/webhook.ts";
import type { KubernetesApi } from "../kubernetes/client/api.ts";
import type { ControllerConfig } from "../kubernetes/controller/main.ts";
import { AdminClient } from "./admin-client.ts";
import type { Clients, OnInterrupt } from "./cancellable.ts";
import { rehearse, showCheck } from "./check.ts";
import { completionOf, SHELLS } from "./completion.ts";
import { addEnvoyCommands, type EndpointsRunner } from "./envoy-commands.ts";
import { findAgent, readToken } from "./find-agent.ts";
import type { Format } from "./inject.ts";
import { issueCertificate, type KeysOptions, makeAuthority, showLinkKeys } from "./keys.ts";
import { LOG_LEVELS } from "./log-levels.ts";
import { showLogs } from "./logs.ts";
import { showLookup } from "./lookup.ts";
import { migrate } from "./migrate.ts";
import { FORMATS, type OutputFormat } from "./output-format.ts";
import { restart } from "./restart.ts";
import { showSessions } from "./sessions.ts";
import { showStatus } from "./status.ts";
import { startWorkload, stopWorkload } from "./stop.ts";
import { plain, type Terminal } from "./terminal.ts";

export interface Surroundings extends Terminal, EndpointsRunner {
  /** until it is told to end by a signal */
  runAgent(config: AgentConfig, options: { logLevel: string }): Promise<void>;
  runGateway(config: GatewayFile, options: { logLevel: string }): Promise<void>;
  runWebhook(config: WebhookFile, options: { logLevel: string }): Promise<void>;
  runController(config: ControllerConfig): Promise<void>;
  /** everything that comes on standard input; throws when it is more than so many bytes */
  readInput(bytesMax: number): Promise<string>;
  env: Record<string, string | undefined>;
  onInterrupt: OnInterrupt;
}

interface DetachOptions extends ClusterOptions {
  migrations?: boolean;
  mesh?: Unmeshed;
  keepGateways?: boolean;
  injected?: boolean;
}

interface ClusterOptions {
  kubeconfig?: string;
  context?: string;
  namespace?: string;
  json?: boolean;
  output?: OutputFormat;
  cluster?: boolean;
  pre?: boolean;
}

interface MigrateOptions extends ClientOptions, ClusterOptions {
  to: string;
  deadline?: number;
  dryRun?: boolean;
  /** commander's --no-wait: true without it */
  wait: boolean;
}

interface ControllerOptions {
  kubeconfig?: string;
  context?: string;
  namespace?: string;
  gateways?: string;
  evictionRequests?: boolean;
  mesh?: boolean;
  admin?: Endpoint;
  logLevel: string;
}

interface ClientOptions {
  json?: boolean;
  agent?: string;
  tokenFile?: string;
}

interface ManifestOptions {
  filename: string;
  output: Format;
  json?: boolean;
}

interface InjectCommandOptions extends ManifestOptions {
  image: string;
  imagePullPolicy?: "Always" | "IfNotPresent" | "Never";
  proxyImage?: string;
  gateways?: boolean;
  proxy: ProxyDefault;
}

interface CheckOptions extends ClientOptions {
  to?: string;
  dryRun?: boolean;
  allow: string[];
}

/** as many as `logs` shows */
const LINES = 100;
/** where the chart is, unless somebody says otherwise */
const SYSTEM_NAMESPACE = "holdfast";
const AUTHORITY_DAYS = 3_650;
const NODE_DAYS = 825;
const AGENT_HELP = `
Which agent: --agent, else the environment variable HOLDFAST_AGENT, else the only socket among
/var/lib/holdfast/*/agent.sock and /run/holdfast/*.sock. Its token file, with http://: --token-file,
else the environment variable HOLDFAST_TOKEN_FILE.`;

const GATEWAY_HELP = `
The file:
  gateway: g1                          # its name
  store: redis://10.99.0.1:6379        # that of the nodes
  key: file:/etc/holdfast/key          # that of the nodes; or linkKeys: file:PATH, see keys links
  listen:
    - { address: "10.99.0.9:8080", workload: chat, port: 8080 }
  admin: 10.99.0.9:9400                # /healthz, /readyz, /metrics

It moves with no workload: a move, and the end of the node that a workload came from, is a pause for its clients. SIGTERM: it
accepts nobody any more, waits for its sessions to end (limits.drainMsMax), resets the others, and ends.`;

const INJECT_HELP = `
Pods, and the templates of Deployments, StatefulSets, ReplicaSets and ReplicationControllers, are changed, in Lists too; comments
and everything else stay. Pods of Jobs and DaemonSets are never moved and pass unchanged. Where a pod cannot be injected nothing
is printed; the label holdfast.dev/inject: disabled leaves one out. Annotations: control/kubernetes/README.md.

  holdfast inject --image REGISTRY/holdfast/inside:1 -f chat.yaml | kubectl apply -f -
  holdfast inject --image REGISTRY/holdfast/inside:1 --proxy-image REGISTRY/holdfast/control:1 --gateways -f chat.yaml

A pod in gateway mode has its proxy in it, without any privilege: --proxy-image says what runs it, or --proxy node leaves it to the
agent of the node.`;

const WEBHOOK_HELP = `
The file:
  listen: 0.0.0.0:8443                 # where the API server asks: /inject, and /enforce for namespaces that refuse others; /service;
                                       # in a pod, or with KUBECONFIG: /evict, and /ordinal about what StatefulSets make
  certificate: tls.crt                 # PEM, of the name of the Service; both are read again when they change
  key: tls.key
  image: REGISTRY/holdfast/inside:1    # what is copied into pods
  imagePullPolicy: IfNotPresent
  proxy:                               # what runs the proxy in pods; without it none has it
    image: REGISTRY/holdfast/control:1
    default: auto                      # where a pod says nothing: auto (those in gateway mode), sidecar (all), node (none)
    resources: { requests: { cpu: 50m, memory: 96Mi }, limits: { cpu: 1, memory: 512Mi } }   # what it asks for, and may have
  admin: 0.0.0.0:9400                  # /healthz, /readyz, /metrics
  gateways: true                       # pods of Services with the label holdfast.dev/gateway: enabled are in gateway mode
  evictionRequests: false              # true: pods name the controller as a responder to EvictionRequests
  drainMs: 5000                        # answers those who still ask for so long when it is told to end
  renewal: { namespace: holdfast, secret: holdfast-webhook, kinds: [MutatingWebhookConfiguration], configuration: holdfast,
             names: [holdfast-webhook.holdfast.svc], days: 365 }

With renewal it makes another certificate before its own expires, in a Secret that kubelet brings here, and has the API server
trust it first, in each of kinds (or ValidatingWebhookConfiguration). Of the API server it asks for that; with gateways for such
Services; when it is asked at /evict for the pod, its node, and the Migrations and ContinuityPolicy of its namespace, of which it
makes a Migration; at /ordinal for Migrations and their pods. It needs no privilege of the node's. SIGTERM: it is not ready any
more, answers for drainMs, and ends.`;

/** @param args without node and script. Never throws; resolves with the exit status when the command is over. */
export async function runProgram(args: string[], around: Surroundings): Promise<number> {
  let status: number = EXIT.ok;
  const json = args.includes("--json");
  const program = build(around, (value) => {
    status = value;
  });
  try {
    await program.parseAsync(args, { from: "user" });
    return status;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const message = plain(messageOf(error));
    around.err.write(`holdfast: ${message}\n`);
    const code = (error as { code?: unknown }).code;
    if (json) around.out.write(`${JSON.stringify({ error: { code: code ?? "INTERNAL", message } })}\n`);
    return exitStatusOf(error);
  }
}

function build(around: Surroundings, done: (status: number) => void): Command {
  const program = new Command("holdfast")
    .description("Moves live stateful workloads between nodes with every client's session intact.")
    .version(version())
    .addHelpText("after", EXIT_HELP)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void around.out.write(text),
      writeErr: (text) => void around.err.write(text),
    })
    .showHelpAfterError("(--help shows how)");

  const clientOf = (options: ClientOptions): AdminClient =>
    new AdminClient(
      findAgent(options.agent ?? around.env.HOLDFAST_AGENT),
      readToken(options.tokenFile ?? around.env.HOLDFAST_TOKEN_FILE),
    );
  const withAgent = async (options: ClientOptions, use: (agent: AdminClient) => Promise<number>) => {
    const agent = clientOf(options);
    try {
      done(await use(agent));
    } finally {
      await agent.close();
    }
  };
  const withClients = (options: ClientOptions, use: (clients: Clients) => Promise<number>) =>
    withAgent(options, async (agent) => {
      const canceller = clientOf(options);
      try {
        return await use({ agent, canceller });
      } finally {
        await canceller.close();
      }
    });
  const ofAgent = (command: Command): Command =>
    command
      .option("--agent <socket|address>", "socket of the agent, or http://HOST:PORT")
      .option("--token-file <file>", "with http://: admin.token of that agent's stateDir")
      .addHelpText("after", `${AGENT_HELP}\n${EXIT_HELP}`);
  const client = (usage: string, description: string) =>
    ofAgent(program.command(usage).description(description).option("--json", "print one JSON object"));

  program
    .command("agent")
    .description("run the agent of this node, in the foreground")
    .requiredOption("--config <file>", "YAML file")
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addHelpText("after", EXIT_HELP)
    .action(async (options: { config: string; logLevel: string }) => {
      // the other commands do without what reads a configuration
      const { loadConfig } = await import("../config/config.ts");
      const config = loadConfig(options.config);
      await around.runAgent(config, { logLevel: options.logLevel });
    });

  program
    .command("gateway")
    .description("hold the clients' sockets of workloads with downstream: gateway, in the foreground")
    .requiredOption("--config <file>", "YAML file")
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addHelpText("after", `${GATEWAY_HELP}\n${EXIT_HELP}`)
    .action(async (options: { config: string; logLevel: string }) => {
      const { loadGatewayConfig } = await import("../config/gateway.ts");
      const config = loadGatewayConfig(options.config);
      await around.runGateway(config, { logLevel: options.logLevel });
    });

  program
    .command("webhook")
    .description("inject pods for the API server of a Kubernetes cluster, in the foreground")
    .requiredOption("--config <file>", "YAML file")
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addHelpText("after", `${WEBHOOK_HELP}\n${EXIT_HELP}`)
    .action(async (options: { config: string; logLevel: string }) => {
      const { loadWebhookConfig } = await import("../config/webhook.ts");
      const config = loadWebhookConfig(options.config);
      await around.runWebhook(config, { logLevel: options.logLevel });
    });

  program
    .command("controller")
    .description("move the pods that Migrations name, in a Kubernetes cluster, in the foreground")
    .option("--kubeconfig <file>", "as kubectl has it; default: KUBECONFIG, else this pod's ServiceAccount")
    .option("--context <name>", "of the kubeconfig")
    .option("--namespace <name>", "of the Lease that one of several controllers holds; default: its own")
    .option(
      "--gateways <configmap>",
      "ConfigMap that gateways follow, in that namespace; default: no gateways",
    )
    .option(
      "--eviction-requests",
      "answer EvictionRequests (lifecycle.k8s.io), where the cluster serves them",
    )
    .option("--mesh", "keep what Services with the annotation holdfast.dev/mesh ask of Istio")
    .option("--admin <address>", "IP:PORT of /healthz, /readyz and /metrics", parseAddress)
    .addOption(new Option("--log-level <level>", "how much to log").choices(LOG_LEVELS).default("info"))
    .addHelpText("after", EXIT_HELP)
    .action((options: ControllerOptions) =>
      around.runController({
        kubeconfig: options.kubeconfig ?? null,
        context: options.context ?? null,
        namespace: options.namespace ?? null,
        gateways: options.gateways ?? null,
        evictionRequests: options.evictionRequests ?? false,
        mesh: options.mesh === true,
        admin: options.admin ?? null,
        logLevel: options.logLevel,
      }),
    );

  const manifest = (usage: string, description: string) =>
    program
      .command(usage)
      .description(description)
      .requiredOption("-f, --filename <file>", "manifests, YAML or JSON; - for standard input")
      .addOption(
        new Option("-o, --output <format>", "what is printed").choices(["yaml", "json"]).default("yaml"),
      )
      .option("--json", "as -o json: one object, a List of several");
  const sourceOf = ({ filename: file, output, json }: ManifestOptions, bytesMax: number) => ({
    file,
    format: json === true ? ("json" as const) : output,
    readInput: () => around.readInput(bytesMax),
  });
  manifest("inject", "prepare the pods of manifests for being moved, as the webhook does")
    .requiredOption("--image <image>", "what is copied into pods")
    .addOption(
      new Option("--image-pull-policy <policy>", "of that image").choices([
        "Always",
        "IfNotPresent",
        "Never",
      ]),
    )
    .option("--proxy-image <image>", "what runs the proxy in pods, where it is there")
    .addOption(
      new Option("--proxy <where>", "of pods that do not say it; auto: a sidecar in gateway mode, else node")
        .choices(["auto", "node", "sidecar"] satisfies ProxyDefault[])
        .default("auto"),
    )
    .option(
      "--gateways",
      "the cluster has gateways: pods that do not say it (holdfast.dev/mode) are in their mode",
    )
    .addHelpText("after", `${INJECT_HELP}\n${EXIT_HELP}`)
    .action(async (options: InjectCommandOptions) => {
      const { injectManifest, MANIFEST_BYTES_MAX } = await import("./inject.ts");
      const { image, imagePullPolicy = null, proxyImage, proxy } = options;
      const proxies = { image: proxyImage ?? null, default: proxy };
      // which Services there are is not asked here
      const gateways = options.gateways === true ? { isSelected: () => true } : null;
      const source = sourceOf(options, MANIFEST_BYTES_MAX);
      done(await injectManifest(source, { image, imagePullPolicy, proxy: proxies, gateways }, around));
    });
  manifest("uninject", "take out of manifests what inject has put in")
    .addHelpText("after", EXIT_HELP)
    .action(async (options: ManifestOptions) => {
      const { uninjectManifest, MANIFEST_BYTES_MAX } = await import("./inject.ts");
      done(await uninjectManifest(sourceOf(options, MANIFEST_BYTES_MAX), around));
    });

  const keys = program
    .command("keys")
    .description("make an authority of your own, and certificates of nodes; keys for gateways");
  const maker = (usage: string, description: string, days: number) =>
    keys
      .command(usage)
      .description(description)
      .option("--folder <folder>", "where the files are made, mode 600", ".")
      .option("--days <count>", "how long the certificate is valid", parseDays, days)
      .addHelpText("after", EXIT_HELP);
  maker(
    "init",
    "make an authority: authority.pem for every node, authority.key for none",
    AUTHORITY_DAYS,
  ).action((options: KeysOptions) => done(makeAuthority(options, around)));
  maker(
    "issue <node>",
    "make NODE.pem and NODE.key, signed by the authority in the folder",
    NODE_DAYS,
  ).action((node: string, options: KeysOptions) => done(issueCertificate(node, options, around)));

  keys
    .command("links <workload...>")
    .description("print the keys of these workloads' links, for a gateway that is not to have the nodes' key")
    .requiredOption("--key <file>", "the nodes' key file")
    .addHelpText("after", EXIT_HELP)
    .action((workloads: string[], options: { key: string }) => {
      done(showLinkKeys(workloads, options.key, around));
    });

  const inCluster = (command: Command): Command =>
    command
      .option("--kubeconfig <file>", "as kubectl has it; default: KUBECONFIG, else ~/.kube/config")
      .option("--context <name>", "of the kubeconfig");
  const withCluster = async (
    options: ClusterOptions,
    use: (api: KubernetesApi, namespace: string) => Promise<number>,
  ): Promise<void> => {
    // commands of agents start without it
    const [{ findAccess }, { KubernetesApi }] = await Promise.all([
      import("../kubernetes/client/access.ts"),
      import("../kubernetes/client/api.ts"),
    ]);
    const access = findAccess(around.env, {
      ...(options.kubeconfig === undefined ? {} : { kubeconfig: options.kubeconfig }),
      ...(options.context === undefined ? {} : { context: options.context }),
    });
    const api = new KubernetesApi(access, "holdfast");
    try {
      done(await use(api, options.namespace ?? access.namespace));
    } finally {
      api.close();
    }
  };
  addEnvoyCommands(program, around, done, { inCluster, withCluster, accessOf });

  /** The same command beside the agent of the pod's node. */
  const besideAgent = (pod: string, options: ClusterOptions, command: (workload: string) => string[]) =>
    withCluster(options, async (api, namespace) => {
      const [{ askAgentOf }, { runKubectl }] = await Promise.all([
        import("./pod-agent.ts"),
        import("./kubectl.ts"),
      ]);
      const kubectl = (args: string[]) => runKubectl(args, around, around.env);
      return askAgentOf(api, kubectl, { namespace, pod, access: accessOf(options), command });
    });
  const ofPods = (command: Command): Command =>
    inCluster(command).option("-n, --namespace <name>", "of the pod; default: the context's");
  const ofCluster = (command: Command, what: string): Command =>
    inCluster(command)
      .option("--cluster", `${what} (as kubectl-holdfast does)`)
      .addOption(new Option("-o, --output <format>", "of that").choices(FORMATS).default("table"));
  const isOfCluster = ({ cluster, pre }: ClusterOptions): boolean =>
    cluster === true || pre === true || around.env.HOLDFAST_CLUSTER === "1";
  const formatOf = ({ output, json }: ClusterOptions): OutputFormat =>
    json === true ? "json" : (output ?? "table");

  ofCluster(
    client("status", "the node, its store and peers, its workloads"),
    "of a Kubernetes cluster: Holdfast's parts, the pods that move, and their Migrations",
  )
    .option("-n, --namespace <name>", "of a cluster: pods of this one; default: of all")
    .action((options: ClientOptions & ClusterOptions) => {
      if (!isOfCluster(options))
        return withAgent(options, (agent) => showStatus(agent, options.json === true, around));
      return withCluster(options, async (api) => {
        const { showClusterStatus } = await import("./cluster-status.ts");
        return showClusterStatus(api, options.namespace ?? null, formatOf(options), around);
      });
    });

  ofPods(
    client("sessions <workload>", "the sessions of a workload, or of pod/NAME, this node has a part in"),
  ).action((workload: string, options: ClientOptions & ClusterOptions) => {
    const pod = podNamed(workload);
    if (pod !== null)
      return besideAgent(pod, options, (name) => ["sessions", name, ...(options.json ? ["--json"] : [])]);
    return withAgent(options, (agent) => showSessions(agent, workload, options.json === true, around));
  });

  ofAgent(inCluster(program.command("logs <workload>")))
    .description("what the application of a workload, or of pod/NAME, has written on this node")
    .option("--namespace <name>", "of the pod; default: the context's")
    .option("-n, --lines <count>", "of the end of it", parseLines, LINES)
    .option("-f, --follow", "go on with what comes, until Ctrl-C")
    .action(
      (workload: string, options: ClientOptions & ClusterOptions & { lines: number; follow?: boolean }) => {
        const { lines, follow = false } = options;
        const pod = podNamed(workload);
        if (pod !== null)
          return besideAgent(pod, options, (name) => [
            ...["logs", name, "--lines", String(lines)],
            ...(follow ? ["--follow"] : []),
          ]);
        return withAgent(options, (agent) => showLogs(agent, { workload, lines, follow }, around));
      },
    );

  inCluster(program.command("diagnostics"))
    .description(
      "write what a cluster's Holdfast says of itself, of all namespaces, into an archive, without secrets",
    )
    .option("-f, --filename <file>", "where to", "holdfast-diagnostics.tar.gz")
    .addHelpText("after", EXIT_HELP)
    .action((options: ClusterOptions & { filename: string }) =>
      withCluster(options, async (api) => {
        const [{ writeDiagnostics }, { agentStatus }] = await Promise.all([
          import("./diagnostics.ts"),
          import("./pod-agent.ts"),
        ]);
        const { runKubectl } = await import("./kubectl.ts");
        const askAgent = agentStatus(
          (args, terminal) => runKubectl(args, terminal, around.env),
          accessOf(options),
        );
        return writeDiagnostics(api, { file: options.filename, askAgent }, around);
      }),
    );

  program
    .command("completion <shell>")
    .description(`print what completes commands in a shell: ${SHELLS.join(", ")}`)
    .addHelpText("after", "\n  source <(holdfast completion bash)")
    .action((shell: string) => {
      const known = SHELLS.find((one) => one === shell);
      if (known === undefined)
        throw fail("USAGE_SHELL", `completion: expected ${SHELLS.join(", ")}, got ${shell}`);
      around.out.write(completionOf(program, known));
    });

  client("lookup <name>", "which workload has the session of that name, and where it is served now")
    .option("--workload <name>", "where several have one")
    .action((name: string, options: ClientOptions & { workload?: string }) =>
      withAgent(options, (agent) =>
        showLookup(agent, name, options.workload ?? null, options.json === true, around),
      ),
    );

  ofCluster(
    client(
      "check [workload]",
      "what would keep this node's workloads, or pod/NAME, from moving, with the cure",
    ),
    "a Kubernetes cluster, and node by node: whether Holdfast works in it",
  )
    .option("--pre", "a cluster, before anything is installed: whether it would work")
    .option("-n, --namespace <name>", `of the pod; of a cluster: Holdfast's own (${SYSTEM_NAMESPACE})`)
    .option("--to <node>", "ask this node; without it, every peer that has the workload in its configuration")
    .option(
      "--dry-run",
      "do everything of a move that holds no client, undo it, and say how long clients would wait",
    )
    .option(
      "--allow <id>",
      "a finding that is not to block, e.g. descriptor.io-uring; may be repeated",
      collect,
      [],
    )
    .addHelpText(
      "after",
      `
Only looks, here and at the nodes asked: no client waits, no process stops, nothing is made. migrate does the same first,
and does not begin when something blocks. With --dry-run files and memory are copied to the other node, where everything is
made ready, and nothing of it is left afterwards; Ctrl-C undoes it too.`,
    )
    .action((workload: string | undefined, options: CheckOptions & ClusterOptions) => {
      const { to, allow, json = false } = options;
      const pod = podNamed(workload ?? "");
      if (pod !== null)
        return besideAgent(pod, options, (name) => [
          ...["check", name, ...(to === undefined ? [] : ["--to", to])],
          ...(options.dryRun === true ? ["--dry-run"] : []),
          ...allow.flatMap((id) => ["--allow", id]),
          ...(json ? ["--json"] : []),
        ]);
      if (isOfCluster(options))
        return withCluster(options, async (api) => {
          const { checkCluster } = await import("./cluster-check.ts");
          const { pre = false, namespace = SYSTEM_NAMESPACE } = options;
          return checkCluster(api, { isBefore: pre, namespace, allow }, formatOf(options), around);
        });
      if (options.dryRun !== true)
        return withAgent(options, (agent) =>
          showCheck(agent, { workload: workload ?? null, to: to ?? null, allow }, json, around),
        );
      if (workload === undefined || to === undefined)
        throw fail("USAGE_DRY_RUN", "--dry-run needs a workload and --to");
      return withClients(options, (clients) =>
        rehearse(clients, { workload, to, allow }, json, around, around.onInterrupt),
      );
    });

  inCluster(client("migrate <workload>", "move a workload, or pod/NAME of a cluster, to another node"))
    .requiredOption("--to <node>", "name of the node")
    .option("--deadline <ms>", "roll back when it has not committed by then", parseMs)
    .option("-n, --namespace <name>", "of the pod; default: the context's")
    .option("--dry-run", "of a pod: only say what would be done")
    .option("--no-wait", "of a pod: only make the Migration")
    .addHelpText(
      "after",
      `
pod/NAME: a Migration is made, which the cluster's controller carries out; no agent is asked.
Ctrl-C cancels the move and waits for the outcome; a second Ctrl-C leaves.`,
    )
    .action((workload: string, options: MigrateOptions) => {
      const { to, deadline = null, dryRun = false, wait, json = false } = options;
      const pod = podNamed(workload);
      if (pod !== null)
        return withCluster(options, async (api, namespace) => {
          const { migratePod } = await import("./kubernetes.ts");
          const request = { namespace, pod, to, deadlineMs: deadline, dryRun, wait };
          return migratePod(api, request, json, around, around.onInterrupt);
        });
      if (dryRun || !wait)
        throw fail(
          "USAGE_POD",
          "--dry-run and --no-wait are for pods: migrate pod/NAME; of a workload: check --dry-run",
        );
      return withClients(options, (clients) =>
        migrate(clients, { workload, to, deadlineMs: deadline }, json, around, around.onInterrupt),
      );
    });

  inCluster(program.command("abort <migration>"))
    .description("abort a Migration of a cluster, unless the application has moved already")
    .option("-n, --namespace <name>", "of the Migration; default: the context's")
    .option("--json", "print one JSON object")
    .addHelpText("after", EXIT_HELP)
    .action((name: string, options: ClusterOptions) =>
      withCluster(options, async (api, namespace) => {
        const { abortMigration } = await import("./kubernetes.ts");
        return abortMigration(api, { namespace, name }, options.json === true, around);
      }),
    );

  inCluster(program.command("drain <node>"))
    .description("cordon a node of a cluster, and move each injected pod of it to another")
    .option("--deadline <ms>", "of each move", parseMs)
    .option("--json", "print one JSON object")
    .addHelpText(
      "after",
      `
What is not injected stays: kubectl drain evicts it. Where the chart answers evictions, kubectl drain alone does both.
A pod that is being moved already is waited for. Each pod has its row: Unknown where it could not be asked for, or not be waited
for; the exit status is 1 where one of them has not moved, or it is not known.
${EXIT_HELP}`,
    )
    .action((node: string, options: ClusterOptions & { deadline?: number }) =>
      withCluster(options, async (api) => {
        const { drainNode } = await import("./kubernetes.ts");
        return drainNode(api, { node, deadlineMs: options.deadline ?? null }, options.json === true, around);
      }),
    );

  inCluster(program.command("detach"))
    .description("lead clients of Services of gateways to their pods again, before gateways are taken away")
    .option("-n, --namespace <name>", "Services of this one; default: of all")
    .option("--migrations", "first end the Migrations under way: before the controller is taken away, too")
    .addOption(
      new Option(
        "--mesh [of]",
        "then take away what Services ask of Istio: before the controller is taken away, or keeps it no more. made: and ask for nothing, of those alone for which there is anything",
      )
        .choices(UNMESHED)
        .preset("all"),
    )
    .option("--keep-gateways", "leave Services of gateways as they are")
    .option("--injected", "then name the pods that were injected: before agents are taken away")
    .option("--json", "print one JSON object")
    .addHelpText(
      "after",
      `
Each Service gets its selector back, and loses its label holdfast.dev/gateway. Clients that are connected stay at their gateway.
A Migration that is ended leaves its application where it is, unless it has moved already. With --mesh each Service loses
its annotation holdfast.dev/mesh, and what was made for it goes; with --mesh=made one for which nothing was made keeps it. Pods stay as they were injected: without agents nobody starts their
application again when it ends. Take the label holdfast.dev/inject off, and kubectl rollout restart. helm uninstall does all this
by itself, but for that.
${EXIT_HELP}`,
    )
    .action((options: DetachOptions) =>
      withCluster(options, async (api) => {
        const { detach } = await import("./detach.ts");
        const request = {
          namespace: options.namespace ?? null,
          migrations: options.migrations === true,
          gateways: options.keepGateways !== true,
          mesh: options.mesh ?? null,
          injected: options.injected === true,
        };
        return detach(api, request, options.json === true, around);
      }),
    );

  client("restart <workload>", "end a workload's application and start it again, while its clients wait")
    .option("--drain <ms>", "wait so long for requests under way", parseMs)
    .addHelpText(
      "after",
      `
It is started with the command and environment that the agent's configuration file says now.
Ctrl-C cancels a restart that has not begun to stop it, and waits for the outcome.`,
    )
    .action((workload: string, options: ClientOptions & { drain?: number }) =>
      withClients(options, (clients) => {
        const request = { workload, drainMs: options.drain ?? null };
        return restart(clients, request, options.json === true, around, around.onInterrupt);
      }),
    );

  client("start <workload>", "start a workload on this node, also one that was stopped")
    .option("--force", "no other node has it, and none that cannot be asked will come back with it running")
    .addHelpText(
      "after",
      `
It is started when it is known that no other node has it. With --force your word takes the place of nodes that cannot be
asked: when the machine that had it is gone for good. A node that comes back with it nevertheless ends it there, and the
clients it had are reset.`,
    )
    .action((workload: string, options: ClientOptions & { force?: boolean }) =>
      withAgent(options, (agent) =>
        startWorkload(agent, workload, options.force === true, options.json === true, around),
      ),
    );

  client("stop <workload>", "end a workload and reset its clients").action(
    (workload: string, options: ClientOptions) =>
      withAgent(options, (agent) => stopWorkload(agent, workload, options.json === true, around)),
  );
  return program;
}

/** For kubectl, as it was given. */
function accessOf({ kubeconfig, context }: ClusterOptions): string[] {
  return [
    ...(kubeconfig === undefined ? [] : ["--kubeconfig", kubeconfig]),
    ...(context === undefined ? [] : ["--context", context]),
  ];
}

function collect(value: string, before: string[]): string[] {
  return [...before, value];
}

/** `pod/chat-0` → `chat-0`; null: it is a workload of an agent */
function podNamed(name: string): string | null {
  return /^pods?\/(.+)$/.exec(name)?.[1] ?? null;
}

function parseAddress(text: string): Endpoint {
  const endpoint = parseEndpoint(text);
  if (endpoint === null) throw new InvalidArgumentError("expected IP:PORT ([IP]:PORT for IPv6).");
  return endpoint;
}

function parseMs(text: string): number {
  const ms = Number(text);
  if (!/^\d{1,9}$/.test(text) || ms < 1) throw new InvalidArgumentError("expected milliseconds.");
  return ms;
}

function parseDays(text: string): number {
  if (!/^\d{1,5}$/.test(text) || Number(text) < 1)
    throw new InvalidArgumentError("expected a number of days up to 99999.");
  return Number(text);
}

function parseLines(text: string): number {
  if (!/^\d{1,6}$/.test(text)) throw new InvalidArgumentError("expected a number of lines up to 999999.");
  return Number(text);
}

function version(): string {
  const manifest = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version;
}
