/** What terminals have written, and nobody has read, when the application is moved. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking } from "../support/moved-program.ts";
import { withPythonShell } from "../support/python-shell.ts";

test("what a terminal has written and nobody has read arrives as it was written, in any setting", {
  skip: lacking(),
  timeout: 120_000,
}, async () => {
  await withPythonShell({}, async (program, run) => {
    const written = "one\\ntwo\\r\\nthree";
    await run("import termios, tty");
    const names = ["plain", "raw", "packets"];
    for (const name of names) {
      await run(`${name}, ${name}_end = os.openpty()`);
      if (name !== "plain") await run(`tty.setraw(${name}_end)`);
      if (name === "packets")
        await run(`fcntl.ioctl(packets, termios.TIOCPKT, struct.pack("i", 1)) and None`);
      await run(`os.write(${name}_end, b"${written}")`);
    }
    for (const to of ["b", "a"]) {
      await program.move(to);
      assert.equal(await run("os.read(plain, 100)"), String.raw`b'one\r\ntwo\r\r\nthree'`, to);
      assert.equal(await run("os.read(raw, 100)"), String.raw`b'one\ntwo\r\nthree'`, to);
      assert.equal(await run("os.read(packets, 100)"), String.raw`b'\x00one\ntwo\r\nthree'`, to);
      for (const name of names) await run(`os.write(${name}_end, b"${written}")`);
    }
  });
});
