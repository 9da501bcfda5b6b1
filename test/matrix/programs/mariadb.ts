/** MariaDB with its own client: transfers between accounts, and everything a connection can keep open while it moves. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Dialogue } from "../dialogue.ts";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";

const data = "/tmp/data";
const tellers = 3;
const accounts = 100;
const balance = 1000;

export const mariadb: Program = {
  name: "mariadb",
  title: "MariaDB",
  needs: ["mariadbd", "mariadb", "mariadb-install-db"],
  version: () => versionFrom(["mariadbd", "--no-defaults", "--version"]),
  prepare(folder) {
    const target = join(folder, "data");
    mkdirSync(target, { mode: 0o700 });
    const flags = [
      "--no-defaults",
      "--user=root",
      "--auth-root-authentication-method=normal",
      "--skip-test-db",
    ];
    execFileSync("mariadb-install-db", [...flags, `--datadir=${target}`], { stdio: "pipe" });
  },
  command: [
    "/bin/sh",
    "-c",
    `cp -a ${inside}/data ${data} && exec mariadbd --no-defaults --user=root --datadir=${data} --bind-address=127.0.0.1 --port=${upstreamPort} --socket=/tmp/mariadb.sock`,
  ],
  port: 3306,
  keeps:
    "transfers of 3 clients; an open transaction, user variables, locks, temporary tables, prepared statements",
  async use(stage) {
    const client = (database = "bank"): Dialogue =>
      stage.talk([
        ...["mariadb", "--no-defaults", "-h", stage.address, "-P", String(mariadb.port), "-u", "root"],
        ...["--batch", "--skip-column-names", "--unbuffered", database],
      ]);
    const plain = client("mysql");
    await tell(plain, "create database bank; use bank;");
    await tell(plain, "create table account (id int primary key, balance int not null) engine=innodb;");
    await tell(
      plain,
      "create table transfer (id int primary key auto_increment, teller int, n int) engine=innodb;",
    );
    await tell(plain, `insert into account select seq, ${balance} from seq_1_to_${accounts};`);

    const session = client();
    await tell(
      session,
      "set @kept = 'kept', sql_mode = 'ANSI_QUOTES'; create temporary table mine select seq from seq_1_to_2000;",
    );
    await tell(session, "prepare total from 'select sum(seq) + ? from mine'; set @five = 5;");
    assert.equal(await session.ask("select get_lock('guard', 0);\n"), "1");
    const connection = await session.ask("select connection_id();\n");
    const open = client();
    await tell(
      open,
      "begin; insert into transfer (teller, n) values (0, 0); savepoint here; delete from account where id = 1;",
    );

    const counts = Array.from({ length: tellers }, () => 0);
    for (let teller = 1; teller <= tellers; teller++) {
      const own = client();
      stage.client(`teller ${teller}`, async ({ beat, over, pace }) => {
        for (let n = 1; !over(); n++) {
          // each has accounts of its own, so that none waits for another
          const from = 1 + teller * 20 + (n % 10);
          own.say(
            `begin; update account set balance = balance - 1 where id = ${from}; update account set balance = balance + 1 where id = ${from + 10}; insert into transfer (teller, n) values (${teller}, ${n}); commit; select ${n}, last_insert_id() > 0;\n`,
          );
          assert.equal(await own.line(), `${n}\t1`);
          counts[teller - 1] = n;
          beat();
          await pace();
        }
        assert.equal(own.complaints, "");
      });
    }
    await stage.moves(async () => {
      assert.equal(await session.ask("execute total using @five;\n"), String((2000 * 2001) / 2 + 5));
      assert.equal(await session.ask("select concat(@kept, @@sql_mode);\n"), "keptANSI_QUOTES");
      assert.equal(await session.ask("select connection_id();\n"), connection, "the same connection");
      assert.equal(await plain.ask("select is_used_lock('guard');\n"), connection, "the lock is still held");
      assert.equal(
        await plain.ask("select count(*) from transfer where teller = 0;\n"),
        "0",
        "not committed yet",
      );
    });
    await stage.finish();
    await tell(open, "rollback to here; commit;");
    assert.equal(await session.ask("select release_lock('guard');\n"), "1");
    assert.equal(
      await plain.ask("select sum(balance), count(*) from account;\n"),
      `${accounts * balance}\t${accounts}`,
    );
    assert.equal(await plain.ask("select count(*) from transfer where teller = 0;\n"), "1");
    for (const [index, count] of counts.entries())
      assert.equal(
        await plain.ask(`select count(*), max(n) from transfer where teller = ${index + 1};\n`),
        `${count}\t${count}`,
        "each transfer that was answered is there, once",
      );
  },
};

async function tell(dialogue: Dialogue, command: string): Promise<void> {
  assert.equal(await dialogue.ask(`${command}\nselect 'done';\n`), "done", dialogue.complaints);
}
