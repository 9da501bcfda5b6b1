/** The Envoy of a pod's sidecar, over a kubectl that is a script here: by the port that the pod says, and what is said where none answers there. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { adminPortOf, askSidecar } from "#control/cli/sidecar-envoy.ts";
import type { Pod } from "#control/kubernetes/client/objects.ts";
import { dumpOf } from "../support/envoy-dump.ts";

const ANNOTATION = "proxy.istio.io/config";

/** @param config PROXY_CONFIG of the sidecar; null: it has none. @param isNative its container is an init container */
function pod(config: string | null, annotations: Record<string, string> = {}, isNative = true): Pod {
  const env = config === null ? [] : [{ name: "PROXY_CONFIG", value: config }];
  const sidecar = { name: "istio-proxy", env: [{ name: "POD_NAME", valueFrom: {} }, ...env] };
  const app = { name: "app", env: [{ name: "PROXY_CONFIG", value: '{"proxyAdminPort":1}' }] };
  const metadata = { name: "chat-0", namespace: "games", annotations } as unknown as Pod["metadata"];
  const spec = isNative ? { initContainers: [sidecar], containers: [app] } : { containers: [app, sidecar] };
  return { metadata, spec } as Pod;
}

describe("the admin interface of a pod's Envoy", () => {
  const cases: [what: string, of: Pod, port: number, by: RegExp][] = [
    ["Istio's own where the injector says nothing", pod("{}\n"), 15_000, /^Istio's own$/],
    [
      "the mesh's or the pod's, as injected",
      pod('{"proxyAdminPort":15111}\n'),
      15_111,
      /^PROXY_CONFIG of istio-proxy$/,
    ],
    [
      "that of a sidecar in Istio's old style",
      pod('{"proxyAdminPort":15111}', {}, false),
      15_111,
      /^PROXY_CONFIG/,
    ],
    [
      "as injected, though somebody has annotated the pod since",
      pod("{}", { [ANNOTATION]: "proxyAdminPort: 15111" }),
      15_000,
      /^Istio's own$/,
    ],
    [
      "by the annotation, in YAML, where nothing was injected",
      pod(null, { [ANNOTATION]: "concurrency: 2\nproxyAdminPort: 15111\n" }),
      15_111,
      /^annotation proxy\.istio\.io\/config$/,
    ],
    ["Istio's own where that cannot be read", pod("proxyAdminPort: *none"), 15_000, /^Istio's own$/],
    [
      "perhaps another, where the pod has a bootstrap of its own",
      pod("{}", { "sidecar.istio.io/bootstrapOverride": "mine" }),
      15_000,
      /^Istio's own; sidecar\.istio\.io\/bootstrapOverride may say another$/,
    ],
  ];
  for (const [what, of, wanted, who] of cases)
    it(`has the port that the pod says: ${what}`, () => {
      const { port, by } = adminPortOf(of);
      assert.equal(port, wanted);
      assert.match(by, who);
    });
});

describe("the Envoy of a pod's sidecar", () => {
  let folder: string;
  let server: Server;
  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "hf-sidecar-envoy-"));
    server = createServer(({ url = "" }, response) =>
      response.end(
        url.startsWith("/stats") ? "" : JSON.stringify(url.startsWith("/config_dump") ? dumpOf({}) : {}),
      ),
    ).listen(0, "127.0.0.1");
    await once(server, "listening");
  });
  after(() => {
    server.close();
    server.closeAllConnections();
    rmSync(folder, { recursive: true });
  });

  /** kubectl leads there. */
  function options(local: number) {
    const script = `#!/bin/sh\necho "$*" > ${folder}/said\necho "Forwarding from 127.0.0.1:${local} -> 1"\nexec sleep 60\n`;
    writeFileSync(join(folder, "kubectl"), script, { mode: 0o755 });
    return { access: [], env: { PATH: `${folder}:/usr/bin:/bin` } };
  }

  it("is asked at the port that the pod says", async () => {
    const { port } = server.address() as AddressInfo;
    const { kind } = await askSidecar(pod('{"proxyAdminPort":15111}'), options(port));
    assert.equal(kind, "sidecar");
    assert.match(readFileSync(join(folder, "said"), "utf8"), / pod\/chat-0 :15111 /);
  });

  it("is not reached where nothing answers there: which port that is, who says so, and what to do", async () => {
    await assert.rejects(askSidecar(pod("{}"), options(1)), {
      code: "ENVOY_UNREACHABLE",
      message:
        /^no Envoy answers at port 15000 of pod games\/chat-0 \(Istio's own\): where its admin interface is elsewhere, lead there by kubectl port-forward, .* --admin .*\(no answer from .*\)$/,
    });
  });
});
