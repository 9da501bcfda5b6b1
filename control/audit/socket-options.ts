/**
 * The options of a socket that can be read without changing anything (getsockopt(2)), and which of them can be set again.
 *
 * Left out on purpose: options that reading changes (SO_ERROR, TCP_SAVED_SYN, SO_PEERPIDFD), that the kernel keeps for itself
 * (SO_COOKIE, SO_MEMINFO, SO_INCOMING_CPU, SO_INCOMING_NAPI_ID, SO_NETNS_COOKIE, TCP_INFO), that say what the route is
 * (IP_MTU), and TCP_FASTOPEN_KEY, which is the network namespace's unless set.
 * Sources: include/uapi/asm-generic/socket.h, linux/{in,in6,tcp,udp,netlink,if_packet}.h.
 */
import { constants } from "node:os";
import * as ipText from "#proxy/kernel/address-text.ts";
import * as sock from "#proxy/kernel/socket.ts";
import type { Facts } from "./fingerprint.ts";

const IPPROTO_UDP = 17;
const SOL_PACKET = 263;
const SOL_NETLINK = 270;
/** include/uapi/asm-generic/socket.h */
export const SO_TYPE = 3;
export const SO_PEERCRED = 17;
export const SO_ATTACH_FILTER = 26;
export const SO_GET_FILTER = SO_ATTACH_FILTER;
export const SO_PROTOCOL = 38;
export const SO_LOCK_FILTER = 44;

export interface SocketOption {
  name: string;
  level: number;
  option: number;
  bytes: number;
  /** reading is all that can be done about it */
  readOnly: boolean;
  /** what is not told of: what it is where nobody has set it. Absent: zero */
  usual?: string;
}

type Row = [name: string, option: number, bytes?: number | "text", readOnly?: "read-only"];

const TEXT_BYTES = 16;

function options(level: number, rows: Row[]): SocketOption[] {
  return rows.map(([name, option, bytes = 4, readOnly]) => ({
    name,
    level,
    option,
    bytes: bytes === "text" ? TEXT_BYTES : bytes,
    readOnly: readOnly !== undefined,
  }));
}

const OF_EVERY_SOCKET = options(sock.SOL_SOCKET, [
  ["SO_DEBUG", 1],
  ["SO_REUSEADDR", 2],
  ["SO_DONTROUTE", 5],
  ["SO_BROADCAST", 6],
  ["SO_SNDBUF", 7],
  ["SO_RCVBUF", 8],
  ["SO_KEEPALIVE", 9],
  ["SO_OOBINLINE", 10],
  ["SO_NO_CHECK", 11],
  ["SO_PRIORITY", 12],
  ["SO_LINGER", 13, 8],
  ["SO_REUSEPORT", 15],
  ["SO_PASSCRED", 16],
  ["SO_RCVLOWAT", 18],
  ["SO_RCVTIMEO", 20, 16],
  ["SO_SNDTIMEO", 21, 16],
  ["SO_BINDTODEVICE", 25, "text"],
  ["SO_TIMESTAMP", 29],
  ["SO_ACCEPTCONN", 30, 4, "read-only"],
  ["SO_PASSSEC", 34],
  ["SO_TIMESTAMPNS", 35],
  ["SO_MARK", 36],
  ["SO_TIMESTAMPING", 37, 8],
  ["SO_RXQ_OVFL", 40],
  ["SO_WIFI_STATUS", 41],
  ["SO_PEEK_OFF", 42],
  ["SO_NOFCS", 43],
  ["SO_LOCK_FILTER", 44],
  ["SO_SELECT_ERR_QUEUE", 45],
  ["SO_BUSY_POLL", 46],
  ["SO_MAX_PACING_RATE", 47, 8],
  ["SO_ZEROCOPY", 60],
  ["SO_TXTIME", 61, 8],
  ["SO_PREFER_BUSY_POLL", 69],
  ["SO_BUSY_POLL_BUDGET", 70],
  ["SO_BUF_LOCK", 72],
  ["SO_RESERVE_MEM", 73],
  ["SO_TXREHASH", 74],
  ["SO_RCVMARK", 75],
  ["SO_PASSPIDFD", 76],
  ["SO_RCVPRIORITY", 82],
  ["SO_PASSRIGHTS", 83],
  ["SO_INQ", 84],
]);

const OF_IPV4 = options(sock.IPPROTO_IP, [
  ["IP_TOS", 1],
  ["IP_TTL", 2],
  ["IP_HDRINCL", 3],
  ["IP_OPTIONS", 4, 40],
  ["IP_RECVOPTS", 6],
  ["IP_RETOPTS", 7],
  ["IP_PKTINFO", 8],
  ["IP_MTU_DISCOVER", 10],
  ["IP_RECVERR", 11],
  ["IP_RECVTTL", 12],
  ["IP_RECVTOS", 13],
  ["IP_FREEBIND", 15],
  ["IP_PASSSEC", 18],
  ["IP_TRANSPARENT", 19],
  ["IP_RECVORIGDSTADDR", 20],
  ["IP_MINTTL", 21],
  ["IP_NODEFRAG", 22],
  ["IP_CHECKSUM", 23],
  ["IP_BIND_ADDRESS_NO_PORT", 24],
  ["IP_RECVFRAGSIZE", 25],
  ["IP_RECVERR_RFC4884", 26],
  ["IP_MULTICAST_IF", 32],
  ["IP_MULTICAST_TTL", 33],
  ["IP_MULTICAST_LOOP", 34],
  ["IP_MULTICAST_ALL", 49],
  ["IP_UNICAST_IF", 50],
  ["IP_LOCAL_PORT_RANGE", 51],
]);

/** Kernel's defaults (`inet6_create` in net/ipv6/af_inet6.c). */
const USUAL_IPV4: Readonly<Record<string, string>> = {
  IP_TTL: "64",
  IP_MTU_DISCOVER: "1",
  IP_MULTICAST_TTL: "1",
  IP_MULTICAST_LOOP: "1",
};

/**
 * Of a socket of IPv6, which has them for peers of IPv4. Only what was set is told: the version before knows nothing of them,
 * and takes what it is not told, or tells nothing of, for a difference.
 */
const OF_IPV4_IN_IPV6 = OF_IPV4.map((option) => ({ ...option, usual: USUAL_IPV4[option.name] ?? "0" }));

const OF_IPV6 = options(sock.IPPROTO_IPV6, [
  ["IPV6_CHECKSUM", 7],
  ["IPV6_UNICAST_HOPS", 16],
  ["IPV6_MULTICAST_IF", 17],
  ["IPV6_MULTICAST_HOPS", 18],
  ["IPV6_MULTICAST_LOOP", 19],
  ["IPV6_MTU_DISCOVER", 23],
  ["IPV6_RECVERR", 25],
  ["IPV6_V6ONLY", 26],
  ["IPV6_MULTICAST_ALL", 29],
  ["IPV6_ROUTER_ALERT_ISOLATE", 30],
  ["IPV6_RECVERR_RFC4884", 31],
  ["IPV6_FLOWINFO_SEND", 33],
  ["IPV6_HDRINCL", 36],
  ["IPV6_RECVPKTINFO", 49],
  ["IPV6_RECVHOPLIMIT", 51],
  ["IPV6_RECVHOPOPTS", 53],
  ["IPV6_RECVRTHDR", 56],
  ["IPV6_RECVDSTOPTS", 58],
  ["IPV6_RECVPATHMTU", 60],
  ["IPV6_DONTFRAG", 62],
  ["IPV6_RECVTCLASS", 66],
  ["IPV6_TCLASS", 67],
  ["IPV6_AUTOFLOWLABEL", 70],
  ["IPV6_ADDR_PREFERENCES", 72],
  ["IPV6_MINHOPCOUNT", 73],
  ["IPV6_RECVORIGDSTADDR", 74],
  ["IPV6_TRANSPARENT", 75],
  ["IPV6_UNICAST_IF", 76],
  ["IPV6_RECVFRAGSIZE", 77],
  ["IPV6_FREEBIND", 78],
]);

const OF_TCP = options(sock.IPPROTO_TCP, [
  ["TCP_NODELAY", 1],
  ["TCP_MAXSEG", 2],
  ["TCP_CORK", 3],
  ["TCP_KEEPIDLE", 4],
  ["TCP_KEEPINTVL", 5],
  ["TCP_KEEPCNT", 6],
  ["TCP_SYNCNT", 7],
  ["TCP_LINGER2", 8],
  ["TCP_DEFER_ACCEPT", 9],
  ["TCP_WINDOW_CLAMP", 10],
  ["TCP_CONGESTION", 13, "text"],
  ["TCP_THIN_LINEAR_TIMEOUTS", 16],
  ["TCP_USER_TIMEOUT", 18],
  ["TCP_FASTOPEN", 23],
  ["TCP_NOTSENT_LOWAT", 25],
  ["TCP_SAVE_SYN", 27],
  ["TCP_FASTOPEN_CONNECT", 30],
  ["TCP_ULP", 31, "text", "read-only"],
  ["TCP_FASTOPEN_NO_COOKIE", 34],
  ["TCP_INQ", 36],
  ["TCP_TX_DELAY", 37],
  ["TCP_RTO_MAX_MS", 44],
  ["TCP_RTO_MIN_US", 45],
  ["TCP_DELACK_MAX_US", 46],
]);

const OF_UDP = options(IPPROTO_UDP, [
  ["UDP_CORK", 1],
  ["UDP_ENCAP", 100],
  ["UDP_NO_CHECK6_TX", 101],
  ["UDP_NO_CHECK6_RX", 102],
  ["UDP_SEGMENT", 103],
  ["UDP_GRO", 104],
]);

const OF_NETLINK = options(SOL_NETLINK, [
  ["NETLINK_PKTINFO", 3],
  ["NETLINK_BROADCAST_ERROR", 4],
  ["NETLINK_NO_ENOBUFS", 5],
  ["NETLINK_LISTEN_ALL_NSID", 8],
  ["NETLINK_LIST_MEMBERSHIPS", 9, 32, "read-only"],
  ["NETLINK_CAP_ACK", 10],
  ["NETLINK_EXT_ACK", 11],
  ["NETLINK_GET_STRICT_CHK", 12],
]);

const OF_PACKET = options(SOL_PACKET, [
  ["PACKET_AUXDATA", 8],
  ["PACKET_ORIGDEV", 9],
  ["PACKET_VERSION", 10],
  ["PACKET_RESERVE", 12],
  ["PACKET_LOSS", 14],
  ["PACKET_VNET_HDR", 15],
  ["PACKET_TIMESTAMP", 17],
  ["PACKET_FANOUT", 18, 4, "read-only"],
  ["PACKET_QDISC_BYPASS", 20],
]);

const EVERY_OPTION = [OF_EVERY_SOCKET, OF_IPV4, OF_IPV6, OF_TCP, OF_UDP, OF_NETLINK, OF_PACKET].flat();
const BY_NAME = new Map(EVERY_OPTION.map((option) => [option.name, option]));

export function socketOption(name: string): SocketOption | undefined {
  return BY_NAME.get(name);
}

/** Options that sockets of a kind have; those this kernel has not been found to refuse. */
export interface OptionPlan {
  options: SocketOption[];
}

const plans = new Map<string, OptionPlan>();

export function optionsOf(domain: number, type: number, protocol: number): OptionPlan {
  const key = `${domain} ${type} ${protocol}`;
  let plan = plans.get(key);
  if (plan === undefined) {
    plan = { options: everyOptionOf(domain, protocol) };
    plans.set(key, plan);
  }
  return plan;
}

function everyOptionOf(domain: number, protocol: number): SocketOption[] {
  const options = [...OF_EVERY_SOCKET];
  if (domain === ipText.AF_INET) options.push(...OF_IPV4);
  if (domain === ipText.AF_INET6) options.push(...OF_IPV6, ...OF_IPV4_IN_IPV6);
  if (domain === ipText.AF_INET || domain === ipText.AF_INET6) {
    if (protocol === sock.IPPROTO_TCP) options.push(...OF_TCP);
    if (protocol === IPPROTO_UDP) options.push(...OF_UDP);
  }
  if (domain === sock.AF_NETLINK) options.push(...OF_NETLINK);
  if (domain === sock.AF_PACKET) options.push(...OF_PACKET);
  return options;
}

/**
 * Options that are not zero, as numbers, or as bytes in hexadecimal where they are longer: one the kernel does not know is as
 * one that is not set. Costs half a microsecond an option. What sockets of this kind never have leaves the plan.
 */
export function readOptions(fd: number, plan: OptionPlan, facts: Facts): void {
  const unknown = new Set<SocketOption>();
  for (const option of plan.options) {
    const { name, bytes, usual = "0" } = option;
    const size = sock.tryGetsockopt(fd, option.level, option.option, bytes);
    if (size === -constants.errno.ENOPROTOOPT) unknown.add(option);
    if (size <= 0) continue;
    if (size <= 4) {
      // options of one byte (IP_MULTICAST_TTL) leave the rest of the word as it was
      const value = size === 4 ? sock.socketOptionWord(0) : sock.socketOption.readIntLE(0, size);
      if (String(value) !== usual) facts[name] = String(value);
      continue;
    }
    let isZero = true;
    for (let at = 0; at < size && isZero; at++) isZero = sock.socketOption[at] === 0;
    if (!isZero) facts[name] = sock.socketOption.toString("hex", 0, size);
  }
  if (unknown.size > 0) plan.options = plan.options.filter((option) => !unknown.has(option));
}

/** One option as it is now. */
export function readOption(fd: number, option: SocketOption, facts: Facts): void {
  delete facts[option.name];
  readOptions(fd, { options: [option] }, facts);
}

/**
 * Options that say nothing but themselves: setting one changes no other (sk_setsockopt() in net/core/sock.c,
 * do_tcp_setsockopt() in net/ipv4/tcp.c). They are those that a restore leaves otherwise on each connection.
 */
export const INDEPENDENT: ReadonlySet<string> = new Set([
  "SO_REUSEADDR",
  "SO_REUSEPORT",
  "TCP_DEFER_ACCEPT",
  "TCP_NOTSENT_LOWAT",
  "TCP_USER_TIMEOUT",
  "TCP_WINDOW_CLAMP",
]);

/** The bytes of a fact that {@link readOptions} made; null (not there): zeros. */
export function optionValue(option: SocketOption, fact: string | null): Buffer {
  const value = Buffer.alloc(option.bytes);
  if (fact === null) return value;
  if (option.bytes <= 4) value.writeInt32LE(Number(fact), 0);
  else Buffer.from(fact, "hex").copy(value);
  return value;
}
