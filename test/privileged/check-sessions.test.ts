/** What `check` finds of an application's sessions. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking } from "../support/moved-program.ts";
import { withPythonShell } from "../support/python-shell.ts";

test(
  "connections are waited for until the application accepts them, longer than clients would be held; if it never does, it stays",
  {
    skip: lacking("python3"),
  },
  () =>
    withPythonShell({}, async (program, run) => {
      const say = async (line: string): Promise<void> => assert.equal(await run(line), "None");
      const connect = `waiting = socket.create_connection(("127.0.0.1", 9000))`;
      await say(connect);
      await say(`server = sys.modules["__main__"].server`);
      await say(`threading.Timer(1.5, lambda: scope.update(taken=server.accept()[0])).start()`);
      await program.move("b");
      assert.equal(await run(`waiting.sendall(b"there") or taken.recv(10)`), "b'there'");

      await say(connect);
      const refused = await program.tryMove("a");
      assert.match(JSON.stringify(refused), /1 connections wait for the application to accept them/);
      assert.equal(program.at, "b");
      assert.equal(await run(`1 + 1`), "2");
    }),
);
