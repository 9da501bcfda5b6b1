/** README's table of what istiod's pushes do to long sessions says what test/envoy/pushes.test.ts sees, and what `envoy audit` says. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { PUSHES as AUDITED } from "#envoy/audit/pushes.ts";
import { pushTable } from "#test/envoy/push-table.ts";
import { PUSHES } from "#test/envoy/pushes.ts";

describe("the table of pushes", () => {
  it("is in README as it is seen", () => {
    const readme = readFileSync(join(import.meta.dirname, "../../README.md"), "utf8");
    const table = pushTable().join("\n");
    assert.ok(readme.includes(table), `README lacks:\n${table}`);
  });

  it("has every kind of push that audit knows, but one", () => {
    const seen = PUSHES.map(({ id }) => id);
    const others = AUDITED.map(({ id }) => id).filter((id) => !seen.includes(id));
    // in a mesh of files the last endpoint is a WorkloadEntry, whose going does more
    assert.deepEqual(others, ["last-endpoint-removed"]);
  });
});
