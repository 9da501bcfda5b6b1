/** The file of shared keys: what it may look like, and what becomes of it when it changes under a running agent. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { chmodSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { KeyRing } from "#control/agent/key-ring.ts";
import { ChangeWatch } from "#control/config/change-watch.ts";
import { readKeyFile } from "#control/config/key-file.ts";
import { joinKeys, keyId, splitKeys } from "#proxy/contract/shared-keys.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-keys-"));
after(() => rmSync(folder, { recursive: true }));
const path = join(folder, "key");
const [one, two] = [randomBytes(32), randomBytes(32)];
const lines = (...keys: Buffer[]): string => keys.map((key) => `${key.toString("hex")}\n`).join("");

function write(content: string | Buffer): void {
  writeFileSync(`${path}.new`, content, { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

describe("the key file", () => {
  it("has one key as it is, or several a line, the first one first", () => {
    write(one);
    assert.deepEqual(readKeyFile(path), [one]);
    write(`# of March\n${lines(two)}\n  ${one.toString("hex").toUpperCase()} \r\n`);
    assert.deepEqual(readKeyFile(path), [two, one]);
  });

  it("is refused, with what is wrong in which line", () => {
    for (const [content, expected] of [
      [`${lines(one)}abc\n`, /line 2 has 3 characters/],
      [`${lines(one, two, one)}`, /line 3 has the same key/],
      ["# nothing\n", /no key/],
      ["", /no key/],
      [lines(...Array.from({ length: 9 }, () => randomBytes(32))), /9 keys, at most 8/],
      [randomBytes(31), /got 31 bytes/],
      ["x".repeat(5_000), /5000 bytes/],
    ] as const) {
      write(content);
      assert.throws(() => readKeyFile(path), { message: expected });
    }
    write(one);
    chmodSync(path, 0o604);
    assert.throws(() => readKeyFile(path), { message: /chmod 600/ });
  });
});

describe("a ring of keys", () => {
  it("is another one when the file is, and stays as it is when the file is damaged, which is told", () => {
    write(one);
    const ring = new KeyRing(readKeyFile(path));
    let changes = 0;
    ring.onChange(() => changes++);
    assert.equal(ring.readAgain(path), null);
    write(lines(one, two));
    assert.equal(ring.readAgain(path), "changed");
    assert.deepEqual([ring.first, ring.ids], [one, [keyId(one), keyId(two)]]);
    assert.deepEqual([ring.find(keyId(two)), ring.find("00000000")], [two, null]);
    write("gone wrong");
    assert.equal(ring.readAgain(path), "damaged");
    assert.equal(ring.readAgain(path), null, "told once");
    assert.deepEqual(ring.keys, [one, two]);
    assert.match(ring.problem ?? "", /the keys before it are: expected a file/);
    rmSync(path);
    assert.equal(ring.readAgain(path), "damaged");
    write(lines(one, two));
    assert.equal(ring.readAgain(path), "mended");
    assert.equal(ring.problem, null);
    assert.equal(changes, 1);
  });

  it("is told of files that are replaced, and of links to them that are", async () => {
    write(one);
    let told = Promise.withResolvers<void>();
    const watch = new ChangeWatch([path], () => told.resolve());
    try {
      write(two);
      await told.promise;
      told = Promise.withResolvers();
      write(one);
      await told.promise;
    } finally {
      watch.close();
    }
  });

  it("is told to proxies as one piece", () => {
    assert.deepEqual(splitKeys(joinKeys([one, two])), [one, two]);
    for (const length of [0, 31, 33, 32 * 9]) assert.equal(splitKeys(Buffer.alloc(length)), null);
  });
});
