/** The address of a workload on a real device, beside others of its subnet and beside a machine that has it already. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { ParkedAddresses } from "#control/network/parked-addresses.ts";
import { Vip, type VipConfig } from "#control/network/vip.ts";
import { CLONE_NEWNET, setns } from "#proxy/kernel/namespaces.ts";
import { lacking, Namespace } from "./tcp-stage.ts";

const LOOK_MS = 10;
const WAIT_MS_MAX = 5_000;
const V4: VipConfig = { address: "10.99.0.50", prefix: 24, device: "eth0" };
const V6: VipConfig = { address: "fd99::50", prefix: 64, device: "eth0" };

function ip(command: string): string {
  return execFileSync("ip", command.split(" "), { encoding: "utf8" });
}

async function until(what: string, done: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + WAIT_MS_MAX;
  while (!done()) {
    if (performance.now() > deadlineMs) throw new Error(`not within ${WAIT_MS_MAX} ms: ${what}`);
    await delay(2);
  }
}

describe("the address that moves with a workload", { skip: lacking(), timeout: 600_000 }, () => {
  const home = openSync("/proc/thread-self/ns/net", "r");
  let node: Namespace;
  let neighbour: Namespace;
  const vips: Vip[] = [];
  let lines: string[] = [];
  const folder = mkdtempSync(join(tmpdir(), "hf-vip-"));
  const record = join(folder, "parked.json");

  before(() => {
    node = new Namespace();
    neighbour = new Namespace();
    node.ip("link add eth0 type veth peer name eth9");
    node.ip(`link set eth9 netns /proc/${process.pid}/fd/${neighbour.fd}`);
    node.ip("link set eth0 up");
    node.ip("address add 10.1.0.2/24 dev eth0");
    neighbour.ip("link set eth9 up");
    neighbour.ip("address add 10.99.0.9/24 dev eth9");
    setns(node.fd, CLONE_NEWNET);
  });
  afterEach(() => {
    for (const vip of vips.splice(0)) vip.remove();
    lines = [];
  });
  after(() => {
    setns(home, CLONE_NEWNET);
    closeSync(home);
    closeSync(node.fd);
    closeSync(neighbour.fd);
    rmSync(folder, { recursive: true });
  });

  async function open(config: VipConfig): Promise<Vip> {
    const log = (level: string, _: object, line: string): number => lines.push(`${level}: ${line}`);
    // as of an agent that knows no other's: what it has is on record
    const vip = await Vip.open(config, { log, lookMs: LOOK_MS, parked: new ParkedAddresses(record) });
    vips.push(vip);
    return vip;
  }

  for (const config of [V4, V6]) {
    const other = { ...config, address: config.address.replace(/50$/, "51") };
    it(`leaves the others of its subnet when it is taken off (${config.address})`, async () => {
      const [first, second] = [await open(config), await open(other)];
      first.add();
      second.add();
      assert.equal(first.remove(), true);
      assert.equal(first.isHere(), false);
      assert.equal(second.isHere(), true);
      assert.equal(first.remove(), false, "it was not there any more");
    });

    it(`is taken off when its device has gone, with all that it had (${config.address})`, async () => {
      node.ip("link add eth1 type veth peer name eth2");
      node.ip("link set eth1 up");
      const vip = await open({ ...config, device: "eth1" });
      vip.add();
      node.ip("link del eth1");
      assert.equal(vip.remove(), false);
    });

    it(`leaves neighbours of the subnet reachable, without another address there (${config.address})`, async () => {
      const [first, second] = [await open(config), await open(other)];
      const client = config.address.replace(/50$/, "9");
      const route = (): string => ip(`-o route get ${client}`);
      first.add();
      second.add();
      assert.match(route(), /dev eth0/);
      first.remove();
      assert.match(route(), /dev eth0/);
      second.remove();
      assert.throws(route, "nothing of the routes is left");
    });

    it(`comes back, announced, when somebody takes it off (${config.address})`, async () => {
      const [vip, clock] = [await open(config), await open(other)];
      const takeOff = ({ address }: VipConfig): string =>
        ip(`address del ${address}${config === V4 ? "/32" : "/128"} dev eth0`);
      vip.add();
      clock.add();
      takeOff(config);
      assert.equal(vip.isHere(), false);
      await until("it is back", () => vip.isHere());
      await until("it is told", () => lines.length > 0);
      assert.match(String(lines), /put back/);
      vip.remove();
      takeOff(other);
      await until("the other is back, looked after as often", () => clock.isHere());
      assert.equal(vip.isHere(), false, "and not after it was to go");
    });
  }

  it("is taken off with whatever prefix somebody else had put it on", async () => {
    const vip = await open(V4);
    ip("address add 10.99.0.50/24 dev eth0");
    assert.equal(vip.isHere(), true);
    assert.equal(vip.remove(), true);
    assert.equal(vip.isHere(), false);
  });

  it("is not taken while another machine has it, and taken as soon as that lets go", async () => {
    neighbour.ip("address add 10.99.0.50/32 dev eth9");
    const vip = await open(V4);
    assert.equal(await vip.take(), false);
    assert.equal(vip.isHere(), false);
    assert.match(String(vip.holder), /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/);
    neighbour.ip("address del 10.99.0.50/32 dev eth9");
    await until("it is here", () => vip.isHere());
    await until("it is told", () => lines.length > 1);
    assert.equal(vip.holder, null);
    assert.match(String(lines), /^error: another machine has the address.*free: put on$/);
  });

  it("is taken within a bounded time where nobody has it, and at once in a cutover", async () => {
    const vip = await open(V4);
    const startMs = performance.now();
    assert.equal(await vip.take(), true);
    assert.ok(performance.now() - startMs < 2_000);
    vip.remove();
    neighbour.ip("address add 10.99.0.50/32 dev eth9");
    vip.add();
    assert.equal(vip.isHere(), true, "whoever had it is known to have let go");
    neighbour.ip("address del 10.99.0.50/32 dev eth9");
  });

  it("is not taken any more when it was to go while the others were asked", async () => {
    const vip = await open(V4);
    const taken = vip.take();
    vip.remove();
    assert.equal(await taken, false);
    assert.equal(vip.isHere(), false);
  });

  const fileOf = (name: string): string => `/proc/sys/net/ipv4/conf/eth0/${name}`;
  const arp = (): string[] =>
    ["arp_ignore", "arp_announce"].map((name) => readFileSync(fileOf(name), "utf8").trim());
  const setArp = (ignore: string): void => writeFileSync(fileOf("arp_ignore"), ignore);
  const other = { ...V4, address: "10.99.0.51" };
  const answersForAll = ["0", "0"];

  it("has its device answer for nobody's address while it is parked, and as before when it is not, beside another", async () => {
    const [first, second] = [await open(V4), await open(other)];
    first.park();
    second.park();
    assert.deepEqual(arp(), ["1", "2"]);
    first.add();
    assert.deepEqual(arp(), ["1", "2"], "the other is still parked");
    second.remove();
    assert.deepEqual(arp(), answersForAll);
  });

  it("has its device as before where the agent that parked it was killed", async () => {
    (await open(V4)).park();
    (await open(V4)).remove();
    assert.deepEqual(arp(), answersForAll);
  });

  it("has its device as it was set up", async () => {
    setArp("2");
    const vip = await open(V4);
    vip.park();
    vip.park();
    vip.remove();
    assert.deepEqual(arp(), ["2", "0"]);
    setArp("0");
  });
});
