/** Deno.serve, with WebSockets. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, runtimeOf, upstreamPort, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const server = `
let total = 0;
const counts = new Map();
Deno.serve({ hostname: "127.0.0.1", port: ${upstreamPort} }, (request) => {
  const { pathname, search } = new URL(request.url);
  if (pathname === "/ws") {
    const { socket, response } = Deno.upgradeWebSocket(request);
    let n = 0;
    socket.onmessage = ({ data }) => socket.send(\`\${++n} \${data}\`);
    return response;
  }
  if (pathname === "/stream") {
    let n = 0;
    const lines = new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, 2));
        controller.enqueue(new TextEncoder().encode(\`\${++n}\\n\`));
      },
    });
    return new Response(lines);
  }
  counts.set(search, (counts.get(search) ?? 0) + 1);
  return new Response(\`\${counts.get(search)} \${++total}\`);
});
`;

const binary = runtimeOf("deno") ?? "/nonexistent/deno";

export const deno: Program = {
  name: "deno",
  title: "Deno (caches in memory)",
  needs: [binary],
  version: () => versionFrom([binary, "--version"]),
  prepare: (folder) => writeFileSync(join(folder, "server.js"), server),
  command: [binary, "run", "--allow-net", `${inside}/server.js`],
  // with caches on disk it holds locks on files that it has mapped, which CRIU would lose: `check` says so
  env: { DENO_DIR: "/proc/none", DENO_NO_UPDATE_CHECK: "1" },
  port: 8080,
  keeps: "heap, keep-alive connections, a stream, a WebSocket",
  use: (stage) => useWeb(stage, deno.port, { webSocket: true }),
};
