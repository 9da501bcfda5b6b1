/**
 * A mesh whose istiod reads a real Kubernetes API, to which the controller of Holdfast writes: places of the laboratory are pods, of which
 * there are only the objects.
 *
 *   client ── Envoy ══mutual TLS══ Envoy ── Holdfast ── application "chat", of the Service
 *   client ── gateway ── Envoy ──────────── Holdfast ── application "gated"
 */
import { join } from "node:path";
import { type Lab, type LabProcess, projectRoot } from "../lab/lab.ts";
import { GATEWAY, HELD_APP, startGateway, startHeld, startPlain } from "./held.ts";
import { hostOf, NAMESPACE } from "./istio-objects.ts";
import { endpointSlice, INJECTED_BY_BOTH, kubeService, pod, put, serviceAccount } from "./kube-objects.ts";
import { createMesh, type Mesh } from "./mesh.ts";
import { LISTEN_FIRST, PORTS, SERVED, type ServicePort } from "./several-workload.ts";

const HOLDFAST = join(projectRoot, "bin/holdfast");
export const [HELD, SPARE, BARE] = ["a", "spare", "bare"].map((name, index) => ({
  name,
  address: `10.99.0.${2 + index}`,
})) as [At, At, At];
const CLIENT = { name: "client", address: "10.99.0.100" };
/** of the pod at {@link SPARE}, without Holdfast, whose sidecar has a long drainDuration */
export const PATIENT = { app: "patient", address: "10.96.0.12" };
const PATIENT_SECONDS = 86_400;
export const SERVICE = { app: HELD_APP, address: "10.96.0.11" };
const SWITCH = "10.99.0.1";
const SERVED_NUMBERS = SERVED.map(({ number }) => number);
const STARTING_MS_MAX = 60_000;

interface At {
  name: string;
  address: string;
}

export class KubeStage {
  readonly mesh: Mesh;
  #controller: LabProcess | null = null;
  #gateway: LabProcess | null = null;

  private constructor(mesh: Mesh) {
    this.mesh = mesh;
  }

  static async open(): Promise<KubeStage> {
    const mesh = await createMesh({
      nodes: [HELD.name, SPARE.name, BARE.name],
      gateways: [GATEWAY.name],
      sidecars: {
        client: { labels: { app: "client" }, account: "client", outboundBut: [SWITCH] },
        [HELD.name]: {
          labels: { app: HELD_APP },
          inboundOnly: SERVED_NUMBERS,
          holdfastFrom: LISTEN_FIRST,
        },
        [SPARE.name]: {
          labels: { app: PATIENT.app },
          inboundOnly: SERVED_NUMBERS,
          drainSeconds: PATIENT_SECONDS,
        },
        [GATEWAY.name]: { labels: { app: "gateway" }, account: "gateway", outboundBut: [SWITCH] },
      },
      objects: [
        ...["default", "client", "gateway"].map(serviceAccount),
        pod(HELD_APP, HELD, { annotations: INJECTED_BY_BOTH }),
        pod(PATIENT.app, SPARE),
        pod("client", CLIENT, { account: "client" }),
        pod("gateway", GATEWAY, { account: "gateway" }),
        kubeService(HELD_APP, SERVICE.address, SERVED),
        endpointSlice(HELD_APP, [HELD], SERVED),
        kubeService(PATIENT.app, PATIENT.address, SERVED),
        endpointSlice(PATIENT.app, [SPARE], SERVED),
      ],
      istiodEnv: { PILOT_ENABLE_PERSISTENT_SESSION_FILTER: "true" },
      logsAccess: true,
    });
    const stage = new KubeStage(mesh);
    try {
      await startPlain(mesh.lab, SPARE.name);
      stage.#gateway = await startGateway(mesh.lab);
      // where a pod's proxy has clients led to it as long as no Sidecar does
      await startHeld(mesh.lab, HELD.name, SERVED_NUMBERS);
      await stage.startController();
      return stage;
    } catch (error) {
      await mesh.close();
      throw error;
    }
  }

  get lab(): Lab {
    return this.mesh.lab;
  }

  /** Resolves when it leads. */
  async startController(): Promise<void> {
    const kubeconfig = ["--kubeconfig", this.mesh.api.kubeconfig];
    const argv = [HOLDFAST, "controller", ...kubeconfig, "--namespace", NAMESPACE, "--mesh"];
    this.#controller = this.lab.spawn("switch", argv, { name: "controller", cwd: projectRoot });
    await this.#controller.waitFor(/"msg":"leads"/, STARTING_MS_MAX);
  }

  async stopController(): Promise<void> {
    await this.#controller?.stop();
  }

  /** All links are made anew. */
  async restartGateway(): Promise<void> {
    await this.#gateway?.stop("SIGKILL");
    this.#gateway = await startGateway(this.lab);
  }

  /** Requests to "chat" from the client's place until it is stopped: more of them than sessions ask, which would see little of a gap. */
  startRequests(): LabProcess {
    const url = `http://${SERVICE.address}:${PORTS.http.number}/`;
    const asks = ["--h1", "-c", "3", "--rps", "100", "-D", "120", "-H", `host: ${hostOf(HELD_APP)}`, url];
    return this.lab.spawn("client", ["h2load", ...asks], { name: "h2load" });
  }

  /** The Service of "chat" asks for this, of these ports. @param mesh its annotation */
  async ask(mesh: object, ports: readonly ServicePort[] = SERVED): Promise<void> {
    const annotations = { "holdfast.dev/mesh": JSON.stringify(mesh) };
    await put(
      this.mesh.api,
      kubeService(HELD_APP, SERVICE.address, ports, { annotations }),
      endpointSlice(HELD_APP, [HELD], ports),
    );
  }
}
