/** memcached, spoken to in its text protocol (doc/protocol.txt of memcached). */
import assert from "node:assert/strict";
import type { Dialogue } from "../dialogue.ts";
import { type Program, upstreamPort, versionFrom } from "../program.ts";

const clients = 4;
const items = 2_000;

export const memcached: Program = {
  name: "memcached",
  title: "memcached",
  needs: ["memcached"],
  version: () => versionFrom(["memcached", "--version"]),
  command: ["memcached", "-u", "root", "-l", "127.0.0.1", "-p", upstreamPort, "-t", "4"],
  port: 11_211,
  keeps: "items, counters, CAS tokens, connections",
  async use(stage) {
    const dial = (): Promise<Dialogue> => stage.dial(memcached.port);
    const watcher = await dial();
    for (let i = 0; i < items; i++)
      watcher.say(`set item${i} ${i} 0 ${textOf(i).length}\r\n${textOf(i)}\r\n`);
    for (let i = 0; i < items; i++) assert.equal(await watcher.line(), "STORED");
    assert.equal(await watcher.ask("set guarded 0 3600 1\r\na\r\n"), "STORED");
    const [head = ""] = await valueLines(watcher, "gets guarded\r\n");
    const token = head.split(" ").at(-1);

    const counts = new Map<number, number>();
    for (let n = 0; n < clients; n++) {
      const client = await dial();
      assert.equal(await client.ask(`set counter${n} 0 0 1\r\n0\r\n`), "STORED");
      stage.client(`counter ${n}`, async ({ beat, over, pace }) => {
        let expected = 0;
        while (!over()) {
          const burst = 20;
          client.say(`incr counter${n} 1\r\n`.repeat(burst));
          for (let i = 0; i < burst; i++) assert.equal(await client.line(), String(++expected));
          counts.set(n, expected);
          beat();
          await pace();
        }
      });
    }
    await stage.moves();
    await stage.finish();
    for (let i = 0; i < items; i++) {
      const [line, value] = await valueLines(watcher, `get item${i}\r\n`);
      assert.equal(line, `VALUE item${i} ${i} ${textOf(i).length}`);
      assert.equal(value, textOf(i));
    }
    for (let n = 0; n < clients; n++)
      assert.equal((await valueLines(watcher, `get counter${n}\r\n`))[1], String(counts.get(n)));
    assert.equal(
      await watcher.ask(`cas guarded 0 0 1 ${token}\r\nb\r\n`),
      "STORED",
      "the token is still good",
    );
    assert.equal(await watcher.ask(`cas guarded 0 0 1 ${token}\r\nc\r\n`), "EXISTS");
  },
};

function textOf(item: number): string {
  return `${item}:`.repeat(40);
}

async function valueLines(dialogue: Dialogue, command: string): Promise<string[]> {
  dialogue.say(command);
  return dialogue.until("END");
}
