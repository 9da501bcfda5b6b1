/**
 * Proxies without any capability, and the agent that takes the steps for them that need one: it dies at each of these, and it takes none
 * that is not a leg's. Whole handovers between such proxies are in `proxy-handover.test.ts`.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { after, afterEach, before, describe, it } from "node:test";
import { identify, type ProcessIdentity } from "#control/runtime/processes.ts";
import { LegPrivileges } from "#control/workload/leg-privileges.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import type { PrivilegedStep, StepsDone } from "#proxy/contract/privileged-steps.ts";
import { AF_INET } from "#proxy/kernel/address-text.ts";
import * as descriptor from "#proxy/kernel/descriptors.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { CountedClient } from "#test/support/counted-client.ts";
import { type Helper, type NodeName, ProxyLab } from "#test/support/proxy-lab.ts";
import { dial, lacking, listenAt, Namespace } from "./tcp-stage.ts";

const FATES = ["dies before", "dies after"] as const;
/** A command asks for no more, however many its legs are: filter, repair mode, and what is injected. */
const CALLS_MAX = 8;

describe("proxies without capabilities", { skip: lacking(), timeout: 300_000 }, () => {
  let lab: ProxyLab;
  let owner: NodeName = "a";
  let clients: CountedClient[] = [];

  before(async () => {
    lab = await ProxyLab.start({ nodes: ["a", "b"], downstream: "forward", helped: true });
    await lab.serve("a");
    for (let seed = 0; seed < 4; seed++) clients.push(new CountedClient(lab.client("a"), { seed }));
    // one whose queue to the application is full, and one that has ended its side: more steps, and bytes in each
    const [, slow, ended] = clients as [CountedClient, CountedClient, CountedClient];
    await Promise.all(clients.map((client) => client.progress()));
    await ended.settled();
    slow.socket.pause();
    slow.send(8 << 20);
  });
  afterEach(() => {
    for (const name of ["a", "b"] as const) helperOf(name).meets = null;
  });
  after(async () => {
    for (const client of clients) client.socket.destroy();
    clients = [];
    await lab.stop();
  });

  const other = (): NodeName => (owner === "a" ? "b" : "a");
  const helperOf = (name: NodeName): Helper => lab.proxy(name).helper as Helper;

  async function goOn(): Promise<void> {
    const running = clients.filter((_, index) => index !== 1);
    await Promise.all(running.map((client) => client.progress(4096)));
  }

  /** A move of which the agent does not live to see the end. */
  async function cutShort(node: NodeName, at: string, meets: Helper["meets"]): Promise<boolean> {
    for (const client of clients) if (client !== clients[1]) client.run();
    const helper = helperOf(node);
    try {
      await lab.move(owner, other(), (step) => {
        helper.calls = 0;
        helper.meets = step === at ? meets : null;
      });
      owner = other();
      return false;
    } catch (error) {
      assert.equal((error as HoldfastError).code, "CHANNEL_CLOSED");
      helper.meets = null;
      await lab.proxy(node).reconnect();
      return true;
    }
  }

  async function rollBack(): Promise<void> {
    await lab.proxy(other()).call("discard", { epoch: lab.epoch + 1 });
    lab.epoch += 2;
    lab.plug(owner);
    lab.continueApp();
    await lab.proxy(owner).call("rollback", { epoch: lab.epoch });
  }

  /** Each of them was cut short: no command was seen to its end. */
  const moreCalls = (): never => assert.fail(`more than ${CALLS_MAX} calls`);

  it("have none", () => {
    for (const { process } of lab.proxies.values()) {
      const status = readFileSync(`/proc/${process.pid}/status`, "utf8");
      for (const set of ["CapEff", "CapPrm", "CapBnd", "CapAmb"])
        assert.match(status, new RegExp(`^${set}:\\s+0+$`, "m"));
      assert.match(status, /^Uid:\s+65534\s/m);
    }
  });

  for (const fate of FATES) {
    it(`go on with every byte where the agent ${fate} a step of the capture, and the next rolls back`, async () => {
      for (let call = 1; call <= CALLS_MAX; call++) {
        if (!(await cutShort(owner, "held", (now) => (now === call ? fate : null)))) {
          assert.ok(call > 2, `${call - 1} calls`);
          return;
        }
        await rollBack();
        await goOn();
      }
      moreCalls();
    });

    it(`go on where the agent ${fate} a step of the adoption, and the next discards it`, async () => {
      for (let call = 1; call <= CALLS_MAX; call++) {
        if (!(await cutShort(other(), "capturedUpstream", (now) => (now === call ? fate : null)))) {
          assert.ok(call > 1, `${call - 1} calls`);
          return;
        }
        await rollBack();
        await goOn();
      }
      moreCalls();
    });

    it(`are released all the same where the agent ${fate} a step of the release`, async () => {
      for (let call = 1; call <= CALLS_MAX; call++) {
        const to = other();
        if (!(await cutShort(to, "adoptedUpstream", (now) => (now === call ? fate : null)))) {
          assert.ok(call > 1, `${call - 1} calls`);
          return;
        }
        // one command at a time: asked again, it is over
        await assert.rejects(lab.proxy(to).call("release", { epoch: lab.epoch }), { code: "PROXY_STATE" });
        assert.equal((await lab.proxy(to).status()).role, "owner");
        const link = await lab.linkOf(to);
        await lab.proxy(owner).call("retire", { epoch: lab.epoch, owner: { node: to, link } });
        owner = to;
        await goOn();
      }
      moreCalls();
    });

    it(`go on where the agent ${fate} a step of the rollback`, async () => {
      const giveUp = new Error("the move is given up");
      for (let call = 1; call <= CALLS_MAX; call++) {
        const helper = helperOf(owner);
        await assert.rejects(
          lab.move(owner, other(), (step) => {
            if (step === "capturedUpstream") throw giveUp;
          }),
          giveUp,
        );
        helper.calls = 0;
        helper.meets = (now) => (now === call ? fate : null);
        try {
          await rollBack();
          assert.ok(call > 1, `${call - 1} calls`);
          return;
        } catch (error) {
          assert.equal((error as HoldfastError).code, "CHANNEL_CLOSED");
          helper.meets = null;
          await lab.proxy(owner).reconnect();
          assert.equal((await lab.proxy(owner).call("keys", {}, Buffer.alloc(32, 7))).body.length, 0);
          await goOn();
        }
      }
      moreCalls();
    });
  }

  it("have lost nothing by then", async () => {
    clients[1]?.socket.resume();
    clients[2]?.stop();
    clients[2]?.socket.end();
    for (const client of clients) client.stop();
    await Promise.all(clients.filter((client) => client !== clients[2]).map((client) => client.settled()));
    assert.equal(await clients[2]?.untilOver(), "end");
    assert.equal(clients[2]?.answeredBytes, clients[2]?.sentBytes);
    for (const client of clients) assert.equal(client.corruptAt, -1);
  });
});

describe("an agent that is asked for more than a leg needs", { skip: lacking() }, () => {
  let place: Namespace;
  let proxy: ChildProcess;
  let privileges: LegPrivileges;

  before(async () => {
    place = new Namespace();
    // the descriptors of the test are the proxy's: it has nothing else, and is where they are
    proxy = place.run(() => spawn("sleep", ["1000"], { stdio: "ignore" }));
    await once(proxy, "spawn");
    privileges = await LegPrivileges.of((await identify(proxy.pid as number)) as ProcessIdentity);
  });
  after(() => {
    privileges.close();
    proxy.kill("SIGKILL");
    place.close();
  });

  async function outcomeOf(step: object, of = privileges): Promise<{ code: string } | null> {
    const done = (await of.handler({ steps: [step] }, Buffer.alloc(0))) as { result: StepsDone };
    return done.result.outcomes[0] as { code: string } | null;
  }

  it("refuses what is no step, too many of them, and an address that is not here", async () => {
    const ask = (params: unknown) => async () => privileges.handler(params, Buffer.alloc(0));
    const speak = { do: "speak", fd: 0, probe: false };
    for (const bad of [
      { steps: [{ do: "foresee", fd: 0, family: 4 }] },
      { steps: [{ do: "repair", fd: 0, sendBytes: 2 ** 31, receiveBytes: 0 }] },
      { steps: [{ do: "speak", fd: -1, probe: false }] },
      { steps: Array.from({ length: 257 }, () => speak) },
    ])
      await assert.rejects(ask(bad), { code: "CHANNEL_PARAMS" });
  });

  it("refuses a descriptor that is no TCP socket, or not the proxy's", async () => {
    for (const fd of [0, 12345]) {
      const outcome = await outcomeOf({ do: "repair", fd, sendBytes: 0, receiveBytes: 0 });
      assert.ok(outcome !== null);
      assert.match(outcome.code, fd === 0 ? /ENOTSOCK/ : /EBADF/);
    }
  });

  it("refuses a socket of another network, and one of another kind", async () => {
    // this process as the proxy: its own network is the machine's
    const own = await LegPrivileges.of((await identify(process.pid)) as ProcessIdentity);
    const elsewhere = place.run(() => listenAt("127.0.0.1"));
    const there = place.run(() => dial({ address: "127.0.0.1", port: elsewhere.port }));
    const here = sock.tcpSocket(4);
    const datagrams = sock.socket(AF_INET, sock.SOCK_DGRAM | sock.SOCK_CLOEXEC, sock.IPPROTO_UDP);
    try {
      const step = (fd: number): PrivilegedStep => ({ do: "repair", fd, sendBytes: 0, receiveBytes: 0 });
      assert.equal((await outcomeOf(step(there), own))?.code, "REQUEST_INVALID");
      assert.equal((await outcomeOf(step(datagrams), own))?.code, "REQUEST_INVALID");
      assert.equal(await outcomeOf(step(here), own), null);
    } finally {
      for (const fd of [elsewhere.fd, there, here, datagrams]) descriptor.close(fd);
      own.close();
    }
  });

  it("sends no segment to an address that is not of the proxy's network", async () => {
    const segment = {
      from: { address: "192.0.2.1", port: 1 },
      to: { address: "192.0.2.2", port: 2 },
      ...{ seq: 1, ack: 1, flags: 0x10, window: 0 },
    };
    const away = await outcomeOf({ do: "inject", side: "upstream", segment });
    assert.equal(away?.code, "REQUEST_INVALID");
    const to = { address: "127.0.0.1", port: 2 };
    assert.equal(await outcomeOf({ do: "inject", side: "upstream", segment: { ...segment, to } }), null);
  });

  it("has no proxy that has ended", async () => {
    const child = spawn("sleep", ["1000"]);
    const identity = (await identify(child.pid as number)) as ProcessIdentity;
    child.kill("SIGKILL");
    await once(child, "exit");
    await assert.rejects(LegPrivileges.of(identity), { code: "CONTAINER_ENDED" });
  });
});
