/** Mappings that CRIU 4.2 cannot dump (proc(5), /proc/PID/maps). */
import { readFile } from "node:fs/promises";
import type { Add } from "../../api/finding.ts";
import { mappedPath } from "./same-files.ts";

/** devices whose mappings are memory like any other */
const PLAIN_DEVICES = /^\/dev\/(shm\/|zero\b|null\b)/;

export async function checkMemory(pids: number[], add: Add): Promise<void> {
  for (const pid of pids) {
    const maps = await readFile(`/proc/${pid}/maps`, "utf8").catch(() => "");
    for (const line of maps.split("\n")) {
      const path = mappedPath(line);
      if (path?.startsWith("/dev/") && !PLAIN_DEVICES.test(path))
        add(
          "memory.device-mapped",
          "error",
          `process ${pid} has a device mapped: ${path}`,
          "the application must not map devices",
          { pid, path },
        );
      const inode = / (anon_inode:\S+)/.exec(line)?.[1];
      if (inode !== undefined)
        add(
          "memory.kernel-mapped",
          "error",
          `process ${pid} has memory of a kernel object mapped: ${inode}`,
          "let the application unmap and close it, or do without",
          { pid },
        );
      if (line.endsWith("[uprobes]"))
        add(
          "memory.uprobes",
          "error",
          `process ${pid} is being traced by uprobes (perf, bpftrace), whose memory is the kernel's`,
          "end the tracing, and restart the application if the mapping stays",
          { pid },
        );
    }
  }
}
