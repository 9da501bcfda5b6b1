/** PHP's built-in server with four workers, which share the listening socket; sessions are files with locks. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Client } from "undici";
import { inside, type Program, upstream, versionFrom } from "../program.ts";
import { assertCounted } from "../stage.ts";
import { countAnew } from "../web-clients.ts";

/** of an answer that takes a while: a worker in it serves nobody else, also not who it has accepted already */
const lines = 200;

const script = `<?php
[$path, $query] = explode('?', $_SERVER['REQUEST_URI'] . '?');
if ($path === '/lines') {
  for ($n = 1; $n <= ${lines}; $n++) { echo "$n\\n"; flush(); usleep(2000); }
  return;
}
if ($path === '/session') {
  session_start(['save_path' => '/tmp']);
  $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
  echo $_SESSION['visits'];
  return;
}
$file = fopen('/tmp/counts', 'c+');
flock($file, LOCK_EX);
$counts = json_decode(stream_get_contents($file) ?: '[]', true);
$counts[$query] = ($counts[$query] ?? 0) + 1;
$counts['total'] = ($counts['total'] ?? 0) + 1;
ftruncate($file, 0);
rewind($file);
fwrite($file, json_encode($counts));
fflush($file);
flock($file, LOCK_UN);
echo $counts[$query], ' ', $counts['total'];
`;

export const php: Program = {
  name: "php",
  title: "PHP (built-in server, 4 workers)",
  needs: ["php"],
  version: () => versionFrom(["php", "--version"]),
  prepare: (folder) => writeFileSync(join(folder, "index.php"), script),
  command: ["php", "-S", upstream, "-t", inside, `${inside}/index.php`],
  env: { PHP_CLI_SERVER_WORKERS: "4" },
  port: 8080,
  keeps: "workers in a request, sessions, locked files",
  async use(stage) {
    const host = `${stage.address}:${php.port}`;
    const totals: number[] = [];
    for (let n = 0; n < 3; n++) countAnew(stage, host, `anew ${n}`, totals);
    stage.client("session", async ({ beat, over, pace }) => {
      let cookie = "";
      for (let visit = 1; !over(); visit++) {
        const client = new Client(`http://${host}`);
        try {
          const { headers, body } = await client.request({
            method: "GET",
            path: "/session",
            headers: cookie === "" ? {} : { cookie },
          });
          cookie ||= String(headers["set-cookie"] ?? "").split(";")[0] ?? "";
          assert.equal(await body.text(), String(visit), "visits of the session");
        } finally {
          await client.destroy();
        }
        beat();
        await pace();
      }
    });
    stage.client("lines", async ({ beat, over, pace }) => {
      while (!over()) {
        const client = new Client(`http://${host}`);
        try {
          const { body } = await client.request({ method: "GET", path: "/lines" });
          assert.equal(await body.text(), `${Array.from({ length: lines }, (_, n) => n + 1).join("\n")}\n`);
        } finally {
          await client.destroy();
        }
        beat();
        await pace();
      }
    });
    await stage.moves();
    await stage.finish();
    assertCounted(totals, "what all clients were told together");
  },
};
