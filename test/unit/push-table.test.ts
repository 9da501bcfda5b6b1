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

  it("has every kind of push that audit knows", () => {
    const seen = new Set(PUSHES.map(({ id }) => id));
    assert.deepEqual(seen, new Set(AUDITED.map(({ id }) => id)));
  });
});
