import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { canTell } from "#control/criu/write-tracking.ts";

describe("kernels that are asked what was written", () => {
  for (const name of ["6.12.11-cloud", "6.12.48+deb13-amd64", "6.13.0", "6.18.5", "7.0.0-rc1", "7.1"])
    it(`are those like ${name}`, () => assert.ok(canTell(name)));

  for (const name of [
    "5.14.0-503.el9",
    "6.1.0-28-amd64",
    "6.6.137",
    "6.8.0-90-generic",
    "6.12.0-55.el10",
    "6.12.10",
    "6.12",
    "",
  ])
    it(`are not those like ${JSON.stringify(name)}: CVE-2025-21696, or no tracking at all`, () =>
      assert.ok(!canTell(name)));
});
