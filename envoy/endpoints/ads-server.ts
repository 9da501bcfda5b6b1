/**
 * Endpoints over gRPC, for Envoys that ask for them: the aggregated discovery service, state of the world, of ClusterLoadAssignments alone.
 * A cluster of which nothing is known yet is not answered, so that an Envoy keeps what it had.
 * Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol; envoy/service/discovery/v3/discovery.proto
 */
import {
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServiceDefinition,
  status,
} from "@grpc/grpc-js";
import type { Logger } from "pino";
import { formatEndpoint } from "#control/config/endpoint.ts";
import { decodeFields } from "#control/criu/protobuf.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { messageOf } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { ASSIGNMENT_TYPE, type Assignment, responseOf } from "./assignment.ts";

const STREAMS_MAX = 1_024;
const REQUEST_BYTES_MAX = 1_048_576;
const NAMES_MAX = 10_000;
/** as Envoy's side has it, of `render --mode plain` */
const KEEPALIVE = { everyMs: 30_000, timeoutMs: 10_000 };

type Stream = ServerDuplexStream<Buffer, Buffer>;

const pass = (bytes: Buffer): Buffer => bytes;
const method = (path: string) => ({
  path,
  requestStream: true,
  responseStream: true,
  requestSerialize: pass,
  requestDeserialize: pass,
  responseSerialize: pass,
  responseDeserialize: pass,
});
const SERVICE: ServiceDefinition = {
  aggregated: method("/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"),
  endpoints: method("/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"),
};

export class AdsServer {
  readonly #server: Server;
  readonly #known = new Map<string, Assignment>();
  readonly #subscribers = new Set<Subscriber>();
  readonly #log: Logger;
  /** updates that an Envoy has refused */
  refused = 0;

  /** @param keepalive an Envoy that has gone without FIN or RST answers no PING: how often it is asked, and how long it has */
  constructor(log: Logger, { everyMs, timeoutMs } = KEEPALIVE) {
    this.#log = log;
    this.#server = new Server({
      "grpc.max_receive_message_length": REQUEST_BYTES_MAX,
      "grpc.keepalive_time_ms": everyMs,
      "grpc.keepalive_timeout_ms": timeoutMs,
    });
    const handle = (stream: Stream): void => this.#serve(stream);
    this.#server.addService(SERVICE, { aggregated: handle, endpoints: handle });
  }

  get subscribers(): number {
    return this.#subscribers.size;
  }

  /** @returns the port. @throws HoldfastError `LISTEN_FAILED` */
  async listen(at: Endpoint): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    this.#server.bindAsync(formatEndpoint(at), ServerCredentials.createInsecure(), (error, port) =>
      error === null ? resolve(port) : reject(error),
    );
    return promise.catch((cause: unknown) => {
      throw fail("LISTEN_FAILED", `cannot listen at ${formatEndpoint(at)}: ${messageOf(cause)}`, { cause });
    });
  }

  /** From now on a cluster has these endpoints: every Envoy that has asked for it is told. */
  push(assignment: Assignment): void {
    this.#known.set(assignment.cluster, assignment);
    for (const one of this.#subscribers) one.changed(assignment.cluster);
  }

  close(): void {
    this.#server.forceShutdown();
  }

  #serve(stream: Stream): void {
    if (this.#subscribers.size >= STREAMS_MAX) {
      stream.emit("error", { code: status.RESOURCE_EXHAUSTED, details: `${STREAMS_MAX} Envoys are served` });
      return;
    }
    const subscriber = new Subscriber(stream, this.#known);
    this.#subscribers.add(subscriber);
    const gone = (): void => void this.#subscribers.delete(subscriber);
    stream.on("data", (bytes: Buffer) => {
      try {
        const refusal = subscriber.hear(bytes);
        if (refusal === null) return;
        this.refused += 1;
        this.#log.error({ envoy: stream.getPeer(), reason: refusal }, "an Envoy has refused endpoints");
      } catch (error) {
        stream.emit("error", { code: status.INVALID_ARGUMENT, details: messageOf(error) });
      }
    });
    stream.on("end", () => {
      gone();
      stream.end();
    });
    stream.on("error", gone);
    stream.on("cancelled", gone);
    stream.on("close", gone);
  }
}

/** One Envoy, by its stream. What changes while the stream is full is told when it is not: only the last of it. */
class Subscriber {
  readonly #stream: Stream;
  readonly #known: ReadonlyMap<string, Assignment>;
  readonly #changed = new Set<string>();
  #names: ReadonlySet<string> = new Set();
  #sent = 0;
  #isFull = false;

  constructor(stream: Stream, known: ReadonlyMap<string, Assignment>) {
    this.#stream = stream;
    this.#known = known;
    stream.on("drain", () => {
      this.#isFull = false;
      this.#send();
    });
  }

  changed(cluster: string): void {
    if (!this.#names.has(cluster)) return;
    this.#changed.add(cluster);
    this.#send();
  }

  /** @returns why the last answer was refused; null: it was not. @throws Error: it is no DiscoveryRequest */
  hear(bytes: Buffer): string | null {
    const fields = decodeFields(bytes);
    const texts = (number: number): string[] =>
      fields.filter((field) => field.number === number).map((field) => field.bytes.toString());
    const [type = ASSIGNMENT_TYPE] = texts(4);
    // of other types nothing is known here, and nothing is answered
    if (type !== ASSIGNMENT_TYPE) return null;
    const names = texts(3);
    if (names.length > NAMES_MAX) throw new Error(`expected at most ${NAMES_MAX} names`);
    for (const name of names) if (!this.#names.has(name)) this.#changed.add(name);
    this.#names = new Set(names);
    this.#send();
    const error = fields.find(({ number }) => number === 6);
    if (error === undefined) return null;
    return decodeFields(error.bytes)
      .filter(({ number }) => number === 2)
      .map((field) => field.bytes.toString())
      .join("")
      .slice(0, 1_000);
  }

  #send(): void {
    if (this.#isFull) return;
    const due = [...this.#changed].filter((name) => this.#names.has(name));
    const assignments = due.map((name) => this.#known.get(name)).filter((one) => one !== undefined);
    this.#changed.clear();
    if (assignments.length === 0) return;
    this.#sent += 1;
    const text = String(this.#sent);
    this.#isFull = !this.#stream.write(responseOf(assignments, text, text));
  }
}
