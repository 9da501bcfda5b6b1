/**
 * Text of /proc as facts (proc(5)). Pure. Each reader keeps every line it finds, also those that a later kernel adds.
 */
import type { Facts } from "./fingerprint.ts";

/** PIDs as the agent sees them → as the container sees them; "outside" for all others, 0 stays 0. */
export type InnerPids = ReadonlyMap<number, number>;

export function innerText(pids: InnerPids, pid: string): string {
  const number = Number(pid);
  if (number <= 0) return pid;
  const inner = pids.get(number);
  return inner === undefined ? "outside" : String(inner);
}

/** Names of the fields of /proc/PID/stat from the third on. */
const STAT_FIELDS = [
  "state",
  "ppid",
  "pgrp",
  "session",
  "tty",
  "tpgid",
  "flags",
  "minflt",
  "cminflt",
  "majflt",
  "cmajflt",
  "utime",
  "stime",
  "cutime",
  "cstime",
  "priority",
  "nice",
  "threads",
  "itrealvalue",
  "starttime",
  "vsize",
  "rss",
  "rsslim",
  "startcode",
  "endcode",
  "startstack",
  "kstkesp",
  "kstkeip",
  "signal",
  "blocked",
  "sigignore",
  "sigcatch",
  "wchan",
  "nswap",
  "cnswap",
  "exit_signal",
  "processor",
  "rt_priority",
  "policy",
  "delayacct_blkio_ticks",
  "guest_time",
  "cguest_time",
  "start_data",
  "end_data",
  "start_brk",
  "arg_start",
  "arg_end",
  "env_start",
  "env_end",
  "exit_code",
];
const PIDS_OF_STAT = new Set(["ppid", "tpgid"]);
/** in the reader's numbering there; status has them in the container's */
const TWICE_IN_STAT = new Set(["pgrp", "session"]);

/** `stat PRIORITY` and so on; fields of a later kernel are called by their number. */
export function statFacts(text: string, pids: InnerPids): Facts {
  const facts: Facts = {};
  const fields = text
    .slice(text.lastIndexOf(")") + 2)
    .trimEnd()
    .split(" ");
  for (const [index, value] of fields.entries()) {
    const name = STAT_FIELDS[index] ?? `field ${index + 3}`;
    if (TWICE_IN_STAT.has(name)) continue;
    facts[`stat ${name}`] = PIDS_OF_STAT.has(name) ? innerText(pids, value) : value;
  }
  return facts;
}

/** Lines that have one number for each PID namespace: the container's is the last. */
const NESTED_PIDS = new Set(["NStgid", "NSpid", "NSpgid", "NSsid"]);
/** the agent's own numbers of what `NSpid` and so on say */
const OUTER_PIDS = new Set(["Pid", "Tgid", "Ngid"]);

/**
 * What a machine gives every thread: its nodes of memory, and what it does about its processor's guesses. A container's cpuset
 * (cpuset(7)), a thread or a seccomp filter (prctl(2), PR_SET_SPECULATION_CTRL) confine it further.
 */
const OF_THE_MACHINE = new Set(["Mems_allowed", "Speculation_Store_Bypass", "SpeculationIndirectBranch"]);

/**
 * `status Umask` and so on.
 * @param usual of the container's init: who has the same there as it has the same on a node of another kind
 */
export function statusFacts(text: string, pids: InnerPids, usual: Facts = {}): Facts {
  const facts: Facts = {};
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 0) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).trim();
    if (OUTER_PIDS.has(name)) continue;
    if (NESTED_PIDS.has(name)) facts[`status ${name}`] = value.split(/\s+/).at(-1) ?? "";
    else if (name === "PPid") facts["status PPid"] = innerText(pids, value);
    else if (OF_THE_MACHINE.has(name) && usual[`status ${name}`] === value)
      facts[`status ${name}`] = "the container's";
    else facts[`status ${name}`] = value;
  }
  return facts;
}

/** `limit Max open files` → "1024 4096 files" */
export function limitFacts(text: string): Facts {
  const facts: Facts = {};
  for (const line of text.split("\n").slice(1)) {
    const [, name, rest] = /^(\S.*?)\s{2,}(\S.*)$/.exec(line) ?? [];
    if (name !== undefined && rest !== undefined) facts[`limit ${name}`] = rest.trim().replace(/\s+/g, " ");
  }
  return facts;
}

/** /proc/PID/timers: each POSIX timer, without its rest of time, which is not shown. */
export function timerFacts(text: string, pids: InnerPids): Facts {
  const facts: Facts = {};
  let id = "";
  for (const line of text.split("\n")) {
    const colon = line.indexOf(":");
    if (colon < 0) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).trim();
    if (name === "ID") id = value;
    facts[`POSIX timer ${id} ${name}`] = value.replace(
      /\b(pid|tid)\.(\d+)$/,
      (_, kind, pid) => `${kind}.${innerText(pids, pid)}`,
    );
  }
  return facts;
}

/** Lines of /proc/PID/cgroup as paths below the container's own, by controllers. */
export function cgroupFacts(text: string, container: string): Facts {
  const facts: Facts = {};
  const own = new Map(cgroupLines(container));
  for (const [controllers, path] of cgroupLines(text)) {
    const root = own.get(controllers) ?? "";
    const isInside = path === root || path.startsWith(root === "/" ? "/" : `${root}/`);
    facts[`cgroup ${controllers}`] = isInside ? `container${path.slice(root.length)}` : path;
  }
  return facts;
}

function cgroupLines(text: string): [string, string][] {
  return text.split("\n").flatMap((line) => {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    return controllers === undefined || path === undefined ? [] : [[controllers, path]];
  });
}

export interface Mount {
  id: string;
  point: string;
  type: string;
  /** it shows a folder or file of the node's: a bind mount */
  isOfNode: boolean;
  /** what is compared of it */
  text: string;
  /** … where it shows something of the node's: what confines whoever uses it there, whatever it is kept on */
  confinement: string;
  /** … and which share it is, where the application declares it: "local" is any disk */
  keptAt: string;
  /** it is there to hide something: the null device over a file, an empty read-only tmpfs over a folder */
  hides: boolean;
}

/** Ours, where the container sees what Holdfast needs: another folder on every node. */
const OUR_MOUNTS = "/.holdfast/";
/** options of an overlay that name folders of its node */
const NODE_OPTIONS =
  /^(lowerdir|upperdir|workdir|size|nr_inodes|inode64|inode32|uuid|index|xino|redirect_dir|metacopy)\b/;

/** file systems that a container has of its own, made for it with options of its configuration */
const OWN_TYPES = new Set(["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs", "overlay"]);
/** … and of which a node has others: a part of one is the node's */
const SHARED_TYPES = new Set(["tmpfs", "overlay"]);

/** File systems that several nodes show: what an application writes there the others see. */
const OF_SEVERAL_NODES =
  /^(nfs4?|cifs|smb3|smbfs|ceph|9p|lustre|glusterfs|virtiofs|gfs2?|ocfs2|beegfs|gpfs|afs|orangefs|pvfs2|fuse(\..*)?)$/;
/** … whose source says in plain words what is mounted: `server:/export`, `//server/share` */
const WITH_PLAIN_SOURCE = /^(nfs4?|cifs|smb3|smbfs)$/;
/** a server that is called by an address, of which it may have another for each node */
const SERVER_ADDRESS = /^(\/\/)?(\[[^\]]*\]|[\d.]+|[\da-f]*:[\da-f.]*:[\da-f:.]*?)(?=:?\/)/i;

/** A share that is not mounted on the other node leaves a folder of a disk there, which an application would go on writing to. */
function keptAt(type: string, source: string): string {
  if (!OF_SEVERAL_NODES.test(type)) return "local";
  return WITH_PLAIN_SOURCE.test(type)
    ? `${type} ${source.replace(SERVER_ADDRESS, "$1").replace(/\/$/, "")}`
    : type;
}

/** /proc/PID/mountinfo: in order, without numbers that are one kernel's own. */
export function mountsOf(mountinfo: string): Mount[] {
  const mounts: Mount[] = [];
  for (const line of mountinfo.split("\n")) {
    const [before = "", after = ""] = line.split(" - ");
    const [id = "", , , root = "", point = "", options = "", ...optional] = before.split(" ");
    const [type = "", source = "", superOptions = ""] = after.split(" ");
    if (id === "") continue;
    const hides =
      root === "/null" || (type === "tmpfs" && source === "tmpfs" && superOptions.split(",").includes("ro"));
    const kept = superOptions.split(",").filter((option) => !NODE_OPTIONS.test(option));
    const propagation = optional.map((field) => field.replace(/:\d+$/, ""));
    const isReadOnly = superOptions.split(",").includes("ro");
    mounts.push({
      id,
      point,
      type,
      isOfNode: !OWN_TYPES.has(type) || (SHARED_TYPES.has(type) && root !== "/"),
      text: [type, options, ...propagation, kept.join(",")].join(" "),
      confinement: ["the node's", options, ...propagation, isReadOnly ? "ro" : "rw"].join(" "),
      keptAt: keptAt(type, source),
      hides,
    });
  }
  return mounts;
}

/**
 * `mount /tmp` → type, options, propagation; what is mounted over is numbered from below. What hides files of one node is left out.
 * @param kindOf `node`, `volume`: its file system's options are the node's own affair (NFS shows this node's address in them, a disk how it is
 * used); of a volume, which the application means to share, it matters which share it is
 */
export function mountFacts(
  mounts: Mount[],
  kindOf: (mount: Mount) => "own" | "node" | "volume" = () => "own",
): Facts {
  const facts: Facts = {};
  const seen = new Map<string, number>();
  for (const mount of mounts) {
    const { point, hides } = mount;
    if (`${point}/`.startsWith(OUR_MOUNTS) || hides) continue;
    const above = seen.get(point) ?? 0;
    seen.set(point, above + 1);
    facts[above === 0 ? `mount ${point}` : `mount ${point} (${above} above)`] = comparedOf(
      mount,
      kindOf(mount),
    );
  }
  return facts;
}

function comparedOf({ text, confinement, keptAt }: Mount, kind: "own" | "node" | "volume"): string {
  if (kind === "own") return text;
  return kind === "node" ? confinement : `${confinement} ${keptAt}`;
}
