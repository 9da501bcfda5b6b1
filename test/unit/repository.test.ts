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
  imports: { target: string; line: number }[];
}

/** Where processes begin, and so the only files that may end one. */
const entryPoints = new Set([
  "bin/holdfast",
  "control/main.ts",
  "proxy/run-proxy.ts",
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

/**
 * Who may look at whom, types included: each room, and the rooms it may import from. What is not listed it may not. A file beside
 * the rooms (`main.ts`) joins them and may import from all.
 */
const ROOMS: Record<string, Record<string, readonly string[]>> = {
  "proxy/": {
    contract: [],
    kernel: ["contract"],
    protocol: ["contract"],
    session: ["contract"],
    store: ["contract"],
    stream: ["contract"],
    listen: ["contract", "stream"],
    link: ["contract", "stream"],
    tcp: ["contract", "kernel"],
    replay: ["contract", "protocol", "stream"],
    workload: ["contract", "protocol", "session", "stream", "listen", "link", "replay"],
    cutover: ["contract", "session", "stream", "link", "replay", "workload"],
    gateway: ["contract", "protocol", "stream", "listen", "link", "store", "workload", "cutover"],
    admin: ["workload"],
  },
  "control/": {
    api: [],
    config: ["api"],
    kubernetes: ["api", "config"],
    criu: ["api", "config"],
    runtime: ["api", "config", "criu"],
    network: ["api", "config", "criu", "runtime"],
    audit: ["api", "config", "criu", "runtime"],
    migration: ["api", "config", "criu", "runtime", "network", "audit"],
    workload: ["api", "config", "criu", "runtime", "network", "audit", "migration"],
    agent: ["api", "config", "kubernetes", "criu", "runtime", "network", "audit", "migration", "workload"],
    gateway: ["api", "config", "kubernetes", "agent"],
    cli: ["api", "config", "kubernetes"],
  },
};
/** … and what those import that decide without looking at anything but what they are given */
const CONTROLLER_PURE = [
  ...["plan", "adopting", "returning", "next", "observed"],
  ...["obstacles", "places", "standby-pod", "stateful-set", "disruption"],
];
const PURE: Record<string, readonly RegExp[]> = {
  "proxy/session/": [/^proxy\/contract\//, /^node:assert(\/strict)?$/],
  "proxy/protocol/": [/^proxy\/contract\//, /^node:(assert|buffer|crypto)$/],
  "proxy/replay/plan.ts": [/^proxy\/protocol\//],
  ...Object.fromEntries(
    [
      ...CONTROLLER_PURE.map((file) => `controller/${file}`),
      ...["triggers/caused", "triggers/node-triggers", "node/movable-condition"],
    ].map((file) => [
      `control/kubernetes/${file}.ts`,
      [
        /^control\/api\//,
        /^control\/config\/quantity\.ts$/,
        /^control\/kubernetes\/client\/objects\.ts$/,
        new RegExp(`^control/kubernetes/controller/(${CONTROLLER_PURE.join("|")})\\.ts$`),
        /^control\/kubernetes\/(triggers\/(caused|node-triggers)|node\/movable-condition|inject\/inject)\.ts$/,
        /^node:crypto$/,
      ],
    ]),
  ),
  "control/config/quantity.ts": [],
  "control/config/proxy-resources.ts": [/^control\/config\/quantity\.ts$/, /^zod$/],
  "control/api/": [/^proxy\/contract\//, /^zod$/],
  "envoy/policy.ts": [/^proxy\/contract\//, /^zod$/],
  "envoy/generate/": [/^proxy\/contract\//, /^envoy\/policy\.ts$/, /^node:util$/, /^yaml$/],
  "control/kubernetes/inject/": [
    /^proxy\/contract\//,
    /^control\/config\/(limits|proxy-resources|quantity)\.ts$/,
    /^node:util$/,
    /^yaml$/,
    /^zod$/,
  ],
};
const READS_CLOCK = /\b(Date\.now|new Date\(\)|performance\.now|setTimeout|setInterval|process\.hrtime)\b/;

/** Tracked files, and new ones that nobody ignores: what the next commit may hold. */
const files = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\n")
  .filter((file) => file !== "" && existsSync(join(root, file)));

const importPattern = /(?:\bfrom\s*|\bimport\s*\(\s*|\bimport\s+)(["'])([\w@#][\w@#./:-]*|\.[\w./-]+)\1/g;

function readSource(path: string): Source {
  return sourceOf(path, readFileSync(join(root, path), "utf8"));
}

function sourceOf(path: string, text: string): Source {
  const imports = [...text.matchAll(importPattern)]
    .map((match) => ({
      target: resolveImport(path, match[2] ?? ""),
      line: lineAt(text, match.index),
    }))
    .filter(({ line }) => !/^\s*(\*|\/\/|\/\*)/.test(text.split("\n")[line - 1] ?? ""));
  return { path, text, imports };
}

/** Our own files as a path from the root, everything else as written. */
function resolveImport(from: string, specifier: string): string {
  const subpath = /^#(proxy|control|envoy|test|bench)\/(.*)$/.exec(specifier);
  if (subpath) return `${subpath[1]}/${subpath[2]}`;
  if (specifier.startsWith(".")) return relative(root, resolve(root, dirname(from), specifier));
  return specifier;
}

function lineAt(text: string, index: number): number {
  return text.slice(0, index).split("\n").length;
}

const sources = files.filter((file) => file.endsWith(".ts")).map(readSource);
const product = sources.filter(({ path }) => /^(proxy|control|envoy)\//.test(path));
const ours = /^(proxy|control|envoy|charts|test|bench|scripts)\//;

/** "proxy/tcp/adopt.ts" → "tcp"; "" for a file beside the rooms, where processes begin */
function roomOf(path: string): string {
  const [, room = "", file] = path.split("/");
  return file === undefined ? "" : room;
}

/** Each once, as "a → b → a". */
function circlesIn(graph: ReadonlyMap<string, readonly string[]>): string[] {
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
  return found;
}

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

  it("are of every package that package.json has: the product's, and those of tests and tools", () => {
    const { dependencies, devDependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    const isImported = (from: Source[], name: string): boolean =>
      from.some(
        ({ imports, text }) =>
          imports.some(({ target }) => target === name || target.startsWith(`${name}/`)) ||
          text.includes(`createRequire(import.meta.url)("${name}")`),
      );
    // Node itself, started by bin/holdfast; tools and types
    const started = /^(node|typescript|@biomejs\/biome|@types\/.*)$/;
    none(
      Object.keys(dependencies).filter((name) => !started.test(name) && !isImported(product, name)),
      "a dependency that the product does not import is none, or a devDependency",
    );
    none(
      Object.keys(devDependencies).filter((name) => !started.test(name) && !isImported(sources, name)),
      "a devDependency that nothing imports",
    );
  });

  it("never lead from the product to tests, benchmarks or scripts", () => {
    none(
      breaches(product, (target) => /^(charts|test|bench|scripts)\//.test(target)),
      "the product stands alone",
    );
  });

  it("of the proxy stay in it", () => {
    none(
      breaches(under("proxy/"), (target) => /^(control|envoy)\//.test(target)),
      "proxy/ does not know control/ or envoy/",
    );
  });

  it("of control reach the proxy through its contract, the store and the kernel calls only", () => {
    none(
      breaches(
        under("control/"),
        (target, path) =>
          target.startsWith("proxy/") &&
          !/^proxy\/(contract|store|kernel)\//.test(target) &&
          // the process of a gateway is started by the command line, and has no agent to speak to
          !(path === "control/gateway/main.ts" && target === "proxy/run-gateway.ts"),
      ),
      "control/ knows the proxy's contract, the store, and the calls of the kernel",
    );
  });

  it("choose who operates on legs in the composition root only, and in the test's own", () => {
    const roots = new Set([
      "proxy/run-proxy.ts",
      "proxy/process-kernel.ts",
      "test/support/in-process-proxy.ts",
    ]);
    none(
      breaches(
        product,
        (target, path) => target.startsWith("proxy/tcp/") && !path.startsWith("proxy/tcp/"),
      ).filter((breach) => !roots.has(breach.split(":")[0] as string)),
      "users know contract/leg-surgeon.ts only",
    );
    none(
      lines(
        sources.filter(({ path }) => !roots.has(path)),
        /\bnew LocalSurgeon\(/,
      ),
      "the surgeon is made where the parts are joined",
    );
  });

  for (const [house, rooms] of Object.entries(ROOMS))
    it(`of ${house} lead from a room to those below it only, types included`, () => {
      const known = new Set(Object.keys(rooms));
      none(
        [...new Set(under(house).map(({ path }) => roomOf(path)))].filter(
          (room) => room !== "" && !known.has(room),
        ),
        `${house} has a room that no rule knows`,
      );
      none(
        breaches(under(house), (target, path) => {
          const [from, to] = [roomOf(path), roomOf(target)];
          return target.startsWith(house) && from !== "" && from !== to && !(rooms[from] ?? []).includes(to);
        }),
        `the rooms of ${house}: see ROOMS`,
      );
    });

  for (const whole of ["proxy/workload/workload-proxy.ts", "control/workload/workload.ts"])
    it(`of a part of ${whole} never lead to the whole: each declares what it needs of the others`, () => {
      none(
        breaches(under(`${dirname(whole)}/`), (target) => target === whole),
        `${whole} is made of parts that do not know it`,
      );
    });

  it("lead to an implementation of the runtime from itself and from where it is chosen only", () => {
    const isOne = (target: string): boolean => /^control\/runtime\/[\w-]+\//.test(target);
    none(
      breaches(
        under("control/"),
        (target, path) =>
          isOne(target) && !path.startsWith("control/agent/") && dirname(path) !== dirname(target),
      ),
      "everybody else knows control/runtime/runtime.ts",
    );
  });

  it("of pure rooms lead to nothing that is not pure, and read no clock", () => {
    for (const [prefix, allowed] of Object.entries(PURE)) {
      none(
        breaches(
          under(prefix),
          (target) => !target.startsWith(prefix) && !allowed.some((pattern) => pattern.test(target)),
        ),
        `${prefix} is pure`,
      );
      none(lines(under(prefix), READS_CLOCK), `${prefix} reads no clock`);
    }
  });

  it("have no circles of files, types included", () => {
    const graph = new Map(product.map(({ path, imports }) => [path, imports.map(({ target }) => target)]));
    none(circlesIn(graph), "files import each other in a circle");
  });
});

describe("the rules themselves", () => {
  const source = (path: string, ...targets: string[]): Source => ({
    path,
    text: "",
    imports: targets.map((target) => ({ target, line: 1 })),
  });

  it("find a circle, and where it is", () => {
    const graph = new Map([
      ["a", ["b", "node:fs"]],
      ["b", ["c"]],
      ["c", ["a"]],
      ["d", ["a"]],
    ]);
    assert.deepEqual(circlesIn(graph), ["a → b → c → a"]);
    graph.set("c", []);
    assert.deepEqual(circlesIn(graph), []);
  });

  it("find an import in each way to write it, of types too", () => {
    const [from, load] = ["fro" + "m", "impor" + "t"]; // as this file is looked at as well
    const text = [
      `${load} { a } ${from} "../runtime/a.ts";`,
      `${load} type { B } ${from} "#control/agent/b.ts";`,
      `${load} "./c.ts";`,
      `export { d } ${from} "./d.ts";`,
      `await ${load}("./e.ts");`,
      `// ${load} { f } ${from} "./f.ts";`,
    ].join("\n");
    assert.deepEqual(
      sourceOf("control/workload/x.ts", text).imports.map(({ target }) => target),
      [
        "control/runtime/a.ts",
        "control/agent/b.ts",
        "control/workload/c.ts",
        "control/workload/d.ts",
        "control/workload/e.ts",
      ],
    );
  });

  it("find a room that looks up, and one that looks where it may", () => {
    const up = breaches([source("control/migration/x.ts", "control/workload/y.ts")], () => true);
    assert.deepEqual(up, ["control/migration/x.ts:1 imports control/workload/y.ts"]);
    for (const [house, rooms] of Object.entries(ROOMS))
      for (const [room, below] of Object.entries(rooms)) {
        none(
          below.filter((other) => !Object.hasOwn(rooms, other) || other === room),
          `${house}${room} may look at a room that is there`,
        );
        none(
          below.filter((other) => (rooms[other] ?? []).includes(room)),
          `${house}${room} and another may not both look at each other`,
        );
      }
  });
});

describe("one file each", () => {
  it("calls the kernel through FFI", () => {
    none(
      breaches(product, (target, path) => /^koffi(\/|$)/.test(target) && path !== "proxy/kernel/libc.ts"),
      "only proxy/kernel/libc.ts imports koffi",
    );
  });

  it("has the codes of errors, each of which something has, and makes errors of them", () => {
    // … but for what the kernel says, what another process said, and the code of a failed start's own error
    const others =
      /^(proxy\/kernel\/|proxy\/contract\/(error-codes|channel)\.ts|control\/(cli\/admin-client|migration\/ended-connection|workload\/starter)\.ts)/;
    none(
      lines(
        product.filter(({ path }) => !others.test(path)),
        /\bnew HoldfastError\(/,
      ),
      "errors are made by fail(), with a code of proxy/contract/error-codes.ts",
    );
    const registry = readFileSync(join(root, "proxy/contract/error-codes.ts"), "utf8");
    const codes = [...registry.matchAll(/^ {2}([A-Z][A-Z0-9_]+): \{/gm)].map(([, code = ""]) => code);
    assert.ok(codes.length > 100);
    assert.deepEqual(codes, [...codes].sort(), "in order");
    const rest = product.filter(({ path }) => path !== "proxy/contract/error-codes.ts");
    none(
      codes.filter((code) => !rest.some(({ text }) => text.includes(`"${code}"`))),
      "codes that no error has",
    );
  });

  it("talks to Redis", () => {
    none(
      breaches(product, (target, path) => /^ioredis(\/|$)/.test(target) && path !== "proxy/store/redis.ts"),
      "only proxy/store/redis.ts imports ioredis",
    );
  });

  it("reach a container runtime, and serve Envoys, through one file each", () => {
    none(
      breaches(
        product,
        (target, path) =>
          /^@grpc\//.test(target) &&
          !["control/runtime/cri/cri-client.ts", "envoy/endpoints/ads-server.ts"].includes(path),
      ),
      "only control/runtime/cri/cri-client.ts and envoy/endpoints/ads-server.ts import gRPC",
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

  it("enters a network namespace", () => {
    none(
      lines(
        product.filter(
          ({ path }) =>
            !["control/runtime/network-namespace.ts", "proxy/kernel/namespaces.ts"].includes(path),
        ),
        /\binNetworkNamespace\b/,
      ),
      "control/runtime/network-namespace.ts enters them for all",
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

describe("documentation", () => {
  const documents = files.filter((file) => file.endsWith(".md"));

  it("names tests that are there", () => {
    const tests = Map.groupBy(
      files.filter((file) => file.endsWith(".test.ts")),
      (file) => basename(file),
    );
    const names = (file: string): string[] =>
      [...readFileSync(join(root, file), "utf8").matchAll(/"((?:[^"\\\n]|\\.)+)"|`((?:[^`\\]|\\.)+)`/g)]
        .map(([, text, template = ""]) => text ?? template.replaceAll(/\$\{[^}]*\}/g, "*"))
        .filter((name) => name.replaceAll("*", "").length > 8);
    const cited = /(?:`(?:[\w/-]+\/)?([\w-]+\.test\.ts)`|the same)((?:[:,;]? (?:and )?"[^"]+")*)/g;
    const missing: string[] = [];
    let count = 0;
    for (const document of documents) {
      const text = readFileSync(join(root, document), "utf8");
      let of = "";
      for (const { 1: file, 2: quotes = "", index } of text.matchAll(cited)) {
        of = file ?? of;
        for (const [, quote = ""] of quotes.matchAll(/"([^"]+)"/g)) {
          count++;
          // names are made of parts, in loops over steps: capitals, and what the document leaves out, stand for any of them
          const wanted = `${quote.replaceAll(/\b[A-Z]{3,}\b|…/g, "*")}*`;
          if ((tests.get(of) ?? []).some((one) => names(one).some((name) => canBeSame(wanted, name))))
            continue;
          missing.push(`${document}:${text.slice(0, index).split("\n").length} ${of}: "${quote}"`);
        }
      }
    }
    assert.ok(count > 150, String(count));
    none(missing, "a test that a document names is there");
  });

  it("has a row for each label, annotation and condition of ours, and for no other", () => {
    const name = /(?:"holdfast\.dev\/|\$\{GROUP\}\/)([a-z][a-z-]*)["`]/g;
    const known = new Set(product.flatMap(({ text }) => [...text.matchAll(name)].map(([, one = ""]) => one)));
    assert.ok(known.size > 35, [...known].join());
    const rows = readFileSync(join(root, "control/kubernetes/README.md"), "utf8").match(
      /^\| `holdfast\.dev\/[^|]*\|/gm,
    );
    const told = new Set(
      (rows ?? []).flatMap((row) =>
        [...row.matchAll(/`holdfast\.dev\/([a-z-]+)`/g)].map(([, one = ""]) => one),
      ),
    );
    assert.deepEqual([...told].toSorted(), [...known].toSorted());
  });

  it("has the bounds that the code has", () => {
    const architecture = readFileSync(join(root, "ARCHITECTURE.md"), "utf8");
    const constantOf = (file: string, constant: string): number => {
      const [, text] =
        new RegExp(`const ${constant} = ([\\d_]+);`).exec(readFileSync(join(root, file), "utf8")) ?? [];
      assert.ok(text !== undefined, `${file} ${constant}`);
      return Number(text.replaceAll("_", ""));
    };
    const proxy = "control/workload/proxy-client.ts";
    const starter = "control/workload/starter.ts";
    for (const row of [
      `its start | ${constantOf(proxy, "COMMAND_MS_MAX") / 1000} s; ${constantOf(proxy, "START_MS_MAX") / 1000} s |`,
      `at most ${constantOf("proxy/cutover/pieces.ts", "PIECE_SESSIONS").toLocaleString("en")} sessions |`,
      `after ${constantOf(starter, "CLAIM_AGAIN_MS") / 1000} s, then half as long again each time, to ${constantOf(starter, "CLAIM_AGAIN_MS_MAX") / 1000} s,`,
    ])
      assert.ok(architecture.includes(row), row);
  });
});

/** Of two patterns, with `*` for any text: is there a text that both are for. */
function canBeSame(a: string, b: string): boolean {
  if (a === "" || b === "") return /^\**$/.test(a + b);
  if (a[0] === "*") return canBeSame(a.slice(1), b) || canBeSame(a, b.slice(1));
  if (b[0] === "*") return canBeSame(a, b.slice(1)) || canBeSame(a.slice(1), b);
  return a[0] === b[0] && canBeSame(a.slice(1), b.slice(1));
}

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
      tests
        .map(({ path }) => path)
        .filter((path) => !/^test\/(unit|integration|privileged|kube|envoy)\//.test(path)),
      "tests live in test/unit, test/integration, test/privileged, test/kube or test/envoy",
    );
  });
});
