/** A real redis-server for one test: free port, nothing written to disk, gone afterwards. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const REDIS_SERVER = "redis-server";

export interface RedisServer {
  readonly port: number;
  readonly url: string;
  readonly process: ChildProcess;
  cli(...args: string[]): string;
  kill(): Promise<void>;
}

export function hasRedis(): boolean {
  try {
    execFileSync(REDIS_SERVER, ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

export async function startRedis(
  options: { port?: number; args?: string[]; sentinelConfig?: string } = {},
): Promise<RedisServer> {
  const port = options.port ?? (await freePort());
  const folder = mkdtempSync(join(tmpdir(), "holdfast-redis-"));
  const args = [
    "--port",
    `${port}`,
    "--bind",
    "127.0.0.1",
    "--save",
    "",
    "--appendonly",
    "no",
    "--dir",
    folder,
  ];
  if (options.sentinelConfig !== undefined) {
    const file = join(folder, "sentinel.conf");
    writeFileSync(file, `port ${port}\nbind 127.0.0.1\ndir ${folder}\n${options.sentinelConfig}`);
    args.splice(0, args.length, file, "--sentinel");
  }
  const process = spawn(REDIS_SERVER, [...args, ...(options.args ?? [])], { stdio: "ignore" });
  const exited = once(process, "exit");
  const cli = (...command: string[]) =>
    execFileSync("redis-cli", ["-p", `${port}`, ...command], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
  for (let attempt = 0; ; attempt++) {
    try {
      if (cli("ping").startsWith("PONG")) break;
    } catch (error) {
      if (attempt > 100) throw error;
    }
    await sleep(20);
  }
  return {
    port,
    url: `redis://127.0.0.1:${port}`,
    process,
    cli,
    kill: async () => {
      process.kill("SIGKILL");
      await exited;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
