/** Images that test clusters run, made of this machine's files. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import { CACHE_DIR } from "./kube-tools.ts";
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

/** What a pod gets at /.holdfast, copied there by an init container, as any user: an owner, or times of a folder of root's, cannot be set. */
export const INSIDE: Image = {
  name: "localhost/holdfast/inside:1",
  files: {
    "/holdfast/init": "/usr/bin/catatonit",
    "/holdfast/setsid": "/usr/bin/setsid",
    "/holdfast/loader": LOADER,
    "/holdfast/libc.so.6": C_LIBRARY,
    "/bin/cp": "/bin/cp",
  },
  entrypoint: ["/bin/cp", "-rf", "/holdfast/.", "/.holdfast"],
  user: "65532",
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

/** The chart's store, for trials. */
export const REDIS: Image = {
  name: "localhost/holdfast/redis:1",
  files: { "/usr/bin/redis-server": "/usr/bin/redis-server" },
  entrypoint: ["/usr/bin/redis-server"],
};

/** What an agent starts: where Debian has it. ldd(1) is a script of bash. */
const AGENT_PROGRAMS = [
  ...["/bin/sh", "/bin/bash", "/bin/cat", "/bin/dd", "/bin/mount", "/bin/umount", "/bin/mv", "/bin/readlink"],
  ...["/usr/bin/catatonit", "/usr/bin/dirname", "/usr/bin/ldd", "/usr/bin/nsenter", "/usr/bin/setpriv"],
  ...["/usr/bin/setsid", "/usr/bin/tar", "/usr/bin/unshare", "/usr/bin/wc"],
  ...["/usr/sbin/ip", "/usr/sbin/nft", "/usr/sbin/runc"],
];

/** The agent with its proxy, CRIU and the programs they start: `holdfast` of the command line as well. */
export const AGENT: Image = {
  name: "localhost/holdfast/agent:1",
  files: {
    ...Object.fromEntries(AGENT_PROGRAMS.map((file) => [file, file])),
    "/var/cache/holdfast/criu-4.2": join(CACHE_DIR, "criu-4.2"),
    ...Object.fromEntries(
      ["bin", "control", "proxy", "package.json", ...packages()].map((path) => [
        `/holdfast/${path}`,
        join(projectRoot, path),
      ]),
    ),
    "/holdfast/node_modules/node/bin/node": nodeBinary,
  },
  links: { "/holdfast/node_modules/.bin/node": "../node/bin/node" },
  entrypoint: ["/holdfast/bin/holdfast"],
};

/** Folders of npm packages that the product needs; of FFI also its file, which brings its libraries. */
function packages(): string[] {
  const lock = JSON.parse(readFileSync(join(projectRoot, "package-lock.json"), "utf8")) as {
    packages: Record<string, { dev?: boolean }>;
  };
  const ffi = `node_modules/@koromix/koffi-linux-${process.arch}/linux_${process.arch}/koffi.node`;
  return Object.entries(lock.packages)
    .filter(([path, { dev }]) => path !== "" && dev !== true && !/node_modules\/(node$|@types)/.test(path))
    .map(([path]) => path)
    .concat(ffi)
    .filter((path) => existsSync(join(projectRoot, path)));
}
