/**
 * Health checks while the application cannot answer them (held in a move, or being restarted): the proxy gives the
 * application's own last answer, for at most `probeMsMax`, so that nobody evicts what is about to come back. Only on
 * connections that came meanwhile and begin with the check, as those of kubelet, Envoy and HAProxy do. At any other time
 * health checks reach the application.
 */
import type { PortConfig } from "#proxy/contract/commands.ts";
import { Observer } from "#proxy/protocol/observer.ts";
import { PlainRequest, StoredAnswer } from "#proxy/protocol/stored-answer.ts";
import { isProbe } from "#proxy/replay/protocol-filter.ts";
import type { LiveSession, Peek } from "./live-session.ts";

/** a check's request is small; what is longer is none */
const REQUEST_BYTES_MAX = 8 * 1024;
/** of one port: checks differ in their queries and hosts, which clients choose */
const ANSWERS_MAX = 32;

export class ProbeAnswers {
  readonly #answers = new Map<PortConfig, Map<string, StoredAnswer>>();

  /** What the application has answered last: one that may not be given again takes the place of one that might have been. */
  remember(port: PortConfig, request: PlainRequest, answer: Buffer): void {
    const known = this.#answers.get(port) ?? new Map<string, StoredAnswer>();
    this.#answers.set(port, known);
    known.delete(request.key);
    const stored = StoredAnswer.of(request, answer, performance.now());
    if (stored === null) return;
    known.set(request.key, stored);
    const [oldest] = known.keys();
    if (known.size > ANSWERS_MAX && oldest !== undefined) known.delete(oldest);
  }

  find(port: PortConfig, request: PlainRequest): Buffer | null {
    const stored = this.#answers.get(port)?.get(request.key);
    return stored?.fits(request) === true ? stored.given(performance.now()) : null;
  }
}

/** Reads what a waiting client says first; answers it, or gives the bytes back. */
export class ProbePeek implements Peek {
  readonly #session: LiveSession;
  readonly #observer: Observer;
  readonly #onAnswered: () => void;
  #bytes: Buffer[] = [];
  #length = 0;
  #answer: Buffer | null = null;
  #isOther = false;
  #isComplete = false;

  constructor(session: LiveSession, port: PortConfig, answers: ProbeAnswers, onAnswered: () => void) {
    this.#session = session;
    this.#onAnswered = onAnswered;
    this.#observer = new Observer({
      protocol: port.protocol,
      hooks: {
        onRequest: (_record, head) => {
          const request = isProbe(head, port.probes) ? PlainRequest.of(head) : null;
          this.#answer = request === null ? null : answers.find(port, request);
          this.#isOther ||= this.#answer === null;
        },
        onRequestEnd: () => {
          this.#isComplete = true;
        },
        onOpaque: () => {
          this.#isOther = true;
        },
      },
    });
    session.inbound.spooling = true;
  }

  fromClient(chunk: Buffer): void {
    this.#bytes.push(Buffer.from(chunk));
    this.#length += chunk.length;
    this.#observer.inbound(chunk);
    if (this.#isComplete && this.#answer !== null && !this.#isOther) {
      this.#session.peek = null;
      this.#onAnswered();
      this.#session.endAfter(this.#answer);
    } else if (this.#isOther || this.#length > REQUEST_BYTES_MAX) this.giveBack();
  }

  clientFin(): void {
    this.giveBack();
    this.#session.clientFin();
  }

  giveBack(): void {
    this.#session.peek = null;
    this.#session.inbound.spooling = false;
    for (const chunk of this.#bytes) this.#session.fromClient(chunk);
  }
}
