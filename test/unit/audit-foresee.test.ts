import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Facts, FORMAT } from "#control/audit/fingerprint.ts";
import { cannotBeCarried } from "#control/audit/foresee.ts";
import { groupsOfIgmp, groupsOfIgmp6 } from "#control/audit/multicast.ts";

const uncarried = (subject: string, facts: Facts) =>
  cannotBeCarried({
    format: FORMAT,
    subjects: { "process 12": { name: "app" }, [subject]: facts },
    clocks: { monotonic: "0", boottime: "0", realtime: "0" },
  }).map(({ id, severity, what }) => [id, severity, what.slice(0, 40)]);

describe("what a description alone says cannot be carried", () => {
  it("is nothing, of an ordinary program", () => {
    assert.deepEqual(
      uncarried("descriptor 12/5", { socket: "domain 2, type 1, protocol 6", "bytes to read": "9" }),
      [],
    );
    assert.deepEqual(uncarried("process 13", { "stat tty": "0" }), []);
  });

  it("is a controlling terminal, but for who leads its session", () => {
    const of = (pid: string): Facts => ({
      name: "vim",
      "stat tty": "34816",
      "status NSsid": "12",
      "status NSpid": pid,
    });
    assert.deepEqual(uncarried("process 13", of("13")), [
      ["controlling-terminal", "warning", "process 13 (vim) has a controlling termi"],
    ]);
    assert.deepEqual(uncarried("process 12", of("12")), []);
  });

  it("is what waits in sockets without connections, for as long as it waits", () => {
    const datagram: Facts = { socket: "domain 10, type 2, protocol 17" };
    assert.deepEqual(uncarried("descriptor 12/5", { ...datagram, "bytes to read": "9" }), [
      ["datagrams-unread", "passing", "descriptor 5 of process 12 (app) has dat"],
    ]);
    assert.deepEqual(uncarried("descriptor 12/5", { ...datagram, "bytes to read": "0" }), []);
  });

  it("is an eBPF filter, and a protocol in the kernel", () => {
    assert.equal(uncarried("descriptor 12/5", { filter: "an eBPF program" })[0]?.[0], "socket-filter-ebpf");
    assert.equal(uncarried("descriptor 12/5", { TCP_ULP: "746c73" })[0]?.[0], "tcp-ulp");
  });
});

describe("groups joined on a node", () => {
  it("are read from both tables, those that every interface joins left out", () => {
    const igmp =
      "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n1\tlo        :     2      V3\n\t\t\t\t010101EF     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n2\teth0      :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n";
    assert.deepEqual(groupsOfIgmp(igmp), [{ device: "lo", index: 1, group: "ef010101" }]);
    const igmp6 =
      "1    lo              ff150000000000000000000000000077     1 00000004 0\n1    lo              ff020000000000000000000000000001     1 0000000C 0\n";
    assert.deepEqual(groupsOfIgmp6(igmp6), [
      { device: "lo", index: 1, group: "ff150000000000000000000000000077" },
    ]);
  });
});
