/** What the application writes to its standard output and error goes on in the next node's log, without a gap or a repeat. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { lacking, until, withProgram } from "../support/moved-program.ts";
import { modes } from "../support/thorough.ts";

const python = "/usr/bin/python3";
const skip = lacking("python3");
const port = 8080;

/**
 * Writes numbered lines to both outputs, in bursts larger than a pipe, until it is told to stop; answers with how
 * many it wrote. A child does the same with output it inherited.
 */
const writer = `
import os, socket, sys, threading, time
stop = threading.Event()
counts = {}
def work(name, fd, burst):
    n = 0
    while not stop.is_set():
        # what is written at once stays together in a pipe up to 4096 bytes
        for _ in range(burst if n % 7 == 0 else 1):
            os.write(fd, "".join("%s %d\\n" % (name, n + i + 1) for i in range(200)).encode())
            n += 200
        time.sleep(0.001)
    counts[name] = n
pid = os.fork()
if pid == 0:
    import signal
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    work("child", 1, 1)
    os.write(1, b"child-ends %d\\n" % counts["child"])
    os._exit(0)
threads = [threading.Thread(target=work, args=args) for args in (("out", 1, 100), ("err", 2, 10))]
for thread in threads: thread.start()
server = socket.create_server(("127.0.0.1", 9000))
while True:
    client = server.accept()[0]
    if client.recv(10) == b"stop\\n":
        stop.set()
        for thread in threads: thread.join()
        os.kill(pid, 15)
        os.waitpid(pid, 0)
        client.sendall(("%d %d\\n" % (counts["out"], counts["err"])).encode())
    client.close()
`;

for (const downstream of modes("forward")) {
  test(`logs of both outputs are whole over two moves (${downstream})`, { skip }, async () => {
    const workload = {
      container: { command: [python, "-c", writer], rootfs: "host" },
      ports: [{ listen: port, upstream: "127.0.0.1:9000" }],
    };
    await withProgram({ downstream, workload }, async (program) => {
      await program.move("b");
      await until("it writes on b", () => program.log("b").length > 200_000);
      const first = program.log("a").length;
      await program.move("a");
      await until("it writes on a again", () => program.log("a").length > first + 200_000);
      const socket = await program.connect(port);
      let answer = "";
      socket.setEncoding("utf8").on("data", (text: string) => (answer += text));
      socket.write("stop\n");
      await until("it has stopped", () => answer.endsWith("\n"));
      socket.destroy();
      await until("the last line is in the log", () => /^child-ends \d+$/m.test(program.log("a")));
      // the log of a has two parts, and what b wrote belongs between them
      const whole = `${program.log("a").slice(0, first)}${program.log("b")}${program.log("a").slice(first)}`;
      const numbers: Record<string, number[]> = { out: [], err: [], child: [] };
      const strange: string[] = [];
      for (const line of whole.split("\n")) {
        const [, name = "", number] = /^(out|err|child) (\d+)$/.exec(line) ?? [];
        if (number === undefined) strange.push(line);
        else numbers[name]?.push(Number(number));
      }
      const [out, err] = answer.trim().split(" ").map(Number);
      const child = Number(/^child-ends (\d+)$/m.exec(whole)?.[1]);
      assert.deepEqual(
        strange.filter((line) => line !== "" && !line.startsWith("child-ends")),
        [],
      );
      for (const [name, count] of Object.entries({ out, err, child })) {
        assert.equal(numbers[name]?.length, count, `lines of ${name}`);
        assert.ok(
          numbers[name]?.every((number, index) => number === index + 1),
          `${name} is 1, 2, 3, …`,
        );
      }
    });
  });
}
