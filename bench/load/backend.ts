/**
 * The application behind every peer: nginx that returns a fixed answer, so that it is not the limit, and counts the
 * requests it has seen, so that generators can be checked.
 */
import { httpSettings, nginxVersion, startNginx } from "../peers/nginx.ts";
import type { Stage } from "../stage.ts";

const BODY = "0123456789".repeat(10);

export class Backend {
  readonly protocol = "http";
  readonly port: number;
  readonly version: string;
  readonly #statusUrl: string;

  private constructor(port: number, statusPort: number, version: string) {
    this.port = port;
    this.version = version;
    this.#statusUrl = `http://127.0.0.1:${statusPort}/`;
  }

  /** @param name of its folder */
  static async start(stage: Stage, name = "backend"): Promise<Backend> {
    const [port, statusPort] = [await stage.freePort(), await stage.freePort()];
    await startNginx(stage, {
      name,
      cpu: stage.cpus.load,
      port,
      config: (directory) => `http {
  ${httpSettings(directory)}
  server { listen 127.0.0.1:${port} backlog=4096; return 200 "${BODY}"; }
  server { listen 127.0.0.1:${statusPort}; location / { stub_status; } }
}`,
    });
    return new Backend(port, statusPort, nginxVersion());
  }

  /** A count of everything since it started, the asking itself left out. */
  async requestsSeen(): Promise<number> {
    // "server accepts handled requests\n 16630948 16630948 31070465"
    const text = await (await fetch(this.#statusUrl)).text();
    const seen = Number(/^ \d+ \d+ (\d+)/m.exec(text)?.[1]);
    if (Number.isNaN(seen)) throw new Error(`nginx's stub_status said ${JSON.stringify(text)}`);
    return seen - ++this.#asked;
  }

  #asked = 0;
}
