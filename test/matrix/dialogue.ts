/** A conversation by lines, over a process's standard input and output or a connection: what is said is answered in order. */
import type { Socket } from "node:net";
import type { Readable, Writable } from "node:stream";
import type { MovedProgram } from "../support/moved-program.ts";

const LINE_MS_MAX = 30_000;

interface Waiting {
  resolve: (line: string) => void;
  reject: (error: Error) => void;
  timer: NodeJS.Timeout;
}

export class Dialogue {
  readonly #write: Writable;
  readonly #lines: string[] = [];
  readonly #end: (signal?: NodeJS.Signals) => void;
  #rest = "";
  #waiting: Waiting[] = [];
  #over: string | null = null;
  #complaints = "";
  /** resolves with the exit status of a process (null: of a signal) or with null */
  readonly ended: Promise<number | null>;

  private constructor(
    read: Readable,
    write: Writable,
    ended: Promise<number | null>,
    end: (signal?: NodeJS.Signals) => void,
  ) {
    this.#write = write;
    this.#end = end;
    this.ended = ended;
    read.setEncoding("utf8").on("data", (piece: string) => {
      const [rest = "", ...whole] = (this.#rest + piece).split("\n").reverse();
      this.#rest = rest;
      this.#lines.push(...whole.reverse().map((line) => line.replace(/\r$/, "")));
      this.#deliver();
    });
    read.on("error", (error) => this.#close(error.message));
    write.on("error", (error) => this.#close(error.message));
    void ended.then((status) => this.#close(status === null ? "closed" : `ended with status ${status}`));
  }

  static ofProcess(program: MovedProgram, argv: string[], env: Record<string, string>): Dialogue {
    const { child } = program.spawn(argv, {
      keep: false,
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, ...env },
    });
    const { stdin, stdout, stderr } = child;
    if (stdin === null || stdout === null || stderr === null) throw new Error(`${argv[0]} has no pipes`);
    const ended = new Promise<number | null>((resolve) => child.once("close", (status) => resolve(status)));
    const dialogue = new Dialogue(stdout, stdin, ended, (signal = "SIGKILL") => void child.kill(signal));
    stderr.setEncoding("utf8").on("data", (text: string) => (dialogue.#complaints += text));
    return dialogue;
  }

  static ofSocket(socket: Socket): Dialogue {
    const ended = new Promise<null>((resolve) => socket.once("close", () => resolve(null)));
    return new Dialogue(socket, socket, ended, () => void socket.destroy());
  }

  /** what a process wrote to its standard error */
  get complaints(): string {
    return this.#complaints;
  }

  /** null while it lives, else why it does not */
  get over(): string | null {
    return this.#over;
  }

  /** lines that nobody has asked for yet */
  get unread(): readonly string[] {
    return this.#lines;
  }

  say(text: string): void {
    this.#write.write(text);
  }

  /** The next line. @throws when it is over, or nothing comes for half a minute */
  line(): Promise<string> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting = this.#waiting.filter((each) => each.timer !== timer);
        reject(new Error(`no answer within ${LINE_MS_MAX} ms ${this.#complaints.slice(-400)}`));
      }, LINE_MS_MAX);
      this.#waiting.push({ resolve, reject, timer });
      this.#deliver();
    });
  }

  async ask(text: string): Promise<string> {
    this.say(text);
    return this.line();
  }

  /** Lines up to and with the one that is, or matches, `last`. */
  async until(last: string | RegExp): Promise<string[]> {
    const lines: string[] = [];
    for (;;) {
      const line = await this.line();
      lines.push(line);
      if (typeof last === "string" ? line === last : last.test(line)) return lines;
    }
  }

  /** Closes what is written to, which is how most programs are told to end; resolves with the status. */
  async finish(): Promise<number | null> {
    this.#write.end();
    return this.ended;
  }

  /** Sends a signal to a process. */
  signal(signal: NodeJS.Signals): void {
    this.#end(signal);
  }

  close(): void {
    this.#end();
  }

  #close(why: string): void {
    this.#over ??= why;
    this.#deliver();
  }

  #deliver(): void {
    while (this.#waiting.length > 0) {
      const line = this.#lines.shift();
      if (line === undefined && this.#over === null) return;
      const { resolve, reject, timer } = this.#waiting.shift() as Waiting;
      clearTimeout(timer);
      if (line !== undefined) resolve(line);
      else reject(new Error(`the client is over (${this.#over}) ${this.#complaints.slice(-400)}`.trim()));
    }
  }
}
