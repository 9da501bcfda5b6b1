/** An interactive bash in a pseudo terminal for each connection, as a small server of terminals starts it. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";
import { useTerminals } from "../terminal.ts";

const python = "/usr/bin/python3";
const server = `
import os, pty, select, socket, threading
listener = socket.create_server(("127.0.0.1", ${upstreamPort}))
def serve(client):
    pid, terminal = pty.fork()
    if pid == 0:
        os.closerange(3, 100)
        os.execve("/bin/bash", ["bash", "--norc", "--noediting", "-i"], {**os.environ, "TERM": "dumb"})
    while True:
        for ready in select.select([client, terminal], [], [])[0]:
            try: data = os.read(ready.fileno() if ready is client else ready, 65536)
            except OSError: data = b""
            if not data:
                os.close(terminal); client.close(); os.waitpid(pid, 0)
                return
            if ready is client: os.write(terminal, data)
            else: client.sendall(data)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
`;

export const shell: Program = {
  name: "shell",
  title: "bash in a terminal, with jobs",
  needs: [python, "/bin/bash"],
  version: () => versionFrom(["/bin/bash", "--version"], /version (\d+(?:\.\d+)+)/),
  prepare: (folder) => writeFileSync(join(folder, "server.py"), server),
  command: [python, `${inside}/server.py`],
  port: 8080,
  keeps: "variables, functions, the terminal's settings, jobs that run and jobs that are stopped",
  use: (stage) => useTerminals(stage, () => stage.dial(shell.port)),
};
