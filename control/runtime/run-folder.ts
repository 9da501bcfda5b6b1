/** The folder of one instance, where images of moves and what else is its own live: in memory (tmpfs(5)), readable for root alone. */
import { mkdir, rm } from "node:fs/promises";
import { runCommand } from "./command.ts";

/** @throws HoldfastError when it cannot be mounted; the folder may be left, see {@link removeRunFolder} */
export async function mountRunFolder(path: string, bytesMax: number): Promise<void> {
  await mkdir(path, { recursive: true, mode: 0o700 });
  await runCommand("mount", ["-t", "tmpfs", "-o", `size=${bytesMax},mode=0700`, "holdfast", path], {
    source: "container",
  });
}

export async function removeRunFolder(path: string): Promise<void> {
  await runCommand("umount", ["--lazy", path], { source: "container" }).catch(() => {}); // not mounted: nothing to do
  await rm(path, { recursive: true, force: true });
}
