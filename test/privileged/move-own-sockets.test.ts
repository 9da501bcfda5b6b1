/** Sockets of the application's own that know an address of the node, or a peer that a move leaves behind. */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createSocket, type Socket as Datagrams } from "node:dgram";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { describe, test } from "node:test";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";
import type { LabProcess } from "../lab/lab.ts";
import { lacking, type MovedProgram, until } from "../support/moved-program.ts";
import { faultsFile, type Run, withPythonShell } from "../support/python-shell.ts";

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

/** Listens where the clients are, and drops what comes until `accept`. */
function fullListener(): { port: number; accept(): void; close(): void } {
  const fd = sock.tcpSocket(4);
  sock.bind(fd, { address: host, port: 0 });
  sock.listen(fd, 0);
  const { port } = sock.getsockname(fd);
  const filling = sock.tcpSocket(4);
  sock.tryConnect(filling, { address: host, port });
  const open = [fd, filling];
  return {
    port,
    accept: () => void open.push(sock.accept(fd, sock.SOCK_CLOEXEC)),
    close: () => {
      for (const one of open) descriptor.close(one);
    },
  };
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
  for (const name of ["reset", "read_reset", "data_reset", "finished", "unhurt"])
    await say(`${name} = dial()`);
  await until("every connection is there", () => peers.length === 5);
  peers[2]?.write("last words");
  peers[3]?.end("good bye");
  peers[4]?.write("so far");
  await say(`data_reset.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL)`);
  await say(`unhurt.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL)`);
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

/**
 * A fault: the program, which has `token` among its arguments, is sent SIGUSR1 in the hold, and waited for until it has fewer descriptors.
 * @param open how many it has
 */
function signalledInTheHold(token: string, open: string): string {
  // a pattern that is not in the shell's own arguments
  const pid = `$(pgrep -o -f '^/usr/bin/python3.*[${token[0]}]${token.slice(1)}')`;
  return `exec@source:hold=kill -USR1 ${pid}; for i in $(seq 500); do [ $(ls /proc/${pid}/fd | wc -l) -lt ${open} ] && break; sleep 0.01; done`;
}

describe("sockets of the application's own", { skip }, () => {
  for (const downstream of ["takeover", "forward"] as const)
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
          const vipped = downstream === "takeover" ? `bind=("10.99.0.50", 5357), ` : "";
          await say(`own = udp(socket.AF_INET, ${vipped}peer=("${host}", ${udpPort})); echo(own)`);
          const ports = `[s.getsockname()[1] for s in (u4, u6, mapped, wild, bound, bound6, both)]`;
          const before = await say(ports);
          // datagrams nobody has read: of the application to itself, of others, of both families, with an empty one
          await say(
            `sink = udp(socket.AF_INET, bind=("127.0.0.1", 9700)); sink6 = udp(socket.AF_INET6, bind=("::", 9701))`,
          );
          await say(`src = udp(socket.AF_INET, bind=("127.0.0.1", 9702))`);
          await say(`[src.sendto(b, ("127.0.0.1", 9700)) for b in (b"first", b"", b"x" * 40000, b"last")]`);
          await say(`src6 = udp(socket.AF_INET6, bind=("::1", 9703)); src6.sendto(b"six", ("::1", 9701))`);
          await say(`wild.sendto(b"ping", ("${host}", ${udpPort})); wild.recv(1, socket.MSG_PEEK)`);
          // … and three that the kernel has joined, as QUIC has it (UDP_SEGMENT, UDP_GRO)
          await say(`train = udp(socket.AF_INET, bind=("127.0.0.1", 9706)); train.setsockopt(17, 104, 1)`);
          await say(`src.setsockopt(17, 103, 4); src.sendto(b"one.two.last", ("127.0.0.1", 9706))`);
          await say(`src.setsockopt(17, 103, 0)`);
          // groups, one with sources
          await say(`groups = udp(socket.AF_INET, bind=("0.0.0.0", 9704))`);
          await say(
            `mreq = lambda g: socket.inet_aton(g) + struct.pack("i", 0) + struct.pack("i", socket.if_nametoindex("eth0"))`,
          );
          await say(`groups.setsockopt(0, 35, mreq("239.1.1.1"))`);
          await say(
            `groups.setsockopt(0, 39, socket.inet_aton("232.1.1.1") + socket.inet_aton("10.99.0.2") + socket.inet_aton("${host}"))`,
          );
          await say(`groups6 = udp(socket.AF_INET6, bind=("::", 9705))`);
          await say(
            `groups6.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, "ff15::99") + struct.pack("I", socket.if_nametoindex("eth0")))`,
          );
          const joined =
            `sorted(l.split()[0] for l in open("/proc/net/igmp") if l.startswith("\t") and not "010000E0" in l), ` +
            `[l.split()[2] for l in open("/proc/net/igmp6") if "eth0" in l and l.split()[2].startswith("ff15")], ` +
            `[l.split()[1:4] for l in open("/proc/net/mcfilter").read().splitlines()[1:]]`;
          const groupsBefore = await say(joined);
          assert.match(groupsBefore, /'010101E8', '010101EF'.*ff15/);
          // TCP that is bound and not connected
          await say(`tcp_bound = socket.socket(); tcp_bound.bind(("10.99.0.2", 0))`);
          // the application and itself, by way of the node's address: half closed, with bytes on their way
          await say(`listener = socket.create_server(("0.0.0.0", 9811))`);
          await say(`one = socket.create_connection(("10.99.0.2", 9811)); other = listener.accept()[0]`);
          await say(`one.sendall(b"inside"); one.shutdown(1)`);
          await say(`uone = udp(socket.AF_INET, peer=("10.99.0.2", 5353))`);
          // and a session of another listener of its own, reset by a client that has gone
          await say(`aside = socket.create_server(("127.0.0.1", 9812))`);
          await say(`gone = socket.create_connection(("127.0.0.1", 9812)); left = aside.accept()[0]`);
          await say(`gone.setsockopt(1, 13, struct.pack("ii", 1, 0)); gone.close()`);

          // a server that does not answer for now: its queue is full
          const busy = fullListener();
          await say(
            `late = socket.socket(); late.setblocking(False); late.connect_ex(("${host}", ${busy.port}))`,
          );

          for (const finding of await program.findings())
            assert.equal(finding.severity, "warning", JSON.stringify(finding));
          await program.move("b");

          for (const [name, answer] of Object.entries(wanted))
            assert.equal(await say(`see(${name})`), answer, name);
          assert.equal(await say(`see(unhurt)`), `[[${over | POLLERR}], b'so far', 104, b'']`);
          assert.equal(await say(`see(left)`), wanted.reset);
          assert.equal(await say(`see(other)`), `[[${POLLIN | POLLOUT | POLLRDHUP}], b'inside', b'', b'']`);
          await say(`other.sendall(b"back")`);
          assert.equal(await say(`one.settimeout(5) or one.recv(10)`), "b'back'");

          assert.equal(
            await say(`[(len(d), f) for d, f in (sink.recvfrom(50000) for _ in range(4))]`),
            "[(5, ('127.0.0.1', 9702)), (0, ('127.0.0.1', 9702)), (40000, ('127.0.0.1', 9702)), (4, ('127.0.0.1', 9702))]",
          );
          assert.equal(await say(`[train.recv(100) for _ in range(3)]`), "[b'one.', b'two.', b'last']");
          assert.equal(await say(`sink6.recvfrom(10)[:2]`), "(b'six', ('::1', 9703, 0, 0))");
          assert.equal(await say(`wild.recvfrom(100)`), `(b'10.99.0.2 5353', ('${host}', ${udpPort}))`);
          assert.equal(await say(joined), groupsBefore);

          await say(`see_late = lambda: (late.getsockopt(1, 4), select.select([], [late], [], 0)[1] == [])`);
          assert.equal(await say(`see_late()`), "(0, True)");
          busy.accept();
          await until("it is connected", async () => (await say(`see_late()`)) === "(0, False)");
          assert.equal(
            await say(`(late.getsockname()[0], late.getpeername())`),
            `('10.99.0.3', ('${host}', ${busy.port}))`,
          );
          busy.close();

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
            ["own", "None", downstream === "takeover" ? "10.99.0.50" : "10.99.0.3"],
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

  test("that cannot be carried are told before anybody is held, and a move is refused", (t) => {
    // packet sockets and AF_VSOCK, which containers do not have by default
    const workload = { container: { capabilities: { add: ["NET_RAW", "SYS_ADMIN"] } } };
    return withPythonShell({ workload }, async (program, run) => {
      const say = run;
      const outside = `hf-outside-${process.pid}`;
      await elsewhere(program, "a", "SOCK_STREAM", outside);
      /** id → [make it, undo it] */
      const kinds: Record<string, [string, string]> = {
        "descriptor.packet-pipe": ["pp = os.pipe2(os.O_DIRECT)", "[os.close(fd) for fd in pp]"],
        "descriptor.pipe-both-ways": [
          "pw = os.pipe(); both = os.open('/proc/self/fd/%d' % pw[0], os.O_RDWR)",
          "[os.close(fd) for fd in (*pw, both)]",
        ],
        "descriptor.memfd-secret": [
          "secret = libc.syscall(447, 0); assert_ = 1 / (secret >= 0)",
          "os.close(secret)",
        ],
        "socket.family": ["vs = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "vs.close()"],
        "socket.netlink-unread": [
          "nl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); nl.bind((0, 0)); nl.send(struct.pack('IHHIIB3x', 20, 18, 0x301, 1, 0, 0))",
          "nl.close()",
        ],
        "socket.netlink-groups": [
          "ng = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); ng.bind((0, 0)); ng.setsockopt(270, 1, 36)",
          "ng.close()",
        ],
        "socket.packet-device": [
          "pk = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); pk.bind(('eth0', 0))",
          "pk.close()",
        ],
        "socket.upper-layer": [
          "kl = socket.create_server(('127.0.0.1', 9558)); k1 = socket.create_connection(('127.0.0.1', 9558)); k2 = kl.accept()[0]; k1.setsockopt(6, 31, b'tls')",
          "k1.close(); k2.close(); kl.close()",
        ],
        "socket.backlog": [
          "bl = socket.create_server(('127.0.0.1', 9559)); b1 = socket.create_connection(('127.0.0.1', 9559))",
          "b1.close(); bl.close()",
        ],
        "socket.unix-backlog": [
          "ul = socket.socket(socket.AF_UNIX); ul.bind('\\0hf-own'); ul.listen(); u1 = socket.socket(socket.AF_UNIX); u1.connect('\\0hf-own'); u1.send(b'early')",
          "u1.close(); ul.close()",
        ],
        "socket.unix-credentials": [
          "c1, c2 = socket.socketpair(); c2.setsockopt(1, 16, 1); c1.send(b'x')",
          "c1.close(); c2.close()",
        ],
        "socket.unix-descriptors": [
          "d1, d2 = socket.socketpair(); socket.send_fds(d1, [b'x'], [0])",
          "d1.close(); d2.close()",
        ],
        "socket.unix-error": [
          "e1, e2 = socket.socketpair(); e1.send(b'x'); e2.send(b'y'); e2.close()",
          "e1.close()",
        ],
        "socket.corked": [
          "ck = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); ck.setsockopt(17, 1, 1)",
          "ck.close()",
        ],
        "socket.error-before-datagrams": [
          "pe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); pe.bind(('127.0.0.1', 9562)); er = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); er.connect(('127.0.0.1', 9562)); pe.sendto(b'x', er.getsockname()); pe.close(); er.send(b'y')",
          "er.close()",
        ],
        "socket.foreign-address": [
          "fb = socket.socket(); fb.setsockopt(0, 15, 1); fb.bind(('192.0.2.9', 9560))",
          "fb.close()",
        ],
        "socket.unix-outside": [
          `uo = socket.socket(socket.AF_UNIX); uo.connect("\\0${outside}")`,
          "uo.close()",
        ],
        "socket.address-stays": ["ls = socket.create_server(('10.99.0.2', 9561))", "ls.close()"],
      };
      for (const [id, [make]] of Object.entries(kinds)) {
        const answer = await say(make);
        if (id === "socket.upper-layer" && answer.includes("FileNotFoundError")) {
          t.diagnostic("this kernel has no TLS of its own (CONFIG_TLS): not tried");
          delete kinds[id];
        } else assert.doesNotMatch(answer, /^ERROR/, make);
      }
      const found = (await program.findings()).filter((finding) => finding.severity === "error");
      assert.deepEqual(
        [...new Set(found.map(({ id }) => id))].sort(),
        Object.keys(kinds).sort(),
        JSON.stringify(found),
      );
      for (const { cure } of found) assert.ok(cure.length > 10);
      const refused = await program.tryMove("b");
      assert.ok(!("error" in refused) && refused.outcome === "rolled-back" && refused.holdMs === 0);
      for (const [, undo] of Object.values(kinds)) assert.doesNotMatch(await say(undo), /^ERROR/, undo);
      assert.deepEqual(await program.findings(), []);
      await program.move("b");
    });
  });

  test("that nobody has, as they are passed on at that moment: the move rolls back, and their clients go on", (t) => {
    const faults = faultsFile(t);
    const token = `passing-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    return withPythonShell({ workload, faults: { a: `file:${faults}` } }, async (program, run) => {
      await run("near, far = socket.socketpair(); server = socket.socket(fileno=os.dup(3))");
      const accepted = run("passed = server.accept()[0]");
      const client = await program.connect(8080);
      await accepted;
      const passOn = `
def pass_on(*_):
    socket.send_fds(near, [b"x"], [passed.fileno()])
    passed.close()
signal.signal(signal.SIGUSR1, pass_on)
`;
      await run(`exec(${JSON.stringify(passOn)}, scope)`);
      const open = await run("len(os.listdir('/proc/self/fd')) - 1");
      writeFileSync(faults, signalledInTheHold(token, open));
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.equal(move.outcome, "rolled-back");
      assert.match(
        move.reason ?? "",
        /^descriptors that the application has sent to itself \(SCM_RIGHTS\) were not received yet: /,
      );
      writeFileSync(faults, "");
      const back = "passed = socket.socket(fileno=socket.recv_fds(far, 10, 1)[1][0])";
      await run(back);
      client.write("hello");
      assert.equal(await run("passed.recv(10)"), "b'hello'");
      await program.move("b");
      const answer = once(client, "data");
      await run("passed.send(b'there')");
      assert.equal(String(await answer), "there");
      client.destroy();
    });
  });

  test("whose peers have gone move with what they have not read, by whatever name they came together", () =>
    withPythonShell({ downstream: "forward" }, async (program, run) => {
      const make = `
left = []
for name in ("\\0hf-left", "/var/tmp/left"):
  for leaver in (0, 1):
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
      listener = socket.socket(socket.AF_UNIX, kind); listener.bind(name); listener.listen()
      pair = [socket.socket(socket.AF_UNIX, kind)]; pair[0].connect(name); pair.append(listener.accept()[0])
      pair[leaver].send(b"last words"); pair[leaver].close(); listener.close(); left.append(pair[1 - leaver])
      if name[0] == "/": os.unlink(name)`;
      assert.equal(await run(`exec(${JSON.stringify(make)}, scope)`), "None");
      const move = await program.move("b");
      assert.equal(move.notKept.length, 8, JSON.stringify(move.notKept));
      for (const line of move.notKept)
        assert.match(line, /: (local|peer) address was (@hf-left|\/var\/tmp\/left) and is empty$/);
      await program.move("a");
      assert.equal(
        await run("set((one.recv(99), one.recv(99), one.getsockopt(1, 4)) for one in left)"),
        "{(b'last words', b'', 0)}",
      );
    }));

  test("that are told, as they are held, that a peer did not read all stay where they are, and hear of it", (t) => {
    const faults = faultsFile(t);
    const token = `unread-${randomUUID()}`;
    const workload = { container: { command: ["/usr/bin/python3", "-u", "/srv/shell.py", token] } };
    return withPythonShell({ workload, faults: { a: `file:${faults}` } }, async (program, run) => {
      const make = `
near, far = socket.socketpair(); near.send(b"not read"); far.send(b"last words")
signal.signal(signal.SIGUSR1, lambda *_: far.close())
`;
      await run(`exec(${JSON.stringify(make)}, scope)`);
      const open = await run("len(os.listdir('/proc/self/fd')) - 1");
      writeFileSync(faults, signalledInTheHold(token, open));
      const move = await program.tryMove("b");
      assert.ok(!("error" in move));
      assert.equal(move.outcome, "rolled-back");
      assert.match(
        move.reason ?? "",
        /^the application has not read that the other end of a Unix socket was closed before /,
      );
      writeFileSync(faults, "");
      assert.equal(await run("near.recv(99)"), "b'last words'");
      assert.equal(await run("near.recv(99)"), "ERROR ConnectionResetError(104, 'Connection reset by peer')");
      assert.equal(await run("near.recv(99)"), "b''");
      await program.move("b");
    });
  });

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

  test("that talk to each other and have sent more than is read lose nothing, whichever of them is restored first", () =>
    withPythonShell({ downstream: "forward" }, async (program, run) => {
      const talk = `
talks = []
for isLate in (False, True):
  listener = socket.create_server(("127.0.0.1", 0)); near = socket.socket()
  if isLate: near = socket.socket(fileno=(os.dup2(near.fileno(), 100), near.close())[0])
  near.connect(listener.getsockname()); far = listener.accept()[0]; near.setblocking(False); sent = 0
  try:
    while True: sent += near.send(bytes((sent + i) % 251 for i in range(65536)))
  except BlockingIOError: talks.append((near, far, sent, listener))
def rest(near, far, sent):
  near.setblocking(True); near.shutdown(socket.SHUT_WR); far.settimeout(20)
  got = b"".join(iter(lambda: far.recv(1 << 20), b""))
  return (len(got) - sent, got == bytes(i % 251 for i in range(sent)))`;
      assert.equal(await run(`exec(${JSON.stringify(talk)}, scope)`), "None");
      const unsent = `[struct.unpack("i", fcntl.ioctl(near.fileno(), 0x894B, b"1234"))[0] > 0 for near, *_ in talks]`;
      assert.equal(await run(unsent), "[True, True]", "SIOCOUTQNSD");
      await program.move("b");
      await program.move("a");
      assert.equal(await run("[rest(*talk[:3]) for talk in talks]"), "[(0, True), (0, True)]");
    }));

  test("that were told of a datagram that came back, and have not read it, move without that, which is said", () =>
    withPythonShell({ downstream: "forward" }, async (program, run) => {
      // as a client of statsd has it where nobody listens; one of both asks for details
      const make = `
def refused(details):
  one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.setsockopt(0, 11, details); one.connect(("127.0.0.1", 9)); one.send(b"x"); return one
came_back = [refused(0), refused(1)]`;
      await run(`exec(${JSON.stringify(make)}, scope)`);
      assert.deepEqual(
        (await program.findings()).map(({ id, severity }) => [id, severity]),
        [
          ["socket.error-unread", "warning"],
          ["socket.error-unread", "warning"],
        ],
      );
      const move = await program.move("b");
      assert.equal(move.notKept.length, 2, JSON.stringify(move.notKept));
      for (const line of move.notKept) assert.match(line, /: unread error was waiting and is not there$/);
      assert.equal(await run("[one.getsockopt(1, 4) for one in came_back]"), "[0, 0]", "carried by now");
      assert.equal(await run("[one.send(b'x') for one in came_back]"), "[1, 1]");
      assert.equal(await run("[one.getsockopt(1, 4) for one in came_back]"), "[111, 111]");
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
