/** An interactive bash in a pseudo terminal, with jobs that run and jobs that are stopped: nothing in it may notice a move. */
import assert from "node:assert/strict";
import type { Dialogue } from "./dialogue.ts";
import type { Stage } from "./stage.ts";

const INTERRUPT = "\x03";
const SUSPEND = "\x1a";
const END = "\x04";

/**
 * Opens two terminals: in one something is asked all the time, the other is at rest while it moves, and says nothing.
 * @param open a new terminal with an interactive bash in it
 * @returns when both have ended
 */
export async function useTerminals(stage: Stage, open: () => Promise<Dialogue>): Promise<void> {
  const busy = await quiet(await open());
  const still = await quiet(await open());
  still.say("word=kept; list=many; twice() { echo $1$1; }; cd /tmp; umask 027; stty rows 40 cols 100\n");
  still.say("sleep 10001 &\n");
  assert.match(await still.line(), /^\[1\] \d+$/);
  // what it prints says that the terminal is its own; a child of vfork(2) that is stopped would keep its parent from stopping
  assert.equal(await still.ask("sh -c 'echo first; exec sleep 10002'\n"), "first");
  still.say(SUSPEND);
  assert.match((await still.until(/Stopped/)).at(-1) ?? "", /^\[2\]\+ +Stopped /);
  still.say("sleep 10003 | sleep 10004 &\n");
  assert.match(await still.line(), /^\[3\] \d+$/);
  const look = async (): Promise<string[]> => {
    still.say(
      "jobs -l; echo $$ $word $list $(twice a) $PWD $(umask) $(stty size) $(ps -o stat= -p $(jobs -p %2)); echo end\n",
    );
    return still.until("end");
  };
  const before = await look();
  assert.ok(before.length >= 5, before.join("; "));

  stage.client("terminal", async ({ beat, over, pace }) => {
    busy.say("n=0\n");
    for (let n = 1; !over(); n++) {
      assert.equal(await busy.ask("echo $((++n)) $(echo $n)\n"), `${n} ${n}`);
      beat();
      await pace();
    }
  });
  await stage.moves(async () => {
    assert.deepEqual(still.unread, [], "the terminal at rest says nothing");
    assert.deepEqual(await look(), before, "jobs, variables and the terminal's size");
  });
  await stage.finish();
  assert.match(await still.ask("fg %2\n"), /sleep 10002/);
  still.say(`${INTERRUPT}echo $?; kill %1 %3; wait; echo end\n`);
  const last = await still.until("end");
  assert.ok(last.includes("130"), last.join("; "));
  for (const terminal of [busy, still]) {
    terminal.say(END);
    await terminal.ended;
  }
}

/** No prompt and no echo: what is read is what was printed. */
async function quiet(terminal: Dialogue): Promise<Dialogue> {
  terminal.say("PS1=; PS2=; stty -echo; echo rea''dy\n");
  await terminal.until(/ready$/);
  return terminal;
}
