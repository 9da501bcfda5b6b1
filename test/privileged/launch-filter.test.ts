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

/** crun wants no unified hierarchy with controllers beside those of v1: it is shown none. */
const WITHOUT_UNIFIED = ["--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"', "sh"];

for (const program of ["runc", "crun"] as const)
  describe(`a program started in a container of ${program} that runs`, {
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
        defaultAction: "SCMP_ACT_ALLOW",
        architectures: ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        syscalls: [{ names: ["io_uring_setup"], action: "SCMP_ACT_ERRNO", errnoRet: 1 }],
      };
      spec.process.rlimits = [{ type: "RLIMIT_CORE", hard: "UNLIMITED", soft: "UNLIMITED" }];
      writeFileSync(file, JSON.stringify(spec).replaceAll('"UNLIMITED"', "18446744073709551615"));
      runIn(root, ["run", "--detach", "--bundle", folder, ID], "ignore");
    });
    after(() => {
      run("delete", "--force", ID);
      rmSync(folder, { recursive: true, force: true });
    });

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
      const state: OciState = {
        program,
        folder: join(root, ID),
        file: FILES[program],
        config: join(folder, "config.json"),
        node: "/",
      };
      const shown = await writeLaunchState(state, ID, join(folder, "shown"));
      const said = runIn(shown, ["exec", ID, ...ask]);
      assert.equal(said.trim(), "38 22 22 22 0 93 93 0 0 1 38");
      assert.equal(run("exec", ID, ...ask).split(" ")[5], "0", "the container's own filter is as it was");
    });
  });
