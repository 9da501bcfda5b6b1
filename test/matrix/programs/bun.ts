/** Bun.serve, with WebSockets. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, runtimeOf, upstreamPort, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const server = `
let total = 0;
const counts = new Map();
Bun.serve({
  hostname: "127.0.0.1",
  port: ${upstreamPort},
  fetch(request, server) {
    const { pathname, search } = new URL(request.url);
    if (pathname === "/ws") return server.upgrade(request, { data: { n: 0 } }) ? undefined : new Response("", { status: 400 });
    if (pathname === "/stream") {
      let n = 0;
      const lines = new ReadableStream({
        async pull(controller) {
          await Bun.sleep(2);
          controller.enqueue(new TextEncoder().encode(\`\${++n}\\n\`));
        },
      });
      return new Response(lines);
    }
    counts.set(search, (counts.get(search) ?? 0) + 1);
    return new Response(\`\${counts.get(search)} \${++total}\`);
  },
  websocket: { message: (socket, message) => void socket.send(\`\${++socket.data.n} \${message}\`) },
});
`;

const binary = runtimeOf("bun") ?? "/nonexistent/bun";

export const bun: Program = {
  name: "bun",
  title: "Bun",
  needs: [binary],
  version: () => versionFrom([binary, "--version"]),
  prepare: (folder) => writeFileSync(join(folder, "server.js"), server),
  command: [binary, `${inside}/server.js`],
  port: 8080,
  keeps: "heap, keep-alive connections, a stream, a WebSocket",
  use: (stage) => useWeb(stage, bun.port, { webSocket: true }),
};
