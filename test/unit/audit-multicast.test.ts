import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { groupsOfIgmp, groupsOfIgmp6 } from "#control/audit/multicast.ts";

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
