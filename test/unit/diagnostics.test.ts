/** What leaves a cluster in a bundle of diagnostics has no secret in it. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { redacted, withoutSecrets } from "#control/cli/diagnostics.ts";

const KEY = "9f".repeat(32);
const DIGEST = `sha256:${"ab".repeat(32)}`;

describe("diagnostics", () => {
  it("have no values of a pod's environment, commands or Secrets, wherever they are", () => {
    const pod = {
      metadata: {
        annotations: {
          "holdfast.dev/command": '["app","--password=hunter2"]',
          "kubectl.kubernetes.io/last-applied-configuration": '{"env":"hunter2"}',
          "holdfast.dev/ports": "80",
        },
        managedFields: [{ manager: "hunter2" }],
      },
      spec: {
        containers: [
          {
            name: "app",
            image: `x@${DIGEST}`,
            command: ["hunter2"],
            args: ["hunter2"],
            env: [{ name: "P", value: "hunter2" }],
          },
        ],
      },
      webhooks: [{ clientConfig: { caBundle: "hunter2" } }],
      data: { key: "hunter2" },
    };
    const text = JSON.stringify(redacted(pod));
    assert.doesNotMatch(text, /hunter2/);
    assert.match(text, /"holdfast.dev\/ports":"80"/);
    assert.ok(text.includes(DIGEST));
  });

  it("have no passwords, keys or tokens that a log had in it", () => {
    const log = [
      "store redis://:hunter2@10.0.0.1:6379 and https://user:hunter2@host/path",
      `key ${KEY}`,
      "Authorization: Bearer hunter2.abc",
      "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.c2lnbmVk",
      "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
      "http://10.0.0.1:80/a@b stays",
    ].join("\n");
    const text = withoutSecrets(log);
    assert.doesNotMatch(text, /hunter2|eyJ/);
    assert.ok(!text.includes(KEY));
    assert.match(text, /redis:\/\/…@10\.0\.0\.1:6379/);
    assert.match(text, /http:\/\/10\.0\.0\.1:80\/a@b stays/);
  });
});
