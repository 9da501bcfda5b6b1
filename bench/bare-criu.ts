/**
 * The yardstick: `criu dump` and then `criu restore`, as a person would run them, of the same application with the same
 * clients, in the same container on the same node. No proxy, no other node, no transfer: the least that checkpointing
 * a live application can cost.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeStats } from "#control/criu/protocol.ts";
import { findCriu } from "#control/criu/tool.ts";
import { setLastNumber } from "#control/migration/tree-numbers.ts";
import { innerPid } from "#control/runtime/processes.ts";
import { RuncRuntime } from "#control/runtime/runc/runc-runtime.ts";
import { readJournal } from "#control/workload/journal.ts";

export interface BareRun {
  /** wall clock of the two commands, one after the other */
  wallMs: number;
  /** CRIU's own word: freezing and frozen time, and the time of the restore */
  dumpMs: number;
  restoreMs: number;
}

/** above any that the application has: what CRIU starts must not take one that it restores */
const FREE_NUMBER = 20_000;
/** in the container, on a tmpfs */
const IMAGES = "/run/bare";
const CACHE = process.env.HOLDFAST_CACHE ?? "/var/cache/holdfast";

/** Dumps and restores the application of a workload that an agent runs, in place. @param stateDir the agent's */
export async function runBareCriu(stateDir: string, workload: string): Promise<BareRun> {
  const { container } = readJournal(join(stateDir, "workloads", workload, "journal.json"));
  const application =
    container === null ? null : await (await RuncRuntime.find(stateDir)).find(container).applicationRoot();
  if (container === null || application === null) throw new Error(`${workload} is not running`);
  // the container sees Holdfast's own folder read-only
  const images = join(`/proc/${container.init.pid}/root`, IMAGES);
  rmSync(images, { recursive: true, force: true });
  mkdirSync(images);
  const criu = (await findCriu(CACHE)).at("/.holdfast/criu");
  const pipe = readlinkSync(`/proc/${container.init.pid}/fd/1`);
  const command = [criu.loader, "--library-path", criu.libraryPath, criu.binary].join(" ");
  const common = `--images-dir ${IMAGES} --tcp-established --shell-job --file-locks --ext-unix-sk --manage-cgroups=ignore --network-lock nftables -v1`;
  const restoreTid = await innerPid(application);
  // what was dumped is killed, and its numbers are free when the init has waited for it
  const script = join(container.runDir, "bare.sh");
  writeFileSync(
    script,
    `set -e
start=$(date +%s%N)
${command} dump ${common} --tree ${restoreTid} --log-file dump.log
n=0; while [ -e /proc/${restoreTid} ] && [ $n -lt 5000 ]; do n=$((n + 1)); sleep 0.001; done
${command} restore ${common} --restore-detached --log-file restore.log --inherit-fd 'fd[9]:${pipe}'
echo $(( ($(date +%s%N) - start) / 1000 ))
`,
  );
  await setLastNumber(container.init.pid, FREE_NUMBER);
  // the agent sees the application end: bare CRIU kills what it has dumped
  const argv = [
    "-t",
    String(container.init.pid),
    "-m",
    "-p",
    "-i",
    "-u",
    "-n",
    "--",
    "/bin/bash",
    "/.holdfast/run/bare.sh",
  ];
  let wallUs: string;
  try {
    wallUs = execFileSync(
      "/bin/bash",
      ["-c", `exec 9>/proc/${container.init.pid}/fd/1; exec nsenter "$@"`, "bash", ...argv],
      {
        encoding: "utf8",
        cwd: "/",
      },
    );
  } catch (error) {
    const logs = ["dump.log", "restore.log"].map((log) => readIfThere(join(images, log))).join("\n");
    throw new Error(`bare CRIU failed: ${logs}`, { cause: error });
  }
  const dump = decodeStats(readFileSync(join(images, "stats-dump"))).dump;
  const restore = decodeStats(readFileSync(join(images, "stats-restore"))).restore;
  rmSync(images, { recursive: true, force: true });
  return {
    wallMs: Number(wallUs.trim()) / 1000,
    dumpMs: ((dump?.freezingUs ?? 0) + (dump?.frozenUs ?? 0)) / 1000,
    restoreMs: ((restore?.forkingUs ?? 0) + (restore?.restoreUs ?? 0)) / 1000,
  };
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
