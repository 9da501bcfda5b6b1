/** A process that exchanges a folder for a link all the time (renameat2(2), RENAME_EXCHANGE), as a container does that shares what is around it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";

const EXCHANGE = `
import ctypes, os, sys
libc = ctypes.CDLL(None)
folder, link, leads = sys.argv[1:4]
one, other = folder.encode(), link.encode()
def again():
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    if not os.path.lexists(folder):
        if os.path.isdir(link) and not os.path.islink(link): os.rename(link, folder)
        else: os.mkdir(folder)
    if not os.path.lexists(link): os.symlink(leads, link)
    if not os.path.islink(folder):
        for name in os.listdir(leads): open(folder + "/" + name, "w").close()
print("begun", flush=True)
while True:
    if libc.renameat2(-100, one, -100, other, 2) != 0:
        try: again()
        except OSError: pass
`;

/**
 * Calls `use` while `folder` and `link` are exchanged; what was deleted of them comes again.
 * @param leads where the link leads; the folder has files of the same names
 */
export async function whileExchanging(
  { folder, link, leads }: { folder: string; link: string; leads: string },
  use: () => Promise<void>,
): Promise<void> {
  const child: ChildProcess = spawn("python3", ["-c", EXCHANGE, folder, link, leads], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  try {
    await once(child.stdout as NodeJS.ReadableStream, "data");
    await use();
  } finally {
    child.kill("SIGKILL");
    await ended;
  }
}
