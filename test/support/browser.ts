/**
 * A real Chromium without a window, spoken to by the DevTools protocol over two pipes (--remote-debugging-pipe: JSON, a zero
 * byte after each message; chrome devtools-protocol, "Target", "Page", "Runtime"). One page, and whatever it complains of.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";

const COMMAND = "chromium";
const CALL_MS_MAX = 30_000;

interface Message {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

export class Browser {
  readonly #child: ChildProcess;
  readonly #profile: string;
  readonly #answers = new Map<number, (message: Message) => void>();
  readonly #waiting: { method: string; resolve: (params: Record<string, unknown>) => void }[] = [];
  /** errors, exceptions and warnings of the page, as it said them */
  readonly complaints: string[] = [];
  /** everything it has asked for */
  readonly requests: string[] = [];
  #session = "";
  #lastId = 0;

  private constructor(child: ChildProcess, profile: string) {
    this.#child = child;
    this.#profile = profile;
    let rest = "";
    (child.stdio[4] as Readable).setEncoding("utf8").on("data", (text: string) => {
      const messages = (rest + text).split("\0");
      rest = messages.pop() ?? "";
      for (const message of messages) this.#take(JSON.parse(message));
    });
    child.once("exit", () => {
      for (const answer of this.#answers.values()) answer({ error: { message: "the browser has ended" } });
    });
  }

  /** @throws Error when there is no Chromium: scripts/setup.sh installs it */
  static async start(): Promise<Browser> {
    const profile = mkdtempSync(join(tmpdir(), "holdfast-browser-"));
    const child = spawn(
      COMMAND,
      [
        "--headless=new",
        // root has no sandbox; what is shown is our own file
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        `--user-data-dir=${profile}`,
        "--remote-debugging-pipe",
        "about:blank",
      ],
      // A group of its own, so that all its processes end at once; it ends by itself when the pipes do.
      {
        stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
        detached: true,
        // what it leaves there when it is killed goes with its profile
        env: { ...process.env, TMPDIR: profile },
      },
    );
    await once(child, "spawn");
    (child.stdio[3] as Writable).on("error", () => {}); // "exit" follows
    const browser = new Browser(child, profile);
    try {
      const { targetId } = await browser.call("Target.createTarget", { url: "about:blank" });
      const attached = await browser.call("Target.attachToTarget", { targetId, flatten: true });
      browser.#session = String(attached.sessionId);
      for (const domain of ["Page", "Runtime", "Log", "Network"]) await browser.call(`${domain}.enable`);
      return browser;
    } catch (error) {
      await browser.close();
      throw error;
    }
  }

  /** Resolves when it is loaded. */
  async open(url: string): Promise<void> {
    const loaded = this.#event("Page.loadEventFired");
    const { errorText } = await this.call("Page.navigate", { url });
    if (errorText !== undefined) throw new Error(`${url}: ${errorText}`);
    await loaded;
  }

  /** @param expression JavaScript; what it gives, or resolves with, is JSON */
  async evaluate<Value>(expression: string): Promise<Value> {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    });
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return (result as { value: Value }).value;
  }

  async show(look: {
    width: number;
    height: number;
    scheme?: "light" | "dark";
    media?: "screen" | "print";
  }): Promise<void> {
    const { width, height, scheme = "light", media = "screen" } = look;
    await this.call("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: false,
    });
    await this.call("Emulation.setEmulatedMedia", {
      media,
      features: [{ name: "prefers-color-scheme", value: scheme }],
    });
  }

  /** PNG, in base64. */
  async screenshot(): Promise<string> {
    return String((await this.call("Page.captureScreenshot", { format: "png" })).data);
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      const exited = once(this.#child, "exit");
      process.kill(-(this.#child.pid as number), "SIGKILL");
      await exited;
    }
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }

  async call(method: string, params: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const id = ++this.#lastId;
    const { promise, resolve } = Promise.withResolvers<Message>();
    this.#answers.set(id, resolve);
    const timer = setTimeout(() => resolve({ error: { message: "no answer" } }), CALL_MS_MAX);
    const session = this.#session === "" ? {} : { sessionId: this.#session };
    (this.#child.stdio[3] as Writable).write(`${JSON.stringify({ id, method, params, ...session })}\0`);
    const { result, error } = await promise;
    clearTimeout(timer);
    this.#answers.delete(id);
    if (error !== undefined) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  }

  #event(method: string): Promise<Record<string, unknown>> {
    return new Promise((resolve) => this.#waiting.push({ method, resolve }));
  }

  #take({ id, method = "", params = {}, ...outcome }: Message): void {
    if (id !== undefined) {
      this.#answers.get(id)?.(outcome);
      return;
    }
    for (const [index, each] of this.#waiting.entries()) {
      if (each.method !== method) continue;
      this.#waiting.splice(index, 1);
      each.resolve(params);
      break;
    }
    if (method === "Runtime.exceptionThrown") this.complaints.push(JSON.stringify(params.exceptionDetails));
    if (method === "Log.entryAdded") this.complaints.push(JSON.stringify(params.entry));
    if (method === "Runtime.consoleAPICalled") this.complaints.push(JSON.stringify(params.args));
    if (method === "Network.requestWillBeSent")
      this.requests.push((params.request as { url: string }).url.slice(0, 200));
  }
}
