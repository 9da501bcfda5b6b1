/** Nodes that are who their certificates say, and one that is no longer trusted. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes, X509Certificate } from "node:crypto";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";
import type { TLSSocket } from "node:tls";
import { KeyRing } from "#control/agent/key-ring.ts";
import { dialSecure, listenSecure, type SecureListener } from "#control/agent/secure.ts";
import { Trust } from "#control/agent/trust.ts";
import { runProgram } from "#control/cli/program.ts";
import { until } from "#test/support/moved-program.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-identity-"));
const elsewhere = join(folder, "elsewhere");
const revoked = join(folder, "revoked");
const ring = new KeyRing([randomBytes(32)]);
const served: { node: string; stream: TLSSocket }[] = [];
const refused: string[] = [];
let listener: SecureListener;
let owner: Trust;

/** @returns what it has said, on both outputs, and its exit status */
async function holdfast(...args: string[]): Promise<{ status: number; said: string }> {
  let said = "";
  const out = {
    write(text: string) {
      said += text;
      return true;
    },
  };
  const around = { out, err: out, env: {}, onInterrupt: () => () => {} };
  const status = await runProgram(args, around as unknown as Parameters<typeof runProgram>[1]);
  return { status, said };
}

async function issue(node: string, where = folder): Promise<string> {
  const { status, said } = await holdfast("keys", "issue", node, "--folder", where);
  assert.equal(status, 0, said);
  return /ones: ([0-9A-F]+)/.exec(said)?.[1] ?? "";
}

const filesOf = (name: string, where = folder, authorities = folder) => ({
  certificate: join(where, `${name}.pem`),
  key: join(where, `${name}.key`),
  authorities: join(authorities, "authority.pem"),
});
const trustOf = (node: string, files = filesOf(node)): Trust =>
  new Trust({ node, ring, identity: files, revoked: null });

/** `owner` listens. */
function listen(): ReturnType<typeof listenSecure> {
  return listenSecure({
    host: "127.0.0.1",
    port: 0,
    trust: owner,
    onPeer: (stream, node) => served.push({ stream: stream.on("error", () => {}).resume(), node }),
    onRefused: (line) => refused.push(line),
  });
}

function dial(trust: Trust, peer = "b"): Promise<TLSSocket> {
  return dialSecure({ host: "127.0.0.1", port: listener.port, trust, peer, timeoutMs: 5_000 });
}

/** TLS 1.3: the dialler may be done before it is refused. */
async function isRefused(trust: Trust, line: RegExp): Promise<void> {
  refused.length = 0;
  const before = served.length;
  const stream = await dial(trust).catch(() => null);
  await until("refused", () => refused.length > 0);
  assert.match(refused[0] ?? "", line);
  assert.equal(served.length, before);
  if (stream !== null && !stream.destroyed) await once(stream.resume(), "close");
}

async function isServed(trust: Trust, node: string): Promise<TLSSocket> {
  const before = served.length;
  const stream = await dial(trust);
  await until("served", () => served.length > before);
  assert.equal(served.at(-1)?.node, node);
  return stream;
}

before(async () => {
  for (const where of [folder, elsewhere])
    assert.equal((await holdfast("keys", "init", "--folder", where)).status, 0);
  for (const node of ["a", "b", "c"]) await issue(node);
  await issue("a", elsewhere);
});
after(() => rmSync(folder, { recursive: true }));

beforeEach(async () => {
  writeFileSync(revoked, "# none\n");
  owner = new Trust({ node: "b", ring, identity: filesOf("b"), revoked });
  listener = await listen();
});
afterEach(async () => {
  await listener.close();
  served.length = 0;
  refused.length = 0;
});

describe("holdfast keys", () => {
  it("makes files that only their owner can read, and replaces none", async () => {
    assert.deepEqual(
      readdirSync(folder).filter((name) => name.startsWith(".")),
      [],
      "nothing half made",
    );
    for (const name of readdirSync(folder).filter((one) => /\.(key|pem)$/.test(one)))
      assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600, name);
    const again = await holdfast("keys", "issue", "a", "--folder", folder);
    assert.deepEqual([again.status, /a\.key is there already/.test(again.said)], [1, true]);
    assert.match(
      (await holdfast("keys", "init", "--folder", folder)).said,
      /authority\.key is there already/,
    );
  });

  it("says what is wrong, and the cure", async () => {
    assert.match((await holdfast("keys", "issue", "B", "--folder", folder)).said, /expected a node's name/);
    assert.match(
      (await holdfast("keys", "issue", "d", "--folder", tmpdir())).said,
      /authority\.pem cannot be read: .*holdfast keys init/,
    );
    assert.equal((await holdfast("keys", "issue", "d", "--days", "x", "--folder", folder)).status, 2);
    assert.match((await holdfast("keys", "--help")).said, /init.*issue/s);
  });
});

describe("a node with a certificate", { timeout: 60_000 }, () => {
  it("is the node that its certificate names, whatever it calls itself", async () => {
    const stream = await isServed(trustOf("a"), "a");
    assert.equal(stream.getProtocol(), "TLSv1.3");
    stream.destroy();
    const files = filesOf("a");
    assert.throws(() => trustOf("c", files), {
      code: "CONFIG_INVALID",
      message: /names node a, this is node c/,
    });
  });

  it("refuses the shared key in a certificate's place, and another authority's certificate", async () => {
    await isRefused(new Trust({ node: "a", ring, identity: null, revoked: null }), /^refused /);
    await isRefused(trustOf("a", filesOf("a", elsewhere)), /^refused /);
  });

  it("is refused by a dialler that means another node, or trusts another authority", async () => {
    const { port } = listener;
    const asC = dialSecure({ host: "127.0.0.1", port, trust: trustOf("a"), peer: "c", timeoutMs: 5_000 });
    await assert.rejects(asC, { code: "PEER_AUTH" });
    await assert.rejects(dial(trustOf("a", filesOf("a", elsewhere, elsewhere))), { code: "PEER_AUTH" });
    // as node c would be, if it took b's address
    const c = await listenSecure({
      host: "127.0.0.1",
      port: 0,
      trust: Object.assign(trustOf("c"), { node: "b" }),
      onPeer: () => assert.fail("it was spoken to"),
      onRefused: () => {},
    });
    await assert.rejects(
      dialSecure({ host: "127.0.0.1", port: c.port, trust: trustOf("a"), peer: "b", timeoutMs: 5_000 }),
      { code: "PEER_AUTH", message: /says that it is node c/ },
    );
    await c.close();
  });

  it("is cut off at once when it is revoked, by name or by serial number, and refused from then on", async () => {
    const serial = await issue("d");
    for (const [node, line] of [
      ["a", "a"],
      ["d", serial.toLowerCase().replace(/(..)(?!$)/g, "$1:")],
    ] as const) {
      const other = await isServed(trustOf("c"), "c");
      const stream = await isServed(trustOf(node), node);
      writeFileSync(revoked, `# stolen\n${line}   # on Monday\n`);
      assert.ok(owner.readAgain());
      await once(stream, "close");
      assert.ok(!other.destroyed, "no other");
      await isRefused(trustOf(node), /is revoked/);
      (await isServed(trustOf("c"), "c")).destroy();
      other.destroy();
    }
  });

  it("is not dialled either when it is revoked, and streams to it end", async () => {
    const mine = join(folder, "revoked-at-a");
    writeFileSync(mine, "");
    const a = new Trust({ node: "a", ring, identity: filesOf("a"), revoked: mine });
    const stream = await dial(a);
    writeFileSync(mine, "b\n");
    a.readAgain();
    assert.ok(stream.destroyed);
    await assert.rejects(dial(a), { code: "PEER_AUTH", message: /node b is revoked/ });
  });

  it("goes by other files as soon as they are there, and by the ones before when they are damaged", async () => {
    const mine = join(folder, "mine");
    mkdirSync(mine);
    for (const name of ["a.pem", "a.key", "authority.pem"])
      copyFileSync(join(folder, name), join(mine, name));
    const a = trustOf("a", filesOf("a", mine, mine));
    for (const name of ["a.pem", "a.key"]) copyFileSync(join(elsewhere, name), join(mine, name));
    assert.ok(a.readAgain());
    await isRefused(a, /^refused /);
    copyFileSync(join(folder, "a.pem"), join(mine, "a.pem"));
    a.readAgain();
    assert.match(a.problems.join(), /a\.key is not the key of .*a\.pem/);
    copyFileSync(join(folder, "a.key"), join(mine, "a.key"));
    assert.ok(a.readAgain());
    assert.deepEqual(a.problems, []);
    (await isServed(a, "a")).destroy();
  });

  it("goes by the ones before when only OpenSSL finds the damage, or they are not valid yet", async () => {
    const mine = join(folder, "half");
    mkdirSync(mine);
    for (const name of ["b.pem", "b.key", "authority.pem"])
      copyFileSync(join(folder, name), join(mine, name));
    await listener.close();
    owner = trustOf("b", filesOf("b", mine, mine));
    listener = await listen();
    const whole = readFileSync(join(folder, "b.pem"), "utf8");
    writeFileSync(join(mine, "b.pem"), whole + whole.replace(/(.{200})[^-]*/s, "$1\n"));
    new X509Certificate(readFileSync(join(mine, "b.pem"))); // of its first nothing is wrong
    assert.ok(owner.readAgain());
    assert.match(owner.problems.join(), /the certificate before it is used: .*b\.pem.*expected PEM/);
    (await isServed(trustOf("a"), "a")).destroy();
    writeFileSync(join(mine, "b.pem"), whole);
    assert.ok(owner.readAgain());
    assert.deepEqual(owner.problems, []);

    const clock = Date.now;
    Date.now = () => clock() - 10 * 24 * 3_600_000;
    try {
      owner.readAgain();
    } finally {
      Date.now = clock;
    }
    assert.match(owner.problems.join(), /b\.pem: it is valid from .* on/);
    (await isServed(trustOf("a"), "a")).destroy();
  });

  it("tells all who want to know of a change, whatever becomes of one of them", () => {
    let told = 0;
    owner.onChange(() => {
      throw new Error("not today");
    });
    owner.onChange(() => told++);
    writeFileSync(revoked, "a\n");
    assert.ok(owner.readAgain());
    assert.equal(told, 1);
    assert.match(owner.problems.join(), /not today/);
  });

  it("is cut off when its authority is no longer ours", async () => {
    const authorities = join(folder, "both.pem");
    execFileSync("sh", ["-c", `cat ${folder}/authority.pem ${elsewhere}/authority.pem > ${authorities}`]);
    await listener.close();
    owner = new Trust({ node: "b", ring, identity: { ...filesOf("b"), authorities }, revoked: null });
    listener = await listen();
    const stream = await isServed(trustOf("a", filesOf("a", elsewhere)), "a");
    copyFileSync(join(folder, "authority.pem"), authorities);
    assert.ok(owner.readAgain());
    await once(stream, "close");
    assert.match(refused.join(), /ended the stream of node a: none of our authorities vouches/);
    await isRefused(trustOf("a", filesOf("a", elsewhere)), /^refused /);
  });
});

describe("a file of revoked nodes", () => {
  it("counts though a line of it cannot be understood, or it is gone; and must be there at first", async () => {
    writeFileSync(revoked, "not a node!\na\n");
    assert.ok(owner.readAgain());
    assert.match(owner.problems.join(), /line 1 is neither/);
    assert.match(owner.revoked.refuses("a", "1") ?? "", /node a is revoked/);
    rmSync(revoked);
    assert.ok(owner.readAgain());
    assert.ok(!owner.readAgain(), "told once");
    assert.match(owner.problems.join(), /cannot be read, who was revoked stays so/);
    assert.ok(owner.revoked.refuses("a", "1"));
    assert.throws(() => new Trust({ node: "b", ring, identity: filesOf("b"), revoked }), {
      code: "CONFIG_INVALID",
    });
  });
});
