/** Files that are written to through shared memory have no new time stamp: their contents move all the same. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking } from "../support/moved-program.ts";
import { withPythonShell } from "../support/python-shell.ts";
import { modes } from "../support/thorough.ts";

/** A thread counts in the last page of each file; whoever sees the count go back notes it. */
const counting = `
back = []
maps = {}
for path in ("/tmp/mapped", "/dev/shm/mapped"):
    file = open(path, "w+b")
    file.truncate(1 << 20)
    maps[path] = mmap.mmap(file.fileno(), 1 << 20)
def count():
    n = 0
    while True:
        n += 1
        for path, mapped in maps.items():
            found = int.from_bytes(mapped[1 << 19:(1 << 19) + 8], "little")
            if found != n - 1: back.append((path, n, found))
            mapped[1 << 19:(1 << 19) + 8] = n.to_bytes(8, "little")
        time.sleep(0.001)
threading.Thread(target=count, daemon=True).start()
`;

for (const downstream of modes("takeover"))
  test(`what was written to mapped files is there after each move (${downstream})`, {
    skip: lacking(),
  }, async () => {
    await withPythonShell({ downstream }, async (program, run) => {
      assert.equal(await run(`exec(${JSON.stringify(counting)}, scope)`), "None");
      for (const to of ["b", "a"]) {
        await program.move(to);
        assert.equal(await run("back"), "[]", "the count went back");
        for (const path of ["/tmp/mapped", "/dev/shm/mapped"])
          assert.equal(
            await run(
              `(lambda low: low <= int.from_bytes(open("${path}", "rb").read()[1 << 19:(1 << 19) + 8], "little"))(int.from_bytes(maps["${path}"][1 << 19:(1 << 19) + 8], "little"))`,
            ),
            "True",
            "the file and the mapping are one",
          );
      }
    });
  });
