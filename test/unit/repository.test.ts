/**
 * Lints the repository: what may import what, which file may do which dangerous thing, and how things are named.
 * The rules are those of ARCHITECTURE.md; a failure names the file, the line and the rule.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { builtinModules } from "node:module";
import { basename, dirname, join, relative, resolve } from "node:path";
import { describe, it } from "node:test";

const root = resolve(import.meta.dirname, "../..");

interface Source {
  /** path from the root */
  path: string;
  text: string;
  imports: { target: string; line: number; typeOnly: boolean }[];
}

/** Where processes begin, and so the only files that may end one. */
const entryPoints = new Set([
  "bin/holdfast",
  "control/main.ts",
  "proxy/main.ts",
  "control/criu/worker.ts",
  "bench/cutover.ts",
  "scripts/demo.ts",
  "scripts/test.ts",
  "test/load/lives-clients.ts",
  "test/load/ws-clients.ts",
  "test/load/tcp-clients.ts",
  "test/load/odd-clients.ts",
  "test/apps/chat/server.js",
  "test/apps/echo/server.js",
]);

const topLevelFolders = new Set([
  "proxy",
  "control",
  "envoy",
  "charts",
  "bench",
  "test",
  "scripts",
  "bin",
  ".ci",
  "docs",
]);
const topLevelFiles = new Set([
  "package.json",
  "package-lock.json",
  "tsconfig.json",
  "biome.json",
  ".gitignore",
  ".gitattributes",
  ".editorconfig",
  "README.md",
  "ARCHITECTURE.md",
  "CONTRIBUTING.md",
  "CHANGELOG.md",
  "SECURITY.md",
  "LICENSE",
]);

/** Tracked files, and new ones that nobody ignores: what the next commit may hold. */
const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(root, file)));

const importPattern = /(?:\bfrom\s*|\bimport\s*\(\s*|\bimport\s+)(["'])([\w@#][\w@#./:-]*|\.[\w./-]+)\1/g;

function readSource(path: string): Source {
  const text = readFileSync(join(root, path), "utf8");
  const imports = [...text.matchAll(importPattern)]
    .map((match) => ({
      target: resolveImport(path, match[2] ?? ""),
      line: lineAt(text, match.index),
      typeOnly: /\b(import|export)\s+type\s+[\w*{][^;]*$/.test(text.slice(0, match.index).slice(-2_000)),
    }))
    .filter(({ line }) => !/^\s*(\*|\/\/|\/\*)/.test(text.split("\n")[line - 1] ?? ""));
  return { path, text, imports };
}

/** Our own files as a path from the root, everything else as written. */
function resolveImport(from: string, specifier: string): string {
  const subpath = /^#(proxy|control|test|bench)\/(.*)$/.exec(specifier);
  if (subpath) return `${subpath[1]}/${subpath[2]}`;
  if (specifier.startsWith(".")) return relative(root, resolve(root, dirname(from), specifier));
  return specifier;
}

function lineAt(text: string, index: number): number {
  return text.slice(0, index).split("\n").length;
}

const sources = files.filter((file) => file.endsWith(".ts")).map(readSource);
const product = sources.filter(({ path }) => /^(proxy|control)\//.test(path));
const ours = /^(proxy|control|test|bench|scripts)\//;

function under(prefix: string): Source[] {
  return sources.filter(({ path }) => path.startsWith(prefix));
}

/** Every import of `from` that `forbidden` says yes to, as "file:line imports target". */
function breaches(from: Source[], forbidden: (target: string, path: string) => boolean): string[] {
  return from.flatMap(({ path, imports }) =>
    imports
      .filter(({ target }) => forbidden(target, path))
      .map(({ target, line }) => `${path}:${line} imports ${target}`),
  );
}

/** Every line of `from` that matches, comments left out. */
function lines(from: Source[], pattern: RegExp): string[] {
  return from.flatMap(({ path, text }) =>
    text
      .split("\n")
      .map((line, index) => ({ line, at: `${path}:${index + 1}` }))
      .filter(({ line }) => pattern.test(line) && !/^\s*(\*|\/\/|\/\*)/.test(line))
      .map(({ line, at }) => `${at} ${line.trim()}`),
  );
}

function none(found: string[], rule: string): void {
  assert.deepEqual(found, [], `${rule}\n  ${found.join("\n  ")}`);
}

describe("imports", () => {
  it("of our own files name a file that exists", () => {
    none(
      breaches(sources, (target) => ours.test(target) && !existsSync(join(root, target))),
      "an import names no file",
    );
  });

  it("name the node modules with node: and only packages that package.json has", () => {
    const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    const runtime = new Set(Object.keys(manifest.dependencies));
    const all = new Set([...runtime, ...Object.keys(manifest.devDependencies)]);
    const packageOf = (target: string) =>
      target
        .split("/")
        .slice(0, target.startsWith("@") ? 2 : 1)
        .join("/");
    const external = (target: string) => !target.startsWith("node:") && !ours.test(target);
    none(
      breaches(sources, (target) => external(target) && !all.has(packageOf(target))),
      "not in package.json (or a node module without node:)",
    );
    none(
      breaches(product, (target) => external(target) && !runtime.has(packageOf(target))),
      "the product needs what only development has",
    );
    none(
      breaches(sources, (target) => !target.startsWith("node:") && builtinModules.includes(target)),
      "node modules are imported with node:",
    );
  });

  it("never lead from the product to tests, benchmarks or scripts", () => {
    none(
      breaches(product, (target) => /^(test|bench|scripts)\//.test(target)),
      "the product stands alone",
    );
  });

  it("never lead from the proxy to control", () => {
    none(
      breaches(under("proxy/"), (target) => target.startsWith("control/")),
      "proxy/ does not know control/",
    );
  });

  it("of the contract lead to nothing of ours outside the contract", () => {
    none(
      breaches(
        under("proxy/contract/"),
        (target) => ours.test(target) && !target.startsWith("proxy/contract/"),
      ),
      "proxy/contract/ imports nothing of ours",
    );
  });

  it("of control reach the proxy through its contract, the store and the kernel calls only", () => {
    const shared = /^proxy\/(contract\/|store\/|tcp\/(kernel|diag|checksum)\.ts$)/;
    none(
      breaches(under("control/"), (target) => target.startsWith("proxy/") && !shared.test(target)),
      "control/ knows the proxy's contract, the store, and the files that ask the kernel",
    );
  });

  it("of the session leave out sockets, clock, store and logger", () => {
    const impure =
      /^(node:(net|dgram|tls|http|https|fs|fs\/promises|timers|timers\/promises|child_process|perf_hooks)|pino|ioredis|koffi|undici|ws)$/;
    none(
      breaches(
        under("proxy/session/"),
        (target) =>
          impure.test(target) || (ours.test(target) && !/^proxy\/(session|contract)\//.test(target)),
      ),
      "proxy/session/ is pure",
    );
    none(
      lines(
        under("proxy/session/"),
        /\b(Date\.now|new Date\(\)|performance\.now|setTimeout|setInterval|process\.hrtime)\b/,
      ),
      "proxy/session/ reads no clock",
    );
  });

  it("of the protocols lead to the contract, bytes and hashes only", () => {
    none(
      breaches(
        under("proxy/protocol/"),
        (target) => !/^(proxy\/(protocol|contract)\/|node:(assert|buffer|crypto)$)/.test(target),
      ),
      "proxy/protocol/ is pure",
    );
    none(
      lines(
        under("proxy/protocol/"),
        /\b(Date\.now|new Date\(\)|performance\.now|setTimeout|setInterval|process\.hrtime)\b/,
      ),
      "proxy/protocol/ reads no clock",
    );
  });

  it("keep tcp, store and relay apart", () => {
    const rooms = ["proxy/tcp/", "proxy/store/", "proxy/relay/"];
    none(
      rooms.flatMap((room) =>
        breaches(under(room), (target) => rooms.some((other) => other !== room && target.startsWith(other))),
      ),
      "proxy/tcp, proxy/store and proxy/relay do not know each other",
    );
  });

  it("have no cycles between files, those of types only aside", () => {
    const graph = new Map(
      product.map(({ path, imports }) => [
        path,
        imports.filter(({ typeOnly }) => !typeOnly).map(({ target }) => target),
      ]),
    );
    const done = new Set<string>();
    const found: string[] = [];
    const visit = (path: string, trail: string[]): void => {
      const seen = trail.indexOf(path);
      if (seen >= 0) found.push([...trail.slice(seen), path].join(" → "));
      if (seen >= 0 || done.has(path)) return;
      for (const next of graph.get(path) ?? []) visit(next, [...trail, path]);
      done.add(path);
    };
    for (const path of graph.keys()) visit(path, []);
    none(found, "files import each other in a circle");
  });
});

describe("one file each", () => {
  it("calls the kernel through FFI", () => {
    none(
      breaches(product, (target, path) => /^koffi(\/|$)/.test(target) && path !== "proxy/kernel/kernel.ts"),
      "only proxy/kernel/kernel.ts imports koffi",
    );
  });

  it("talks to Redis", () => {
    none(
      breaches(product, (target, path) => /^ioredis(\/|$)/.test(target) && path !== "proxy/store/redis.ts"),
      "only proxy/store/redis.ts imports ioredis",
    );
  });

  it("starts CRIU (in control/criu/)", () => {
    const elsewhere = product.filter(({ path }) => !path.startsWith("control/criu/"));
    none(
      lines(
        elsewhere,
        /\b(spawn|exec|run)\w*\([^)]*criu|["'`](swrk|--(tcp-established|images-dir|leave-stopped|shell-job|ext-unix-sk))\b/i,
      ),
      "only control/criu/ starts CRIU",
    );
  });

  it("ends the process (an entry point)", () => {
    none(
      lines(
        sources.filter(({ path }) => !entryPoints.has(path)),
        /\bprocess\.(exit|reallyExit|abort)\s*\(/,
      ),
      "process.exit only in entry points",
    );
  });
});

describe("names", () => {
  it("of files are kebab-case", () => {
    const kebab = /^[a-z0-9]+(-[a-z0-9]+)*(\.test|\.d)?\.(ts|js|cjs|mjs|sh|json|yaml|conf|lua)$/;
    none(
      files.filter((file) => /\.(ts|js|cjs|mjs|sh|lua)$/.test(file) && !kebab.test(basename(file))),
      "file names are kebab-case",
    );
  });

  it("of folders and files at the top are the ones agreed on", () => {
    const top = new Set(files.map((file) => file.split("/")[0] ?? ""));
    none(
      [...top].filter((name) => !topLevelFolders.has(name) && !topLevelFiles.has(name)),
      "not agreed on at the top level",
    );
  });

  it("are exported by name, never as default", () => {
    none(lines(sources, /^\s*export\s+default\b|^\s*export\s*\{.*\bas\s+default\b/), "no default exports");
  });

  it("are not gathered in barrels, utils or helpers", () => {
    none(
      files.filter((file) => /(^|\/)(index|utils?|helpers?|misc|common)\.ts$/.test(file)),
      "a file is named after its one idea",
    );
    none(
      lines(
        sources.filter(({ text }) =>
          text.split("\n").every((line) => /^\s*(export .* from |$|\/?\*|\/\/)/.test(line)),
        ),
        /\bfrom\b/,
      ),
      "no files that only re-export",
    );
  });
});

describe("tests", () => {
  const tests = sources.filter(({ path }) => path.endsWith(".test.ts"));

  it("are all run", () => {
    const only = /\b(it|test|describe|suite)\.only\b|\bonly:\s*true/;
    none(
      lines(
        tests.filter(({ path }) => basename(path) !== "repository.test.ts"),
        only,
      ),
      "no .only",
    );
  });

  it("that skip say why", () => {
    const silent = /\b(it|test|describe|suite)\.(skip|todo)\b|\b(skip|todo):\s*true\b|\.skip\(\s*\)/;
    none(
      lines(
        tests.filter(({ path }) => basename(path) !== "repository.test.ts"),
        silent,
      ),
      "skip with a reason: { skip: condition && 'why' } or t.skip('why')",
    );
  });

  it("live in the folder of their kind", () => {
    none(
      tests.map(({ path }) => path).filter((path) => !/^test\/(unit|integration|privileged)\//.test(path)),
      "tests live in test/unit, test/integration or test/privileged",
    );
  });
});
