import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { compareFingerprints as compare, describeDifferences } from "#control/audit/compare.ts";
import { descriptorInfo } from "#control/audit/fdinfo.ts";
import { type Facts, type Fingerprint, FORMAT, fingerprintSchema } from "#control/audit/fingerprint.ts";
import { type Difference, HARMLESS, harmlessRule, NOTHING_DONE } from "#control/audit/harmless.ts";
import { condensed, memoryFacts } from "#control/audit/memory-map.ts";
import { cgroupFacts, limitFacts, mountFacts, mountsOf, statusFacts } from "#control/audit/proc-text.ts";
import { optionValue, socketOption } from "#control/audit/socket-options.ts";

function fingerprint(subjects: Record<string, Facts>, monotonic = "1000"): Fingerprint {
  return { format: FORMAT, subjects, clocks: { monotonic, boottime: "1000", realtime: "1000" } };
}

const compareFingerprints = (...of: Parameters<typeof compare>): Difference[] => compare(...of).differences;

/** What is different when one fact of a subject changes. */
function differing(
  subject: string,
  name: string,
  before: string | null,
  after: string,
  other: Facts = {},
): string[] {
  return compareFingerprints(
    fingerprint({ [subject]: { ...other, ...(before === null ? {} : { [name]: before }) } }),
    fingerprint({ [subject]: { ...other, [name]: after } }),
  ).map((difference) => difference.name);
}

describe("the table of harmless differences", () => {
  it("has nothing that confines a process", () => {
    const confining = [
      "status Uid",
      "status Gid",
      "status Groups",
      "status Umask",
      "status CapInh",
      "status CapPrm",
      "status CapEff",
      "status CapBnd",
      "status CapAmb",
      "status NoNewPrivs",
      "status Seccomp",
      "status Seccomp_filters",
      "status Speculation_Store_Bypass",
      "status SpeculationIndirectBranch",
      "limit Max open files",
      "limit Max processes",
      "attr/current",
      "uid_map",
      "gid_map",
      "setgroups",
      "root",
      "namespace user",
      "namespace mnt",
      "namespace net",
      "namespace pid",
      "namespace ipc",
      "namespace uts",
      "namespace cgroup",
      "cgroup memory",
      "oom_score_adj",
      "coredump_filter",
      "personality",
    ];
    const two = fingerprint({});
    for (const name of confining)
      for (const subject of ["process 12", "thread 12/13"])
        assert.equal(
          harmlessRule({ subject, name, before: "1", after: "0" }, two, two),
          null,
          `${subject} ${name}`,
        );
  });

  it("has a reason for each rule", () => {
    for (const { reason, name } of HARMLESS) assert.ok(reason.length > 20, String(name));
  });

  it("lets a kernel count what it did, and nothing of what is set", () => {
    assert.deepEqual(differing("process 12", "status VmRSS", "100 kB", "90 kB"), []);
    assert.deepEqual(differing("process 12", "stat utime", "100", "0"), []);
    assert.deepEqual(differing("thread 12/13", "stat flags", "4194624", "1077936448"), []);
    // PR_MCE_KILL, PR_SET_IO_FLUSHER
    for (const asked of [0x80, 0x8000080, 0x100000])
      assert.deepEqual(differing("thread 12/13", "stat flags", `${4194624 | asked}`, "4194624"), [
        "stat flags",
      ]);
    assert.deepEqual(differing("process 12", "status VmLck", "1024 kB", "0 kB"), ["status VmLck"]);
    // Linear Address Masking (arch_prctl(2), ARCH_ENABLE_TAGGED_ADDR)
    assert.deepEqual(
      differing("process 12", "status untag_mask", "0x81ffffffffffffff", "0xffffffffffffffff"),
      ["status untag_mask"],
    );
    assert.deepEqual(differing("process 12", "status SigBlk", "200", "0"), ["status SigBlk"]);
    assert.deepEqual(differing("process 12", "a line of a later kernel", "1", "2"), [
      "a line of a later kernel",
    ]);
  });

  it("takes a line of status that only the newer kernel has for none where nothing was asked for, either way", () => {
    const told = (subject: string, name: string, before: Facts, after: Facts): string[] =>
      compareFingerprints(fingerprint({ [subject]: before }), fingerprint({ [subject]: after })).map(
        (difference) => `${name} ${difference.name}`,
      );
    const both = (name: string, value: string): string[] => [
      ...told("process 12", name, {}, { [`status ${name}`]: value }),
      ...told("thread 12/13", name, { [`status ${name}`]: value }, {}),
    ];
    for (const [name, value] of [
      ["untag_mask", "0xffffffffffffffff"],
      ["untag_mask", "0xffffffffffffff"],
      ["Kthread", "0"],
      ["x86_Thread_features", ""],
      ["x86_Thread_features_locked", ""],
    ] as const)
      assert.deepEqual(both(name, value), [], `${name} ${value}`);
    for (const [name, value] of [
      ["untag_mask", "0x81ffffffffffffff"],
      ["Kthread", "1"],
      ["x86_Thread_features", "shstk wrss"],
      ["x86_Thread_features_locked", "shstk"],
      ["Seccomp_filters", "0"],
      ["a line of a later kernel", "0"],
    ] as const)
      assert.deepEqual(both(name, value), [`${name} status ${name}`, `${name} status ${name}`]);
    assert.equal(
      differing("process 12", "status untag_mask", "0xffffffffffffff", "0xffffffffffffffff").length,
      1,
    );
    assert.equal(differing("process 12", "status x86_Thread_features", "shstk", "").length, 1);
  });

  it("takes a used-up watch of an epoll instance for one that is set anew, and no other", () => {
    const watch = (before: string, after: string): string[] => {
      const text = (events: string): string => `events: ${events} data: 7f9100000008`;
      return differing("descriptor 12/5", "watch of 8", text(before), text(after));
    };
    assert.deepEqual(watch("40000000", "40000018"), []);
    assert.deepEqual(watch("c0000000", "c0000018"), []);
    for (const [before, after] of [
      ["40000000", "40000019"],
      ["40000000", "18"],
      ["40000019", "40000018"],
      ["80000000", "80000018"],
      ["0", "18"],
    ] as const)
      assert.deepEqual(watch(before, after), ["watch of 8"], `${before} ${after}`);
    const other = ["events: 40000000 data: 1", "events: 40000018 data: 2"] as const;
    assert.deepEqual(differing("descriptor 12/5", "watch of 8", ...other), ["watch of 8"]);
  });

  it("compares a thread with itself, whatever its process has become", () => {
    const [blocked, none, state] = ["0000000000010000", "0000000000000000", "T (stopped)"];
    const before = fingerprint({
      "process 12": { "status SigBlk": none, "status State": state },
      "thread 12/13": {},
    });
    const after = (thread: Facts) =>
      fingerprint({
        "process 12": { "status SigBlk": blocked, "status State": state },
        "thread 12/13": thread,
      });
    assert.deepEqual(compareFingerprints(before, after({ "status SigBlk": none })), []);
    assert.deepEqual(
      compareFingerprints(before, after({ "status SigBlk": "0000000000000200" })).map(
        ({ subject, before, after }) => [subject, before, after],
      ),
      [["thread 12/13", none, "0000000000000200"]],
    );
  });

  it("takes no notice of who asked for a lock that belongs to the open file", () => {
    const of = (kind: string, before: string, after: string): string[] =>
      differing("descriptor 12/5", `lock ${kind} 0-EOF`, before, after);
    assert.deepEqual(of("FLOCK", "ADVISORY WRITE by 11", "ADVISORY WRITE by 12"), []);
    assert.equal(of("FLOCK", "ADVISORY WRITE by 11", "ADVISORY READ by 12").length, 1);
    assert.equal(of("POSIX", "ADVISORY WRITE by 11", "ADVISORY WRITE by 12").length, 1);
  });

  it("forgives the signals that a restored tree is stopped with, not those of the application", () => {
    assert.deepEqual(differing("process 12", "status SigPnd", "0000000000000000", "0000000000040000"), []);
    assert.deepEqual(differing("process 12", "status ShdPnd", "0000000000000000", "0000000000010000"), []);
    assert.deepEqual(differing("process 12", "status ShdPnd", "0000000000010000", "0000000000000000"), [
      "status ShdPnd",
    ]);
    assert.deepEqual(differing("process 12", "status ShdPnd", "0000000000000200", "0000000000000000"), [
      "status ShdPnd",
    ]);
  });

  it("forgives CRIU's names of files that have none, and nothing else of a file", () => {
    const of = (before: string, after: string): string[] =>
      differing("descriptor 12/5", "file", before, after);
    assert.deepEqual(of("/tmp/x (deleted)", "/tmp/x.cr.1.ghost (deleted)"), []);
    assert.deepEqual(of("/tmp/x (deleted)", "/tmp/x.cr_link (deleted)"), []);
    assert.deepEqual(of("/tmp/x (deleted)", "/tmp/y (deleted)"), ["file"]);
    assert.deepEqual(of("/tmp/x", "/tmp/x.cr_link"), ["file"]);
    assert.deepEqual(of("/tmp/x", "/tmp/x (deleted)"), ["file"]);
  });

  it("knows an open message queue by whatever path", () => {
    const queue = (file: string, mount: string): Fingerprint =>
      fingerprint({ "descriptor 12/5": { file, mount }, mounts: { "mount /dev/mqueue": "mqueue rw" } });
    const before = queue("/q", "of the kernel");
    assert.deepEqual(compareFingerprints(before, queue("/dev/mqueue/q", "/dev/mqueue")), []);
    assert.equal(compareFingerprints(before, queue("/dev/mqueue/other", "/dev/mqueue")).length, 2);
    assert.equal(compareFingerprints(before, queue("/tmp/q", "/tmp")).length, 2);
  });

  it("tells of a controlling terminal that a session's member loses, and does not let its leader lose it", () => {
    const of = (pid: string, tty: string): Fingerprint =>
      fingerprint({ "process 12": { "status NSsid": "12", "status NSpid": pid, "stat tty": tty } });
    const member = compare(of("13", "34816"), of("13", "0"));
    assert.deepEqual([member.differences, member.losses.length], [[], 1]);
    const leader = compare(of("12", "34816"), of("12", "0"));
    assert.deepEqual([leader.differences.length, leader.losses], [1, []]);
    assert.equal(compare(of("13", "34816"), of("13", "34817")).differences.length, 1, "another terminal");
  });

  it("forgives a zombie nothing", () => {
    assert.deepEqual(differing("process 12", "status State", "t (tracing stop)", "T (stopped)"), []);
    assert.deepEqual(differing("process 12", "status State", "Z (zombie)", "T (stopped)"), ["status State"]);
  });

  it("forgives what a connection has found out about its path, but not what a listener was given", () => {
    const of = (state: string): Facts => ({ state, socket: "domain 2, type 1, protocol 6" });
    assert.deepEqual(differing("descriptor 12/5", "TCP_MAXSEG", "32768", "524", of("ESTABLISHED")), []);
    assert.deepEqual(differing("descriptor 12/5", "TCP_MAXSEG", "1000", "524", of("LISTEN")), ["TCP_MAXSEG"]);
    assert.deepEqual(differing("descriptor 12/5", "IP_MULTICAST_TTL", "64", "1", of("ESTABLISHED")), []);
    assert.deepEqual(differing("descriptor 12/5", "IPV6_V6ONLY", null, "1", of("ESTABLISHED")), []);
    assert.deepEqual(differing("descriptor 12/5", "IPV6_V6ONLY", null, "1", of("LISTEN")), ["IPV6_V6ONLY"]);
    assert.deepEqual(
      differing("descriptor 12/5", "IP_MULTICAST_TTL", "64", "1", {
        socket: "domain 2, type 2, protocol 17",
      }),
      ["IP_MULTICAST_TTL"],
    );
  });
});

describe("comparing", () => {
  it("finds what is there only before or only after", () => {
    const before = fingerprint({ "descriptor 12/5": { file: "anon_inode:[eventfd]" } });
    const after = fingerprint({ "thread 12/13": { name: "worker" } });
    assert.deepEqual(
      compareFingerprints(before, after).map(({ subject, before, after }) => [subject, before, after]),
      [
        ["descriptor 12/5", "anon_inode:[eventfd]", null],
        ["thread 12/13", null, "worker"],
      ],
    );
  });

  it("does not compare what two versions call otherwise", () => {
    const other = { ...fingerprint({}), format: FORMAT + 1 };
    assert.deepEqual(
      compareFingerprints(fingerprint({}), other).map(({ name }) => name),
      ["format"],
    );
  });

  it("finds a clock that has gone back", () => {
    const [difference] = compareFingerprints(fingerprint({}, "2000"), fingerprint({}, "1999"));
    assert.equal(difference?.name, "CLOCK_MONOTONIC");
    assert.deepEqual(compareFingerprints(fingerprint({}, "2000"), fingerprint({}, "2001")), []);
  });

  it("tells in one line which process, what, before and after", () => {
    const before = fingerprint({
      "process 12": { name: "python3" },
      "descriptor 12/5": { file: "socket", TCP_USER_TIMEOUT: "5000" },
    });
    const after = fingerprint({ "process 12": { name: "python3" }, "descriptor 12/5": { file: "socket" } });
    assert.equal(
      describeDifferences(compareFingerprints(before, after), before),
      "process 12 (python3) descriptor 5 (socket): TCP_USER_TIMEOUT was 5000 and is not there",
    );
  });

  it("tells where two long values differ first, and of short ones all", () => {
    const told = (before: string, after: string): string =>
      describeDifferences([{ subject: "mounts", name: "mount /data", before, after }], fingerprint({}));
    const long = (address: string): string =>
      `nfs4 rw,${"x".repeat(500)},clientaddr=${address},local_lock=none`;
    const [, was = "", is = ""] =
      /^mounts: mount \/data was (.*) and is (.*)$/.exec(told(long("10.0.0.1"), long("10.0.0.2"))) ?? [];
    assert.match(was, /^…x+,clientaddr=10\.0\.0\.1,local_lock=none$/);
    assert.match(is, /^…x+,clientaddr=10\.0\.0\.2,local_lock=none$/);
    assert.ok(was.length <= 121 && is.length <= 121);
    assert.equal(told("ext4 rw", "xfs rw"), "mounts: mount /data was ext4 rw and is xfs rw");
    const [begins, ends] = ["a".repeat(300), `b${"a".repeat(300)}`];
    assert.equal(
      told(begins, ends),
      `mounts: mount /data was ${"a".repeat(120)}… and is b${"a".repeat(119)}…`,
    );
    assert.match(told(begins, `${begins}tail`), /was …a{40} and is …a{40}tail$/);
  });

  it("refuses what is not a fingerprint", () => {
    assert.ok(fingerprintSchema.safeParse(fingerprint({ "process 1": { a: "b" } })).success);
    assert.ok(!fingerprintSchema.safeParse({ ...fingerprint({}), subjects: { a: { b: 1 } } }).success);
    assert.ok(!fingerprintSchema.safeParse({ format: FORMAT }).success);
  });
});

describe("a connection inside the application", () => {
  const ends = (sends: number, reads: number, at = "127.0.0.1:5"): Fingerprint =>
    fingerprint({
      "descriptor 12/5": {
        "local address": "127.0.0.1:4",
        "peer address": at,
        "bytes to send": String(sends),
        "bytes to read": "0",
      },
      "descriptor 12/6": {
        "local address": "127.0.0.1:5",
        "peer address": "127.0.0.1:4",
        "bytes to send": "0",
        "bytes to read": String(reads),
      },
    });
  const names = (before: Fingerprint, after: Fingerprint): string[] =>
    compareFingerprints(before, after).map(({ subject, name }) => `${subject} ${name}`);

  it("brings what was on its way while it is restored", () => {
    assert.deepEqual(names(ends(17, 3), ends(0, 20)), []);
    assert.deepEqual(names(ends(17, 20), ends(0, 20)), [], "it had come, and was not acknowledged");
    assert.deepEqual(names(ends(17, 3), ends(10, 10)), []);
    assert.deepEqual(names(ends(17, 3), ends(12, 15)), [], "it has come, and is not acknowledged yet");
  });

  it("neither loses nor makes up anything", () => {
    assert.equal(names(ends(17, 3), ends(0, 2)).length, 2);
    assert.equal(names(ends(17, 3), ends(0, 21)).length, 2);
    assert.equal(names(ends(0, 3), ends(17, 3)).length, 1);
    assert.equal(names(ends(17, 3, "10.0.0.9:5"), ends(0, 20, "10.0.0.9:5")).length, 2, "to somebody else");
  });
});

describe("signals", () => {
  it("of a process's own timers may have come while it was restored, to it or a thread, and no others", () => {
    const pending = (mask: string): Fingerprint =>
      fingerprint({
        "process 12": { "POSIX timer 0 signal": "41/0000000000000007", "status ShdPnd": mask },
        "thread 12/13": { "status SigPnd": mask },
        "process 14": { "status ShdPnd": mask },
      });
    const none = "0000000000000000";
    const subjects = (before: string, after: string): string[] =>
      compareFingerprints(pending(before), pending(after)).map(({ subject }) => subject);
    assert.deepEqual(subjects(none, "0000010000000000"), ["process 14"]);
    assert.deepEqual(subjects("0000010000000000", none), ["process 12", "thread 12/13", "process 14"]);
    assert.deepEqual(subjects(none, "0000020000000000"), ["process 12", "thread 12/13", "process 14"]);
  });

  it("of job control stop again what they had stopped, and nobody else", () => {
    const pending = (mask: string): Fingerprint => fingerprint({ "process 12": { "status ShdPnd": mask } });
    const names = (after: string, stopSignal: number | null): string[] =>
      compareFingerprints(pending("0000000000010000"), pending(after), {
        ...NOTHING_DONE,
        stopSignalOf: (pid) => (pid === 12 ? stopSignal : null),
      }).map(({ name }) => name);
    assert.deepEqual(names("0000000000090000", 20), [], "SIGTSTP");
    assert.deepEqual(names("0000000000090000", null), ["status ShdPnd"]);
    assert.deepEqual(names("0000000000190000", 20), ["status ShdPnd"], "SIGTTIN besides");
    assert.deepEqual(names("0000000000080000", 20), ["status ShdPnd"], "SIGCHLD is lost");
  });
});

describe("timers", () => {
  const timer = (ticks: number, value: string, interval: string, flags = "00"): Facts => ({
    file: "anon_inode:[timerfd]",
    clockid: "1",
    ticks: String(ticks),
    "settime flags": flags,
    it_value: value,
    it_interval: interval,
  });
  const changed = (before: Facts, after: Facts, rearmed: string[] = []): string[] =>
    compareFingerprints(
      fingerprint({ "descriptor 12/5": before }),
      fingerprint({ "descriptor 12/5": after }),
      { ...NOTHING_DONE, rearmed: new Set(rearmed) },
    ).map(({ name }) => name);
  const off = "(0, 0)";
  const second = "(1, 0)";

  it("run on meanwhile", () => {
    assert.deepEqual(changed(timer(0, "(0, 900)", second), timer(0, "(0, 700)", second)), []);
    assert.deepEqual(changed(timer(0, "(0, 900)", second), timer(1, "(0, 700)", second)), []);
    assert.deepEqual(changed(timer(0, "(5, 0)", off), timer(1, off, off)), [], "once, and run out");
    assert.deepEqual(changed(timer(1, off, off), timer(1, off, off)), []);
  });

  it("that repeat are never off afterwards, unread expirations or not", () => {
    assert.deepEqual(changed(timer(0, "(0, 900)", second), timer(0, off, second)), ["it_value"]);
    assert.deepEqual(changed(timer(0, "(0, 900)", second), timer(1, off, second)), ["it_value"]);
    assert.deepEqual(changed(timer(1, off, second), timer(1, off, second)), ["it_value"]);
    assert.deepEqual(changed(timer(1, off, second), timer(1, off, second), ["descriptor 12/5"]), []);
  });

  it("that the application switched off stay off", () => {
    assert.deepEqual(changed(timer(0, off, second), timer(0, off, second)), []);
    assert.deepEqual(changed(timer(0, off, off), timer(0, second, off)), ["it_value"]);
  });

  it("keep interval, flags and expirations, and get no longer rest", () => {
    assert.deepEqual(changed(timer(0, second, second), timer(0, second, "(2, 0)")), ["it_interval"]);
    assert.deepEqual(changed(timer(0, second, second, "03"), timer(0, second, second, "01")), [
      "settime flags",
    ]);
    assert.deepEqual(changed(timer(7, second, second), timer(3, second, second)), ["ticks"]);
    assert.deepEqual(changed(timer(0, second, off), timer(0, "(2, 0)", off)), ["it_value"]);
    assert.deepEqual(changed(timer(0, second, off), timer(0, off, off)), ["it_value"], "once, and never");
  });
});

describe("facts of /proc", () => {
  const pids = new Map([
    [4711, 1],
    [4800, 12],
  ]);

  it("have the container's numbers", () => {
    const facts = statusFacts("Name:\tx\nPid:\t4800\nPPid:\t4711\nNSpid:\t4800\t12\nCapEff:\t00\n", pids);
    assert.deepEqual(facts, {
      "status Name": "x",
      "status PPid": "1",
      "status NSpid": "12",
      "status CapEff": "00",
    });
  });

  it("have what a machine gives all its threads as the container's, and what a thread has asked for as it is", () => {
    const machine = (nodes: string, bypass: string, branch: string): string =>
      `Seccomp:\t2\nSpeculation_Store_Bypass:\t${bypass}\nSpeculationIndirectBranch:\t${branch}\nMems_allowed:\t${nodes}\n`;
    const [one, two] = [
      machine("00000000,00000001", "thread vulnerable", "conditional enabled"),
      machine("00000000,00000003", "not vulnerable", "always enabled"),
    ];
    const on = (init: string, thread: string): Fingerprint =>
      fingerprint({ "process 12": statusFacts(thread, pids, statusFacts(init, pids)) });
    const names = (before: Fingerprint, after: Fingerprint): string[] =>
      compareFingerprints(before, after).map(({ name }) => name);
    assert.deepEqual(names(on(one, one), on(two, two)), []);
    const asked = machine("00000000,00000001", "thread force mitigated", "conditional force disabled");
    assert.deepEqual(names(on(one, asked), on(two, two)), [
      "status Speculation_Store_Bypass",
      "status SpeculationIndirectBranch",
    ]);
    const confined = machine("00000000,00000002", "not vulnerable", "always enabled");
    assert.deepEqual(names(on(two, confined), on(two, two)), ["status Mems_allowed"]);
    assert.deepEqual(names(on(two, confined), on(one, one)), ["status Mems_allowed"]);
    assert.deepEqual(names(on(two, confined), on(two, confined)), []);
    // as the version before compares them
    const raw = (thread: string): Fingerprint => fingerprint({ "process 12": statusFacts(thread, pids) });
    assert.equal(names(raw(one), raw(two)).length, 3);
  });

  it("have limits by name and groups below the container's", () => {
    const limits =
      "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            500                  1000                 files     \nMax nice priority         0                    0                    \n";
    assert.deepEqual(limitFacts(limits), {
      "limit Max open files": "500 1000 files",
      "limit Max nice priority": "0 0",
    });
    assert.deepEqual(cgroupFacts("4:memory:/holdfast/x-1/inside\n0::/\n", "4:memory:/holdfast/x-1\n0::/\n"), {
      "cgroup memory": "container/inside",
      "cgroup ": "container",
    });
  });

  it("have mounts without numbers and folders of one node, and without ours", () => {
    const line =
      "41 30 0:36 / /tmp rw,nosuid shared:7 - tmpfs tmpfs rw,size=9k,mode=1777\n42 41 0:37 / /.holdfast/run rw - tmpfs x rw\n43 1 0:38 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b\n";
    assert.deepEqual(mountFacts(mountsOf(line)), {
      "mount /tmp": "tmpfs rw,nosuid shared rw,mode=1777",
      "mount /": "overlay rw rw",
    });
  });

  it("have of what the node keeps as it likes only what confines its users", () => {
    const facts = (...lines: string[]): Facts =>
      mountFacts(
        mountsOf(lines.map((line, at) => `${at + 40} 30 0:${at} ${line}\n`).join("")),
        ({ isOfNode }) => (isOfNode ? "node" : "own"),
      );
    const nfs = (address: string, options = "rw,relatime", more = "shared:3"): string =>
      `/chat /data ${options} ${more} - nfs4 server:/export rw,vers=4.2,clientaddr=${address},local_lock=none,addr=10.0.0.9`;
    const [here, there] = [nfs("10.0.0.1"), nfs("10.0.0.2")];
    assert.deepEqual(facts(here), facts(there));
    const disk = facts("/x /data rw,relatime shared:9 - xfs /dev/sda1 rw,attr2,discard");
    assert.deepEqual(disk, facts("/ /data rw,relatime shared:1 - ext4 /dev/vda rw,errors=continue,stripe=4"));
    assert.deepEqual(disk, facts("/run/x /data rw,relatime shared:1 - tmpfs tmpfs rw,mode=755"));
    for (const other of ["ro,relatime", "rw,noexec,relatime", "rw"])
      assert.notDeepEqual(disk, facts(`/x /data ${other} shared:9 - xfs /dev/sda1 rw`), other);
    for (const other of [
      nfs("10.0.0.1", "ro,relatime"),
      nfs("10.0.0.1", "rw,nosuid,relatime"),
      nfs("10.0.0.1", "rw,nodev,relatime"),
      nfs("10.0.0.1", "rw,noexec,relatime"),
      nfs("10.0.0.1", "rw,noatime"),
      nfs("10.0.0.1", "rw,relatime", "master:3"),
      here.replace("server:/export rw", "server:/export ro"),
    ])
      assert.notDeepEqual(facts(here), facts(other), other);
    // the container's own
    for (const [one, other] of [
      ["/ /tmp rw - tmpfs tmpfs rw,mode=1777", "/ /tmp rw - tmpfs tmpfs rw,mode=755"],
      ["/ /proc rw - proc proc rw", "/ /proc rw - proc proc rw,hidepid=invisible"],
      ["/ /proc rw - proc proc rw", "/ /proc rw - xfs /dev/vda rw"],
      ["/ / rw - overlay overlay rw,lowerdir=/a", "/ / rw - overlay overlay rw,lowerdir=/b,volatile"],
    ] as const)
      assert.notDeepEqual(facts(one), facts(other), other);
  });

  it("tell a share from a disk and from another share, by whatever address its server is called", () => {
    const of = (type: string, source: string, kind: "node" | "volume" = "volume"): Facts =>
      mountFacts(
        mountsOf(`41 30 0:1 /app /data rw shared:3 - ${type} ${source} rw,addr=10.0.0.9\n`),
        () => kind,
      );
    const disk = of("ext4", "/dev/vda");
    for (const type of "nfs nfs4 cifs smb3 ceph fuse fuse.glusterfs 9p lustre glusterfs virtiofs gfs2 ocfs2 beegfs".split(
      " ",
    ))
      assert.notDeepEqual(of(type, "server:/export"), disk, type);
    for (const type of ["xfs", "btrfs", "fuseblk", "vfat"])
      assert.deepEqual(of(type, "/dev/sda1"), disk, type);
    assert.notDeepEqual(of("ceph", "mon:/"), of("nfs4", "mon:/"));
    for (const [one, other] of [
      ["10.0.0.9:/export", "10.0.1.9:/export/"],
      ["[fd00::9]:/export", "10.0.1.9:/export"],
      ["fd00::9:/export", "::1:/export"],
    ] as const)
      assert.deepEqual(of("nfs4", one), of("nfs4", other), `${one} ${other}`);
    assert.deepEqual(of("cifs", "//10.0.0.9/share"), of("cifs", "//[fd00::9]/share"));
    for (const [type, one, other] of [
      ["nfs4", "server:/export", "server:/staging"],
      ["nfs4", "cafe:/export", "feed:/export"],
      ["nfs4", "10.0.0.9:/export", "10.0.0.9:/staging"],
      ["cifs", "//server/share", "//other/share"],
    ] as const)
      assert.notDeepEqual(of(type, one), of(type, other), `${one} ${other}`);
    // /etc/hosts of a node whose own folders are on a server
    const [one, other] = [":/nodes/a", ":/nodes/b"].map((path) => of("nfs4", `10.0.0.9${path}`, "node"));
    assert.deepEqual(one, other);
    // of these the source is a list of servers, or a name that a node has for it
    assert.deepEqual(of("ceph", "10.0.0.1:6789,10.0.0.2:6789:/"), of("ceph", "10.0.0.2:6789:/"));
    assert.deepEqual(of("fuse.sshfs", "a@server:/x"), of("fuse.sshfs", "server:/x"));
  });

  it("have memory as runs, however the kernel cut it", () => {
    const mapping = (range: string, what: string, flags: string): string =>
      `${range} ${what}\nSize: 4 kB\nVmFlags: ${flags} \n`;
    const whole = mapping("1000-3000", "rw-p 00000000 00:00 0 ", "rd wr mr mw me ac sd");
    const parts =
      mapping("1000-2000", "rw-p 00000000 00:00 0 [heap]", "rd wr mr mw me") +
      mapping("2000-3000", "rw-p 00000000 00:00 0 ", "rd wr mr mw me");
    assert.deepEqual(memoryFacts(whole), memoryFacts(parts));
    const locked = mapping("1000-3000", "rw-p 00000000 00:00 0 ", "rd wr mr mw me lo");
    assert.notDeepEqual(memoryFacts(whole), memoryFacts(locked));
    const keyed = (key: number): string => whole.replace("VmFlags", `ProtectionKey:  ${key}\nVmFlags`);
    assert.deepEqual(memoryFacts(keyed(0)), memoryFacts(whole));
    assert.deepEqual(memoryFacts(keyed(3)), { "1000-3000": "rw-p rd wr key 3" });
    const file = mapping("1000-2000", "r--p 00001000 fe:01 9 /lib/x", "rd mr mw me");
    const rest = mapping("2000-3000", "r--p 00002000 fe:01 9 /lib/x", "rd mr mw me");
    assert.deepEqual(memoryFacts(file + rest), { "1000-3000": "r--p rd /lib/x at 1000" });
    const elsewhere = mapping("2000-3000", "r--p 00007000 fe:01 9 /lib/x", "rd mr mw me");
    assert.equal(Object.keys(memoryFacts(file + elsewhere)).length, 2);
  });

  it("have the same memory of the lines that are kept of it", () => {
    const mapping = (range: string, name: string, more: string): string =>
      `${range} r--p 00001000 fe:01 9 ${name}\nSize: 4 kB\nTHPeligible: 0\n${more}VmFlags: rd mr mw \n`;
    const first = mapping("1000-2000", "/VmFlags: x", "ProtectionKey:         3\n");
    const whole = first + mapping("3000-4000", "/é", "") + mapping("5000-6000", "/ProtectionKey: 3", "");
    assert.deepEqual(memoryFacts(condensed(whole)), memoryFacts(whole));
    assert.equal(Object.keys(memoryFacts(whole)).length, 3);
    assert.ok(!/Size|THP/.test(condensed(whole)));
    assert.equal(condensed(whole + whole.slice(0, 30)), condensed(whole) + whole.slice(0, 30));
    assert.equal(condensed(""), "");
  });

  it("have memory without the names that a program gives it, which no restore keeps", () => {
    const mapping = (range: string, what: string): string =>
      `${range} ${what}\nSize: 4 kB\nVmFlags: rd wr mr mw me \n`;
    const named =
      mapping("c000000000-c000400000", "rw-p 00000000 00:00 0                          [anon: Go: heap]") +
      mapping("c000400000-c000800000", "rw-p 00000000 00:00 0                          [anon: Go: heap (2)]");
    const restored = mapping("c000000000-c000800000", "rw-p 00000000 00:00 0 ");
    assert.deepEqual(memoryFacts(named), memoryFacts(restored));
    const shared = mapping("1000-2000", "rw-s 00000000 00:01 5                          [anon_shmem:pool]");
    const made = mapping("1000-2000", "rw-s 00000000 00:01 7              /memfd:/dev/zero (deleted)");
    assert.deepEqual(memoryFacts(shared), memoryFacts(made));
  });

  it("have descriptors without the kernel's numbers", () => {
    const text =
      "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1057\ntfd:       19 events:       1b data:     1300000001  pos:0 ino:61af sdev:7\nlock:\t1: FLOCK  ADVISORY  WRITE 4800 00:28:77 0 EOF\nnew-line:\tx\n";
    const info = descriptorInfo(text, new Map([["15", "/tmp"]]), pids);
    assert.deepEqual([info.isCloseOnExec, info.flags, info.pos], [true, "4002", "0"]);
    assert.deepEqual(info.facts, {
      mount: "/tmp",
      "watch of 19": "events: 1b data: 1300000001",
      "lock FLOCK 0-EOF": "ADVISORY WRITE by 12",
      "new-line": "x",
    });
  });

  it("tell watches of one number apart, however many there are", () => {
    const text = "tfd:       19 events:       1b data:     13\n".repeat(5_000);
    const startedMs = performance.now();
    const { facts } = descriptorInfo(text, new Map(), pids);
    assert.equal(Object.keys(facts).length, 5_000);
    assert.deepEqual(
      [facts["watch of 19"], facts["watch of 19 (5000)"]],
      Array(2).fill("events: 1b data: 13"),
    );
    assert.ok(performance.now() - startedMs < 2_000, "each looked through those before it");
  });
});

describe("options of sockets", () => {
  it("are set as they were read", () => {
    const option = (name: string) => socketOption(name) ?? assert.fail(name);
    assert.deepEqual([...optionValue(option("TCP_USER_TIMEOUT"), "5000")], [0x88, 0x13, 0, 0]);
    assert.equal(optionValue(option("TCP_CONGESTION"), "72656e6f").toString("latin1", 0, 5), "reno\0");
    assert.deepEqual([...optionValue(option("SO_LINGER"), null)], [0, 0, 0, 0, 0, 0, 0, 0]);
  });
});
