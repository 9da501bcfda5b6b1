/** A program that is started in a container of somebody else's, as in a pod: what a move does not carry is not to be had there. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { writeLaunchState } from "#control/runtime/cri/launch-filter.ts";
import type { OciState } from "#control/runtime/cri/oci-state.ts";
import { lacking } from "#test/support/moved-program.ts";

const FILES = { runc: "state.json", crun: "status" } as const;
const ID = `holdfast-launch-${process.pid}`;
const ASK = `
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
KEYCTL = 219 if os.uname().machine == "aarch64" else 250
def error(result): return ctypes.get_errno() if result < 0 else 0
def made(*what):
    try: return socket.socket(*what).close() or 0
    except OSError as e: return e.errno
print(error(libc.syscall(444, 0, 0, 1)), *(error(libc.prctl(*what)) for what in ((65, 1, 0, 0, 0), (26, 1, 0, 0, 0), (59, 0, 0, 0, 0), (25, ctypes.byref(ctypes.c_int()), 0, 0, 0))), made(2, 1, 262), made(10, 1, 262), made(2, 1, 0), error(libc.prctl(15, b"name", 0, 0, 0)), error(libc.syscall(425, 1, 0)), error(libc.syscall(KEYCTL, 0, -3, 0)))
`;

/** Errors of what one argument or several say together, and of what is beside it. Tiles of AMX by a number that no processor has: the kernel has another error for it. */
const ASK_ARGUMENTS = `
import ctypes, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
ARCH_PRCTL = {"x86_64": 158}.get(os.uname().machine)
def error(result): return ctypes.get_errno() if result < 0 else 0
def arch(option): return error(libc.syscall(ARCH_PRCTL, option, ctypes.c_ulong(1000))) if ARCH_PRCTL else None
listener = socket.socket()
def option(level, name, value):
    try: return listener.setsockopt(level, name, value) or 0
    except OSError as e: return e.errno
md5 = struct.pack("<H2x4s120xBBHii80s", 2, bytes([10, 0, 0, 1]), 0, 0, 3, 0, 0, b"key")
print(json.dumps({
    "md5": [option(6, 14, md5), option(6, 32, md5)],
    "ao": [option(6, name, b"") for name in (38, 39, 40)],
    "beside": [option(6, 1, 1), option(6, 4, 10), option(1, 9, 1)],
    "huge pages": [error(libc.prctl(41, 1, flags, 0, 0)) for flags in (2, 0)],
    "cores": error(libc.prctl(62, 0, 0, 0, 0)),
    "tiles": [arch(0x1023), arch(0x1025)],
    "arch": [arch(0x1012), arch(0x4002), arch(0x4004)],
    "arch beside": [arch(0x1011), arch(0x1022), arch(0x1024), arch(0x3000)],
}))
`;

/** Every name that libseccomp knows of a call. */
const NAMES = `
import ctypes
library = ctypes.CDLL("libseccomp.so.2")
library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_char_p
names = (library.seccomp_syscall_resolve_num_arch(library.seccomp_arch_native(), number) for number in range(1000))
print(*(name.decode() for name in names if name))
`;
const nameAll = (): string[] =>
  execFileSync("python3", ["-c", NAMES], { encoding: "utf8" }).trim().split(" ");
const PROFILES: Record<string, () => object> = {
  "what is refused": () => ({
    defaultAction: "SCMP_ACT_ALLOW",
    syscalls: [{ names: ["io_uring_setup"], action: "SCMP_ACT_ERRNO", errnoRet: 1 }],
  }),
  "what is let through": () => ({
    defaultAction: "SCMP_ACT_ERRNO",
    defaultErrnoRet: 1,
    syscalls: [{ names: nameAll().filter((name) => !name.startsWith("io_uring")), action: "SCMP_ACT_ALLOW" }],
  }),
};

/** crun wants no unified hierarchy with controllers beside those of v1: it is shown none. */
const WITHOUT_UNIFIED = ["--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"', "sh"];

for (const [program, profile] of (["runc", "crun"] as const).flatMap((one) =>
  Object.keys(PROFILES).map((named) => [one, named] as const),
))
  describe(`a program started in a container of ${program} that runs, whose profile names ${profile}`, {
    skip: lacking(program, "python3"),
  }, () => {
    const folder = mkdtempSync(join(tmpdir(), "hf-launch-"));
    const root = join(folder, program);
    const runIn = (root: string, args: string[], stdout: "pipe" | "ignore" = "pipe"): string =>
      execFileSync("unshare", [...WITHOUT_UNIFIED, program, "--root", root, ...args], {
        encoding: "utf8",
        stdio: ["ignore", stdout, stdout === "pipe" ? "inherit" : "ignore"],
      });
    const run = (...args: string[]): string => runIn(root, args);

    before(() => {
      mkdirSync(join(folder, "rootfs"));
      execFileSync(program, ["spec"], { cwd: folder });
      const file = join(folder, "config.json");
      const spec = JSON.parse(readFileSync(file, "utf8"));
      spec.process = { ...spec.process, args: ["/usr/bin/sleep", "300"], terminal: false };
      spec.mounts.push(
        ...["/usr", "/lib", "/lib64", "/bin"].map((path) => ({
          ...{ destination: path, source: path, type: "bind", options: ["rbind", "ro"] },
        })),
      );
      spec.linux.seccomp = {
        ...PROFILES[profile]?.(),
        architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
      };
      spec.process.rlimits = [{ type: "RLIMIT_CORE", hard: "UNLIMITED", soft: "UNLIMITED" }];
      writeFileSync(file, JSON.stringify(spec).replaceAll('"UNLIMITED"', "18446744073709551615"));
      runIn(root, ["run", "--detach", "--bundle", folder, ID], "ignore");
    });
    after(() => {
      run("delete", "--force", ID);
      rmSync(folder, { recursive: true, force: true });
    });

    const shownState = (): Promise<string> => {
      const state: OciState = {
        program,
        folder: join(root, ID),
        file: FILES[program],
        config: join(folder, "config.json"),
        node: "/",
      };
      return writeLaunchState(state, ID, join(folder, "shown"));
    };

    it("finds neither Landlock nor MPTCP nor keyrings nor PR_SET_MDWE, _TSC and _SYSCALL_USER_DISPATCH there, and everything else as the container has it", async () => {
      const ask = ["/usr/bin/python3", "-c", ASK];
      const [landlock, mdwe, tsc, dispatch, , mptcp, , , , , keyctl] = run("exec", ID, ...ask)
        .trim()
        .split(" ");
      assert.deepEqual(
        [mdwe, tsc, dispatch, mptcp, keyctl],
        ["0", "0", "0", "0", "0"],
        "this kernel has them",
      );
      assert.notEqual(landlock, "38");
      const shown = await shownState();
      const said = runIn(shown, ["exec", ID, ...ask]);
      assert.equal(said.trim(), "38 22 22 22 0 93 93 0 0 1 38");
      assert.equal(run("exec", ID, ...ask).split(" ")[5], "0", "the container's own filter is as it was");
    });

    it("gets no keys for signed segments, no flags with PR_SET_THP_DISABLE, no cores and tiles of its own, and everything beside them", async () => {
      const ask = ["/usr/bin/python3", "-c", ASK_ARGUMENTS];
      const before = JSON.parse(run("exec", ID, ...ask));
      assert.deepEqual(before.md5, [0, 0], "this kernel has them");
      assert.notDeepEqual(before.tiles, [95, 95]);
      const after = JSON.parse(runIn(await shownState(), ["exec", ID, ...ask]));
      const isX86 = before.tiles[0] !== null;
      assert.deepEqual(after, {
        ...before,
        md5: [92, 92],
        ao: [92, 92, 92],
        "huge pages": [22, 0],
        cores: 22,
        ...(isX86 ? { tiles: [95, 95], arch: [19, 19, 22] } : {}),
      });
      assert.deepEqual(after.beside, [0, 0, 0]);
    });
  });
