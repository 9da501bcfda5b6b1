/**
 * PostgreSQL as Debian builds it, with pgbench and psql: everything a connection can keep open while it moves.
 *
 * It refuses to run as root, and a node without CAP_SYS_RESOURCE cannot dump other users' processes (prlimit(2): CRIU reads
 * their limits). On such a node it runs as root and is told by uid_wrapper(1) that it does not; elsewhere as its own user.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chownSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Dialogue } from "../dialogue.ts";
import { inside, newestIn, type Program, upstreamPort, versionFrom } from "../program.ts";
import type { Stage } from "../stage.ts";

const binaries = join(newestIn("/usr/lib/postgresql") || "/nonexistent", "bin");
const data = "/tmp/data";
const CAP_SYS_RESOURCE = 24n;
const wrapper = ["x86_64", "aarch64"]
  .map((machine) => `/usr/lib/${machine}-linux-gnu/libuid_wrapper.so`)
  .find((file) => existsSync(file));
const clients = 4;
const scale = 4;

function idOf(flag: "-u" | "-g"): number {
  return Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
}

function hasSysResource(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "0";
  return ((BigInt(`0x${effective}`) >> CAP_SYS_RESOURCE) & 1n) === 1n;
}

/** The shell's words that become the server's, as its own user or as one who believes that it is another. */
function start(): string {
  const server = `${binaries}/postgres -D ${data} -h 127.0.0.1 -p ${upstreamPort} -k ''`;
  if (hasSysResource()) return `exec setpriv --reuid postgres --regid postgres --clear-groups ${server}`;
  const id = "$(id -u postgres)";
  return `exec env LD_PRELOAD=${wrapper} UID_WRAPPER=1 UID_WRAPPER_INITIAL_RUID=${id} UID_WRAPPER_INITIAL_EUID=${id} ${server}`;
}

export const postgresql: Program = {
  name: "postgresql",
  title: "PostgreSQL",
  needs: [
    `${binaries}/postgres`,
    `${binaries}/pgbench`,
    wrapper ?? "/usr/lib/libuid_wrapper.so",
    "psql",
    "setpriv",
  ],
  version: () => versionFrom([`${binaries}/postgres`, "--version"]),
  prepare(folder) {
    const [uid, gid] = [idOf("-u"), idOf("-g")];
    const target = join(folder, "data");
    mkdirSync(target, { mode: 0o700 });
    chownSync(target, uid, gid);
    const initdb = [
      `${binaries}/initdb`,
      "-D",
      target,
      "-A",
      "trust",
      "-U",
      "postgres",
      "-E",
      "UTF8",
      "--locale=C",
    ];
    const as = ["--reuid", String(uid), "--regid", String(gid), "--clear-groups", "--"];
    execFileSync("setpriv", [...as, ...initdb, "--no-sync"], { stdio: "pipe", cwd: "/" });
  },
  command: ["/bin/sh", "-c", `cp -a ${inside}/data ${data} && ${start()}`],
  port: 5432,
  keeps:
    "pgbench with 4 clients; an open transaction, a cursor half read, LISTEN, advisory locks, temporary tables, prepared statements",
  async use(stage) {
    const to = ["-h", stage.address, "-p", String(postgresql.port), "-U", "postgres"];
    const psql = (): Dialogue =>
      stage.talk(["psql", ...to, "-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"], { PGCONNECT_TIMEOUT: "20" });
    const filling = stage.talk([`${binaries}/pgbench`, "-i", "-q", "-s", String(scale), ...to, "postgres"]);
    assert.equal(await filling.ended, 0, filling.complaints);

    const plain = psql();
    await tell(plain, "create table ledger (id serial primary key, note text);");
    const open = await openTransaction(psql());
    const cursor = await halfReadCursor(psql());
    const listener = await listen(psql(), plain);
    const lock = psql();
    assert.equal(await lock.ask("select pg_advisory_lock(42) is not null;\n"), "t");
    const session = await sessionState(psql());

    const bench = stage.talk([
      `${binaries}/pgbench`,
      "-c",
      String(clients),
      "-j",
      "2",
      "-T",
      "100000",
      "-M",
      "prepared",
      ...to,
      "postgres",
    ]);
    const pulse = psql();
    stage.client("psql", async ({ beat, over, pace }) => {
      for (let n = 1; !over(); n++) {
        assert.equal(await pulse.ask(`select ${n};\n`), String(n));
        beat();
        await pace();
      }
    });
    const followBench = followHistory(stage, psql());
    await stage.moves(async (move) => {
      assert.equal(bench.over, null, `pgbench: ${bench.complaints}`);
      await cursor.fetch();
      await listener.check(move);
      await session.check();
      assert.equal(await plain.ask("select pg_try_advisory_lock(42);\n"), "f", "the lock is still held");
    });
    await open.commit(plain);
    await cursor.finish();
    assert.equal(await lock.ask("select pg_advisory_unlock(42);\n"), "t");
    assert.equal(await plain.ask("select pg_try_advisory_lock(42);\n"), "t");
    await stage.finish();
    assert.ok(followBench() > 0, "pgbench did something");
    await endBench(bench, plain);
  },
};

async function tell(dialogue: Dialogue, command: string): Promise<void> {
  assert.equal(await dialogue.ask(`${command}\nselect 'done';\n`), "done");
}

/** Written and not committed: after the moves only its own connection sees it, until it commits. */
async function openTransaction(dialogue: Dialogue): Promise<{ commit(other: Dialogue): Promise<void> }> {
  await tell(
    dialogue,
    "begin isolation level repeatable read; insert into ledger (note) values ('kept'); savepoint here;",
  );
  await tell(dialogue, "insert into ledger (note) values ('given up');");
  const id = await dialogue.ask("select txid_current();\n");
  return {
    async commit(other) {
      assert.equal(await other.ask("select count(*) from ledger;\n"), "0", "not committed yet");
      assert.equal(await dialogue.ask("select txid_current();\n"), id, "the same transaction");
      await tell(dialogue, "rollback to here; commit;");
      assert.equal(await other.ask("select string_agg(note, ',') from ledger;\n"), "kept");
    },
  };
}

/** A query half read: the rest of it is in the server's memory. */
async function halfReadCursor(
  dialogue: Dialogue,
): Promise<{ fetch(): Promise<void>; finish(): Promise<void> }> {
  const rows = 1000;
  const step = 10;
  let next = 1;
  const fetch = async (count = step): Promise<void> => {
    dialogue.say(`fetch ${count} from half;\n`);
    for (let i = 0; i < count; i++) assert.equal(await dialogue.line(), String(next++), "rows of the cursor");
  };
  await tell(dialogue, `begin; declare half cursor for select n from generate_series(1, ${rows}) n;`);
  await fetch(rows / 2);
  return {
    fetch,
    finish: async () => {
      await fetch(rows - next + 1);
      await tell(dialogue, "commit;");
    },
  };
}

/** psql says what it was notified of after it has run a command. */
async function listen(dialogue: Dialogue, other: Dialogue): Promise<{ check(move: number): Promise<void> }> {
  await tell(dialogue, "listen news;");
  return {
    async check(move) {
      await tell(other, `notify news, 'after move ${move}';`);
      let said = "";
      for (let tries = 0; said === "" && tries < 1000; tries++) {
        const line = await dialogue.ask("select 'heard';\n");
        if (line === "heard") continue;
        // of the command before this one
        said = line;
        assert.equal(await dialogue.line(), "heard");
      }
      assert.match(said, new RegExp(`"news" with payload "after move ${move}"`));
    },
  };
}

/** What lives in one connection only. */
async function sessionState(dialogue: Dialogue): Promise<{ check(): Promise<void> }> {
  await tell(
    dialogue,
    "create temporary table mine as select n, md5(n::text) m from generate_series(1, 2000) n;",
  );
  await tell(
    dialogue,
    "prepare sum(int) as select sum(n) + $1 from mine; set work_mem = '7MB'; set my.word = 'kept';",
  );
  const backend = await dialogue.ask("select pg_backend_pid();\n");
  return {
    async check() {
      assert.equal(await dialogue.ask("execute sum(5);\n"), String((2000 * 2001) / 2 + 5));
      assert.equal(
        await dialogue.ask("select current_setting('work_mem') || current_setting('my.word');\n"),
        "7MBkept",
      );
      assert.equal(await dialogue.ask("select count(*) from mine where m = md5(n::text);\n"), "2000");
      assert.equal(await dialogue.ask("select pg_backend_pid();\n"), backend, "the same process");
    },
  };
}

/** pgbench goes on: its transactions arrive between any two moves. */
function followHistory(stage: Stage, dialogue: Dialogue): () => number {
  let last = -1;
  stage.client("pgbench", async ({ beat, over, pace }) => {
    while (!over()) {
      const rows = Number(await dialogue.ask("select count(*) from pgbench_history;\n"));
      assert.ok(rows >= last, "transactions that were committed are there");
      if (rows > last) beat();
      last = rows;
      await pace();
    }
  });
  return () => last;
}

/** SIGALRM is what pgbench ends itself with when its time is over: it reports, and its counts are the tables'. */
async function endBench(bench: Dialogue, plain: Dialogue): Promise<void> {
  bench.signal("SIGALRM");
  assert.equal(await bench.ended, 0, bench.complaints);
  const report = bench.unread.join("\n");
  const processed = /number of transactions actually processed: (\d+)/.exec(report)?.[1];
  assert.match(report, /number of failed transactions: 0 /, report);
  assert.doesNotMatch(bench.complaints, /error|fatal|abort/i);
  const sums = await plain.ask(
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history), (select count(*) from pgbench_history);\n",
  );
  const [accounts, branches, tellers, history, rows] = sums.split("|");
  assert.deepEqual([branches, tellers, history], [accounts, accounts, accounts], "the balances agree");
  assert.equal(rows, processed, "each transaction that pgbench counted is there, once");
}
