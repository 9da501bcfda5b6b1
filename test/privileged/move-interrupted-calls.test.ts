/** A system call that waits goes on waiting after a move: it does not fail with EINTR. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking, until } from "../support/moved-program.ts";
import { withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

const skip =
  process.arch === "x64" ? lacking("python3") : "the call's first argument is lost on this processor";

/** Threads that call the kernel themselves: Python's own functions would call again. What each was answered is in `told`. */
const waiters = `
told = {}
r1, w1 = os.pipe(); r2, w2 = os.pipe()
class Timespec(ctypes.Structure): _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
word = ctypes.c_int(7)
late = Timespec(int(time.monotonic()) + 3600, 0)
def wait(name, call):
    def work():
        ctypes.set_errno(0)
        told[name] = (call(), ctypes.get_errno())
    threading.Thread(target=work, daemon=True, name=name).start()
polled = {name: ctypes.create_string_buffer(struct.pack("ihh", fd, 1, 0), 8) for name, fd in (("poll", r1), ("poll with a time-out", r2))}
wait("poll", lambda: libc.poll(polled["poll"], 1, -1))
wait("poll with a time-out", lambda: libc.poll(polled["poll with a time-out"], 1, 3600000))
# FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, until a point in time
wait("futex", lambda: libc.syscall(202, ctypes.byref(word), 9 | 128, 7, ctypes.byref(late), None, -1))
left = Timespec(3600, 0)
wait("sleep", lambda: libc.sleep(3600))
wait("a sleep that is not told what is left", lambda: libc.syscall(35, ctypes.byref(left), None))
brief = Timespec(15, 0)
wait("a sleep that ends", lambda: libc.nanosleep(ctypes.byref(brief), ctypes.byref(brief)))
`;

for (const downstream of modes("takeover")) {
  test(`threads in poll, in futex and asleep wait on, ${downstream}`, { skip }, async () => {
    await withPythonShell({ downstream }, async (program, run) => {
      assert.equal(await run(`exec(${JSON.stringify(waiters)}, scope)`), "None");
      const calls = `sorted(open("/proc/self/task/%s/syscall" % t).read().split()[0] for t in os.listdir("/proc/self/task"))`;
      const waiting = async (): Promise<boolean> => {
        const all = await run(calls);
        return (
          all.split("'7'").length === 3 &&
          all.includes("'202'") &&
          all.includes("'35'") &&
          all.includes("'230'")
        );
      };
      await until("all wait", waiting);
      await program.move("b");
      await until("all wait again", waiting);
      const brief = "told.pop('a sleep that ends', (0, 0))";
      assert.equal(await run(brief), "(0, 0)");
      assert.equal(await run("told"), "{}");
      await run(`os.write(w1, b"x"); os.write(w2, b"x")`);
      await run(`libc.syscall(202, ctypes.byref(word), 1 | 128, 1, None, None, 0)`);
      await until("all are answered", async () => (await run("len(told)")) === "4");
      assert.equal(await run(brief), "(0, 0)");
      assert.equal(
        await run("sorted(told.items())"),
        "[('futex', (0, 0)), ('poll', (1, 0)), ('poll with a time-out', (1, 0))]",
      );
    });
  });
}
