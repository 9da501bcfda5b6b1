/**
 * The Dockerfile, built by buildah without a registry: from a smallest Debian of apt's with this machine's Node and npm. What comes out is
 * what test clusters run, which `images.ts` makes by the same list.
 */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before, describe, it } from "node:test";
import { CLONE_NEWNS, unshare } from "#proxy/kernel/namespaces.ts";
import { copyContents } from "../../charts/images/contents.ts";
import { projectRoot } from "../lab/lab.ts";
import { buildahFor } from "./image-store.ts";
import { AGENT, CONTROL, DOCKERFILE, INSIDE } from "./images.ts";
import { CACHE_DIR } from "./kube-tools.ts";

// what buildah mounts ends with this process, however that ends
unshare(CLONE_NEWNS);
execFileSync("mount", ["--make-rprivate", "/"]);
const folder = mkdtempSync(join(tmpdir(), "holdfast-dockerfile-"));
after(() => rmSync(folder, { recursive: true, force: true, maxRetries: 3 }));

const TOOLS = join(CACHE_DIR, "build-tools");
const BASE = "localhost/debian-with-node:1";
const POLICY = ["--signature-policy", join(folder, "policy.json")];
const BUILD_MS_MAX = 600_000;
const IMAGES = { control: CONTROL, agent: AGENT, inside: INSIDE };
type Name = keyof typeof IMAGES;
const NAMES = Object.keys(IMAGES) as Name[];

function run(argv: string[], env: NodeJS.ProcessEnv = process.env): string {
  const [program = "", ...args] = argv;
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    encoding: "utf8",
    env,
    timeout: BUILD_MS_MAX,
    maxBuffer: 64 * 1024 * 1024,
  });
  assert.equal(
    status,
    0,
    `${argv.join(" ")}: ${String(error ?? "")}\n${stdout.slice(-3_000)}${stderr.slice(-3_000)}`,
  );
  return stdout;
}

function buildah(command: string, ...args: string[]): string {
  const { argv, env } = buildahFor(folder);
  return run([...argv, command, ...args], env);
}

/** A smallest Debian 12, kept: it takes a minute. */
function debian(): string {
  const kept = join(CACHE_DIR, "debian-12.tar");
  if (existsSync(kept)) return kept;
  const { stdout } = spawnSync("apt-get", ["update", "--print-uris"], { encoding: "utf8" });
  const mirror = /^'(\S+?)\/dists\/bookworm\//m.exec(stdout)?.[1] ?? "http://deb.debian.org/debian";
  const work = mkdtempSync(`${kept}.`);
  try {
    const how = ["--mode=root", "--variant=apt", '--aptopt=APT::Sandbox::User "root"', "--format=tar"];
    run([
      join(TOOLS, "usr/bin/mmdebstrap"),
      ...how,
      "bookworm",
      join(work, "tar"),
      `deb ${mirror} bookworm main`,
    ]);
    renameSync(join(work, "tar"), kept);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return kept;
}

/** What the Dockerfile asks of its base, with this machine's Node and npm, and its way to Debian and to npm's registry. */
function makeBase(): void {
  const program = (name: string): string => realpathSync(run(["sh", "-c", `command -v ${name}`]).trim());
  const authorities = "/etc/ssl/certs/ca-certificates.crt";
  const node = join(folder, "node");
  const ways = join(folder, "apt.conf");
  writeFileSync(ways, run(["apt-config", "dump", "Acquire"]));
  copyContents(
    {
      files: {
        "/usr/local/bin/node": program("node"),
        "/usr/local/lib/node_modules/npm": dirname(dirname(program("npm"))),
        [authorities]: authorities,
        "/etc/apt/apt.conf.d/99ways": ways,
      },
      links: { "/usr/local/bin/npm": "../lib/node_modules/npm/bin/npm-cli.js" },
    },
    node,
  );
  const env = Object.entries(process.env)
    .filter(([name]) => /^(https?_proxy|no_proxy|npm_config_registry)$/i.test(name))
    .concat([["NODE_EXTRA_CA_CERTS", authorities]]);
  const container = buildah("from", "scratch").trim();
  buildah("add", container, debian(), "/");
  buildah("add", container, node, "/");
  buildah("config", ...env.flatMap(([name, value]) => ["--env", `${name}=${value}`]), container);
  buildah("commit", ...POLICY, "--rm", container, BASE);
}

/** Files below a folder of an image, by the path in it, with what is in them. */
function filesIn(root: string, below: string): Map<string, string> {
  const argv = ["find", join(root, below), "(", "-type", "f", "-o", "-type", "l", ")", "-print0"];
  return new Map(
    run(argv)
      .split("\0")
      .filter((path) => path !== "")
      .sort()
      .map((path) => [path.slice(root.length), textOf(path)]),
  );
}

function textOf(path: string): string {
  if (lstatSync(path).isSymbolicLink()) return readlinkSync(path);
  // no two runs of a compiler keep the same
  if (path.includes("/.cache/holdfast/")) return "compiled";
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

describe("the Dockerfile", () => {
  const mounted = {} as Record<Name, string>;
  const containers: string[] = [];

  before(() => {
    writeFileSync(
      join(folder, "policy.json"),
      JSON.stringify({ default: [{ type: "insecureAcceptAnything" }] }),
    );
    makeBase();
    const how = ["--isolation", "oci", "--runtime", "/usr/sbin/runc", "--network", "host", ...POLICY];
    for (const name of NAMES) {
      buildah(
        ...([
          "bud",
          ...how,
          "--layers",
          "--build-arg",
          `BASE=${BASE}`,
          "--target",
          name,
          "--tag",
          IMAGES[name].name,
        ] as const),
        ...["--ignorefile", `${DOCKERFILE}.dockerignore`, "--file", DOCKERFILE, projectRoot],
      );
      const container = buildah("from", ...POLICY, IMAGES[name].name).trim();
      containers.push(container);
      mounted[name] = buildah("mount", container).trim();
    }
  });
  after(() => {
    for (const container of containers) buildah("umount", container);
    // what a build that failed has left there, and the store, which is a mount of itself
    const mounts = readFileSync("/proc/self/mounts", "utf8")
      .split("\n")
      .map((line) => line.split(" ")[1] ?? "");
    for (const mount of mounts.filter((path) => path.startsWith(`${folder}/`)).reverse())
      spawnSync("umount", [mount]);
  });

  for (const name of NAMES)
    it(`makes of ${name} what test clusters run`, () => {
      const expected = join(folder, name);
      mkdirSync(expected);
      for (const image of [IMAGES[name].from, IMAGES[name]])
        if (image !== undefined) copyContents(image.contents(), expected);
      // what is ours, byte by byte
      const ours = name === "inside" ? "bin" : "holdfast";
      assert.deepEqual(filesIn(mounted[name], ours), filesIn(expected, ours));
      // libraries are of Debian's current versions there, of this machine's here
      const paths = (root: string): string[] =>
        [...filesIn(root, "").keys()].filter(
          (path) => !/\/lib(64)?\//.test(path) || path.startsWith("/holdfast/"),
        );
      assert.deepEqual(paths(mounted[name]), paths(expected));
      const { config } = JSON.parse(buildah("inspect", "--type", "image", IMAGES[name].name)).OCIv1;
      const { entrypoint, user, env = {} } = { ...IMAGES[name].from, ...IMAGES[name] };
      assert.deepEqual([config.Entrypoint, config.User], [entrypoint, user]);
      for (const [variable, value] of Object.entries(env))
        assert.ok(config.Env.includes(`${variable}=${value}`), config.Env);
    });

  it("makes programs that run with nothing but what is in their image", () => {
    const inImage = (name: Name, ...argv: string[]): string => run(["chroot", mounted[name], ...argv]);
    const holdfast = CONTROL.entrypoint as string[];
    const user = ["--userspec=65532:65532", mounted.control];
    assert.match(run(["chroot", ...user, ...holdfast, "--version"]), /^\d+\.\d+\.\d+\n$/);
    assert.match(run(["chroot", ...user, ...holdfast, "webhook", "--help"]), /\/inject/);
    assert.match(inImage("agent", "/holdfast/bin/holdfast", "agent", "--help"), /--config/);
    const kept = join(mounted.control, "holdfast/node_modules/.cache/holdfast");
    const [compiled = ""] = readdirSync(kept).filter((one) => one.endsWith("-0"));
    assert.ok(readdirSync(join(kept, compiled)).length > 300, "its code is compiled");
    const criu = "/var/cache/holdfast/criu-4.2";
    const { loader } = JSON.parse(readFileSync(join(mounted.agent, criu, "manifest.json"), "utf8"));
    const started = [`${criu}/${loader}`, "--library-path", `${criu}/lib`, `${criu}/criu`, "--version"];
    assert.match(inImage("agent", ...started), /^Version: 4\./m);
    for (const program of [
      "/usr/sbin/nft",
      "/usr/sbin/runc",
      "/usr/bin/nsenter",
      "/usr/bin/tar",
      "/bin/bash",
    ])
      assert.match(inImage("agent", program, "--version"), /\d/, program);
    inImage("inside", ...(INSIDE.entrypoint as string[]));
    assert.deepEqual(
      [...filesIn(mounted.inside, ".holdfast").keys()].map((path) => path.slice("/.holdfast".length)),
      [...filesIn(mounted.inside, "holdfast").keys()].map((path) => path.slice("/holdfast".length)),
    );
  });

  it("has no path of one architecture", () => {
    const files = [DOCKERFILE, join(projectRoot, "charts/images/contents.ts")];
    for (const file of files)
      for (const line of readFileSync(file, "utf8").split("\n"))
        assert.doesNotMatch(line.replace(/^#.*/, ""), /x86|amd64|aarch64|arm64/, file);
  });
});
