/** What an application that wants to reach the host finds: its container, and programs of ours that take nothing from it. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { packPaths } from "#control/runtime/files.ts";
import { openFolderIn } from "#control/runtime/inside.ts";
import { readJournal } from "#control/workload/journal.ts";
import { lacking, type MovedProgram, workloadName } from "../support/moved-program.ts";
import { type Run, runOn, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("python3", "runc", "nft");

/** On the host only: in a container /dev/shm is its own. */
const secretFile = `/dev/shm/hf-isolation-${process.pid}`;

test("the host is out of an application's reach", { skip, timeout: 600_000 }, async (t) => {
  writeFileSync(secretFile, "of the host");
  try {
    await withPythonShell({}, async (program, run) => {
      await t.test("its container is closed", () => isClosed(program, run));
      await t.test("it cannot change what Holdfast has in its container", () => changesNothingOfOurs(run));
      await t.test("CRIU takes nothing that it planted, on either node", () => plantsForCriu(program, run));
      await t.test("its container is as closed after moves", () => isClosed(program, run));
      await t.test("its proxy has the capabilities of its work and no others", () =>
        hasFewPrivileges(program),
      );
      await t.test("tar stays inside when a folder becomes a link", () => swapsFolder(run));
      await t.test("a later agent finds the instance's files in the container", () =>
        comesFromElsewhere(program),
      );
      await t.test("its next instance gets no host file through /dev/null", () => replacesNull(program, run));
    });
  } finally {
    rmSync(secretFile, { force: true });
  }
});

/** @returns the name of the error that a line ends in, or what it gives */
async function outcome(run: Run, line: string): Promise<string> {
  const answer = await run(line);
  const errno = /^ERROR \w+\((\d+),/.exec(answer)?.[1];
  return errno === undefined ? answer : (await run(`__import__("errno").errorcode[${errno}]`)).slice(1, -1);
}

async function isClosed(program: MovedProgram, run: Run): Promise<void> {
  const stateDir = program.lab.stateDir(program.at);
  const syscall = (...args: (number | string)[]): string =>
    `[libc.syscall(${args.join(", ")}), __import__("errno").errorcode[ctypes.get_errno()]][1]`;
  const numbers = {
    unshare: process.arch === "arm64" ? 97 : 272,
    keyctl: process.arch === "arm64" ? 219 : 250,
  };
  const expected: Record<string, string> = {
    // settings and memory of the node's kernel
    'open("/proc/sys/kernel/core_pattern", "r+")': "EROFS",
    'open("/proc/interrupts", "rb").read(1)': "b''",
    'os.listdir("/sys/firmware")': "[]",
    // the node's network, and its disks
    "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)": "EPERM",
    'os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))': "EPERM",
    // ways to more capabilities, and what no namespace separates
    [syscall(numbers.unshare, "0x10000000")]: "'EPERM'",
    [syscall(numbers.keyctl, 0, -3, 0)]: "'ENOSYS'",
    'libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)': "-1",
    // secrets of the node
    'set(line.split(":")[1] for line in open("/etc/shadow"))': "{'*'}",
    [`os.listdir("${stateDir}")`]: "[]",
    [`open("${stateDir}.yaml").read()`]: "''",
    [`open("${join(dirname(stateDir), "key")}", "rb").read()`]: "b''",
  };
  for (const [line, what] of Object.entries(expected)) assert.equal(await outcome(run, line), what, line);
}

async function changesNothingOfOurs(run: Run): Promise<void> {
  const attempts = {
    'open("/.holdfast/run/bundle/process.json", "w")': "EROFS",
    'os.symlink("/x", "/.holdfast/run/images")': "EROFS",
    'os.mkdir("/.holdfast/x")': "EROFS",
    'os.rename("/.holdfast", "/moved")': "EBUSY",
    'os.rename("/.holdfast/run", "/.holdfast/moved")': "EROFS",
    'os.remove("/.holdfast/criu/criu")': "EROFS",
  };
  for (const [attempt, code] of Object.entries(attempts)) {
    assert.equal(await outcome(run, attempt), code, attempt);
  }
}

/** Each would end a move, or leave a trace: that of a helper is a file, that of a cache its own end. */
async function plantsForCriu(program: MovedProgram, run: Run): Promise<void> {
  const planted: Record<string, string> = {
    "/usr/lib/criu/planted.so": "not a library",
    "/etc/criu/default.conf": "no-such-option\n",
    "/root/.criu/default.conf": "no-such-option\n",
    "/etc/gnutls/config": "[overrides\n",
    "/etc/ld.so.preload": "/planted.so\n",
    "/run/criu.kdat": "not a cache",
  };
  const helper = "#!/bin/bash\necho $0 >> /tmp/helped\n";
  for (const [path, text] of Object.entries(planted)) {
    await run(`os.makedirs(os.path.dirname("${path}"), exist_ok=True)`);
    assert.equal(await run(`open("${path}", "w").write(${JSON.stringify(text)})`), String(text.length));
  }
  for (const name of ["sh", "iptables", "ip6tables", "nft", "ip", "tar", "gzip"]) {
    const path = `/usr/bin/${name}`;
    await run(`os.path.lexists("${path}") and os.remove("${path}")`);
    await run(`open("${path}", "w").write(${JSON.stringify(helper)})`);
    await run(`os.chmod("${path}", 0o755)`);
  }
  for (const to of ["b", "a"]) {
    await program.move(to);
    assert.equal(
      await run('os.path.exists("/tmp/helped") and open("/tmp/helped").read()'),
      "False",
      `on ${to}`,
    );
    // a cache travels to no other node, as it would be of another kernel
    if (to === "b") await run('open("/run/criu.kdat", "w").write("not a cache")');
  }
  for (const folder of ["/usr/lib/criu", "/etc/criu", "/root/.criu", "/etc/gnutls"])
    await run(`__import__("shutil").rmtree("${folder}")`);
  await run('os.remove("/etc/ld.so.preload")');
}

async function swapsFolder(run: Run): Promise<void> {
  const name = secretFile.split("/").at(-1) ?? "";
  await run('os.makedirs("/tmp/swapped")');
  await run(`open("/tmp/swapped/${name}", "w").write("its own")`);
  const init = { pid: await initPid() };
  const fd = openFolderIn({ init }, "/tmp");
  await run('os.rename("/tmp/swapped", "/tmp/was")');
  for (const target of ["/dev/shm", `${"../".repeat(20)}dev/shm`, "/proc/self/fd/4/../../../dev/shm"]) {
    await run(`os.path.lexists("/tmp/swapped") and os.remove("/tmp/swapped")`);
    await run(`os.symlink("${target}", "/tmp/swapped")`);
    const { stream, done } = await packPaths({ fd, initPid: init.pid }, [`swapped/${name}`], true);
    const chunks: Buffer[] = [];
    for await (const chunk of stream) chunks.push(chunk as Buffer);
    await done.catch(() => {}); // nothing there
    assert.ok(!Buffer.concat(chunks).includes("of the host"), `tar followed a link to ${target}`);
  }
  closeSync(fd);
  await run('os.remove("/tmp/swapped")');
}

async function replacesNull(program: MovedProgram, run: Run): Promise<void> {
  await run(`open("${secretFile}", "w").write("its own")`); // in its own /dev/shm, so that the container can be used
  await run('os.remove("/dev/null")');
  await run(`os.symlink("${secretFile}", "/dev/null")`);
  await program.ask("POST", `/v1/workloads/${workloadName}/restart`, {});
  const next = await program.connect(8080);
  const answer = await runOn(next)("os.read(0, 100)");
  next.destroy();
  assert.equal(answer, "b''");
}

/** capabilities(7): NET_BIND_SERVICE, NET_ADMIN, NET_RAW, BPF */
const OF_THE_PROXY = (1n << 10n) | (1n << 12n) | (1n << 13n) | (1n << 39n);

function hasFewPrivileges(program: MovedProgram): void {
  const journal = join(program.lab.stateDir(program.at), "workloads", workloadName, "journal.json");
  const { proxy } = readJournal(journal);
  const status = readFileSync(`/proc/${proxy?.process.pid}/status`, "utf8");
  for (const set of ["CapPrm", "CapEff", "CapBnd"]) {
    const held = BigInt(`0x${new RegExp(`^${set}:\\s*(\\w+)`, "m").exec(status)?.[1]}`);
    assert.equal(held & ~OF_THE_PROXY, 0n, `${set} ${held.toString(16)}`);
  }
  assert.match(status, /^NoNewPrivs:\s*1$/m);
}

/** As another mount namespace would be: without the mount that the earlier agent made. */
async function comesFromElsewhere(program: MovedProgram): Promise<void> {
  const { at } = program;
  const [instance = ""] = readdirSync(join(program.lab.stateDir(at), "run"));
  execFileSync("umount", ["--lazy", join(program.lab.stateDir(at), "run", instance)]);
  program.agent(at).child.kill("SIGKILL");
  await program.nextAgent(at);
  await program.move("b");
  await program.move("a");
}

/** Of the one container there is in this laboratory whose root shows what the shell has made. */
async function initPid(): Promise<number> {
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (readFileSync(`/proc/${pid}/comm`, "utf8").trim() !== "init") continue;
      if (readdirSync(`/proc/${pid}/root/tmp`).includes("swapped")) return Number(pid);
    } catch {
      // it has ended
    }
  }
  throw new Error("no container has the folder");
}
