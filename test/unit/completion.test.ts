/** What a shell completes, by the shell itself. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, describe, it } from "node:test";

const HOLDFAST = join(import.meta.dirname, "../../bin/holdfast");

describe("completion", () => {
  let script = "";
  before(() => {
    const { stdout, stderr, status } = spawnSync(HOLDFAST, ["completion", "bash"], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    script = stdout;
  });

  /** @param words what is typed, the last of them being completed */
  function complete(...words: string[]): string[] {
    const asked = `${script}
      COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}
      _holdfast; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { stdout, stderr } = spawnSync("bash", ["-c", asked], { encoding: "utf8" });
    assert.equal(stderr, "");
    return stdout.split("\n").filter((word) => word !== "");
  }

  it("knows commands, commands below them, and their options", () => {
    assert.deepEqual(complete("holdfast", "mi"), ["migrate"]);
    assert.deepEqual(complete("holdfast", "sta"), ["status", "start"]);
    assert.deepEqual(complete("holdfast", "migrate", "--to").toSorted(), ["--to", "--token-file"]);
    assert.deepEqual(complete("holdfast", "keys", "i"), ["init", "issue"]);
    assert.deepEqual(complete("holdfast", "keys", "init", "--fo"), ["--folder"]);
    assert.deepEqual(complete("holdfast", "nothing", "--a"), []);
  });

  it("is a script that zsh and fish can be given, and refuses other shells", () => {
    const of = (shell: string) => spawnSync(HOLDFAST, ["completion", shell], { encoding: "utf8" });
    assert.match(of("zsh").stdout, /^autoload -U \+X bashcompinit/);
    assert.match(of("fish").stdout, /^complete -c holdfast .* -a migrate /m);
    const { status, stderr } = of("csh");
    assert.equal(status, 2);
    assert.match(stderr, /expected bash, zsh, fish, got csh/);
  });
});
