/** One real proxy process with many ports, each in front of a raw application of its own. */
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { json } from "node:stream/consumers";
import type { PortConfig } from "#proxy/contract/commands.ts";
import type { ProxyLimits } from "#proxy/contract/limits.ts";
import type { Memory } from "./collect-when-asked.ts";
import { LIMITS, ProxyProcess } from "./proxy-lab.ts";

export type PortShape = Partial<Omit<PortConfig, "listen" | "upstream">>;

const COLLECT = "collect.sock";
const WORKLOAD_KEY = Buffer.alloc(32, 1);

const tellsWhatItKeeps = (socket: string): string[] => [
  "env",
  `NODE_OPTIONS=--expose-gc --import=${join(import.meta.dirname, "collect-when-asked.ts")}`,
  `HOLDFAST_COLLECT=${socket}`,
];

export class MalformedStage {
  readonly proxy: ProxyProcess;
  /** where clients connect, in the order of the shapes */
  readonly ports: number[];
  readonly #directory: string;

  private constructor(proxy: ProxyProcess, ports: number[], directory: string) {
    this.proxy = proxy;
    this.ports = ports;
    this.#directory = directory;
  }

  static async start(
    upstreams: { port: number; shape?: PortShape }[],
    limits: Partial<ProxyLimits> = {},
  ): Promise<MalformedStage> {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-malformed-"));
    const proxy = await ProxyProcess.start({
      exec: tellsWhatItKeeps(join(directory, COLLECT)),
      socket: join(directory, "p.sock"),
    });
    await proxy.call(
      "configure",
      {
        workload: "malformed",
        node: "a",
        downstream: "forward",
        listenAddress: "127.0.0.1",
        ports: upstreams.map(({ port, shape }) => ({
          listen: 0,
          upstream: { address: "127.0.0.1", port },
          ...shape,
        })),
        linkAddress: "127.0.0.1:0",
        spillDir: directory,
        limits: { ...LIMITS, ...limits },
      },
      WORKLOAD_KEY,
    );
    const { result } = await proxy.call<{ ports: number[] }>("serve", { epoch: 1 });
    return new MalformedStage(proxy, result.ports, directory);
  }

  get isAlive(): boolean {
    return this.proxy.process.exitCode === null && this.proxy.process.signalCode === null;
  }

  /** Of the proxy, its garbage collected. */
  async memory(): Promise<Memory> {
    return (await json(connect(join(this.#directory, COLLECT)))) as Memory;
  }

  async stop(): Promise<void> {
    await this.proxy.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
