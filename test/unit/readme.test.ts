/**
 * What README.md and ARCHITECTURE.md promise exists: every command with its subcommand and options, every npm script,
 * the configuration, the exit statuses, and every file and test they name.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, it } from "node:test";
import { EXIT, EXIT_HELP } from "#control/api/exit-status.ts";
import { runProgram } from "#control/cli/program.ts";
import { parseConfig } from "#control/config/config.ts";
import { DEFAULT_LIMITS as LIMITS } from "#control/config/limits.ts";

const root = join(import.meta.dirname, "../..");
const read = (path: string): string => readFileSync(join(root, path), "utf8");
const readme = read("README.md");
const architecture = read("ARCHITECTURE.md");
const security = read("SECURITY.md");
const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
}).split("\n");

/** and nothing that we use */
const OF_THE_KERNEL = new Set(["SEM_UNDO"]);

const folder = mkdtempSync(join(tmpdir(), "holdfast-readme-"));
after(() => rmSync(folder, { recursive: true }));

/** Code of a document: what stands in single backquotes, and lines that are indented by four. */
function codeOf(text: string): string[] {
  const spans = [...text.matchAll(/(?<!`)`([^`\n]+)`(?!`)/g)].map((match) => match[1] ?? "");
  const lines = text.split("\n").filter((line) => line.startsWith("    "));
  return [...spans, ...lines.map((line) => line.trim())];
}

async function helpOf(args: string[]): Promise<string> {
  let out = "";
  const write = (text: string): boolean => {
    out += text;
    return true;
  };
  const status = await runProgram([...args, "--help"], {
    out: { write },
    err: { write },
    env: {},
    runAgent: async () => assert.fail("an agent"),
    runGateway: async () => assert.fail("a gateway"),
    runWebhook: async () => assert.fail("a webhook"),
    runController: async () => assert.fail("a controller"),
    runEndpoints: async () => assert.fail("endpoints"),
    readInput: async () => assert.fail("standard input"),
    onInterrupt: () => () => {},
  });
  assert.equal(status, EXIT.ok, `holdfast ${args.join(" ")} --help: ${out}`);
  return out;
}

describe("the commands in README.md", () => {
  const used = codeOf(readme).flatMap((code) => {
    const found = /^(?:npx |# )holdfast ([a-z]+)(.*)$/.exec(code);
    return found === null
      ? []
      : [{ code, name: found[1] ?? "", rest: (found[2] ?? "").split(" # ")[0] ?? "" }];
  });

  it("are there, and each of their options is in its help", async () => {
    assert.ok(used.length >= 6);
    for (const { code, name, rest } of used) {
      const below = ["keys", "envoy"].includes(name) ? (/^ ([a-z]+)/.exec(rest)?.[1] ?? "") : "";
      const help = await helpOf(below === "" ? [name] : [name, below]);
      assert.match(help, new RegExp(`^Usage: holdfast ${name} ?${below}\\b`), code);
      for (const [option] of rest.matchAll(/--[a-z-]+/g))
        assert.ok(help.includes(option), `${code}: ${option}`);
      const takesWorkload = /^ (WORKLOAD|chat|pod\/NAME)\b/.test(rest);
      const usage = help.split("\n")[0] ?? "";
      if (!usage.includes("[workload]")) assert.equal(usage.includes("<workload>"), takesWorkload, code);
    }
  });

  it("are all there are", async () => {
    const listed = [...(await helpOf([])).matchAll(/^ {2}([a-z]+)(?: \[options\]| <| {2,})/gm)].map(
      (match) => match[1] ?? "",
    );
    assert.ok(listed.length > 0);
    assert.deepEqual(new Set(used.map(({ name }) => name)), new Set(listed));
  });

  it("of npm are scripts of package.json, and the demo knows its options", () => {
    const { scripts } = JSON.parse(read("package.json")) as { scripts: Record<string, string> };
    const calls = codeOf(readme).flatMap((code) => {
      const found = /^npm (?:run )?(?:-s )?([a-z:]+)(?: -- (.*))?$/.exec(code.split(" # ")[0]?.trim() ?? "");
      return found === null ? [] : [{ code, script: found[1] ?? "", args: found[2] ?? "" }];
    });
    assert.ok(calls.length >= 4);
    const source: Record<string, string> = {
      demo: "scripts/demo.ts",
      "demo:kube": "scripts/demo-kube.ts",
      bench: "bench/bench.ts",
      "bench:cutover": "bench/cutover.ts",
      "bench:kube": "bench/kube.ts",
      "bench:profile": "bench/profile.ts",
      // The same command, on a selection.
      "bench:relay": "bench/bench.ts",
      "test:matrix": "test/matrix/matrix.ts",
    };
    for (const { code, script, args } of calls) {
      assert.ok(Object.hasOwn(scripts, script), code);
      for (const [option] of args.matchAll(/--[a-z-]+/g))
        assert.ok(read(source[script] ?? "").includes(`  ${option} `), `${code}: ${option}`);
    }
  });
});

describe("README.md", () => {
  it("shows a configuration that is accepted, with and without a VIP", () => {
    const yaml = /```yaml\n(.*?)```/s.exec(readme)?.[1] ?? "";
    const key = join(folder, "key");
    writeFileSync(key, Buffer.alloc(32, 7), { mode: 0o600 });
    const here = yaml.replace("/etc/holdfast/key", key);
    assert.notEqual(here, yaml);
    const config = parseConfig(here, "a.yaml");
    assert.equal(config.node, "a");
    assert.equal(config.workloads[0]?.downstream, "takeover");
    const without = here.replace(/^ *vip:.*\n/m, "");
    assert.equal(parseConfig(without, "a.yaml").workloads[0]?.downstream, "forward");
  });

  it("lists the exit statuses that --help lists", () => {
    const listed = [...readme.matchAll(/^\| (\d+) \|/gm)].map((match) => Number(match[1]));
    assert.deepEqual(listed, Object.values(EXIT));
    for (const status of listed) assert.match(EXIT_HELP, new RegExp(`^ {2}${status} `, "m"));
  });

  it("links to files and headings that exist", () => {
    for (const [, target = ""] of readme.matchAll(/\]\(([^)]+)\)/g)) {
      const [file = "", heading] = target.split("#");
      assert.ok(existsSync(join(root, file)), target);
      if (heading !== undefined)
        assert.ok(headingsOf(read(file)).includes(heading), `no heading ${heading} in ${file}`);
    }
  });
});

/** As links name them. */
function headingsOf(text: string): string[] {
  return [...text.matchAll(/^##+ (.*)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replace(/[^\w -]/g, "")
      .replaceAll(" ", "-"),
  );
}

describe("SECURITY.md", () => {
  it("has a test for every claim, by the name that it has", () => {
    const claims = security
      .split("\n")
      .filter((line) => /^\| (?!claim|--)/.test(line) && line.includes(".test.ts"));
    assert.ok(claims.length > 15);
    for (const claim of claims)
      for (const [, file = "", titles = ""] of claim.matchAll(
        /`([\w./-]+\.test\.ts)`: ((?:"[^"]+"(?:, )?)+)/g,
      ))
        for (const [, title = ""] of titles.matchAll(/"([^"]+)"/g))
          assert.ok(read(file).includes(`"${title}"`), `no test "${title}" in ${file}`);
  });
});

describe("ARCHITECTURE.md", () => {
  it("names files and folders that exist", () => {
    const names = codeOf(architecture).filter((code) => /^[\w./-]+(\.ts|\/)$/.test(code));
    assert.ok(names.length > 20);
    const exists = (name: string): boolean =>
      name.endsWith("/")
        ? existsSync(join(root, name))
        : files.some((file) => file === name || file.endsWith(`/${name}`));
    assert.deepEqual(
      names.filter((name) => !exists(name)),
      [],
    );
  });

  it("names constants that exist", () => {
    const code = files
      .filter((file) => /\.(ts|js|sh)$/.test(file) && existsSync(join(root, file)))
      .map(read)
      .join("\n");
    const names = [...codeOf(architecture), ...codeOf(security)].filter(
      (name) => /^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$/.test(name) && !OF_THE_KERNEL.has(name),
    );
    assert.ok(names.length > 10);
    assert.deepEqual(
      names.filter((name) => !new RegExp(`\\b${name}\\b`).test(code)),
      [],
    );
  });

  it("names tests that exist", () => {
    const rows = architecture.split("## When things go wrong")[1]?.split("\n## ")[0] ?? "";
    for (const row of rows.split("\n").filter((line) => line.startsWith("|"))) {
      const test = row.split("|")[3] ?? "";
      const sources = [...test.matchAll(/`([\w-]+\.test\.ts)`/g)].map(([, name = ""]) => {
        const path = files.find((file) => file.endsWith(`/${name}`));
        assert.ok(path !== undefined, `${name}: ${row}`);
        return read(path);
      });
      if (sources.length === 0) continue;
      for (const [, title = ""] of test.matchAll(/"([^"]+)"/g)) {
        if (/[A-Z]{3}|…/.test(title)) continue; // made up of parts
        assert.ok(
          [...sources, read("test/privileged/proxy-handover.test.ts")].some((source) =>
            source.includes(title.split(",")[0] ?? ""),
          ),
          `no test "${title}"`,
        );
      }
    }
  });

  it("has a line for every room", () => {
    const rooms = new Set(
      files.filter((file) => /^(proxy|control)\/.*\.ts$/.test(file)).map((file) => dirname(file)),
    );
    for (const house of ["proxy", "control"]) rooms.delete(house); // where processes begin
    for (const room of rooms)
      assert.ok(architecture.includes(`\`${room}/\``), `${room}/ is not in ARCHITECTURE.md`);
  });

  it("tells the defaults that the configuration has", () => {
    const shown: Record<string, (value: number) => string> = {
      MsMax: (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`),
      Ms: (ms) => `${ms / 1000} s`,
      MbMax: (mb) => `${mb.toLocaleString("en")} MiB`,
      MbMin: (mb) => `${mb.toLocaleString("en")} MiB`,
      BytesMax: (bytes) => `${bytes / (1 << 20)} MiB`,
      SessionsMax: (count) => count.toLocaleString("en"),
    };
    let rows = 0;
    for (const line of architecture.split("\n")) {
      const [, , value = "", where = ""] = line.split("|");
      const key = /`limits\.(\w+)`/.exec(where)?.[1];
      if (key === undefined) continue;
      const limit = LIMITS[key as keyof typeof LIMITS];
      const unit = Object.keys(shown).find((ending) => key.endsWith(ending)) ?? "";
      const said = typeof limit === "boolean" ? (limit ? "on" : "off") : (shown[unit]?.(limit) ?? "?");
      assert.ok(value.includes(said), `${key} is ${limit}: ${line}`);
      rows++;
    }
    assert.ok(rows >= 7);
  });
});
