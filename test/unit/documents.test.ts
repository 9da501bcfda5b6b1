/** What the documents name is in the code: files, and constants. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { describe, it } from "node:test";

const root = resolve(import.meta.dirname, "../..");
const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(root, file)));
/** results are of the day they were measured on */
const documents = files.filter((file) => file.endsWith(".md") && !/^bench\/results\/\d/.test(file));
const code = files
  .filter((file) => /\.(ts|js|sh|service)$/.test(file))
  .map((file) => readFileSync(join(root, file), "utf8"))
  .join("\n");

/** the kernel's, and nothing that we use */
const OF_OTHERS = new Set(["SEM_UNDO"]);

/** What stands between backticks in running text, with the line's number. */
function* namesIn(document: string): Generator<{ name: string; at: string }> {
  const text = readFileSync(join(root, document), "utf8").replace(/^```[\s\S]*?^```/gm, (block) =>
    block.replace(/[^\n]/g, ""),
  );
  for (const [index, line] of text.split("\n").entries())
    for (const [, name = ""] of line.matchAll(/`([^`]+)`/g)) yield { name, at: `${document}:${index + 1}` };
}

const isThere = (name: string, document: string): boolean =>
  files.some((file) => file === name || file.endsWith(`/${name}`)) ||
  existsSync(join(root, name)) ||
  existsSync(join(root, document, "..", name));

describe("the documents", () => {
  it("are there", () => assert.ok(documents.length >= 5));

  for (const document of documents)
    it(`name files that exist: ${document}`, () => {
      const missing = [...namesIn(document)].filter(
        ({ name }) =>
          /^[\w./-]+\.(ts|js|sh|service)$/.test(name) && !name.startsWith("/") && !isThere(name, document),
      );
      assert.deepEqual(missing, []);
    });

  for (const document of ["ARCHITECTURE.md", "SECURITY.md"])
    it(`name constants that exist: ${document}`, () => {
      const missing = [...namesIn(document)].filter(
        ({ name }) =>
          !OF_OTHERS.has(name) &&
          /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/.test(name) &&
          !new RegExp(`\\b${name}\\b`).test(code),
      );
      assert.deepEqual(missing, []);
    });

  it("name rooms that exist: ARCHITECTURE.md", () => {
    const missing = [...namesIn("ARCHITECTURE.md")].filter(
      ({ name }) =>
        /^(proxy|control|bench|test|scripts)\/[\w/-]*\/?$/.test(name) && !existsSync(join(root, name)),
    );
    assert.deepEqual(missing, []);
  });
});
