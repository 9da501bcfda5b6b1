/** Go's net/http as it is by default: as of Go 1.24 its listener asks for MPTCP. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { projectRoot } from "../../lab/lab.ts";
import { inside, missing, type Program, runtimeOf, upstream, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const compiler = runtimeOf("go") ?? (missing(["go"]).length === 0 ? "go" : "/nonexistent/go");

export const go: Program = {
  name: "go",
  title: "Go (net/http, defaults)",
  needs: [compiler],
  version: () => versionFrom([compiler, "version"]),
  prepare(folder) {
    const source = join(projectRoot, "test/apps/go-http/main.go");
    execFileSync(compiler, ["build", "-o", join(folder, "server"), source], {
      env: { ...process.env, CGO_ENABLED: "0", GOTOOLCHAIN: "local", GOFLAGS: "-mod=mod" },
      stdio: "pipe",
    });
  },
  command: [`${inside}/server`, upstream],
  port: 8080,
  keeps: "goroutines, keep-alive connections, a stream",
  use: (stage) => useWeb(stage, go.port),
};
