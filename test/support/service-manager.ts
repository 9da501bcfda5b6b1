/**
 * A real systemd (`systemd --system`) as PID 1 of namespaces of its own at a place of a laboratory, with nothing but the units
 * that a test gives it: processes, mounts and control groups of the machine stay out of its reach.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab, LabProcess } from "../lab/lab.ts";
import { until } from "./moved-program.ts";

export const SYSTEMD = "/lib/systemd/systemd";
const HIERARCHIES = "/sys/fs/cgroup";
const TARGET = "test.target";
/** what the default dependencies of a unit name (systemd.service(5)); each is reached at once */
const TARGETS = [
  TARGET,
  "sysinit.target",
  "basic.target",
  "shutdown.target",
  "network-online.target",
  "network.target",
];

/** $1: the control group of all; the rest: the command, which becomes PID 1 */
const BOOT = `
set -e
group=$1; shift
hierarchies=$(if [ -e ${HIERARCHIES}/cgroup.controllers ]; then echo .; else ls ${HIERARCHIES}; fi)
for one in $hierarchies; do
  root=${HIERARCHIES}/$one
  mkdir -p $root/$group
  if [ -e $root/cpuset.cpus ] && [ $one != . ]; then
    cat $root/cpuset.cpus > $root/$group/cpuset.cpus
    cat $root/cpuset.mems > $root/$group/cpuset.mems
  fi
  echo $$ > $root/$group/cgroup.procs
done
exec unshare -C -m -p -u -i --fork --kill-child --mount-proc --propagation private sh -ec '
  hierarchies=$1; shift
  mount -t tmpfs tmpfs /run
  mkdir /run/lock
  if [ "$hierarchies" = . ]; then mount -t cgroup2 cgroup2 ${HIERARCHIES}; else
    mount -t tmpfs -o mode=755 tmpfs ${HIERARCHIES}
    for one in $hierarchies; do
      mkdir ${HIERARCHIES}/$one
      case $one in
        unified) mount -t cgroup2 cgroup2 ${HIERARCHIES}/$one ;;
        systemd) mount -t cgroup -o none,name=systemd systemd ${HIERARCHIES}/$one ;;
        *) mount -t cgroup -o $one $one ${HIERARCHIES}/$one ;;
      esac
    done
  fi
  exec "$@"' sh "$hierarchies" "$@"
`;

export class ServiceManager {
  readonly #group: string;
  readonly #outer: LabProcess;
  readonly #pid: number;

  private constructor(group: string, outer: LabProcess, pid: number) {
    this.#group = group;
    this.#outer = outer;
    this.#pid = pid;
  }

  /** @param units their text by name, beside the targets that each needs */
  static async boot(lab: Lab, at: string, units: Record<string, string>): Promise<ServiceManager> {
    const folder = join(lab.dir, "units");
    const nothing = join(lab.dir, "generators");
    for (const made of [folder, nothing]) mkdirSync(made);
    for (const name of TARGETS) writeFileSync(join(folder, name), "[Unit]\nDefaultDependencies=no\n");
    for (const [name, text] of Object.entries(units)) writeFileSync(join(folder, name), text);
    const group = `hf-systemd-${lab.id}`;
    const env = {
      PATH: process.env.PATH ?? "",
      container: "holdfast-test",
      SYSTEMD_UNIT_PATH: folder,
      SYSTEMD_GENERATOR_PATH: nothing,
      SYSTEMD_LOG_TARGET: "console",
    };
    const words = Object.entries(env).map(([name, value]) => `${name}=${value}`);
    const argv = ["env", "-i", ...words, SYSTEMD, "--system", `--unit=${TARGET}`, "--show-status=no"];
    const outer = lab.spawn(at, ["/bin/sh", "-c", BOOT, "sh", group, ...argv], { name: "systemd" });
    let pid = 0;
    await until("systemd is PID 1", () => {
      assert.ok(!outer.exited, `systemd has ended: ${outer.stdout}${outer.stderr}`);
      pid = childOf(outer.pid);
      return pid !== 0 && commandOf(pid).startsWith(SYSTEMD);
    });
    const manager = new ServiceManager(group, outer, pid);
    await until("systemd answers", () => manager.#ask(["is-active", TARGET]).status === 0);
    return manager;
  }

  /** Runs systemctl to its end; @throws with what it says */
  systemctl(...args: string[]): string {
    const { status, stdout, stderr } = this.#ask(args);
    assert.equal(status, 0, `systemctl ${args.join(" ")}: ${stdout}${stderr}`);
    return stdout;
  }

  /** The main process of a service as the machine numbers it; null: it has none. */
  mainPid(unit: string): number | null {
    const inner = Number(this.systemctl("show", "-p", "MainPID", "--value", unit));
    return inner === 0 ? null : this.outerPid(inner);
  }

  /** The machine's number of a process that the services see under another; null: there is none. */
  outerPid(inner: number): number | null {
    for (const name of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
      const numbers = /^NSpid:\t(.*)$/m.exec(textOf(`/proc/${name}/status`))?.[1]?.split("\t") ?? [];
      // in a container it has a third number
      if (Number(numbers[1]) === inner && isBelow(Number(name), this.#pid)) return Number(name);
    }
    return null;
  }

  /** Ends all that it has started, and removes their control groups. */
  async close(): Promise<void> {
    process.kill(this.#pid, "SIGKILL"); // and with PID 1 the others of its namespace
    await this.#outer.stop("SIGKILL");
    const roots = existsSync(join(HIERARCHIES, "cgroup.controllers"))
      ? [HIERARCHIES]
      : readdirSync(HIERARCHIES).map((name) => join(HIERARCHIES, name));
    for (const root of roots) {
      const group = join(root, this.#group);
      await until(`${group} is gone`, () => removed(group));
    }
  }

  #ask(args: string[]): { status: number | null; stdout: string; stderr: string } {
    const argv = ["-t", String(this.#pid), "-m", "-p", "-u", "-i", "-C", "systemctl", "--no-pager", ...args];
    return spawnSync("nsenter", argv, { encoding: "utf8", timeout: 30_000 });
  }
}

function childOf(pid: number): number {
  return Number(textOf(`/proc/${pid}/task/${pid}/children`).trim().split(" ")[0] ?? 0);
}

function commandOf(pid: number): string {
  return textOf(`/proc/${pid}/cmdline`).replaceAll("\0", " ");
}

function isBelow(pid: number, ancestor: number): boolean {
  for (let at = pid; at > 1; at = Number(/^PPid:\t(\d+)$/m.exec(textOf(`/proc/${at}/status`))?.[1] ?? 0))
    if (at === ancestor) return true;
  return false;
}

/** Folders of a control group are removed from the deepest up; one whose processes are just ending is in use. */
function removed(group: string): boolean {
  if (!existsSync(group)) return true;
  try {
    for (const entry of readdirSync(group, { withFileTypes: true }))
      if (entry.isDirectory()) removed(join(group, entry.name));
    rmdirSync(group);
    return true;
  } catch {
    return false;
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return ""; // it has ended
  }
}
