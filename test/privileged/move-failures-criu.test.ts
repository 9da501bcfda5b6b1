/** CRIU cannot dump, or cannot restore: nobody notices but the one who asked for the move. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { buildSpec, INSIDE_CRIU, INSIDE_RUN } from "#control/runtime/runc/spec.ts";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import type { MoveStage } from "#test/support/move-stage.ts";
import { staged } from "#test/support/staged.ts";

const MEMORY = "the memory is cut short";
const PID_TAKEN = "a process of the standby has the application's PID";
const ENOSYS = 38;

describe("CRIU cannot dump", { timeout: 600_000 }, () => {
  const bundle = mkdtempSync(join(tmpdir(), "hf-bundle-"));
  writeBundle(bundle);
  after(() => rmSync(bundle, { recursive: true, force: true }));
  const on = staged({ downstream: "takeover", workload: { bundle } });

  it(
    "an io_uring descriptor that is there before the move: preflight names it",
    on(async (stage) => {
      const { owner } = stage;
      await toggleRing(stage, true);
      const { end, reason, phases } = await stage.migrate();
      assert.equal(end, "rolled-back", reason);
      assert.match(
        reason,
        /^cannot be moved: process \d+ has descriptor \d+ of a kind CRIU cannot dump.*io_uring.*seccomp/,
      );
      assert.ok(!phases.includes("hold"), "no client was held");
      await toggleRing(stage, false);
      await stage.assertWell(owner);
    }),
  );

  it(
    "one that is opened after the preflight: CRIU's reason, and the sessions go on",
    on(async (stage) => {
      const { owner } = stage;
      const app = stage.appPid();
      const seen = `[ -n "$(find /proc/${app}/fd -lname '*io_uring*')" ]`;
      stage.fault(`exec@source:hold=kill -USR2 ${app}\nuntil ${seen}\ndo sleep 0.01\ndone`);
      const { end, reason } = await stage.migrate();
      assert.equal(end, "rolled-back", reason);
      assert.match(reason, /^CRIU cannot dump the application: .*/);
      await stage.assertStays(owner);
      await toggleRing(stage, false);
      await stage.assertWell(owner);
    }),
  );
});

for (const downstream of ["takeover", "forward"] as const) {
  describe(`CRIU cannot restore, ${downstream}`, { timeout: 600_000 }, () => {
    const on = staged({ downstream });
    const damages: Record<string, (stage: MoveStage) => string> = {
      [PID_TAKEN]: (stage) => {
        const pid = `$(sed -n 's/^NSpid:.*\\t//p' /proc/${stage.appPid()}/status)`;
        const taker = `"echo $((${pid} - 1)) > /proc/sys/kernel/ns_last_pid\nsleep 60 &"`;
        return `nsenter -t $INIT -p sh -c ${taker} </dev/null >/dev/null 2>&1`;
      },
      "an image is damaged": () => "printf xxxxxxxxxxxx | dd of=$RUN/images/inventory.img conv=notrunc",
      "an image is cut short": () =>
        "truncate -s 100 $RUN/images/$(cd $RUN/images; ls | grep ^mm-)".replace(";", " &&"),
      [MEMORY]: () => "truncate -s 4096 $RUN/images/pages-1.img",
    };
    for (const [what, damage] of Object.entries(damages)) {
      if (downstream === "forward" && what !== PID_TAKEN) continue; // the same in both but for the links
      it(
        what,
        on(async (stage) => {
          const { owner, other } = stage;
          // memory comes last
          const step = what === MEMORY ? "memory" : "restore";
          stage.fault(`exec@target:${step}=${stage.enter(other)}\n${damage(stage)}`);
          const { end, reason } = await stage.migrate();
          assert.equal(end, "rolled-back", stage.logs());
          assert.match(reason, /^(CRIU cannot restore the application|memory image refused): ./);
          await stage.assertWell(owner);
        }),
      );
    }
  });
}

/** Lets the application open its ring, or close it, and waits until it has. */
async function toggleRing(stage: MoveStage, open: boolean): Promise<void> {
  const pid = stage.appPid();
  process.kill(pid, "SIGUSR2");
  const isOpen = (): boolean =>
    readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`).includes("io_uring");
      } catch {
        return false;
      }
    });
  await stage.until(() => isOpen() === open);
}

/** What Holdfast would run, but with a profile that lets small rings through. */
function writeBundle(folder: string): void {
  const command = [nodeBinary, "--import", join(projectRoot, "test/apps/io-uring/preload.js"), "server.js"];
  const cwd = join(projectRoot, "test/apps/chat");
  const spec = buildSpec({
    container: {
      command,
      cwd,
      env: { PORT: "9000" },
      mounts: [],
      network: null,
      capabilities: { add: [], drop: [] },
    },
    rootfs: "/",
    runDir: "/",
    criuDir: "/",
    hostname: "bundle",
    cgroupsPath: "/bundle",
    isHostView: true,
    secrets: [],
  });
  spec.process.args = command;
  spec.mounts = (spec.mounts ?? []).filter(
    ({ destination }) => ![INSIDE_RUN, INSIDE_CRIU].includes(destination),
  );
  const notSmall = [{ index: 0, value: 1, op: "SCMP_CMP_NE" }];
  const refuse = { action: "SCMP_ACT_ERRNO", errnoRet: ENOSYS };
  spec.linux = {
    ...spec.linux,
    seccomp: {
      defaultAction: "SCMP_ACT_ALLOW",
      architectures: ["SCMP_ARCH_X86_64"],
      syscalls: [{ names: ["io_uring_setup"], args: notSmall, ...refuse }],
    },
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(spec));
}
