/**
 * Signals that a process wants when its parent ends (prctl(2), PR_SET_PDEATHSIG), in the images of a dump.
 *
 * The tree's root is restored by CRIU, which ends then: it would have its signal. At the source it could not get it: its parent is the
 * container's init, and when that ends everything in its PID namespace is killed first (`zap_pid_ns_processes`, kernel/pid_namespace.c). So
 * the root asks for none in the images; what is lost is what PR_GET_PDEATHSIG says. Of others it is the end of the thread that made them
 * that counts, and CRIU 4.2 makes all of a process's children in its main thread.
 *
 * Image formats: images/core.proto of CRIU (MIT).
 */
import { join } from "node:path";
import { decodeImage, encodeImage, processesInTree } from "./image-file.ts";
import { readImage, writeImage } from "./image-files.ts";
import { changeField, decodeFields } from "./protobuf.ts";

/** core_entry.thread_core, thread_core_entry.pdeath_sig */
const THREAD_CORE = 5;
const SIGNAL = 8;

/**
 * After a dump, before its images are sent.
 * @returns the processes, as the container numbers them, that want a signal: the root's is left out
 * @throws HoldfastError `CRIU_IMAGE`, `CRIU_PROTOCOL`
 */
export function leaveParentDeath(imagesDir: string): { root: number | null; others: number[] } {
  const wanting: { root: number | null; others: number[] } = { root: null, others: [] };
  for (const { pid, parent, threads } of processesInTree(readImage(join(imagesDir, "pstree.img"))))
    for (const tid of threads) {
      const path = join(imagesDir, `core-${tid}.img`);
      const without = withoutParentDeath(readImage(path));
      if (without === null) continue;
      if (parent !== 0) wanting.others.push(pid);
      else {
        writeImage(path, without);
        wanting.root = pid;
      }
    }
  return wanting;
}

/** Pure: the image of a thread that wants none. null: it is so already */
export function withoutParentDeath(image: Buffer): Buffer | null {
  let isChanged = false;
  const changed = decodeImage("core", image).map((core) =>
    changeField(core, THREAD_CORE, (thread) => {
      const fields = decodeFields(thread);
      isChanged ||= fields.some(({ number, varint }) => number === SIGNAL && varint !== 0n);
      return Buffer.concat(fields.filter(({ number }) => number !== SIGNAL).map(({ raw }) => raw));
    }),
  );
  return isChanged ? encodeImage("core", changed) : null;
}
