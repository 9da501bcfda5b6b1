/**
 * A service mesh on this machine: a laboratory (`test/lab`) with the real Envoy as sidecar of some of its places, mutual TLS between
 * them, and connections that the kernel leads to them. No istiod: each sidecar's routes are told by hand.
 *
 *   10.99.0.2…     the nodes; a sidecar's place stands for a pod
 *   10.99.0.100    "client"
 *   10.96.0.0/16   addresses of services
 *
 * Several run beside each other. `close()` leaves nothing behind.
 */
import { execFileSync } from "node:child_process";
import { chmodSync } from "node:fs";
import { join } from "node:path";
import { createLab, type Lab, type LabOptions } from "../lab/lab.ts";
import { MeshAuthority } from "./certificates.ts";
import { requireEnvoy } from "./mesh-tools.ts";
import { Sidecar, type SidecarOptions } from "./sidecar.ts";

const NAMESPACE = "demo";

export interface MeshOptions extends Pick<LabOptions, "nodes" | "gateways"> {
  /** by the name of their place */
  sidecars: Record<string, SidecarOptions>;
}

/** Resolves when every sidecar is ready. @throws Error when set-up has not brought Envoy */
export async function createMesh(options: MeshOptions): Promise<Mesh> {
  requireEnvoy();
  const { nodes, gateways } = options;
  const mesh = new Mesh(await createLab({ ...(nodes && { nodes }), ...(gateways && { gateways }) }));
  try {
    await mesh.start(options);
    return mesh;
  } catch (error) {
    await mesh.close();
    throw error;
  }
}

export class Mesh {
  readonly lab: Lab;
  readonly #sidecars = new Map<string, Sidecar>();

  constructor(lab: Lab) {
    this.lab = lab;
  }

  /** Part of {@link createMesh}. */
  async start({ sidecars }: MeshOptions): Promise<void> {
    const { lab } = this;
    // an Envoy runs as another user, and has to come to its socket and its bootstrap
    chmodSync(lab.dir, 0o711);
    const authority = new MeshAuthority(join(lab.dir, "certificates"));
    for (const [name, options] of Object.entries(sidecars)) {
      const certificate = authority.certificateOf(NAMESPACE, options.account ?? "default");
      // to nowhere: without a route the kernel refuses a service's address before the redirects are asked
      const way = ["route", "add", "default", "via", lab.switch.address];
      execFileSync("ip", ["-n", lab.place(name).netns, ...way]);
      this.#sidecars.set(name, await Sidecar.start(name, options, { lab, certificate }));
    }
    await Promise.all([...this.#sidecars.values()].map((sidecar) => sidecar.ready()));
  }

  sidecar(place: string): Sidecar {
    const found = this.#sidecars.get(place);
    if (found === undefined) throw new Error(`no sidecar is at ${place}`);
    return found;
  }

  async close(): Promise<void> {
    for (const sidecar of this.#sidecars.values()) sidecar.close();
    await this.lab.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
