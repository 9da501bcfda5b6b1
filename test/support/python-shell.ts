/**
 * A Python program that does what a test says, line by line, as the workload of a laboratory: whatever an application can
 * have in the kernel, a test makes in it before a move and looks at after the move.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { type MovedProgram, type ProgramOptions, withProgram } from "./moved-program.ts";

/** Sends one line (an expression, a statement or `exec(text, scope)`) and gives what `repr` makes of its value, or `ERROR …`. */
export type Run = (line: string) => Promise<string>;

const port = 8080;

/** Modules and names that lines may use; `scope` is where they live. */
const shell = `
import array, ctypes, fcntl, hashlib, json, mmap, os, resource, select, signal, socket, struct, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
scope = dict(globals()); scope["scope"] = scope
server = socket.create_server(("127.0.0.1", 9000))
def answer(line):
    try:
        try: code = compile(line, "line", "eval")
        except SyntaxError:
            exec(compile(line, "line", "exec"), scope)
            return "None"
        return repr(eval(code, scope))
    except BaseException as e: return "ERROR " + repr(e)
# in the main thread: signal masks, timers and the like are a thread's own
while True:
    client = server.accept()[0]
    for line in client.makefile("r"):
        client.sendall((json.dumps(answer(json.loads(line))) + "\\n").encode())
`;

interface Workload {
  container?: { mounts?: object[]; [key: string]: unknown };
  [key: string]: unknown;
}

/**
 * Runs `use` with the shell on node a, in a container that has `folder` at /srv.
 * @param options of the laboratory; `workload` is merged over the shell's own
 */
export async function withPythonShell(
  options: Partial<ProgramOptions>,
  use: (program: MovedProgram, run: Run, folder: string) => Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "hf-shell-"));
  writeFileSync(join(folder, "shell.py"), shell);
  const complete = ({ container, ...workload }: Workload): Workload => {
    const { mounts = [], ...more } = container ?? {};
    return {
      container: {
        command: ["/usr/bin/python3", "-u", "/srv/shell.py"],
        rootfs: "host",
        ...more,
        mounts: [{ source: folder, target: "/srv", readonly: true }, ...mounts],
      },
      ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
      ...workload,
    };
  };
  const elsewhere = Object.entries(options.elsewhere ?? {}).map(([node, workload]) => [
    node,
    workload === null ? null : complete(workload),
  ]);
  try {
    await withProgram(
      {
        downstream: "takeover",
        ...options,
        workload: complete(options.workload ?? {}),
        elsewhere: Object.fromEntries(elsewhere),
      },
      async (program) => {
        const socket = await program.connect(port);
        try {
          await use(program, runOn(socket), folder);
        } finally {
          socket.destroy();
        }
      },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Answers come in the order of the lines. A connection that ends fails what waits for it. */
export function runOn(socket: Socket): Run {
  const waiting: { resolve: (answer: string) => void; reject: (error: Error) => void }[] = [];
  let text = "";
  let over: Error | null = null;
  const fail = (why: string): void => {
    over ??= new Error(`the shell's connection ended: ${why}`);
    for (const { reject } of waiting.splice(0)) reject(over);
  };
  socket.setEncoding("utf8").on("data", (piece: string) => {
    const [rest = "", ...lines] = (text + piece).split("\n").reverse();
    text = rest;
    for (const line of lines.reverse()) waiting.shift()?.resolve(JSON.parse(line) as string);
  });
  socket.on("error", (error) => fail(error.message)).on("close", () => fail("closed"));
  return (line) =>
    new Promise((resolve, reject) => {
      if (over !== null) return reject(over);
      waiting.push({ resolve, reject });
      socket.write(`${JSON.stringify(line)}\n`);
    });
}

/** A file of faults (control/migration/faults.ts) in a folder that goes with the test. */
export function faultsFile(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "hf-faults-"));
  t.after(() => rmSync(folder, { recursive: true }));
  return join(folder, "faults");
}
