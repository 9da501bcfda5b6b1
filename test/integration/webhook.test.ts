/** `holdfast webhook`, the process: what it answers over TLS, its certificate that is renewed, its end. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { Agent, request } from "node:https";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, describe, it } from "node:test";
import { connect } from "node:tls";
import { stringify } from "yaml";
import { issueCertificate, makeAuthority } from "#control/cli/keys.ts";
import { readCertificate } from "#control/kubernetes/webhook/certificate.ts";
import { until } from "#test/support/moved-program.ts";
import { podShapes } from "#test/support/pod-shapes.ts";
import { freePort } from "#test/support/redis.ts";
import { reviewOf } from "#test/support/reviews.ts";

const root = resolve(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "holdfast-webhook-"));
const NAME = "webhook.holdfast";
const READY_MS_MAX = 20_000;
const BODY_BYTES_MAX = 8_388_608;
const quiet = { out: { write: () => true }, err: { write: () => true } };

interface Answered {
  status: number;
  text: string;
  // biome-ignore lint/suspicious/noExplicitAny: what it is depends on what was asked.
  json: any;
}

describe("holdfast webhook", () => {
  const started: ChildProcess[] = [];
  const { pod } = podShapes().find(({ name }) => name === "bare") ?? assert.fail();
  let ca: Buffer;
  /** that ends with the tests */
  let lasting: Webhook;

  before(async () => {
    makeAuthority({ folder, days: 2 }, quiet);
    ca = readFileSync(join(folder, "authority.pem"));
    lasting = await start();
  });
  after(() => {
    for (const child of started) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });

  interface Webhook {
    child: ChildProcess;
    files: string;
    port: number;
    admin: number;
    log: string;
  }

  /** A certificate and its key, as tls.crt and tls.key of a folder. */
  function issue(into: string): void {
    const made = mkdtempSync(join(folder, "issued-"));
    for (const name of ["authority.pem", "authority.key"]) copyFileSync(join(folder, name), join(made, name));
    issueCertificate("webhook", { folder: made, days: 1 }, quiet);
    for (const [from, to] of [
      ["webhook.key", "tls.key"],
      ["webhook.pem", "tls.crt"],
    ] as const)
      renameSync(join(made, from), join(into, to));
  }

  async function start(more: object = {}): Promise<Webhook> {
    const files = join(folder, `w${started.length}`);
    mkdirSync(files);
    issue(files);
    const [port, admin] = [await freePort(), await freePort()];
    const config = {
      listen: `127.0.0.1:${port}`,
      certificate: "tls.crt",
      key: "tls.key",
      image: "localhost/holdfast/inside:1",
      admin: `127.0.0.1:${admin}`,
      ...more,
    };
    writeFileSync(join(files, "webhook.yaml"), stringify(config));
    const argv = ["webhook", "--config", join(files, "webhook.yaml")];
    const child = spawn(join(root, "bin/holdfast"), argv, { stdio: ["ignore", "ignore", "pipe"] });
    started.push(child);
    const webhook: Webhook = { child, files, port, admin, log: "" };
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      webhook.log += text;
    });
    await until(
      "it answers, or has ended",
      () => webhook.log.includes('"msg":"asked from now on"') || child.exitCode !== null,
      READY_MS_MAX,
    );
    return webhook;
  }

  function ask(
    { port }: Webhook,
    body: string | Buffer,
    options: { path?: string; method?: string; type?: string; agent?: Agent } = {},
  ): Promise<Answered> {
    const { path = "/inject", method = "POST", type = "application/json", agent } = options;
    return new Promise((resolve, reject) => {
      const asked = request(
        {
          ...{ host: "127.0.0.1", port, path, method, ca, servername: NAME },
          headers: { "content-type": type },
          ...(agent === undefined ? { agent: false } : { agent }),
        },
        (response) => {
          let text = "";
          response.setEncoding("utf8").on("data", (chunk: string) => {
            text += chunk;
          });
          response.on("error", reject);
          response.on("end", () => {
            const isJson = response.headers["content-type"] === "application/json";
            resolve({ status: response.statusCode ?? 0, text, json: isJson ? JSON.parse(text) : null });
          });
        },
      );
      asked.on("error", reject);
      asked.end(method === "GET" ? undefined : body);
    });
  }

  async function admin(webhook: Webhook, path: string): Promise<{ status: number; text: string }> {
    const response = await fetch(`http://127.0.0.1:${webhook.admin}${path}`);
    return { status: response.status, text: await response.text() };
  }

  /** Serial number of the certificate that a new connection is shown. */
  async function shown({ port }: Webhook): Promise<string> {
    const socket = connect({ host: "127.0.0.1", port, ca, servername: NAME });
    await once(socket, "secureConnect");
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  }

  const review = JSON.stringify(reviewOf(pod));
  const refused = JSON.stringify(reviewOf({ ...pod, spec: { ...pod.spec, hostNetwork: true } }));

  it("injects, warns, and refuses where it is to, and counts each", async () => {
    const webhook = lasting;
    const { status, json } = await ask(webhook, review);
    assert.equal(status, 200);
    assert.equal(json.response.allowed, true);
    assert.match(Buffer.from(json.response.patch, "base64").toString(), /localhost\/holdfast\/inside:1/);
    assert.match((await ask(webhook, refused)).json.response.warnings[0], /hostNetwork/);
    assert.equal((await ask(webhook, refused, { path: "/enforce?timeout=5s" })).json.response.allowed, false);
    const { text } = await admin(webhook, "/metrics");
    for (const line of [
      'holdfast_webhook_reviews_total{outcome="injected"} 1',
      'holdfast_webhook_reviews_total{outcome="refused"} 1',
      'holdfast_webhook_reviews_total{outcome="denied"} 1',
      'holdfast_webhook_reviews_total{outcome="malformed"} 0',
      "holdfast_webhook_review_seconds_count 3",
    ])
      assert.ok(text.includes(`${line}\n`), `${line} in ${text}`);
    const expires = Number(/^holdfast_webhook_certificate_expires_seconds (\d+)$/m.exec(text)?.[1]);
    assert.ok(expires * 1_000 > Date.now());
    assert.deepEqual(
      [(await admin(webhook, "/healthz")).status, (await admin(webhook, "/readyz")).status],
      [200, 200],
    );
    assert.match(webhook.log, /"pod":"default\/bare","verdict":"injected"/);
  });

  it("answers what is malformed with the reason, and goes on", async () => {
    const webhook = lasting;
    for (const [body, options, status, told] of [
      ["{", {}, 400, /as JSON/],
      [Buffer.from([0xff, 0xfe, 0]), {}, 400, /as JSON/],
      ['{"kind":"AdmissionReview"}', {}, 400, /expected an AdmissionReview/],
      ["[".repeat(100_000), {}, 400, /as JSON/],
      [review, { path: "/" }, 404, /expected \/inject, \/enforce, \/service$/m],
      [review, { path: "/__proto__" }, 404, /expected \/inject, \/enforce, \/service$/m],
      [review, { method: "GET" }, 405, /expected POST/],
      [review, { type: "text/yaml" }, 415, /expected application\/json/],
    ] as const) {
      const answer = await ask(webhook, body, options);
      assert.equal(answer.status, status, answer.text);
      assert.match(answer.text, told);
    }
    assert.equal((await ask(webhook, review)).status, 200);
    assert.match((await admin(webhook, "/metrics")).text, /outcome="malformed"\} 4\n/);
  });

  it("reads no more of a question than it may have", async () => {
    const webhook = lasting;
    // said beforehand, and sent without saying
    const large = Buffer.alloc(BODY_BYTES_MAX + 1, 32);
    const told = await ask(webhook, large).catch((error: Error) => error.message);
    assert.ok(typeof told === "string" ? /EPIPE|ECONNRESET/.test(told) : told.status === 413, String(told));
    const answer = await new Promise<number | string>((resolve) => {
      const asked = request(
        {
          ...{ host: "127.0.0.1", port: webhook.port, path: "/inject", method: "POST", ca, servername: NAME },
          ...{
            agent: false,
            headers: { "content-type": "application/json", "transfer-encoding": "chunked" },
          },
        },
        (response) => resolve(response.statusCode ?? 0),
      );
      asked.on("error", (error) => resolve(error.message));
      asked.write(large);
      asked.write(large);
    });
    assert.ok(answer === 413 || /EPIPE|ECONNRESET/.test(String(answer)), String(answer));
    assert.equal((await ask(webhook, review)).status, 200);
  });

  it("shows a certificate that is renewed, and the one before until certificate and key fit together", async () => {
    const webhook = lasting;
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    assert.equal((await ask(webhook, review, { agent })).status, 200);
    const first = await shown(webhook);
    const renewed = join(folder, "renewed");
    mkdirSync(renewed);
    issue(renewed);
    renameSync(join(renewed, "tls.crt"), join(webhook.files, "tls.crt"));
    await until("it says that they do not fit", () =>
      webhook.log.includes("expected the key of the certificate"),
    );
    assert.equal(await shown(webhook), first);
    renameSync(join(renewed, "tls.key"), join(webhook.files, "tls.key"));
    await until("it says that it was read again", () =>
      webhook.log.includes("the certificate was read again"),
    );
    assert.notEqual(await shown(webhook), first);
    assert.equal((await ask(webhook, review)).status, 200);
    // a connection from before goes on
    assert.equal((await ask(webhook, review, { agent })).status, 200);
    agent.destroy();
  });

  it("is not ready when told to end, answers those who still ask, and ends", async () => {
    const webhook = await start({ drainMs: 2_000 });
    webhook.child.kill("SIGTERM");
    await until("it is told to end", () => webhook.log.includes("told to end"));
    const { status, text } = await admin(webhook, "/readyz");
    assert.deepEqual([status, JSON.parse(text)], [503, { ready: false, reason: "it was told to end" }]);
    assert.equal((await ask(webhook, review)).status, 200);
    const agent = new Agent({ keepAlive: true });
    assert.equal((await ask(webhook, review, { agent })).status, 200);
    const [code] = await once(webhook.child, "exit");
    assert.equal(code, 0);
    agent.destroy();
  });

  it("does not start with files that do not fit together, or an address that is taken", async () => {
    const taken = await start({ listen: `127.0.0.1:${lasting.port}` });
    assert.equal(taken.child.exitCode, 1);
    assert.match(taken.log, /cannot listen at 127\.0\.0\.1:\d+/);
    const { files } = taken;
    const good = { certificate: join(files, "tls.crt"), key: join(files, "tls.key") };
    assert.ok(readCertificate(good).validToMs > Date.now());
    for (const [more, told] of [
      [{ key: join(folder, "authority.key") }, /expected the key of the certificate/],
      [{ certificate: join(files, "none.crt") }, /none\.crt: cannot be read: ENOENT/],
      [{ certificate: good.key }, /tls\.key: expected a certificate as PEM/],
      [{ key: good.certificate }, /tls\.crt: expected a private key as PEM/],
    ] as const)
      assert.throws(() => readCertificate({ ...good, ...more }), { code: "CONFIG_INVALID", message: told });
  });
});
