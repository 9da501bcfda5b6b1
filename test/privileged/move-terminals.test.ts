/** What waits in terminals when the application is moved: typed and not read, written and not read, stopped, ended. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { test } from "node:test";
import { lacking } from "../support/moved-program.ts";
import { faultsFile, type Run, withPythonShell } from "../support/python-shell.ts";

const options = { skip: lacking(), timeout: 120_000 };

test(
  "what a terminal has written and nobody has read arrives as it was written, in any setting",
  options,
  async () => {
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
  },
);

const READ_ALL = `
import termios, tty
def all_of(fd):
    got = b""
    while select.select([fd], [], [], 0)[0]:
        part = os.read(fd, 65536)
        if part == b"": return got + b"<end>"
        got += part
    return got
def gone(fd):
    try: return all_of(fd)
    except OSError as error: return error.errno
`;

test(
  "more than a reader takes at once waits in a terminal, by packets too, and all of it arrives",
  options,
  async () => {
    await withPythonShell({}, async (program, run) => {
      await run(`exec(${JSON.stringify(READ_ALL)}, scope)`);
      for (const name of ["plain", "packets"]) {
        await run(`${name}, ${name}_end = os.openpty(); os.set_blocking(${name}_end, False)`);
        if (name === "packets")
          await run(`fcntl.ioctl(packets, termios.TIOCPKT, struct.pack("i", 1)) and None`);
      }
      const lines = 'b"".join(b"%06d\\n" % number for number in range(900))';
      const sent = Number(await run(`os.write(plain_end, ${lines})`));
      assert.equal(await run(`os.write(packets_end, ${lines})`), String(sent));
      assert.ok(sent > 4096, `${sent} bytes`);
      await program.move("b");
      const expected = `(${lines})[:${sent}].replace(b"\\n", b"\\r\\n")`;
      assert.equal(await run(`all_of(plain) == ${expected}`), "True");
      assert.equal(await run(`all_of(packets).replace(b"\\x00", b"") == ${expected}`), "True");
    });
  },
);

/** What is typed into five terminals, and how two more end. */
async function fillTerminals(run: Run): Promise<void> {
  await run(`exec(${JSON.stringify(READ_ALL)}, scope)`);
  for (const name of ["lines", "raw", "flow", "call", "ended"])
    await run(`${name}, ${name}_end = os.openpty()`);
  // "|" ends a line there, too
  await run(
    "how = termios.tcgetattr(lines_end); how[6][termios.VEOL] = b'|'; termios.tcsetattr(lines_end, termios.TCSANOW, how)",
  );
  await run("os.write(lines, b'first\\nsecond|third\\x04\\x04unfini')");
  await run("tty.setraw(raw_end); os.write(raw, b'\\x03\\x13a\\nb\\x04\\xff\\x00')");
  await run("os.write(flow, b'\\x13')");
  await run("termios.tcflow(call_end, termios.TCOOFF)");
  await run("os.write(ended_end, b'last words'); os.close(ended_end)");
}

/** Reads all of it. What was typed is echoed once. */
async function assertTerminals(run: Run): Promise<void> {
  await run("os.write(lines, b'shed\\n')");
  const read: string[] = [];
  for (let turn = 0; turn < 5; turn++) read.push(await run("os.read(lines_end, 100)"));
  assert.deepEqual(read, ["b'first\\n'", "b'second|'", "b'third'", "b''", "b'unfinished\\n'"]);
  assert.equal(await run("select.select([lines_end], [], [], 0)[0]"), "[]");
  assert.equal(await run("all_of(lines)"), String.raw`b'first\r\nsecond|thirdunfinished\r\n'`);
  assert.equal(await run("all_of(raw_end)"), String.raw`b'\x03\x13a\nb\x04\xff\x00'`);
  for (const [name, wrong, right] of [
    ["flow", "termios.tcflow(flow_end, termios.TCOON)", "os.write(flow, b'\\x11')"],
    ["call", "os.write(call, b'\\x11')", "termios.tcflow(call_end, termios.TCOON)"],
  ] as const) {
    const ready = `select.select([], [${name}_end], [], 0)[1] == [${name}_end]`;
    assert.equal(await run(ready), "False", name);
    await run(wrong);
    assert.equal(await run(`time.sleep(0.1) or ${ready}`), "False", `${name}: ${wrong}`);
    await run(right);
    assert.equal(await run(`[select.select([], [${name}_end], [], 5), ${ready}][1]`), "True", name);
  }
  assert.deepEqual(
    [await run("os.read(ended, 100)"), await run("gone(ended)")],
    ["b'last words'", "5"],
    "a master reads what is left, and then EIO",
  );
}

test(
  "what was typed and not read, what is stopped and what has ended arrives, and stays where a move rolls back",
  options,
  async (t) => {
    const faults = faultsFile(t);
    writeFileSync(faults, "");
    await withPythonShell({ faults: { a: `file:${faults}` } }, async (program, run) => {
      await fillTerminals(run);
      // while it stands still, and when CRIU has let go of it: it has run
      for (const point of ["source:restore", "source:watches"]) {
        writeFileSync(faults, `fail@${point}`);
        const move = await program.tryMove("b");
        assert.ok(!("error" in move));
        assert.equal(move.outcome, "rolled-back");
      }
      writeFileSync(faults, "");
      await program.move("b");
      await assertTerminals(run);
      await fillTerminals(run);
      await program.move("a");
      await assertTerminals(run);
    });
  },
);

test(
  "more than a terminal takes at once is put back, and the move says why it rolls back",
  options,
  async () => {
    await withPythonShell({}, async (program, run) => {
      await run(`exec(${JSON.stringify(READ_ALL)}, scope)`);
      await run("m, s = os.openpty(); tty.setraw(s); os.set_blocking(m, False)");
      const sent = Number(await run("os.write(m, bytes(range(256)) * 24)"));
      assert.ok(sent > 4096, `${sent} bytes`);
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.equal(move.outcome, "rolled-back");
      assert.match(move.reason ?? "", /more than 4095 bytes were typed into a terminal and not read/);
      assert.equal(await run(`all_of(s) == (bytes(range(256)) * 24)[:${sent}]`), "True");
      await program.move("b");
    });
  },
);
