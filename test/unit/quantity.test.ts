/** Amounts as Kubernetes writes them. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { formatQuantity, parseQuantity } from "#control/config/quantity.ts";

describe("a quantity", () => {
  it("is read exactly, whatever it is written with", () => {
    const same = [
      ["1", 1, "1000m", "1.0", "1e0", "+1", "1000000000n", "1000000u", ".001k", "100e-2"],
      ["1Gi", "1024Mi", "1048576Ki", "1073741824", 1_073_741_824],
      ["1E", "1e18", "1E18", "1000P", "1000000T"],
      ["0", "0m", 0],
    ];
    for (const [first = "", ...others] of same)
      for (const other of others) assert.equal(parseQuantity(other), parseQuantity(first), `${other}`);
    assert.equal(parseQuantity("1.5Gi"), 1_610_612_736_000_000_000n);
    // Kubernetes rounds up
    assert.equal(parseQuantity("0.1n"), 1n);
  });

  it("is not what Kubernetes refuses", () => {
    for (const text of ["", ".", "-1", "1 Mi", "1mi", "1KiB", "Mi", "1e", "1e1000", "0x1", "NaN"])
      assert.equal(parseQuantity(text), null, text);
  });

  it("is written as what it is read as, and shortly", () => {
    const thousandths = fc.bigInt({ min: 0n, max: 10n ** 24n });
    fc.assert(
      fc.property(thousandths, (one) => {
        assert.equal(parseQuantity(formatQuantity(one * 1_000_000n)), one * 1_000_000n);
      }),
    );
    const written = ["150m", "2", "352Mi", "1536Mi", "3Ki", "1001"];
    for (const text of written) assert.equal(formatQuantity(parseQuantity(text) ?? 0n), text);
  });
});
