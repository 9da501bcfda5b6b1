/** The webhook's certificate: how it is made, and that what is shown is trusted at each step of its renewal. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createPublicKey, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { connect, createServer } from "node:tls";
import { type Issued, issueCertificate } from "#control/kubernetes/webhook/issue.ts";
import { type Kept, nextLookMs, nextStep, renew, type Step } from "#control/kubernetes/webhook/renewal.ts";
import { fail } from "#proxy/contract/error-codes.ts";

const NAMES = ["holdfast-webhook.holdfast.svc", "holdfast-webhook.holdfast.svc.cluster.local"];
const DAY_MS = 86_400_000;
const DAYS = 90;
const folder = mkdtempSync(join(tmpdir(), "holdfast-renewal-"));
after(() => rmSync(folder, { recursive: true }));

describe("a certificate", () => {
  it("is one that OpenSSL verifies, for its names and as a server's", () => {
    const { authority, cert } = issueCertificate(NAMES, DAYS, Date.now());
    writeFileSync(join(folder, "ca.pem"), authority);
    writeFileSync(join(folder, "cert.pem"), cert);
    for (const name of NAMES)
      execFileSync("openssl", [
        ...["verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", name],
        ...["-CAfile", join(folder, "ca.pem"), join(folder, "cert.pem")],
      ]);
    const read = new X509Certificate(cert);
    assert.equal(read.checkHost("other.holdfast.svc"), undefined);
    assert.equal(read.ca, false);
    assert.equal(new X509Certificate(authority).ca, true);
  });

  it("is valid for its days, also beyond the years of two digits", () => {
    for (const now of [Date.now(), Date.parse("2049-12-01T00:00:00Z"), Date.parse("2051-01-01T00:00:00Z")]) {
      const { validFrom, validTo } = new X509Certificate(issueCertificate(NAMES, DAYS, now).cert);
      const second = Math.floor(now / 1_000) * 1_000;
      assert.equal(Date.parse(validTo), second + DAYS * DAY_MS);
      assert.equal(Date.parse(validFrom), second - 300_000);
    }
  });

  it("is shown to a client that trusts its authority, beside another, and no other's", async () => {
    const [one, other] = [1, 2].map(() => issueCertificate(NAMES, DAYS, Date.now())) as [Issued, Issued];
    const server = createServer({ cert: one.cert, key: one.key }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const met = (ca: string): Promise<string> =>
      new Promise((resolve) => {
        const socket = connect({ host: "127.0.0.1", port, ca, servername: NAMES[0] });
        socket.on("error", ({ message }) => resolve(message)).on("secureConnect", () => resolve("trusted"));
        socket.on("secureConnect", () => socket.destroy());
      });
    assert.equal(await met(one.authority), "trusted");
    assert.equal(await met(other.authority + one.authority), "trusted");
    assert.match(await met(other.authority), /unable to (get|verify)/);
    server.close();
  });
});

describe("its renewal", () => {
  const start = Date.parse("2026-01-01T00:00:00Z");
  const options = {
    namespace: "holdfast",
    secret: "tls",
    kinds: ["MutatingWebhookConfiguration" as const],
    configuration: "holdfast",
    names: NAMES,
    days: DAYS,
  };
  const { signal } = new AbortController();
  const encode = (text: string): string => Buffer.from(text).toString("base64");
  const decode = (text: string | undefined): string => Buffer.from(text ?? "", "base64").toString();

  /** The API server, with a Secret and a configuration in it. */
  class Cluster {
    secret: { metadata: { name: string; resourceVersion: string }; data: Record<string, string> };
    trusted: Record<string, string>;
    trustedVersion = 1;
    calls = 0;
    /** before each call; throws: the webhook, or its connection, ends there */
    before: (call: number) => void | Promise<void> = () => {};
    /** certificates that a webhook may still show: kubelet takes its time */
    shown: string[] = [];

    constructor() {
      const { authority, cert, key } = issueCertificate(NAMES, DAYS, start);
      const data = { "ca.crt": encode(authority), "tls.crt": encode(cert), "tls.key": encode(key) };
      this.secret = { metadata: { name: "tls", resourceVersion: "1" }, data };
      this.trusted = { one: encode(authority), other: encode(authority) };
      this.shown = [cert];
    }

    async get(path: string): Promise<unknown> {
      await this.before(this.calls++);
      if (path.includes("/secrets/")) return structuredClone(this.secret);
      const webhooks = Object.entries(this.trusted).map(([name, caBundle]) => ({
        name,
        clientConfig: { caBundle, service: {} },
      }));
      return { metadata: { resourceVersion: String(this.trustedVersion) }, webhooks };
    }

    async replace(path: string, body: object): Promise<unknown> {
      await this.before(this.calls++);
      assert.match(path, /\/namespaces\/holdfast\/secrets\/tls$/);
      const { metadata, data } = body as Cluster["secret"];
      if (metadata.resourceVersion !== this.secret.metadata.resourceVersion)
        throw fail("KUBERNETES_CONFLICT", "409");
      const resourceVersion = String(Number(metadata.resourceVersion) + 1);
      this.secret = { metadata: { ...metadata, resourceVersion }, data };
      this.shown = [decode(this.secret.data["tls.crt"]), ...this.shown].slice(0, 2);
      this.check();
      return this.secret;
    }

    async patch(path: string, body: object): Promise<unknown> {
      await this.before(this.calls++);
      assert.match(path, /\/mutatingwebhookconfigurations\/holdfast$/);
      const { metadata, webhooks } = body as {
        metadata: { resourceVersion: string };
        webhooks: { name: string; clientConfig: { caBundle: string } }[];
      };
      if (metadata.resourceVersion !== String(this.trustedVersion)) throw fail("KUBERNETES_CONFLICT", "409");
      this.trustedVersion++;
      for (const { name, clientConfig } of webhooks) this.trusted[name] = clientConfig.caBundle;
      this.check();
      return {};
    }

    /** What may be shown is trusted by each webhook of the configuration. */
    check(): void {
      for (const bundle of Object.values(this.trusted)) {
        const authorities = decode(bundle)
          .split(/(?=-----BEGIN)/)
          .map((pem) => new X509Certificate(pem));
        assert.ok(authorities.length <= 2);
        for (const cert of this.shown)
          assert.ok(authorities.some(({ publicKey }) => new X509Certificate(cert).verify(publicKey)));
      }
      const { publicKey } = new X509Certificate(decode(this.secret.data["tls.crt"]));
      const own = createPublicKey(decode(this.secret.data["tls.key"]));
      assert.ok(own.equals(publicKey));
    }
  }

  const renewed = (cluster: Cluster, days: number): Promise<Step[]> =>
    renew(cluster, options, signal, () => start + days * DAY_MS);

  it("is what comes next, by what is there", () => {
    const { authority, cert } = issueCertificate(NAMES, DAYS, start);
    const kept: Kept = { bundle: authority, cert, next: null, trusted: [authority, authority] };
    const at = (days: number): number => start + days * DAY_MS;
    assert.equal(nextStep(kept, at(59)), null);
    assert.equal(nextStep(kept, at(61)), "prepare");
    assert.equal(nextStep(kept, at(100)), "prepare");
    assert.equal(nextStep({ ...kept, next: cert }, at(61)), "use");
    assert.equal(nextStep({ ...kept, next: cert, trusted: [authority, "another"] }, at(61)), "trust");
    assert.equal(nextStep({ ...kept, trusted: [""] }, at(0)), "trust");
    assert.throws(() => nextStep({ ...kept, cert: "" }, at(0)));
  });

  it("is tried again soon where it failed, and less and less often", () => {
    assert.deepEqual([1, 2, 3, 4].map(nextLookMs), [10_000, 20_000, 40_000, 80_000]);
    assert.deepEqual([0, 10, 2_000].map(nextLookMs), [3_600_000, 3_600_000, 3_600_000]);
  });

  it("is done in time, each time, with two authorities at most", async () => {
    const cluster = new Cluster();
    assert.deepEqual(await renewed(cluster, 59), []);
    for (const days of [61, 122, 183]) {
      const before = cluster.secret.data["tls.crt"];
      assert.deepEqual(await renewed(cluster, days), ["prepare", "trust", "use"]);
      assert.notEqual(cluster.secret.data["tls.crt"], before);
      assert.deepEqual(Object.keys(cluster.secret.data).toSorted(), ["ca.crt", "tls.crt", "tls.key"]);
      assert.deepEqual(await renewed(cluster, days), []);
    }
  });

  it("is taken up where it was, whichever call was the last", async () => {
    const whole = new Cluster();
    await renewed(whole, 61);
    for (let last = 0; last < whole.calls; last++) {
      const cluster = new Cluster();
      cluster.before = (call) => {
        if (call === last) throw fail("KUBERNETES_UNREACHABLE", "it ends here");
      };
      await assert.rejects(renewed(cluster, 61), { code: "KUBERNETES_UNREACHABLE" });
      await renewed(cluster, 61);
      assert.equal(cluster.secret.data["next.crt"], undefined);
      assert.deepEqual(await renewed(cluster, 61), []);
      const { validTo } = new X509Certificate(decode(cluster.secret.data["tls.crt"]));
      assert.equal(Date.parse(validTo), start + (61 + DAYS) * DAY_MS);
    }
  });

  it("is done once by two at a time, wherever they meet", async () => {
    const whole = new Cluster();
    await renewed(whole, 61);
    for (let meeting = 0; meeting < whole.calls; meeting++) {
      const cluster = new Cluster();
      cluster.before = async (call) => {
        if (call !== meeting) return;
        cluster.before = () => {};
        await renewed(cluster, 61);
      };
      await renewed(cluster, 61);
      assert.deepEqual(await renewed(cluster, 61), []);
      // one certificate came after the first
      assert.equal(Number(cluster.secret.metadata.resourceVersion), 3);
    }
  });

  it("puts back what the API server is to trust, when somebody else has changed it", async () => {
    const cluster = new Cluster();
    cluster.trusted.other = encode("another's");
    assert.deepEqual(await renewed(cluster, 1), ["trust"]);
    assert.deepEqual(cluster.trusted, {
      one: cluster.secret.data["ca.crt"],
      other: cluster.secret.data["ca.crt"],
    });
  });

  it("is trusted by configurations of each kind before it is used", async () => {
    const at = (kind: string): string =>
      `/apis/admissionregistration.k8s.io/v1/${kind}webhookconfigurations/holdfast`;
    const { authority, cert, key } = issueCertificate(NAMES, DAYS, start);
    let data: Record<string, string> = {
      "ca.crt": encode(authority),
      "tls.crt": encode(cert),
      "tls.key": encode(key),
    };
    const trusted = { [at("mutating")]: encode(authority), [at("validating")]: encode(authority) };
    const api = {
      async get(path: string): Promise<unknown> {
        const metadata = { resourceVersion: "1" };
        const caBundle = trusted[path];
        if (caBundle === undefined) return { metadata, data: { ...data } };
        return { metadata, webhooks: [{ name: "one", clientConfig: { caBundle } }] };
      },
      async replace(_: string, body: object): Promise<unknown> {
        ({ data } = body as { data: Record<string, string> });
        const shown = new X509Certificate(decode(data["tls.crt"]));
        for (const bundle of Object.values(trusted)) {
          const authorities = decode(bundle).split(/(?=-----BEGIN)/);
          assert.ok(authorities.some((pem) => shown.verify(new X509Certificate(pem).publicKey)));
        }
        return {};
      },
      async patch(path: string, body: object): Promise<unknown> {
        const { webhooks } = body as { webhooks: { clientConfig: { caBundle: string } }[] };
        trusted[path] = webhooks[0]?.clientConfig.caBundle ?? "";
        return {};
      },
    };
    const kinds = ["ValidatingWebhookConfiguration" as const, "MutatingWebhookConfiguration" as const];
    const late = start + DAYS * DAY_MS * 0.7;
    assert.deepEqual(await renew(api, { ...options, kinds }, signal, () => late), [
      "prepare",
      "trust",
      "use",
    ]);
    assert.notEqual(data["tls.crt"], encode(cert));
    assert.deepEqual(Object.values(trusted), [data["ca.crt"], data["ca.crt"]]);
    // one that somebody else has put back
    trusted[at("mutating")] = encode(authority);
    assert.deepEqual(await renew(api, { ...options, kinds }, signal, () => late), ["trust"]);
  });

  it("does not mind a configuration that is not there", async () => {
    const cluster = new Cluster();
    const api = {
      async get(path: string): Promise<unknown> {
        if (path.includes("/validating")) throw fail("KUBERNETES_NOT_FOUND", path);
        return await cluster.get(path);
      },
      replace: cluster.replace.bind(cluster),
      patch: cluster.patch.bind(cluster),
    };
    const kinds = ["ValidatingWebhookConfiguration" as const, "MutatingWebhookConfiguration" as const];
    const late = start + DAYS * DAY_MS * 0.7;
    assert.deepEqual(await renew(api, { ...options, kinds }, signal, () => late), [
      "prepare",
      "trust",
      "use",
    ]);
    assert.deepEqual(Object.values(cluster.trusted), [
      cluster.secret.data["ca.crt"],
      cluster.secret.data["ca.crt"],
    ]);
  });

  it("is of the kind of configuration that it is told", async () => {
    const cluster = new Cluster();
    const asked: string[] = [];
    const get = (path: string) => {
      asked.push(path);
      return cluster.get(path);
    };
    const api = { get, replace: cluster.replace.bind(cluster), patch: cluster.patch.bind(cluster) };
    await renew(api, { ...options, kinds: ["ValidatingWebhookConfiguration"] }, signal, () => start);
    assert.ok(
      asked.includes("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/holdfast"),
    );
  });

  it("says what is wrong with a Secret that is none of its making", async () => {
    const cluster = new Cluster();
    const { data } = cluster.secret;
    for (const [change, told] of [
      [{ "tls.crt": encode("no certificate") }, /Secret tls: expected a certificate/],
      [{ "ca.crt": "" }, /ca\.crt does not have its authority/],
      [
        { "ca.crt": encode(issueCertificate(NAMES, DAYS, start).authority) },
        /ca\.crt does not have its authority/,
      ],
    ] as const) {
      cluster.secret.data = { ...data, ...change };
      await assert.rejects(renewed(cluster, 1), { code: "CONFIG_INVALID", message: told });
    }
  });
});
