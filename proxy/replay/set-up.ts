/**
 * Protocols over WebSocket that begin with something the client says once: who it is, what it wants to hear. Another instance of
 * the application has not heard it, so a client whose socket stayed would be connected and deaf. What an instance gets then is
 * the port's `setUp`:
 *
 *   auto    Close 1012 where such a protocol is recognised (the client begins anew, as its protocol says), else nothing
 *   close   Close 1012 always
 *   none    nothing: the messages need no beginning
 *   N       the client's first N messages once more; its answers the client gets once more, too
 */
import type { Handshake } from "./handshake.ts";

export type SetUpPolicy = "auto" | "close" | "none" | number;

/** kept of one session; with more in its beginning it is closed */
const KEPT_BYTES_MAX = 64 * 1024;

/**
 * Sub-protocols (RFC 6455 1.9) whose client begins with a message of its own: GraphQL `connection_init`, MQTT and STOMP CONNECT,
 * WAMP HELLO, AMQP's protocol header, Action Cable's `subscribe`, XMPP `<open>`.
 */
const SUB_PROTOCOLS =
  /^(graphql-ws|graphql-transport-ws|mqtt|mqttv3\.1|v1[0-2]\.stomp|wamp(\..+)?|amqp|amqpwsb10|actioncable-v1-.+|xmpp)$/i;
/** Engine.IO, which socket.io is spoken over, says so in its query */
const ENGINE_IO = /^GET \S+[?&]EIO=\d/;
/** The handshake of SignalR's hub protocol: JSON, and a record separator. */
const SIGNAL_R = /^\{\s*"protocol"\s*:\s*"[\w-]+"\s*,\s*"version"\s*:\s*\d+\s*\}$/;
const RECORD_SEPARATOR = "\u001e";

export interface SavedSetUp {
  isKnown: boolean;
  /** messages the client has sent, as far as they are counted */
  seen: number;
  isLost: boolean;
  messages: { end: number; bytes: Buffer }[];
}

/** At the beginning of a WebSocket. `handshake`: null where it is not known */
export function newSetUp(handshake: Handshake | null): SavedSetUp {
  const isKnown =
    handshake !== null &&
    (SUB_PROTOCOLS.test(handshake.agreed.protocol ?? "") ||
      ENGINE_IO.test(handshake.request.toString("latin1", 0, 8192)));
  return { isKnown, seen: 0, isLost: false, messages: [] };
}

export class SetUp {
  readonly #policy: SetUpPolicy;
  #isKnown: boolean;
  #seen: number;
  #isLost: boolean;
  #messages: { end: number; bytes: Buffer }[];

  constructor(policy: SetUpPolicy, { isKnown, seen, isLost, messages }: SavedSetUp) {
    this.#policy = policy;
    this.#isKnown = isKnown;
    this.#seen = seen;
    this.#isLost = isLost;
    this.#messages = messages;
  }

  save(): SavedSetUp {
    return { isKnown: this.#isKnown, seen: this.#seen, isLost: this.#isLost, messages: this.#messages };
  }

  /** Wants the client's next message. */
  get isListening(): boolean {
    return this.#seen < (typeof this.#policy === "number" ? this.#policy : 1);
  }

  /**
   * @param frames of the client's message as they came; null: they are not there any more
   * @param end offset in the client's stream
   */
  message(frames: Buffer | null, end: number): void {
    this.#seen++;
    if (typeof this.#policy === "number") {
      const kept = this.#messages.reduce((bytes, message) => bytes + message.bytes.length, 0);
      if (frames === null || kept + frames.length > KEPT_BYTES_MAX) this.#isLost = true;
      else this.#messages.push({ end, bytes: Buffer.from(frames) });
    } else if (frames !== null && SIGNAL_R.test(textOf(frames).split(RECORD_SEPARATOR, 1)[0] ?? ""))
      this.#isKnown = true;
  }

  /** Whether another instance may go on with the client's socket. */
  get mayGoOn(): boolean {
    if (this.#policy === "auto") return !this.#isKnown;
    return this.#policy !== "close" && !this.#isLost;
  }

  /** What an instance gets that did not get it, apart from what follows `from` and is sent to it in any case. */
  again(from: number): Buffer[] {
    return this.#messages.filter(({ end }) => end <= from).map(({ bytes }) => bytes);
  }
}

/** Of a text message in one frame of the client (RFC 6455 5.2); "" of any other. */
function textOf(frames: Buffer): string {
  const [first = 0, second = 0] = frames;
  const short = second & 0x7f;
  const at = short === 126 ? 4 : 2;
  if (first !== 0x81 || (second & 0x80) === 0 || short === 127 || frames.length < at + 4) return "";
  const length = short === 126 ? frames.readUInt16BE(2) : short;
  const mask = frames.subarray(at, at + 4);
  const payload = frames.subarray(at + 4, at + 4 + Math.min(length, 256));
  return Buffer.from(payload.map((byte, index) => byte ^ (mask[index % 4] as number))).toString("latin1");
}
