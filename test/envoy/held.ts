/**
 * Applications that Holdfast holds at a node of a mesh: "chat", to which the node's sidecar leads, and "gated", whose clients come to a gateway
 * that is in the mesh, too. Its links leave through its own sidecar.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Lab, LabProcess } from "../lab/lab.ts";
import { until } from "../support/moved-program.ts";
import { connectFrom } from "./in-network.ts";
import { hostOf } from "./istio-objects.ts";
import { LongSession, type SessionKind, type SessionSeen } from "./long-sessions.ts";
import {
  APPLICATION,
  allRun,
  applicationPorts,
  portOf,
  SERVED,
  severalWorkload,
} from "./several-workload.ts";

export const GATEWAY = { name: "g", address: "10.99.0.90" };
export const HELD_APP = "chat";
export const SESSION_KINDS: readonly SessionKind[] = ["tcp", "websocket", "grpc", "http"];
const GATED = { name: "gated", upstreamFirst: 9_011, listenFirst: 15_920 };
const ADMIN = `${GATEWAY.address}:9400`;
const ASK_MS = 100;
const STARTING_MS_MAX = 60_000;

/** Starts the agent of a node with both. @param also for each of its ports, where it listens besides */
export async function startHeld(lab: Lab, node: string, also: readonly number[]): Promise<void> {
  const chat = severalWorkload({ name: HELD_APP, start: true, upstreamFirst: 9_001 });
  const ports = chat.ports as { listen: number; upstream: string }[];
  const twice = ports.flatMap((port, index) => [port, { ...port, listen: also[index] as number }]);
  const gated = severalWorkload({ ...GATED, start: true, workload: { downstream: "gateway" } });
  const workloads = [{ ...chat, ports: twice }, gated];
  await lab.startAgents([node], (name) =>
    lab.startAgent(name, { peers: {}, workloads }, { timeoutMs: STARTING_MS_MAX }),
  );
  await until("every workload runs", () => allRun(lab, node), STARTING_MS_MAX);
}

/** Starts the application at a place without Holdfast. */
export async function startPlain(lab: Lab, at: string): Promise<void> {
  const env = { HOST: "0.0.0.0", ...applicationPorts(SERVED.map(({ number }) => number)) };
  const server = lab.spawn(at, APPLICATION.command, { cwd: APPLICATION.cwd, env });
  await server.waitFor(/echo: listening/, STARTING_MS_MAX);
}

/** Clients of "gated" come to its address, at the ports of {@link SERVED}. */
export function startGateway(lab: Lab): Promise<LabProcess> {
  const listen = SERVED.map(({ number }, index) => ({
    address: `${GATEWAY.address}:${number}`,
    workload: GATED.name,
    port: GATED.listenFirst + index,
  }));
  return lab.startGateway(GATEWAY.name, { listen, admin: ADMIN });
}

/** How often a link of the gateway has lost its connection so far. */
export async function linksInterrupted(lab: Lab): Promise<number> {
  const { stdout } = await lab.run("switch", ["curl", "-sS", "--fail", `http://${ADMIN}/metrics`]);
  return Number(/^holdfast_gateway_links_interrupted_total (\d+)$/m.exec(stdout)?.[1]);
}

/** A session of each kind with a service, from the laboratory's client. */
export function openSessions(lab: Lab, app: string, address: string): Promise<LongSession[]> {
  const dial = (kind: SessionKind) => connectFrom(lab.client, { address, port: portOf(kind) });
  return Promise.all(SESSION_KINDS.map((kind) => LongSession.open(kind, dial, hostOf(app))));
}

/** … of clients of the gateway, who are not in the mesh. */
export function openGatedSessions(lab: Lab): Promise<LongSession[]> {
  const dial = (kind: SessionKind) =>
    connectFrom(lab.switch, { address: GATEWAY.address, port: portOf(kind) });
  return Promise.all(SESSION_KINDS.map((kind) => LongSession.open(kind, dial, hostOf("gateway"))));
}

/** Sessions ask while `work` goes on, and once more after it; who got no answer, or a wrong one, asks no more. */
export async function whileAsking(sessions: LongSession[], work: () => Promise<unknown>): Promise<void> {
  let isOver = false;
  const working = work().finally(() => {
    isOver = true;
  });
  const asking = sessions.map(async (session) => {
    const isWell = (): boolean => session.ended === null && session.failed.length === 0;
    while (!isOver && isWell()) {
      await session.ask();
      await sleep(ASK_MS);
    }
    await working;
    if (isWell()) await session.ask();
  });
  await Promise.all([working, ...asking]);
}

/** A session that is not the one it was. */
export function isCut({ ended }: SessionSeen): boolean {
  return ended !== null;
}
