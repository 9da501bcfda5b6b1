/** OpenSSH's server with a terminal: a real ssh logs in with a key and works in a shell with jobs. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";
import { useTerminals } from "../terminal.ts";

const configuration = `Port ${upstreamPort}
ListenAddress 127.0.0.1
HostKey ${inside}/host_key
AuthorizedKeysFile ${inside}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
PidFile none
`;

export const sshd: Program = {
  name: "sshd",
  title: "OpenSSH's sshd, with a terminal",
  needs: ["/usr/sbin/sshd", "ssh", "ssh-keygen"],
  version: () => versionFrom(["ssh", "-V"], /OpenSSH_(\S+?)[,\s]/),
  prepare(folder) {
    for (const name of ["host_key", "user_key"])
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(folder, name)], {
        stdio: "pipe",
      });
    copyFileSync(join(folder, "user_key.pub"), join(folder, "authorized_keys"));
    chmodSync(join(folder, "authorized_keys"), 0o600);
    writeFileSync(join(folder, "sshd_config"), configuration);
  },
  // its path must be absolute, and its folder of separation there
  command: ["/bin/sh", "-c", `mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e -f ${inside}/sshd_config`],
  port: 2222,
  keeps: "an encrypted session, its terminal, a shell with jobs that run and jobs that are stopped",
  async use(stage) {
    const options = [
      "StrictHostKeyChecking=no",
      "UserKnownHostsFile=/dev/null",
      "LogLevel=ERROR",
      "BatchMode=yes",
    ];
    const argv = [
      ...["ssh", "-tt", "-F", "none", "-i", join(stage.folder, "user_key"), "-p", String(sshd.port)],
      ...options.flatMap((option) => ["-o", option]),
      ...[`root@${stage.address}`, "TERM=dumb exec bash --norc --noediting -i"],
    ];
    await useTerminals(stage, async () => stage.talk(argv));
    assert.ok(stage.moved > 0);
  },
};
