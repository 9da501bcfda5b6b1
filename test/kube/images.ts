/** Images that test clusters run: those of the product, of charts/images, and others, all made of this machine's files. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { contentsOf, type ImageName, withLibraries } from "../../charts/images/contents.ts";
import { nodeBinary, projectRoot } from "../lab/lab.ts";
import type { Image } from "./oci-archive.ts";

export const DOCKERFILE = join(projectRoot, "charts/images/Dockerfile");

/** PID 1 of every pod: waits, and reaps what is left to it. */
export const PAUSE: Image = {
  name: "localhost/holdfast/pause:1",
  contents: () => withLibraries({ files: { "/pause": "/usr/bin/catatonit" } }),
  entrypoint: ["/pause", "-P"],
};

/** Applications of ours: chat (WebSocket) and echo (TCP), at /app; with a link that every image of Debian's has. */
export const APPS: Image = {
  name: "localhost/holdfast/apps:1",
  contents: () =>
    withLibraries({
      files: {
        "/bin/sh": "/bin/sh",
        "/bin/sleep": "/bin/sleep",
        "/usr/bin/node": nodeBinary,
        "/app/chat.js": join(projectRoot, "test/apps/chat/server.js"),
        "/app/echo.js": join(projectRoot, "test/apps/echo/server.js"),
        "/app/package.json": join(projectRoot, "package.json"),
        "/app/node_modules/ws": join(projectRoot, "node_modules/ws"),
      },
      links: { "/var/run": "/run" },
    }),
  entrypoint: ["/usr/bin/node"],
};

/** The chart's store, for trials. */
export const REDIS: Image = {
  name: "localhost/holdfast/redis:1",
  contents: () => withLibraries({ files: { "/usr/bin/redis-server": "/usr/bin/redis-server" } }),
  entrypoint: ["/usr/bin/redis-server"],
};

/** What the Dockerfile says of an image beside the files that it copies into it. */
function stageOf(image: ImageName): Pick<Image, "entrypoint" | "env" | "user"> {
  const stages = readFileSync(DOCKERFILE, "utf8").split(/^FROM /m);
  const stage = stages.find((text) => text.split("\n", 1)[0]?.endsWith(` AS ${image}`)) ?? "";
  const said = (instruction: string): string | undefined =>
    new RegExp(`^${instruction} (.*)$`, "m").exec(stage)?.[1];
  const [entrypoint, user, env] = [said("ENTRYPOINT"), said("USER"), said("ENV")];
  return {
    ...(entrypoint === undefined ? {} : { entrypoint: JSON.parse(entrypoint) as string[] }),
    ...(user === undefined ? {} : { user }),
    ...(env === undefined ? {} : { env: Object.fromEntries([env.split("=") as [string, string]]) }),
  };
}

function productImage(image: ImageName): Image {
  return { name: `localhost/holdfast/${image}:1`, contents: () => contentsOf(image), ...stageOf(image) };
}

/** Controller, webhook and gateway. */
export const CONTROL: Image = productImage("control");

/** The agent with its proxy, CRIU and the programs they start. */
export const AGENT: Image = { ...productImage("agent"), from: CONTROL };

/** What a pod gets at /.holdfast. */
export const INSIDE: Image = productImage("inside");
