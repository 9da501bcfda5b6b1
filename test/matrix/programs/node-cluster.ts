/** A Node cluster: two workers that serve, a primary that counts. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { nodeBinary } from "../../lab/lab.ts";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const server = `
import cluster from "node:cluster";
import { createServer } from "node:http";
if (cluster.isPrimary) {
  let total = 0;
  const counts = new Map();
  for (let i = 0; i < 2; i++)
    cluster.fork().on("message", function ({ id, client }) {
      counts.set(client, (counts.get(client) ?? 0) + 1);
      this.send({ id, answer: counts.get(client) + " " + ++total });
    });
} else {
  let last = 0;
  const waiting = new Map();
  process.on("message", ({ id, answer }) => {
    waiting.get(id)(answer);
    waiting.delete(id);
  });
  createServer({ keepAliveTimeout: 0 }, (request, response) => {
    if (request.url === "/stream") {
      let n = 0;
      const timer = setInterval(() => response.write(++n + "\\n"), 2);
      response.on("close", () => clearInterval(timer));
      return;
    }
    const id = ++last;
    waiting.set(id, (answer) => response.end(answer));
    process.send({ id, client: request.url });
  }).listen(${upstreamPort}, "127.0.0.1");
}
`;

export const nodeCluster: Program = {
  name: "node-cluster",
  title: "Node.js (cluster)",
  needs: [nodeBinary],
  version: () => versionFrom([nodeBinary, "--version"]),
  prepare: (folder) => writeFileSync(join(folder, "server.mjs"), server),
  command: [nodeBinary, `${inside}/server.mjs`],
  port: 8080,
  keeps: "three processes' heaps, messages between them, keep-alive connections, a stream",
  use: (stage) => useWeb(stage, nodeCluster.port),
};
