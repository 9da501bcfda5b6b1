/**
 * /proc/PID/fdinfo/FD as facts (proc_pid_fdinfo(5)). Pure. Lines that no rule here knows are facts as they stand.
 */
import type { Facts } from "./fingerprint.ts";
import { type InnerPids, innerText } from "./proc-text.ts";

const O_CLOEXEC = 0o2000000;

export interface DescriptorInfo {
  isCloseOnExec: boolean;
  /** octal, without O_CLOEXEC: what all who share the file description have */
  flags: string;
  pos: string;
  facts: Facts;
}

/** Lines of which a descriptor can have many: each becomes a fact of its own. */
const MANY = /^(tfd|inotify|fanotify|lock)\b/;

/** A descriptor's own flag, whatever its file description is and lists. */
export function isCloseOnExec(text: string): boolean {
  return (Number.parseInt(/^flags:\s*(\d+)/m.exec(text)?.[1] ?? "0", 8) & O_CLOEXEC) !== 0;
}

/**
 * Of a file description, which its first holder's text tells.
 * @param mountPoints of the process, by mount id
 */
export function descriptorInfo(
  text: string,
  mountPoints: ReadonlyMap<string, string>,
  pids: InnerPids,
): DescriptorInfo {
  const info: DescriptorInfo = { isCloseOnExec: isCloseOnExec(text), flags: "", pos: "", facts: {} };
  const { facts } = info;
  const add = adderTo(facts);
  for (const line of text.split("\n")) {
    if (line === "") continue;
    if (MANY.test(line)) {
      addOneOfMany(line, add, pids);
      continue;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).trim();
    switch (name) {
      case "flags":
        info.flags = (Number.parseInt(value, 8) & ~O_CLOEXEC).toString(8);
        break;
      case "pos":
        info.pos = value;
        break;
      case "mnt_id":
        facts.mount = mountPoints.get(value) ?? "of the kernel";
        break;
      case "ino": // of pipes and sockets what is shared is told by `description` and `object`
      case "eventfd-id": // counted by the kernel since it booted
        break;
      case "Pid": // of a pidfd: the agent's number; NSpid has the container's
        break;
      case "NSpid":
        facts["pidfd of"] = value.split(/\s+/).at(-1) ?? "";
        break;
      default:
        facts[name] = value;
    }
  }
  return info;
}

/** `tfd: 5 events: 19 data: 5 pos:0 ino:1a sdev:9`, `inotify wd:1 ino:5 sdev:4 mask:2 …`, `lock: 1: FLOCK ADVISORY WRITE 12 00:1f:5 0 EOF` */
function addOneOfMany(line: string, add: Add, pids: InnerPids): void {
  const words = line.trim().split(/\s+/);
  if (line.startsWith("tfd")) {
    const kept = line.replace(/^tfd:\s*/, "").replace(/\s*\b(pos|ino|sdev):.*$/, "");
    const [watched = "", ...rest] = kept.trim().split(/\s+/);
    add(`watch of ${watched}`, rest.join(" "));
  } else if (line.startsWith("lock")) {
    const [, , kind = "", mode = "", access = "", pid = "", , from = "", to = ""] = words;
    add(`lock ${kind} ${from}-${to}`, [mode, access, `by ${innerText(pids, pid)}`].join(" "));
  } else {
    const kept = words.filter(
      (word) => !/^(ino|sdev|mnt_id|fhandle-bytes|fhandle-type|f_handle):/.test(word),
    );
    const wd = kept.find((word) => word.startsWith("wd:"));
    const name = wd === undefined ? (words[0] ?? "") : `${words[0]} ${wd}`;
    add(name, kept.slice(1).join(" "));
  }
}

type Add = (name: string, value: string) => void;

/** Facts of one name are told apart by how many came before; of those there may be as many as there are lines. */
function adderTo(facts: Facts): Add {
  const counts = new Map<string, number>();
  return (name, value) => {
    const count = (counts.get(name) ?? 0) + 1;
    counts.set(name, count);
    facts[count === 1 ? name : `${name} (${count})`] = value;
  };
}
