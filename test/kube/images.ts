/** Images that test clusters run, made of this machine's files. */
import { join } from "node:path";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import type { Image } from "./oci-archive.ts";

/** The loader and C library of this machine's own programs. */
const LOADER = "/lib64/ld-linux-x86-64.so.2";
const C_LIBRARY = "/lib/x86_64-linux-gnu/libc.so.6";

/** PID 1 of every pod: waits, and reaps what is left to it. */
export const PAUSE: Image = {
  name: "localhost/holdfast/pause:1",
  files: { "/pause": "/usr/bin/catatonit" },
  entrypoint: ["/pause", "-P"],
};

/** What a pod gets at /.holdfast, copied there by an init container: `/bin/cp -a /holdfast/. /.holdfast`. */
export const INSIDE: Image = {
  name: "localhost/holdfast/inside:1",
  files: {
    "/holdfast/init": "/usr/bin/catatonit",
    "/holdfast/setsid": "/usr/bin/setsid",
    "/holdfast/loader": LOADER,
    "/holdfast/libc.so.6": C_LIBRARY,
    "/bin/cp": "/bin/cp",
  },
  entrypoint: ["/bin/cp", "-a", "/holdfast/.", "/.holdfast"],
};

/** Applications of ours: chat (WebSocket) and echo (TCP), at /app. */
export const APPS: Image = {
  name: "localhost/holdfast/apps:1",
  files: {
    "/usr/bin/node": nodeBinary,
    "/app/chat.js": join(projectRoot, "test/apps/chat/server.js"),
    "/app/echo.js": join(projectRoot, "test/apps/echo/server.js"),
    "/app/package.json": join(projectRoot, "package.json"),
    "/app/node_modules/ws": join(projectRoot, "node_modules/ws"),
  },
  entrypoint: ["/usr/bin/node"],
};
