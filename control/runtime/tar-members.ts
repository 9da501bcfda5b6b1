/**
 * What tar says, in the stream that it writes, of each file that it has read: of the very file, since it asks the descriptor that it
 * reads from (fstat(2); `dump_file0` in create.c of GNU tar). Where it keeps attributes it writes pax headers (pax(1)), which have names
 * as they are, times to the nanosecond, and the time of the last change of the inode, which no application can set.
 */
import { fail } from "#proxy/contract/error-codes.ts";
import { nameText } from "./file-names.ts";

export interface TarMember {
  isFolder: boolean;
  /** an opaque folder of an overlay's layer */
  isOpaque: boolean;
  /** `mode uid gid`, as lstat(2) has them */
  owned: string;
  /** `size mtimeNs ctimeNs rdev`, as lstat(2) has them */
  content: string;
}

const BLOCK = 512;
const FORMATS: Record<string, number> = {
  "0": 0o100000,
  "2": 0o120000,
  "3": 0o020000,
  "4": 0o060000,
  "5": 0o040000,
  "6": 0o010000,
};
const HARD_LINK = "1";
const PAX = "x";
const OPAQUE = "SCHILY.xattr.trusted.overlay.opaque";
const NANOSECONDS = 9;
/** of one file: two paths, and attributes, of which whoever may write to a file sets as many as a filesystem takes */
const RECORDS_BYTES_MAX = 1 << 20;
/** in a stream the file is whole: it has zeros from there on (`dump_regular_file` in create.c) */
const CUT_SHORT = /^[^:]*: (.*): (?:Warning: Read error at byte|File shrank by) [^:]*/;
const ESCAPES: Record<string, string> = { a: "\x07", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t", v: "\v" };

/** Reads along: takes the stream in pieces of any size, and keeps none of what the files hold. */
export class TarMembers {
  /** relative path ({@link nameText}; "." is the root) → the last that was read by that name */
  readonly found = new Map<string, TarMember>();
  /** of a header, or of a pax header's records, that is not here as a whole */
  #pieces: Buffer[] = [];
  #wanted = BLOCK;
  #skip = 0;
  /** bytes of records to come */
  #recordBytes = 0;
  #records = new Map<string, Buffer>();

  /** @throws HoldfastError `FILES_TAR` */
  take(piece: Buffer): void {
    let at = 0;
    while (at < piece.length) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, piece.length - at);
        this.#skip -= skipped;
        at += skipped;
        continue;
      }
      const taken = piece.subarray(at, at + this.#wanted);
      at += taken.length;
      this.#wanted -= taken.length;
      if (this.#wanted > 0) {
        this.#pieces.push(Buffer.from(taken));
        continue;
      }
      const block = this.#pieces.length === 0 ? taken : Buffer.concat([...this.#pieces, taken]);
      this.#pieces = [];
      if (this.#recordBytes > 0) this.#takeRecords(block);
      else this.#takeHeader(block);
      this.#wanted = this.#recordBytes > 0 ? whole(this.#recordBytes) : BLOCK;
    }
  }

  #takeRecords(block: Buffer): void {
    this.#records = recordsOf(block.subarray(0, this.#recordBytes));
    this.#recordBytes = 0;
  }

  #takeHeader(block: Buffer): void {
    if (block[0] === 0 && block[156] === 0) return; // the end
    const type = block.toString("latin1", 156, 157);
    const stored = Number(this.#text("size") ?? number(block, 124, 12));
    if (type === PAX) {
      if (stored > RECORDS_BYTES_MAX)
        throw fail(
          "FILES_TAR",
          `a file of the container has ${stored} bytes of extended attributes, and at most ${RECORDS_BYTES_MAX} travel; find it by \`getfattr -Rd\``,
          { source: "container" },
        );
      this.#recordBytes = stored;
      return;
    }
    // a hard link's is the file's that it is one to
    this.#skip = type === HARD_LINK ? 0 : whole(stored);
    const prefix = field(block, 345, 155);
    const own = field(block, 0, 100);
    const name =
      this.#records.get("GNU.sparse.name") ??
      this.#records.get("path") ??
      (prefix.length === 0 ? own : Buffer.concat([prefix, Buffer.from("/"), own]));
    const link = this.#records.get("linkpath") ?? field(block, 157, 100);
    const same = type === HARD_LINK ? this.found.get(pathOf(link)) : undefined;
    const format = same === undefined ? FORMATS[type] : Number(same.owned.split(" ")[0]) & 0o170000;
    const [sizeThere, , , rdevThere] = same?.content.split(" ") ?? [];
    const size = type === "2" ? link.length : (this.#text("GNU.sparse.realsize") ?? stored);
    const isDevice = type === "3" || type === "4";
    const rdev = isDevice ? device(number(block, 329, 8), number(block, 337, 8)) : 0n;
    const mtime = nanoseconds(this.#text("mtime") ?? String(number(block, 136, 12)));
    const ctime = nanoseconds(this.#text("ctime") ?? "");
    const uid = this.#text("uid") ?? number(block, 108, 8);
    const gid = this.#text("gid") ?? number(block, 116, 8);
    this.found.set(pathOf(name), {
      isFolder: type === "5",
      isOpaque: this.#text(OPAQUE) === "y",
      owned: `${(format ?? 0) | number(block, 100, 8)} ${uid} ${gid}`,
      content: `${sizeThere ?? size} ${mtime} ${ctime} ${rdevThere ?? rdev}`,
    });
    this.#records = new Map();
  }

  /** @param path has zeros in the stream in place of what tar could not read */
  cutShort(path: string): void {
    const member = this.found.get(path);
    if (member !== undefined) this.found.set(path, { ...member, content: "cut short" });
  }

  #text(keyword: string): string | undefined {
    return this.#records.get(keyword)?.toString("latin1");
  }
}

/**
 * Pure. The path that one line of what tar says, with --quoting-style=escape, tells to be cut short: a disk failed, or somebody made the file
 * shorter. null: it tells something else
 */
export function cutShortIn(line: string): string | null {
  const quoted = CUT_SHORT.exec(line)?.[1];
  if (quoted === undefined) return null;
  const plain = quoted.replace(/\\([0-7]{3}|.)/gs, (_, code: string) =>
    code.length === 3 ? String.fromCharCode(Number.parseInt(code, 8)) : (ESCAPES[code] ?? code),
  );
  return pathOf(Buffer.from(plain, "latin1"));
}

/** "LENGTH KEYWORD=VALUE\n", where the length counts all of it. */
function recordsOf(bytes: Buffer): Map<string, Buffer> {
  const records = new Map<string, Buffer>();
  for (let at = 0; at < bytes.length; ) {
    const blank = bytes.indexOf(" ", at);
    const length = Number(bytes.toString("latin1", at, blank));
    if (blank === -1 || !(length > 0)) break;
    const equals = bytes.indexOf("=", blank);
    records.set(bytes.toString("latin1", blank + 1, equals), bytes.subarray(equals + 1, at + length - 1));
    at += length;
  }
  return records;
}

function whole(bytes: number): number {
  return Math.ceil(bytes / BLOCK) * BLOCK;
}

function field(block: Buffer, at: number, length: number): Buffer {
  const bytes = block.subarray(at, at + length);
  const end = bytes.indexOf(0);
  return end === -1 ? bytes : bytes.subarray(0, end);
}

function number(block: Buffer, at: number, length: number): number {
  return Number.parseInt(field(block, at, length).toString("latin1").trim() || "0", 8);
}

/** makedev(3) */
function device(major: number, minor: number): bigint {
  const [high, low] = [BigInt(major), BigInt(minor)];
  return (
    ((high & 0xfffff000n) << 32n) | ((high & 0xfffn) << 8n) | ((low & 0xffffff00n) << 12n) | (low & 0xffn)
  );
}

/** "" : not told, which no time is */
function nanoseconds(seconds: string): string {
  const [, sign, integer, fraction] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(seconds) ?? [];
  if (integer === undefined) return "";
  return String(BigInt(`${integer}${(fraction ?? "").padEnd(NANOSECONDS, "0")}`) * (sign === "-" ? -1n : 1n));
}

/** tar is given "./PATH", and has a "/" behind a folder. */
function pathOf(name: Buffer): string {
  const text = nameText(name).replace(/\/+$/, "");
  return text.startsWith("./") ? text.slice(2) : text;
}
