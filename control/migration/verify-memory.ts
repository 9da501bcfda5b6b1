/**
 * `limits.verifyMemory`: before the commit, every page of every process of the restored, stopped tree is compared with the stopped
 * source's, by digest. A difference is a rollback that says where.
 */
import { join } from "node:path";
import { z } from "zod";
import { fail } from "#proxy/contract/error-codes.ts";
import { processesInTree, rseqOf } from "../criu/image-file.ts";
import { readImage } from "../criu/image-files.ts";
import { memoryDifference } from "../criu/memory-difference.ts";
import {
  digestPageAt,
  digestTree,
  ENTRY_BYTES,
  isAsInFile,
  type ProcessDigest,
  type RseqArea,
} from "../criu/memory-digest.ts";
import { tracedTree } from "./traced-tree.ts";

const count = z.number().int().nonnegative();

/** `verify`, when the application is restored; body: the pages of the processes, one process after the other */
export const verifyCall = z.strictObject({
  processes: z
    .array(
      z.strictObject({ innerPid: count, layout: z.array(z.string().max(200)).max(1_000_000), pages: count }),
    )
    .max(100_000),
  rseq: z.array(z.strictObject({ innerPid: count, vaddr: count })).max(1_000_000),
});
export type VerifyCall = z.infer<typeof verifyCall>;

/**
 * At the source, of the tree that was dumped and stands still.
 * @param imagesDir of the finished dump
 */
export async function memoryOf(root: number, imagesDir: string): Promise<{ call: VerifyCall; body: Buffer }> {
  const rseq = rseqAreas(imagesDir);
  const digests = await digestTree(await tracedTree(root), rseq);
  const processes = digests.map(({ innerPid, layout, pages }) => ({
    innerPid,
    layout,
    pages: pages.length / ENTRY_BYTES,
  }));
  return { call: { processes, rseq }, body: Buffer.concat(digests.map(({ pages }) => pages)) };
}

/** At the target, of the restored tree that stands still. */
export async function restoredMemory(root: number, imagesDir: string): Promise<ProcessDigest[]> {
  return digestTree(await tracedTree(root), rseqAreas(imagesDir));
}

/** @throws HoldfastError `MEMORY_DIFFERS` with the place */
export async function verifyMemory(
  root: number,
  restored: ProcessDigest[],
  call: VerifyCall,
  body: Buffer,
): Promise<void> {
  let at = 0;
  const source = call.processes.map(({ innerPid, layout, pages }) => {
    const from = at;
    at += pages * ENTRY_BYTES;
    return { innerPid, layout, pages: body.subarray(from, at) };
  });
  if (at !== body.length) throw fail("IMAGE_REFUSED", "the digest of the memory is cut off");
  const tree = await tracedTree(root);
  const pids = new Map(tree.map(({ innerPid, pid }) => [innerPid, pid]));
  const pidOf = (innerPid: number): number => pids.get(innerPid) ?? -1;
  const masks = (inner: number): number[] =>
    call.rseq.filter(({ innerPid }) => innerPid === inner).map(({ vaddr }) => vaddr);
  const difference = await memoryDifference(source, restored, {
    digestAt: (innerPid, vaddr) => digestPageAt(pidOf(innerPid), vaddr, masks(innerPid)),
    isAsInFile: (innerPid, vaddr) => isAsInFile(pidOf(innerPid), vaddr),
  });
  if (difference === null) return;
  throw fail("MEMORY_DIFFERS", `the restored memory is not what it was: ${difference}`);
}

function rseqAreas(imagesDir: string): RseqArea[] {
  const areas: RseqArea[] = [];
  for (const { pid, threads } of processesInTree(readImage(join(imagesDir, "pstree.img"))))
    for (const thread of threads) {
      const vaddr = rseqOf(readImage(join(imagesDir, `core-${thread}.img`)));
      if (vaddr !== null) areas.push({ innerPid: pid, vaddr });
    }
  return areas;
}
