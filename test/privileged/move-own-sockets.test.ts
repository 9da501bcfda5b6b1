/** Sockets of the application's own that know an address of the node, or a peer that a move leaves behind. */
import assert from "node:assert/strict";
import { createSocket, type Socket as Datagrams } from "node:dgram";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { describe, test } from "node:test";
import type { LabProcess } from "../lab/lab.ts";
import { lacking, type MovedProgram, until } from "../support/moved-program.ts";
import { type Run, withPythonShell } from "../support/python-shell.ts";

const skip = lacking("python3");
/** where the servers of these tests are: the clients' place */
const host = "10.99.0.100";
const host6 = "fd99::100";
const tcpPort = 5432;
const udpPort = 8125;
/** nobody listens there */
const closedPort = 1;
const POLL = 0x2001 | 4; // POLLIN, POLLRDHUP, POLLOUT

/** Everything a non-blocking reader would see, and what the application thinks its socket is called. */
const helpers = `
def see(s):
  s.setblocking(False)
  poll = select.poll(); poll.register(s, ${POLL})
  seen = [[event for _, event in poll.poll(0)]]
  for _ in range(3):
    try: seen.append(s.recv(100))
    except OSError as error: seen.append(error.errno)
  return seen
def dial(): return socket.create_connection(("${host}", ${tcpPort}))
def udp(family, bind=None, peer=None):
  s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
  if bind: s.bind(bind)
  if peer: s.connect(peer)
  return s
def echo(s, to=None):
  if to: s.sendto(b"ping", to)
  else: s.send(b"ping")
  return s.recvfrom(100)[0]
`;

/** Answers each datagram with whom it is from, wherever that is. */
async function datagramEcho(family: "udp4" | "udp6", address: string): Promise<Datagrams> {
  const socket = createSocket(family);
  socket.on("message", (_, from) => socket.send(`${from.address} ${from.port}`, from.port, from.address));
  socket.bind(udpPort, address);
  await once(socket, "listening");
  return socket;
}

async function withPeers(run: Run, use: (peers: Socket[], say: Run) => Promise<void>): Promise<void> {
  const say: Run = async (line) => {
    const answer = await run(line);
    assert.doesNotMatch(answer, /^ERROR/, line);
    return answer;
  };
  const peers: Socket[] = [];
  const server = createServer((socket) => {
    socket.on("error", () => {});
    peers.push(socket);
  });
  const echoes = [await datagramEcho("udp4", host), await datagramEcho("udp6", host6)];
  try {
    server.listen(tcpPort, host);
    await once(server, "listening");
    await say(`exec(${JSON.stringify(helpers)}, scope)`);
    await use(peers, say);
  } finally {
    for (const peer of peers) peer.destroy();
    server.close();
    for (const echo of echoes) echo.close();
  }
}

/** Somebody outside the container with an abstract Unix socket, in the network namespace that the node shares with it; prints what it gets. */
async function elsewhere(
  program: MovedProgram,
  node: string,
  type: "SOCK_STREAM" | "SOCK_DGRAM",
  name: string,
): Promise<LabProcess> {
  const work = type === "SOCK_STREAM" ? "s.listen(); a = s.accept()[0]" : "print(s.recv(100), flush=True)";
  const script = `import socket\ns = socket.socket(socket.AF_UNIX, socket.${type}); s.bind("\\0${name}"); print("there", flush=True)\nwhile True: ${work}`;
  const started = program.lab.spawn(node, ["python3", "-c", script]);
  await until("somebody is there", () => started.stdout.includes("there"));
  return started;
}

/** name of a socket in the shell → what it is to say; made in this order, each with a peer of its own where it dials */
async function makeEnded(peers: Socket[], say: Run): Promise<void> {
  for (const name of ["reset", "read_reset", "data_reset", "finished", "open"]) await say(`${name} = dial()`);
  await until("every connection is there", () => peers.length === 5);
  peers[2]?.write("last words");
  peers[3]?.end("good bye");
  peers[4]?.write("so far");
  await say(`data_reset.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)`);
  await say(`open.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL)`);
  for (const index of [0, 1, 2]) peers[index]?.resetAndDestroy();
  await say(
    `refused = socket.socket(); refused.setblocking(False); refused.connect_ex(("${host}", ${closedPort}))`,
  );
  // all have an end of their own now, that of `read_reset` has been seen
  const hangsUp = (name: string): string =>
    `(lambda p: (p.register(${name}, 0), p.poll(5000) != []))(select.poll())[1]`;
  for (const name of ["reset", "read_reset", "data_reset", "refused"])
    assert.equal(await say(hangsUp(name)), "True");
  assert.notEqual(await say(`read_reset.getsockopt(1, 4)`), "0");
}

const [POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDHUP] = [1, 4, 8, 16, 0x2000];
const over = POLLIN | POLLOUT | POLLHUP | POLLRDHUP;
const wanted: Record<string, string> = {
  reset: `[[${over | POLLERR}], 104, b'', b'']`,
  read_reset: `[[${over}], b'', b'', b'']`,
  data_reset: `[[${over | POLLERR}], b'last words', 104, b'']`,
  refused: `[[${over | POLLERR}], 111, b'', b'']`,
  finished: `[[${POLLIN | POLLOUT | POLLRDHUP}], b'good bye', b'', b'']`,
};

describe("sockets of the application's own", { skip }, () => {
  for (const downstream of ["takeover", "relay"] as const)
    test(`go along with a move, ${downstream}`, () =>
      withPythonShell({ downstream }, async (program, run) =>
        withPeers(run, async (peers, say) => {
          await makeEnded(peers, say);
          // UDP of every kind, in use
          await say(`u4 = udp(socket.AF_INET, peer=("${host}", ${udpPort})); echo(u4)`);
          await say(`u6 = udp(socket.AF_INET6, peer=("${host6}", ${udpPort})); echo(u6)`);
          await say(`mapped = udp(socket.AF_INET6, peer=("::ffff:${host}", ${udpPort})); echo(mapped)`);
          await say(`wild = udp(socket.AF_INET, bind=("0.0.0.0", 5353))`);
          await say(`bound = udp(socket.AF_INET, bind=("10.99.0.2", 5354))`);
          await say(`bound6 = udp(socket.AF_INET6, bind=("fd99::2", 5355))`);
          await say(`both = udp(socket.AF_INET, bind=("10.99.0.2", 5356), peer=("${host}", ${udpPort}))`);
          const ports = `[s.getsockname()[1] for s in (u4, u6, mapped, wild, bound, bound6, both)]`;
          const before = await say(ports);
          // TCP that is bound and not connected
          await say(`tcp_bound = socket.socket(); tcp_bound.bind(("10.99.0.2", 0))`);
          // the application and itself, by way of the node's address: half closed, with bytes on their way
          await say(`listener = socket.create_server(("0.0.0.0", 9811))`);
          await say(`one = socket.create_connection(("10.99.0.2", 9811)); other = listener.accept()[0]`);
          await say(`one.sendall(b"inside"); one.shutdown(1)`);
          await say(`uone = udp(socket.AF_INET, peer=("10.99.0.2", 5353)); uone.send(b"x"); wild.recv(1)`);
          // and a session of another listener of its own, reset by a client that has gone
          await say(`aside = socket.create_server(("127.0.0.1", 9812))`);
          await say(`gone = socket.create_connection(("127.0.0.1", 9812)); left = aside.accept()[0]`);
          await say(`gone.setsockopt(1, 13, struct.pack("ii", 1, 0)); gone.close()`);

          for (const finding of await program.findings())
            assert.equal(finding.severity, "warning", JSON.stringify(finding));
          await program.move("b");

          for (const [name, answer] of Object.entries(wanted))
            assert.equal(await say(`see(${name})`), answer, name);
          assert.equal(await say(`see(open)`), `[[${over | POLLERR}], b'so far', 104, b'']`);
          assert.equal(await say(`see(left)`), wanted.reset);
          assert.equal(await say(`see(other)`), `[[${POLLIN | POLLOUT | POLLRDHUP}], b'inside', b'', b'']`);
          await say(`other.sendall(b"back")`);
          assert.equal(await say(`one.settimeout(5) or one.recv(10)`), "b'back'");

          // the peer answers at the other node's address, and that is where the answers arrive
          assert.equal(await say(ports), before);
          const answered: [string, string, string][] = [
            ["u4", "None", "10.99.0.3"],
            ["u6", "None", "fd99::3"],
            ["mapped", "None", "10.99.0.3"],
            ["wild", `("${host}", ${udpPort})`, "10.99.0.3"],
            ["bound", `("${host}", ${udpPort})`, "10.99.0.3"],
            ["bound6", `("${host6}", ${udpPort})`, "fd99::3"],
            ["both", "None", "10.99.0.3"],
          ];
          for (const [name, to, address] of answered)
            assert.match(await say(`echo(${name}, ${to})`), new RegExp(`^b'${address} \\d+'$`), name);
          await say(`uone.send(b"y")`);
          assert.equal(await say(`wild.recv(1)`), "b'y'");
          assert.equal(await say(`tcp_bound.getsockname()[0]`), "'10.99.0.3'");
          await say(`tcp_bound.connect(("${host}", ${tcpPort}))`);
          await program.move("a"); // and what is there now goes along as well
          assert.match(await say(`echo(u4)`), /^b'10\.99\.0\.2 /);
          assert.equal(await say(`see(tcp_bound)`), wanted.reset);
        }),
      ));

  test("are as they were after a move that fails", () =>
    withPythonShell({ downstream: "takeover", faults: { b: "fail@target:restored" } }, async (program, run) =>
      withPeers(run, async (peers, say) => {
        await makeEnded(peers, say);
        await say(`u4 = udp(socket.AF_INET, peer=("${host}", ${udpPort})); echo(u4)`);
        await say(`bound = udp(socket.AF_INET, bind=("10.99.0.2", 5354))`);
        await say(`reuses = socket.create_server(("127.0.0.1", 9811))`);
        await say(`one = socket.create_connection(("127.0.0.1", 9811)); other = reuses.accept()[0]`);
        const names = `[s.getsockname() for s in (reset, data_reset, refused, u4, bound)] + [u4.getpeername()]`;
        const before = await say(names);
        const move = await program.tryMove("b");
        assert.ok("outcome" in move && move.outcome === "rolled-back", JSON.stringify(move));
        assert.equal(await say(names), before);
        for (const [name, answer] of Object.entries(wanted))
          assert.equal(await say(`see(${name})`), answer, name);
        // CRIU's repair mode takes SO_REUSEADDR off: an accepted connection without it blocks its port for a minute
        assert.equal(await say(`[s.getsockopt(1, 2) for s in (reuses, other, one)]`), "[1, 1, 0]");
        await say(`other.close(); one.close(); reuses.close()`);
        await say(`reuses = socket.create_server(("127.0.0.1", 9811))`);
        assert.match(await say(`echo(u4)`), /^b'10\.99\.0\.2 /);
      }),
    ));

  test("that send to a Unix socket outside the container do so on the other node, where somebody has to have it", () =>
    withPythonShell({}, async (program, run) => {
      const name = `hf-log-${process.pid}`;
      await elsewhere(program, "a", "SOCK_DGRAM", name);
      await run(`log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); log.connect("\\0${name}")`);
      const refused = await program.tryMove("b");
      assert.ok(!("error" in refused) && refused.outcome === "rolled-back" && refused.holdMs === 0);
      assert.match(refused.reason ?? "", new RegExp(`@${name}, and nobody has it there`));
      const there = await elsewhere(program, "b", "SOCK_DGRAM", name);
      await program.move("b");
      assert.equal(await run(`log.send(b"a line")`), "6");
      await until("it has arrived", () => there.stdout.includes("a line"));
    }));

  test("that are busy for a moment are waited for", () =>
    withPythonShell({}, async (program, run) => {
      await run(
        `late = socket.create_server(("127.0.0.1", 9559)); early = socket.create_connection(("127.0.0.1", 9559))`,
      );
      await run(`threading.Timer(0.5, lambda: scope.update(accepted=late.accept()[0])).start()`);
      await program.move("b");
      await run(`early.sendall(b"hello")`);
      assert.equal(await run(`accepted.recv(10)`), "b'hello'");
    }));
});
