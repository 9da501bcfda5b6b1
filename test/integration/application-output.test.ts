/** What takes an application's output out of its pipe: within its bounds, and without ever making the application wait or end. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { after, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { identify, isSameProcess, type ProcessIdentity, treeOf } from "#control/runtime/processes.ts";
import { restartOutputReader, startOutputReader } from "#control/runtime/runc/output-reader.ts";
import { RuncSandbox } from "#control/runtime/runc/runc-sandbox.ts";
import { tail } from "#control/workload/output.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";

const MIB = 1_048_576;
const WAIT_MS_MAX = 10_000;
const folder = mkdtempSync(join(tmpdir(), "holdfast-output-"));
after(() => rmSync(folder, { recursive: true, force: true }));

async function until(what: string, done: () => boolean | Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!(await done())) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(5);
  }
}

function text(file: string): string {
  return existsSync(file) ? readFileSync(file, "utf8") : "";
}

interface Stage {
  /** has the pipe as its output, as an application has, and its reading end as its input, as the container's init has */
  holder: ChildProcess;
  reader: ProcessIdentity;
  write(bytes: string): Promise<void>;
  end(): Promise<void>;
}

async function stage(file: string, bytesMax = 4 * MIB): Promise<Stage> {
  const [out, into] = descriptor.pipe();
  const holder = spawn("sleep", ["60"], { stdio: [out, into, "ignore"] });
  const reader = await startOutputReader(out, { file, bytesMax });
  descriptor.close(out);
  const write = async (bytes: string): Promise<void> => {
    const program = spawn("/bin/sh", ["-c", "cat"], { stdio: ["pipe", into, "ignore"] });
    program.stdin?.end(bytes);
    const [status] = await once(program, "exit");
    assert.equal(status, 0, "the writer was ended");
  };
  const end = async (): Promise<void> => {
    holder.kill("SIGKILL");
    await once(holder, "exit");
    descriptor.close(into);
  };
  return { holder, reader, write, end };
}

describe("the reader of an application's output", { timeout: 30_000 }, () => {
  it("keeps what is written, at once and in order, and ends with its last writer", async () => {
    const file = join(folder, "plain.log");
    const { reader, write, end } = await stage(file);
    await write("one\n");
    await until("the first line", () => text(file) === "one\n");
    assert.equal(statSync(file).mode & 0o777, 0o600);
    await write("two\n");
    await until("the second", () => text(file) === "one\ntwo\n");
    await end();
    await until("it ends", async () => !(await isSameProcess(reader)));
  });

  it("keeps no more than it may: the file and the one before it", async () => {
    const file = join(folder, "large.log");
    const { write, end } = await stage(file, MIB);
    const line = `${"x".repeat(99)}\n`;
    for (let part = 0; part < 6; part++) await write(line.repeat(5_000));
    await write("the end\n");
    await until("the last line", () => text(file).endsWith("the end\n"));
    const kept = statSync(file).size + statSync(`${file}.1`).size;
    assert.ok(kept >= MIB / 2 && kept < 2 * MIB, `${kept} bytes`);
    await end();
  });

  it("drops what cannot be written instead of making the writer wait, and says so when it can again", async () => {
    const place = join(folder, "not-there");
    const file = join(place, "app.log");
    const { write, end } = await stage(file);
    await write("lost\n".repeat(100_000)); // more than the pipe takes
    mkdirSync(place);
    await until("a note", async () => {
      await write("dropped, or not\n"); // with what was lost, if that is still being taken
      return /^\[holdfast: output was dropped \d+ times.*\]$/m.test(text(file));
    });
    await write("kept\n");
    await until("what is written now", () => text(file).endsWith("kept\n"));
    await end();
  });

  it("may be late: what it has not taken yet is known", async () => {
    const file = join(folder, "late.log");
    const { holder, reader, write, end } = await stage(file);
    const init = (await identify(holder.pid as number)) as ProcessIdentity;
    const sandbox = new RuncSandbox({ program: "", root: "" }, { id: "late", runDir: "", init, tmpfs: [] });
    const readers = await treeOf(reader.pid);
    for (const pid of readers) process.kill(pid, "SIGSTOP");
    try {
      // a signal is acted upon when its process is given a CPU, and until then that one may read
      await until("they stand still", () =>
        readers.every((pid) => /^State:\tT/m.test(text(`/proc/${pid}/status`))),
      );
      await write("last words\n");
      assert.equal(sandbox.untakenOutput(), 11);
    } finally {
      // stopped, they would outlive everybody
      for (const pid of readers) process.kill(pid, "SIGCONT");
    }
    await until("it is taken", () => sandbox.untakenOutput() === 0);
    await until("it is written", () => text(file) === "last words\n");
    await end();
    assert.equal(sandbox.untakenOutput(), 0);
  });

  it("may be killed: the writer goes on, and another reader takes what waits", async () => {
    const file = join(folder, "killed.log");
    const { holder, reader, write, end } = await stage(file);
    await write("before\n");
    await until("it is there", () => text(file) === "before\n");
    process.kill(-reader.pid, "SIGKILL"); // and the dd(1) that it waits for
    await until("it has ended", async () => !(await isSameProcess(reader)));
    await write("meanwhile\n");
    const next = await restartOutputReader(holder.pid as number, { file, bytesMax: MIB });
    await write("after\n");
    await until("all is there", () => text(file) === "before\nmeanwhile\nafter\n");
    await end();
    await until("it ends", async () => !(await isSameProcess(next)));
  });
});

/** What an init has as its output instead of a pipe: Python for the number of a descriptor. */
const REPLACED: Record<string, string> = {
  "is not opened where it is a terminal": "os.openpty()[1]",
  "is not opened where it is a device": "os.open('/dev/zero', os.O_RDWR)",
  "is not opened where it is a file": "os.open(os.environ['PLACE'] + '/file', os.O_RDWR | os.O_CREAT)",
  "is not opened where it is a fifo":
    "os.mkfifo(os.environ['PLACE'] + '/fifo') or os.open(os.environ['PLACE'] + '/fifo', os.O_RDWR)",
  "is not opened where it is a socket": "__import__('socket').socket().detach()",
};

/** Opens both ends in a session of its own without a terminal, as a service of systemd is. */
const OPENS = `
import { closeSync, fstatSync, readFileSync } from "node:fs";
import { openOutput, openOutputEnd } from "#control/runtime/inside.ts";
import { fileFlags } from "#proxy/kernel/descriptors.ts";
const pid = Number(process.argv[1]);
const opened = (open) => {
  try {
    const fd = open();
    const flags = fileFlags(fd).toString(8);
    closeSync(fd);
    return flags;
  } catch (error) { return error.code; }
};
const found = [opened(() => openOutputEnd(pid)), opened(() => openOutput({ init: { pid } }, 1))];
// state, parent, group, session, terminal; proc_pid_stat(5)
const terminal = readFileSync("/proc/self/stat", "utf8").replace(/^.*\\) /s, "").split(" ")[4];
console.log(JSON.stringify({ found, terminal }));
`;

/** What {@link OPENS} says of a process's output. */
async function openedOutput(pid: number): Promise<{ found: string[]; terminal: string }> {
  const child = spawn(process.execPath, ["--input-type=module", "-e", OPENS, String(pid)], {
    cwd: join(import.meta.dirname, "../.."),
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  let said = "";
  child.stdout.setEncoding("utf8").on("data", (piece: string) => {
    said += piece;
  });
  await once(child, "close");
  return JSON.parse(said);
}

describe("the output of an init that somebody inside has traced", { timeout: 30_000 }, () => {
  for (const [title, text] of Object.entries(REPLACED))
    it(title, async (t) => {
      const place = mkdtempSync(join(folder, "replaced-"));
      const program = `import os\nos.dup2(${text}, 1)\nos.write(2, b"x")\nos.read(0, 1)`;
      const init = spawn("python3", ["-c", program], {
        stdio: ["pipe", "ignore", "pipe"],
        env: { ...process.env, PLACE: place },
      });
      t.after(() => init.stdin.end());
      assert.equal(String((await once(init.stderr as Readable, "data"))[0]), "x");
      const { found, terminal } = await openedOutput(init.pid as number);
      assert.equal(terminal, "0");
      assert.deepEqual(found, ["OUTPUT_REPLACED", "OUTPUT_REPLACED"]);
    });

  it("is opened where it is the pipe: to be read without waiting, to be written as a program expects", async () => {
    const { holder, end } = await stage(join(folder, "opened.log"));
    assert.deepEqual(await openedOutput(holder.pid as number), {
      found: ["104000", "100001"], // octal: O_LARGEFILE, O_NONBLOCK; O_WRONLY
      terminal: "0",
    });
    await end();
  });
});

describe("the log as it is shown", { timeout: 30_000 }, () => {
  const signal = new AbortController().signal;

  async function shown(file: string, lines: number): Promise<string> {
    let said = "";
    for await (const chunk of tail(file, { lines, follow: false, signal })) said += chunk;
    return said;
  }

  it("is the last lines, of the file before too where one has not enough", async () => {
    const file = join(folder, "shown.log");
    assert.equal(await shown(file, 10), "");
    writeFileSync(`${file}.1`, "1\n2\n3\n");
    writeFileSync(file, "4\n5\nnot ended");
    assert.equal(await shown(file, 1), "not ended");
    assert.equal(await shown(file, 2), "5\nnot ended");
    assert.equal(await shown(file, 5), "2\n3\n4\n5\nnot ended");
    assert.equal(await shown(file, 100), "1\n2\n3\n4\n5\nnot ended");
    assert.equal(await shown(file, 0), "");
  });

  it("goes on with what comes, beyond a rotation, until nobody looks any more", async () => {
    const file = join(folder, "followed.log");
    const looking = new AbortController();
    let said = "";
    const followed = (async () => {
      for await (const chunk of tail(file, { lines: 10, follow: true, signal: looking.signal }))
        said += chunk;
    })();
    writeFileSync(file, "1\n");
    await until("the first", () => said === "1\n");
    appendFileSync(file, "2\n");
    renameSync(file, `${file}.1`);
    appendFileSync(`${file}.1`, "3\n");
    writeFileSync(file, "4\n");
    await until("all", () => said === "1\n2\n3\n4\n");
    looking.abort();
    await followed;
  });
});
