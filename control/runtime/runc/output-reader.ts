/**
 * Takes what an application writes to its standard output and error out of their pipe and puts it into a file.
 *
 * A process of its own, which outlives the agent, and of sh(1) and dd(1), which together take 2 MB. It must never make the
 * application wait or end: where the file cannot be written (the disk is full) it drops and counts, and says so in the file
 * as soon as that can be written again. The pipe never lacks a reader, which would end the application with SIGPIPE:
 * the container's init holds one as its standard input, and the agent starts another process when this one has ended.
 *
 * One file grows to half of the limit, and is then kept as `FILE.1` until the next is as large.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { openOutputEnd } from "../inside.ts";
import { identify, type ProcessIdentity } from "../processes.ts";
import type { OutputOptions } from "../runtime.ts";

/** dd writes what it reads at once, and ends now and then for the size to be looked at. */
const BLOCK_BYTES = 65_536;
const BLOCKS_MAX = 64;

/** `$1` file, `$2` bytes it may have, `$3` blocks between two looks at them */
const SCRIPT = `
umask 077
lost=0
while :; do
  if [ $lost -gt 0 ]; then
    printf '[holdfast: output was dropped %d times, as this file could not be written]\\n' $lost 2>/dev/null >>"$1" && lost=0
  fi
  said=$(dd bs=${BLOCK_BYTES} count=$3 of="$1" oflag=append conv=notrunc 2>&1 >/dev/null)
  status=$?
  if [ $status -ne 0 ]; then
    lost=$((lost + 1))
    said=$(dd bs=${BLOCK_BYTES} count=1 of=/dev/null 2>&1)
    status=$?
  fi
  case $status$said in '00+0 records in'*) exit ;; esac
  size=$(wc -c 2>/dev/null <"$1") && [ $size -ge $2 ] && mv -f "$1" "$1.1"
done
`;

/** Starts it on the reading end of a pipe, which stays the caller's. It ends with the pipe's last writer. */
export async function startOutputReader(pipe: number, options: OutputOptions): Promise<ProcessIdentity> {
  const half = Math.max(BLOCK_BYTES, Math.floor(options.bytesMax / 2));
  const blocks = Math.min(BLOCKS_MAX, Math.floor(half / BLOCK_BYTES));
  const child = spawn(
    "/bin/sh",
    ["-c", SCRIPT, "holdfast-output", options.file, String(half), String(blocks)],
    {
      stdio: [pipe, "ignore", "ignore"],
      detached: true,
      cwd: "/",
      env: { PATH: "/usr/bin:/bin", LC_ALL: "C" },
    },
  );
  child.unref();
  await once(child, "spawn");
  const reader = await identify(child.pid as number);
  if (reader !== null) return reader;
  throw fail("OUTPUT_READER", "what reads the application's output ended at once: are /bin/sh and dd there?");
}

/**
 * Another one, for a container whose last has ended. What it had not read is still in the pipe.
 * @throws HoldfastError `OUTPUT_REPLACED`
 */
export async function restartOutputReader(initPid: number, options: OutputOptions): Promise<ProcessIdentity> {
  const pipe = openOutputEnd(initPid);
  try {
    return await startOutputReader(pipe, options);
  } finally {
    closeSync(pipe);
  }
}
