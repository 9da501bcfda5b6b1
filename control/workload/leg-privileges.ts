/**
 * What a proxy without capabilities asks this agent for (`proxy/contract/privileged-steps.ts`): done on the proxy's own descriptors, of
 * which we have a duplicate for the moment (pidfd_getfd(2)). Clients' bytes are parsed there, so it is believed nothing: a step is for
 * a TCP socket of the proxy's network namespace, and what is injected goes to an address of that namespace.
 */
import { closeSync } from "node:fs";
import { z } from "zod";
import { asHoldfastError, checked, type Handler } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";
import {
  DROPPED,
  type PrivilegedStep,
  ROOM_BYTES_MAX,
  STEPS_MAX,
  type StepsDone,
} from "#proxy/contract/privileged-steps.ts";
import { takeStep } from "#proxy/kernel/privileged.ts";
import { pidfdGetfd, pidfdOpen } from "#proxy/kernel/processes.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { isHere } from "../migration/addresses.ts";
import { giveBack } from "../runtime/borrowed.ts";
import { KeptNetwork } from "../runtime/network-namespace.ts";
import { isSameProcess, type ProcessIdentity } from "../runtime/processes.ts";

const u32 = z.int().min(0).max(0xffffffff);
const fd = z.int().min(0).max(0x7fffffff);
const room = z.int().min(0).max(ROOM_BYTES_MAX);
const endpoint = z.strictObject({
  address: z.union([z.ipv4(), z.ipv6()]),
  port: z.int().min(1).max(0xffff),
});
const schema = z.strictObject({
  steps: z
    .array(
      z.discriminatedUnion("do", [
        z.strictObject({ do: z.literal("repair"), fd, sendBytes: room, receiveBytes: room }),
        z.strictObject({ do: z.literal("speak"), fd, probe: z.boolean() }),
        z.strictObject({ do: z.literal("filter"), fd, drop: z.enum(DROPPED) }),
        z.strictObject({
          do: z.literal("inject"),
          side: z.literal("upstream"),
          segment: z.strictObject({
            from: endpoint,
            to: endpoint,
            // as the kernel does, modulo 2^32
            seq: z.int(),
            ack: z.int(),
            flags: u32.max(0xff),
            window: u32,
          }),
        }),
      ]),
    )
    .max(STEPS_MAX),
});

export class LegPrivileges {
  readonly #pidfd: number;
  readonly #network: KeptNetwork;

  private constructor(pidfd: number, network: KeptNetwork) {
    this.#pidfd = pidfd;
    this.#network = network;
  }

  /** @throws HoldfastError `CONTAINER_ENDED` */
  static async of(proxy: ProcessIdentity): Promise<LegPrivileges> {
    let pidfd = -1;
    let network: KeptNetwork | null = null;
    try {
      pidfd = pidfdOpen(proxy.pid);
      network = KeptNetwork.of(proxy.pid);
    } catch {
      // it has ended
    }
    // what was opened was its own, since it is still there
    if (network !== null && (await isSameProcess(proxy))) return new LegPrivileges(pidfd, network);
    if (pidfd >= 0) closeSync(pidfd);
    network?.close();
    throw fail("CONTAINER_ENDED", `the proxy, process ${proxy.pid}, has ended`, { retryable: true });
  }

  /** Of the call `LEGS_CALL`. */
  readonly handler: Handler = checked(schema, ({ steps }) => {
    const duplicate: Duplicate = { of: -1, own: -1 };
    try {
      const result: StepsDone = { outcomes: steps.map((step) => this.#outcomeOf(step, duplicate)) };
      return { result };
    } finally {
      if (duplicate.own >= 0) giveBack(duplicate.own);
    }
  });

  close(): void {
    closeSync(this.#pidfd);
    this.#network.close();
  }

  #outcomeOf(step: PrivilegedStep, duplicate: Duplicate): StepsDone["outcomes"][number] {
    try {
      this.#take(step, duplicate);
      return null;
    } catch (error) {
      return asHoldfastError(error).toJSON();
    }
  }

  #take(step: PrivilegedStep, duplicate: Duplicate): void {
    const networks = { upstream: this.#network.sockets, downstream: this.#network.sockets };
    if (step.do === "inject") {
      // else the packet would leave, with a sender that is made up
      const { address } = step.segment.to;
      if (!this.#network.run(() => isHere(address))) throw refused(`address ${address} is not there`);
      takeStep(step, networks);
      return;
    }
    if (duplicate.of !== step.fd) this.#duplicate(step.fd, duplicate);
    takeStep({ ...step, fd: duplicate.own }, networks);
  }

  #duplicate(fd: number, duplicate: Duplicate): void {
    if (duplicate.own >= 0) giveBack(duplicate.own);
    Object.assign(duplicate, { of: -1, own: -1 });
    const own = pidfdGetfd(this.#pidfd, fd);
    try {
      if (sock.getsockoptInt(own, sock.SOL_SOCKET, sock.SO_PROTOCOL) !== sock.IPPROTO_TCP)
        throw refused("a descriptor is no TCP socket");
      if (!this.#network.has(own)) throw refused("a socket is of another network");
    } catch (error) {
      giveBack(own);
      throw error;
    }
    Object.assign(duplicate, { of: fd, own });
  }
}

/** The last one that was looked at: what one socket needs in a call comes together. */
interface Duplicate {
  /** the proxy's number; -1: none yet */
  of: number;
  own: number;
}

function refused(what: string): HoldfastError {
  return fail("REQUEST_INVALID", `${what}: the proxy asked for what it has no use for`);
}
