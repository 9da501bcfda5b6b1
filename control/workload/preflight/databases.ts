/**
 * SQLite databases whose connections a move would make read-only. Before SQLite begins a rollback journal it compares the file's
 * inode number with that of the name (`databaseIsUnmoved` in pager.c, `fileHasMoved` in os_unix.c), and a file that travels has
 * another number at the target: from then on each write fails with SQLITE_READONLY_DBMOVED. With a write-ahead log it does not
 * compare. What tells the two apart is in the database's header (https://sqlite.org/fileformat.html, 1.3); that the journal is in memory, or
 * that there is none (journal_mode MEMORY, OFF), is not in it, so such a database is found too.
 *
 * Leaves out an empty database, which has no header yet, and descriptors that nobody can write by.
 */
import { fstatSync, readSync, type Stats, statSync } from "node:fs";
import type { Add } from "../../api/finding.ts";
import { withSocketAt } from "../../migration/sockets.ts";
import { descriptorsOf } from "../../runtime/processes.ts";
import { readText } from "../../runtime/read-text.ts";
import type { Sandbox } from "../../runtime/runtime.ts";
import { travellingMounts } from "../../runtime/travelling-mounts.ts";

const MAGIC = Buffer.from("SQLite format 3\0", "latin1");
const WRITE_VERSION_AT = 18;
const ROLLBACK_JOURNAL = 1;
const HEADER_BYTES = 100;
/** the smallest page; a database is of whole pages */
const PAGE_BYTES_MIN = 512;
/** fcntl(2) */
const O_ACCMODE = 0o3;
const O_RDWR = 0o2;

/** Each file is looked at once, whoever has it open. */
export async function checkDatabases(container: Sandbox, pids: number[], add: Add): Promise<void> {
  const travelling = travellingMounts(container);
  const seen = new Set<string>();
  for (const pid of pids) {
    for (const { fd, target } of await descriptorsOf(pid)) {
      if (!target.startsWith("/") || !mayWriteTo({ pid, fd }, travelling)) continue;
      const found = statOf(`/proc/${pid}/fd/${fd}`);
      if (found === null || !mayBeDatabase(found)) continue;
      const key = `${found.dev} ${found.ino}`;
      if (seen.has(key)) continue;
      seen.add(key);
      if (withSocketAt({ pid, fd }, hasRollbackJournal) !== true) continue;
      add(
        "file.sqlite-journal",
        "error",
        `process ${pid} has a SQLite database with a rollback journal open (${target}), which SQLite can only read after a move, as the file's inode number changes`,
        "let it switch to a write-ahead log without shared memory (PRAGMA locking_mode=EXCLUSIVE, then PRAGMA journal_mode=WAL), or keep the database on a shared mount",
        { pid, fd, path: target },
      );
    }
  }
}

/** One that was deleted had moved before. */
function mayBeDatabase(found: Stats): boolean {
  return found.isFile() && found.nlink > 0 && found.size > 0 && found.size % PAGE_BYTES_MIN === 0;
}

/**
 * Through a copy of the application's own descriptor: opening the file anew would break a lease on it, and show in watches of it.
 * @param fd open for reading and writing
 */
function hasRollbackJournal(fd: number): boolean {
  try {
    if (!fstatSync(fd).isFile()) return false; // another by now
    const header = Buffer.alloc(HEADER_BYTES);
    if (readSync(fd, header, 0, HEADER_BYTES, 0) < HEADER_BYTES) return false;
    return header.subarray(0, MAGIC.length).equals(MAGIC) && header[WRITE_VERSION_AT] === ROLLBACK_JOURNAL;
  } catch {
    return false; // cannot be read by this descriptor, so not by SQLite either
  }
}

/** Open for both, as SQLite opens what it is to write to, and on one of these mounts. What can be written to was copied into the layer. */
function mayWriteTo({ pid, fd }: { pid: number; fd: number }, mounts: Set<string>): boolean {
  const info = readText(`/proc/${pid}/fdinfo/${fd}`);
  const flags = Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "0", 8);
  return (flags & O_ACCMODE) === O_RDWR && mounts.has(/^mnt_id:\s*(\d+)$/m.exec(info)?.[1] ?? "");
}

function statOf(path: string): Stats | null {
  try {
    return statSync(path);
  } catch {
    return null; // closed meanwhile
  }
}
