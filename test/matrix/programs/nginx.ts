/** nginx with a master and two workers: keep-alive connections, and downloads that are checked byte for byte. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Client } from "undici";
import { ended } from "../../support/moved-program.ts";
import { inside, type Program, upstream, versionFrom } from "../program.ts";

const fileBytes = 16 * 1024 * 1024;
const configuration = `user root;
daemon off;
worker_processes 2;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
  access_log off;
  keepalive_requests 1000000;
  sendfile on;
  server {
    listen ${upstream};
    root ${inside};
    location = /small { return 200 "$connection $connection_requests"; }
  }
}
`;

export const nginx: Program = {
  name: "nginx",
  title: "nginx (2 workers)",
  needs: ["nginx", "curl"],
  version: () => versionFrom(["nginx", "-v"]),
  prepare(folder) {
    writeFileSync(join(folder, "nginx.conf"), configuration);
    writeFileSync(join(folder, "large"), randomBytes(fileBytes));
  },
  command: ["nginx", "-c", `${inside}/nginx.conf`],
  port: 8080,
  keeps: "keep-alive connections and their counts, sendfile in the middle of a file",
  async use(stage) {
    const origin = `http://${stage.address}:${nginx.port}`;
    const checksum = sha256(readFileSync(join(stage.folder, "large")));
    for (let n = 0; n < 4; n++)
      stage.client(`keep-alive ${n}`, async ({ beat, over, pace }) => {
        const client = new Client(origin, { pipelining: 1 });
        let connection: string | undefined;
        try {
          for (let count = 1; !over(); count++) {
            const { body } = await client.request({ method: "GET", path: "/small" });
            const [number, requests] = (await body.text()).split(" ");
            connection ??= number;
            assert.equal(`${number} ${requests}`, `${connection} ${count}`, "requests of this connection");
            beat();
            await pace();
          }
        } finally {
          await client.destroy();
        }
      });
    for (const [name, rate] of Object.entries({ fast: "100M", slow: "4M" }))
      stage.client(`curl, ${name}`, async ({ beat, over }) => {
        for (let n = 0; !over(); n++) {
          const target = join(stage.program.lab.dir, `${name}${n}`);
          const curl = stage.program.spawn([
            "curl",
            "-sSf",
            "--limit-rate",
            rate,
            "-w",
            "%{size_download} bytes in %{time_total} s",
            "-o",
            target,
            `${origin}/large`,
          ]);
          const answer = ended(curl);
          // a download says nothing until it ends: it counts as answered while it is under way
          for (let done = false; !done; ) {
            done = await Promise.race([answer.then(() => true), tick()]);
            beat();
          }
          const { status, stdout, stderr } = await answer;
          assert.equal(status, 0, `${stderr}${stdout}`);
          assert.equal(sha256(readFileSync(target)), checksum, "what was downloaded");
        }
      });
    await stage.moves();
    await stage.finish();
  },
};

function sha256(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

function tick(): Promise<false> {
  return new Promise((resolve) => setTimeout(resolve, 10, false));
}
