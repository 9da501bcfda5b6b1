import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { withOwnCache, withoutHostFolders } from "#control/criu/sealed.ts";

const bytes = (...names: string[]): Buffer => Buffer.from(`\0text\0${names.join("\0")}\0more\0`, "latin1");

describe("programs that start in a container", () => {
  it("have a loader that knows no list of libraries to load first, and no folder but those it is given", () => {
    const loader = bytes(
      "/etc/ld.so.preload",
      "/lib/x86_64-linux-gnu/",
      "/usr/lib64/",
      "/lib/",
      "/proc/self/exe",
    );
    const sealed = withoutHostFolders(loader);
    assert.equal(sealed.length, loader.length);
    const names = sealed
      .toString("latin1")
      .split("\0")
      .filter((name) => name !== "");
    assert.deepEqual(names, [
      "text",
      "/sys/----------------/",
      "/sys/-----/",
      "/sys/",
      "/proc/self/exe",
      "more",
    ]);
    assert.ok(loader.includes("/etc/ld.so.preload"), "the original stays as it is");
  });

  it("have a loader that is left alone where it has no such names", () => {
    const other = bytes("/etc/ld-musl-x86_64.path");
    assert.deepEqual(withoutHostFolders(other), other);
  });

  it("have their cache in the folder they work in, whatever folder their maker chose", () => {
    for (const name of ["/run/criu.kdat", "/var/run/criu/criu.kdat"]) {
      const sealed = withOwnCache(bytes(name));
      assert.equal(sealed.length, bytes(name).length);
      assert.ok(sealed.includes("\0criu.kdat\0") && !sealed.includes("run"));
    }
  });

  it("are refused, with the cure, when the cache is somewhere unknown", () => {
    assert.throws(() => withOwnCache(bytes("/run/other")), { code: "CRIU_UNFIT", message: /setup\.sh/ });
  });
});
