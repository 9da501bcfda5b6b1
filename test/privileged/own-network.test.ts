/** A container with a network of its own: what it reaches, what reaches it, and what it keeps in a move. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { planOf } from "#control/config/container-network.ts";
import { readJournal } from "#control/workload/journal.ts";
import { createLab, type Lab } from "../lab/lab.ts";
import { lacking, type MovedProgram, until, workloadName } from "../support/moved-program.ts";
import { type Run, runOn, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("python3", "runc", "nft", "ip");
const NODE_PORT = 7777;
const SERVER_PORT = 9999;

const LISTENS =
  "import socket,time; s=socket.create_server(('127.0.0.1',9000)); [time.sleep(1) for _ in iter(int, 1)]";

/** Says to each who connects which address it came from, and takes what comes until the end. */
const server = (address: string, port: number): string => `
import socket
server = socket.create_server(("${address}", ${port}))
by_name = socket.socket(socket.AF_UNIX); by_name.bind("\\0hf-${port}"); by_name.listen()
print("listening", flush=True)
while True:
    client, peer = server.accept()
    client.sendall(peer[0].encode() + b"\\n")
    globals().setdefault("kept", []).append(client)
`;

/** The shell, with `half` that listens from the beginning: a restart waits until all ports are there. */
const shellWithListener = `
import socket
half = socket.create_server(("::1", 9001), family=socket.AF_INET6)
exec(open("/srv/shell.py").read())
`;

test("a container with a network of its own", { skip, timeout: 300_000 }, async (t) => {
  await withPythonShell(
    {
      workload: {
        container: { network: "own", command: ["/usr/bin/python3", "-u", "-c", shellWithListener] },
        ports: [
          { listen: 8080, upstream: "127.0.0.1:9000" },
          { listen: 8081, upstream: "[::1]:9001" },
        ],
      },
      before: async (lab) => {
        const places: [string, string, number][] = [
          ["a", "127.0.0.1", NODE_PORT],
          ["b", "127.0.0.1", NODE_PORT],
          ["client", lab.client.address, SERVER_PORT],
        ];
        for (const [place, address, port] of places) {
          const started = lab.spawn(place, ["python3", "-u", "-c", server(address, port)]);
          await started.waitFor(/listening/);
        }
      },
    },
    async (program, run) => {
      await t.test("serves its clients", async () => assert.equal(await run("1 + 1"), "2"));
      await t.test("does not reach the node's loopback device", () => reachesNoLoopback(run));
      await t.test("listens on no port of the node", () => listensForItself(program, run));
      await t.test("is reached by nobody but through the proxy", () => isReachedByNobody(program));
      await t.test("connects to others by the node's address", () => connectsOut(program, run));
      await t.test("moves there and back with its session", () => movesWithSession(program, run));
      await t.test("is as closed and as connected after moves", async () => {
        await reachesNoLoopback(run);
        await connectsOut(program, run);
      });
      await t.test("sessions that one side has ended go along half-closed, over IPv6 too", () =>
        movesHalfClosed(program, run),
      );
      await t.test("its own sockets are as they were, and are on the same addresses", () =>
        movesOwnSockets(program, run),
      );
      await t.test("serves after a restart, and when its agent came back", () => restarts(program));
      await t.test("its proxy has no capability more for it", () => hasFewPrivileges(program));
      await t.test("leaves what the node forwards to whoever makes it forward for all", () =>
        leavesForwarding(program),
      );
    },
  );
});

test("a node where nft does not work", { skip, timeout: 300_000 }, async (t) => {
  const lab = await createLab();
  t.after(() => lab.close());
  const tools = join(lab.dir, "tools");
  mkdirSync(tools);
  const switchNft = (works: boolean): void =>
    writeFileSync(
      join(tools, "nft"),
      `#!/bin/sh\n${works ? 'exec /usr/sbin/nft "$@"' : "echo no netlink >&2; exit 1"}\n`,
      {
        mode: 0o755,
      },
    );
  const workload = {
    name: workloadName,
    start: true,
    container: { network: "own", command: ["/usr/bin/python3", "-c", LISTENS], rootfs: "host" },
    ports: [{ listen: 8080, upstream: "127.0.0.1:9000" }],
  };
  const env = { PATH: `${tools}:${process.env.PATH}` };
  const start = () => lab.startAgent("a", { peers: {}, workloads: [workload] }, { env });

  switchNft(false);
  let agent = await start();
  await t.test("starts no such container, and says why, and the cure", async () => {
    await until("it is told", async () => /the container's network cannot be made: /.test(await status(lab)));
    assert.match(await status(lab), /no netlink.*container\.network: host/);
    assert.deepEqual(readdirSync(join(agent.stateDir, "run")), []);
  });
  await t.test("what is left of it keeps no agent from starting", async () => {
    assert.equal(readdirSync(join(agent.stateDir, "networks")).length > 0, true);
    await agent.stop();
    agent = await start();
    await agent.waitFor(/something of its network is left/);
  });
  await t.test("serves when it does, and nothing is left of before", async () => {
    await agent.stop();
    switchNft(true);
    agent = await start();
    await agent.waitFor(/"msg":"started"/, 20_000);
    assert.equal(await outcomeOf(lab.place("a").address, 8080), "connected");
    assert.equal(readdirSync(join(agent.stateDir, "networks")).length, 1);
    const { stdout } = await lab.run("a", ["nft", "list", "tables"]);
    assert.equal(stdout.match(/^table ip holdfast/gm)?.length, 1, stdout);
  });
  await t.test("stops one although it does not any more", async () => {
    switchNft(false);
    assert.equal((await lab.cli("a", ["stop", workloadName])).status, 0);
    assert.deepEqual(readdirSync(join(agent.stateDir, "run")), []);
    switchNft(true);
    await agent.stop();
    agent = await start();
    assert.equal((await lab.run("a", ["nft", "list", "tables"])).stdout, "");
    assert.ok(!(await lab.run("a", ["ip", "link"])).stdout.includes("hf-"));
  });
});

async function status(lab: Lab): Promise<string> {
  return (await lab.cli("a", ["status"])).stdout;
}

async function reachesNoLoopback(run: Run): Promise<void> {
  assert.match(await run(`socket.create_connection(("127.0.0.1", ${NODE_PORT}), 2)`), /ConnectionRefused/);
  // names of Unix sockets that are no paths are of a network namespace, too (unix(7))
  assert.match(await run(`socket.socket(socket.AF_UNIX).connect("\\0hf-${NODE_PORT}")`), /ConnectionRefused/);
}

async function listensForItself(program: MovedProgram, run: Run): Promise<void> {
  // a port that the node has taken, and one of everybody's
  assert.equal(await run(`scope.__setitem__("extra", socket.create_server(("", ${NODE_PORT})))`), "None");
  assert.equal(await run(`scope.__setitem__("more", socket.create_server(("", 8080)))`), "None");
  for (const address of [program.address, program.lab.place(program.at).address])
    assert.equal(await outcomeOf(address, NODE_PORT), "ECONNREFUSED");
  // both listeners go along in the moves that follow: no node has anything to say against it
}

/** It listens on each of its addresses (`listensForItself`). Whoever asks gets no answer at all. */
async function isReachedByNobody(program: MovedProgram): Promise<void> {
  const { lab, at } = program;
  const { address } = required(planOf(workloadName, "own"));
  const ask = `import socket; socket.create_connection(("${address}", ${NODE_PORT}), 0.3)`;
  await lab.run("client", ["ip", "route", "replace", `${address}/32`, "via", lab.place(at).address]);
  for (const place of ["client", at])
    assert.match((await lab.run(place, ["python3", "-c", ask])).stderr, /timed out/, place);
}

async function connectsOut(program: MovedProgram, run: Run): Promise<void> {
  const line = `socket.create_connection(("${program.lab.client.address}", ${SERVER_PORT}), 5).recv(100)`;
  assert.equal(await run(line), `b'${program.lab.place(program.at).address}\\n'`);
}

async function movesWithSession(program: MovedProgram, run: Run): Promise<void> {
  await run('scope.__setitem__("sum", 0)');
  for (const to of ["b", "a"]) {
    await program.move(to);
    assert.equal(await run('scope.__setitem__("sum", scope["sum"] + 1)'), "None");
    await leavesNothingAt(program, to === "b" ? "a" : "b");
  }
  assert.equal(await run("scope['sum']"), "2");
  await run("[extra.close(), more.close()]");
}

/** What makes such a leg again is a segment that is put into the container's network (`proxy/tcp/inject.ts`). */
async function movesHalfClosed(program: MovedProgram, run: Run): Promise<void> {
  const set = (name: string, value: string): Promise<string> => run(`scope.__setitem__("${name}", ${value})`);
  const clients: Socket[] = [];
  for (const name of ["first", "second"]) {
    clients.push(await connectHalf(program));
    await set(name, "half.accept()[0]");
  }
  const [first, second] = clients as [Socket, Socket];
  first.end("its last"); // the client has ended, the application has not
  assert.equal(await run("[first.recv(100), first.recv(100)]"), "[b'its last', b'']");
  await run('[second.sendall(b"its last"), second.shutdown(socket.SHUT_WR)]');
  assert.equal(await wordOf(second), "its last");
  await program.move(program.at === "a" ? "b" : "a");
  await run('first.sendall(b"an answer")');
  await run("first.close()");
  assert.equal(await wordOf(first), "an answer");
  second.end("and a word more");
  assert.equal(await run("[second.recv(100), second.recv(100)]"), "[b'and a word more', b'']");
  await run("second.close()");
  await program.move(program.at === "a" ? "b" : "a");
}

function connectHalf(program: MovedProgram): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: program.address, port: 8081, allowHalfOpen: true }, () => resolve(socket));
    socket.once("error", reject);
  });
}

/** All that the other side sends until it ends. */
async function wordOf(socket: Socket): Promise<string> {
  let text = "";
  for await (const piece of socket.setEncoding("utf8").iterator({ destroyOnReturn: false })) text += piece;
  return text;
}

async function movesOwnSockets(program: MovedProgram, run: Run): Promise<void> {
  const { address } = required(planOf(workloadName, "own"));
  const set = (name: string, value: string): Promise<string> => run(`scope.__setitem__("${name}", ${value})`);
  const before = program.at;
  await set("tcp", `socket.create_connection(("${program.lab.client.address}", ${SERVER_PORT}), 5)`);
  await set("udp", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)");
  await run(`udp.bind(("${address}", 5000))`);
  await run(`udp.sendto(b"not read", ("${address}", 5000))`);
  await set("out", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)");
  await run(`out.connect(("${program.lab.client.address}", 9))`);
  await set("name", "out.getsockname()");
  const member = `socket.inet_aton("239.1.1.1") + socket.inet_aton("${address}")`;
  assert.equal(await run(`out.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ${member})`), "None");
  await run("select.select([tcp], [], [], 5)"); // what the peer says has come, and is not read
  const { notKept } = await program.move(before === "a" ? "b" : "a");
  assert.deepEqual(notKept, []);
  assert.equal(await run("tcp.recv(100)"), `b'${program.lab.place(before).address}\\n'`);
  assert.match(await run("tcp.recv(100)"), /ConnectionReset/);
  assert.equal(await run("udp.getsockname()"), `('${address}', 5000)`);
  assert.equal(await run("udp.recv(100)"), "b'not read'");
  assert.equal(await run("out.getsockname() == name and name[0]"), `'${address}'`);
  assert.equal(await run('"010101EF" in open("/proc/net/igmp").read()'), "True");
  await run("[tcp.close(), udp.close(), out.close()]");
  await program.move(before);
}

/** As Docker and Kubernetes do it, at a node that does not forward (ip-sysctl.rst: it is set for all devices). */
async function leavesForwarding(program: MovedProgram): Promise<void> {
  const { lab, at } = program;
  const shell = async (line: string): Promise<string> => (await lab.run(at, ["sh", "-c", line])).stdout;
  const tables = () => shell("nft list tables");
  assert.match(await tables(), /^table inet holdfast_node$/m);
  await shell("echo 1 >/proc/sys/net/ipv4/ip_forward");
  await until("it is seen", async () => !(await tables()).includes("holdfast_node"));
  assert.equal(await servesNext(program), "4");
  await program.move(at === "a" ? "b" : "a");
  assert.equal(await tables(), "");
  assert.equal(
    await shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth0/forwarding"),
    "1\n1\n",
  );
}

async function leavesNothingAt({ lab }: MovedProgram, node: string): Promise<void> {
  assert.equal((await lab.run(node, ["nft", "list", "tables"])).stdout, "");
  assert.ok(!(await lab.run(node, ["ip", "link"])).stdout.includes("hf-"));
  assert.equal((await lab.run(node, ["cat", "/proc/sys/net/ipv4/conf/eth0/forwarding"])).stdout, "0\n");
}

function required<T>(value: T | null): T {
  assert.ok(value !== null);
  return value;
}

async function restarts(program: MovedProgram): Promise<void> {
  await program.ask("POST", `/v1/workloads/${workloadName}/restart`, {});
  assert.equal(await servesNext(program), "4");
  program.agent(program.at).child.kill("SIGKILL");
  await program.nextAgent(program.at);
  assert.equal(await servesNext(program), "4");
  await program.move("b");
  await program.move("a");
  assert.equal(await servesNext(program), "4");
}

async function servesNext(program: MovedProgram): Promise<string> {
  const next = await program.connect(8080);
  const answer = await runOn(next)("2 + 2");
  next.destroy();
  return answer;
}

function outcomeOf(host: string, port: number): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    socket
      .once("connect", () => resolve("connected"))
      .once("error", (error) => resolve((error as { code?: string }).code ?? ""));
    socket.once("close", () => socket.destroy());
  });
}

/** capabilities(7): NET_BIND_SERVICE, NET_ADMIN, NET_RAW, BPF */
const OF_THE_PROXY = (1n << 10n) | (1n << 12n) | (1n << 13n) | (1n << 39n);

function hasFewPrivileges(program: MovedProgram): void {
  const journal = join(program.lab.stateDir(program.at), "workloads", workloadName, "journal.json");
  const { proxy } = readJournal(journal);
  const status = readFileSync(`/proc/${proxy?.process.pid}/status`, "utf8");
  const held = BigInt(`0x${/^CapBnd:\s*(\w+)/m.exec(status)?.[1]}`);
  assert.equal(held & ~OF_THE_PROXY, 0n, held.toString(16));
}
