/**
 * What a fingerprint alone says cannot be carried: of a tree that runs, for `check`, before anybody is held. Pure.
 *
 * Kinds of descriptors that CRIU refuses are not here: a dump says so by itself, and `agent/preflight.ts` foresees it.
 */
import type { Facts, Fingerprint } from "./fingerprint.ts";

export interface Uncarried {
  /** stable, for those who allow one: `controlling-terminal` */
  id: string;
  /** error: a move would roll back. warning: it moves without this. passing: it is likely to be gone in a moment */
  severity: "error" | "warning" | "passing";
  what: string;
  cure: string;
}

type Rule = (subject: string, facts: Facts, name: string) => Uncarried | null;

const INET_DATAGRAM = /^domain (2|10), type 2,/;
const NETLINK = /^domain 16,/;

const RULES: Rule[] = [
  (subject, facts, name) => {
    if (!subject.startsWith("process ") || (facts["stat tty"] ?? "0") === "0") return null;
    if (facts["status NSsid"] === facts["status NSpid"]) return null;
    return {
      id: "controlling-terminal",
      severity: "warning",
      what: `${name} has a controlling terminal that another process leads: afterwards it cannot open /dev/tty, nor is it stopped when it reads from the background`,
      cure: "move it when no program runs in that terminal, if one of them needs that",
    };
  },
  (_, facts, name) => {
    if (!INET_DATAGRAM.test(facts.socket ?? "") || Number(facts["bytes to read"] ?? 0) === 0) return null;
    return {
      id: "datagrams-unread",
      severity: "passing",
      what: `${name} has datagrams that were not read, which CRIU does not carry`,
      cure: "move it when the application has read them",
    };
  },
  (_, facts, name) => {
    if (!NETLINK.test(facts.socket ?? "") || Number(facts["bytes to read"] ?? 0) === 0) return null;
    return {
      id: "netlink-unread",
      severity: "passing",
      what: `${name} has netlink messages that were not read, which CRIU does not carry`,
      cure: "move it when the application has read them",
    };
  },
  (_, facts, name) => {
    if (!/^anon_inode:\[eventfd\]$/.test(facts.file ?? "") || facts["signals go to"] === undefined)
      return null;
    if (facts["eventfd-semaphore"] !== "1") return null;
    return {
      id: "eventfd-owner",
      severity: "error",
      what: `${name} is an eventfd with EFD_SEMAPHORE that sends signals (F_SETOWN)`,
      cure: "wait for it with poll(2) or epoll(7) in place of signals",
    };
  },
  (_, facts, name) => {
    if (facts.filter !== "an eBPF program") return null;
    return {
      id: "socket-filter-ebpf",
      severity: "error",
      what: `${name} has an eBPF program as its filter, which cannot be read back`,
      cure: "use a classic filter (SO_ATTACH_FILTER)",
    };
  },
  (_, facts, name) => {
    if ((facts.TCP_ULP ?? "") === "") return null;
    return {
      id: "tcp-ulp",
      severity: "error",
      what: `${name} has an upper-layer protocol in the kernel (TCP_ULP: TLS or others), whose state cannot be read`,
      cure: "switch kernel TLS off in the application",
    };
  },
];

export function cannotBeCarried(fingerprint: Fingerprint): Uncarried[] {
  const found: Uncarried[] = [];
  for (const [subject, facts] of Object.entries(fingerprint.subjects))
    for (const rule of RULES) {
      const uncarried = rule(subject, facts, nameOf(subject, fingerprint));
      if (uncarried !== null) found.push(uncarried);
    }
  return found;
}

/** `descriptor 5 of process 12 (python3)`, in the container's numbers */
function nameOf(subject: string, fingerprint: Fingerprint): string {
  const [, kind, inner, part] = /^(\w+) (\d+)(?:\/(\d+))?$/.exec(subject) ?? [];
  if (inner === undefined) return subject;
  const program = fingerprint.subjects[`process ${inner}`]?.name;
  const process = `process ${inner}${program === undefined ? "" : ` (${program})`}`;
  return part === undefined ? process : `${kind} ${part} of ${process}`;
}
