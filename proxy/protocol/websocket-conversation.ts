/**
 * Both directions of a WebSocket (RFC 6455) after its handshake: where messages begin and end, what was said about closing,
 * and which Ping waits for its Pong.
 */

import { Buffer } from "node:buffer";
import type { ByteReader, ByteWriter } from "#proxy/contract/byte-codec.ts";
import type { OpaqueReason } from "./opaque-reason.ts";
import { CONTROL_BYTES_MAX, type FrameHooks, FrameWalker, OPCODE } from "./websocket-frames.ts";

export interface WebSocketHooks {
  /** a complete data message: offsets of its first frame's header, and behind its last byte. "in": from the client */
  onMessage?(direction: "in" | "out", start: number, end: number): void;
}

export interface WebSocketState {
  /** a Close frame was completely seen in that direction */
  readonly closeIn: boolean;
  readonly closeOut: boolean;
  /** inside a frame's header or payload: nothing can be put in. Between the fragments of a message a control frame can */
  readonly inMidFrame: boolean;
  readonly outMidFrame: boolean;
  /** the client has sent a message with RSV1 (permessage-deflate) */
  readonly compressedIn: boolean;
  /** payload of the client's latest Ping that the application has not answered with a Pong; null: none */
  readonly unansweredPing: Buffer | null;
  /** offsets behind the last complete message; -1: none yet */
  readonly lastMessageInEnd: number;
  readonly lastMessageOutEnd: number;
}

export class WebSocketConversation implements WebSocketState, FrameHooks {
  /** complete messages of the client */
  messages = 0;
  compressedIn = false;
  unansweredPing: Buffer | null = null;
  lastMessageInEnd = -1;
  lastMessageOutEnd = -1;
  readonly #hooks: WebSocketHooks;
  #in: FrameWalker;
  #out: FrameWalker;

  /** @param options offsets at which the frames begin; deflate: permessage-deflate was negotiated */
  constructor(options: { hooks: WebSocketHooks; deflate: boolean; offsetIn: number; offsetOut: number }) {
    const { deflate } = options;
    this.#hooks = options.hooks;
    this.#in = new FrameWalker({ masked: true, deflate, offset: options.offsetIn, hooks: this });
    this.#out = new FrameWalker({ masked: false, deflate, offset: options.offsetOut, hooks: this });
  }

  get closeIn(): boolean {
    return this.#in.closed;
  }

  get closeOut(): boolean {
    return this.#out.closed;
  }

  get inMidFrame(): boolean {
    return this.#in.midFrame;
  }

  get outMidFrame(): boolean {
    return this.#out.midFrame;
  }

  get inboundAtBoundary(): boolean {
    return !this.#in.midFrame && this.#in.messageStart < 0;
  }

  get outboundAtBoundary(): boolean {
    return !this.#out.midFrame && this.#out.messageStart < 0;
  }

  /** Where the client's incomplete message began, or its control frame outside of one; = where it is at a boundary. */
  get inboundMessageStart(): number {
    if (this.#in.messageStart >= 0) return this.#in.messageStart;
    return this.#in.midFrame ? this.#in.frameStart : this.#in.offset;
  }

  inbound(chunk: Buffer): OpaqueReason | null {
    return this.#in.feed(chunk);
  }

  outbound(chunk: Buffer): OpaqueReason | null {
    return this.#out.feed(chunk);
  }

  frames(hooks: FrameHooks): FrameWalker {
    return this.#in.clone(hooks);
  }

  onFrame(walker: FrameWalker): void {
    const isIn = walker === this.#in;
    switch (walker.opcode) {
      case OPCODE.close:
        return;
      case OPCODE.ping:
        if (isIn) this.unansweredPing = walker.controlPayload;
        return;
      case OPCODE.pong:
        // RFC 6455 5.5.3: only the latest Ping need be answered
        if (!isIn && this.unansweredPing?.equals(walker.controlPayload)) this.unansweredPing = null;
        return;
    }
    if (isIn && walker.messageCompressed) this.compressedIn = true;
    if (!walker.fin) return;
    if (isIn) {
      this.messages++;
      this.lastMessageInEnd = walker.offset;
    } else this.lastMessageOutEnd = walker.offset;
    this.#hooks.onMessage?.(isIn ? "in" : "out", walker.messageStart, walker.offset);
  }

  save(writer: ByteWriter): void {
    writer.count(this.messages);
    writer.flag(this.compressedIn);
    writer.flag(this.#in.deflate);
    writer.flag(this.unansweredPing !== null);
    if (this.unansweredPing !== null) writer.bytes(this.unansweredPing);
    writeOffset(writer, this.lastMessageInEnd);
    writeOffset(writer, this.lastMessageOutEnd);
    writeWalker(writer, this.#in);
    writeWalker(writer, this.#out);
  }

  static restore(reader: ByteReader, hooks: WebSocketHooks): WebSocketConversation {
    const messages = reader.count();
    const compressedIn = reader.flag();
    const deflate = reader.flag();
    const socket = new WebSocketConversation({ hooks, deflate, offsetIn: 0, offsetOut: 0 });
    socket.messages = messages;
    socket.compressedIn = compressedIn;
    if (reader.flag()) socket.unansweredPing = Buffer.from(reader.bytes(CONTROL_BYTES_MAX));
    socket.lastMessageInEnd = readOffset(reader);
    socket.lastMessageOutEnd = readOffset(reader);
    socket.#in = readWalker(reader, { masked: true, deflate, hooks: socket });
    socket.#out = readWalker(reader, { masked: false, deflate, hooks: socket });
    return socket;
  }

  /** Are the walkers where the streams are? */
  isAt(bytesIn: number, bytesOut: number): boolean {
    return this.#in.offset === bytesIn && this.#out.offset === bytesOut;
  }
}

function writeOffset(writer: ByteWriter, offset: number): void {
  writer.flag(offset >= 0);
  if (offset >= 0) writer.count(offset);
}

function readOffset(reader: ByteReader): number {
  return reader.flag() ? reader.count() : -1;
}

function writeWalker(writer: ByteWriter, walker: FrameWalker): void {
  const saved = walker.save();
  writer.count(saved.offset);
  writer.count(saved.frameStart);
  writeOffset(writer, saved.messageStart);
  writer.u8(saved.opcode);
  writer.flag(saved.fin);
  writer.flag(saved.rsv1);
  writer.flag(saved.messageCompressed);
  writer.flag(saved.closed);
  writer.flag(saved.inPayload);
  writer.count(saved.payloadBytes);
  writer.count(saved.left);
  writer.count(saved.key);
  writer.bytes(saved.held);
}

function readWalker(
  reader: ByteReader,
  options: { masked: boolean; deflate: boolean; hooks: FrameHooks },
): FrameWalker {
  const saved = {
    offset: reader.count(),
    frameStart: reader.count(),
    messageStart: readOffset(reader),
    opcode: reader.u8(),
    fin: reader.flag(),
    rsv1: reader.flag(),
    messageCompressed: reader.flag(),
    closed: reader.flag(),
    inPayload: reader.flag(),
    payloadBytes: reader.count(),
    left: reader.count(),
    key: reader.count(),
    held: reader.bytes(CONTROL_BYTES_MAX),
  };
  return reader.present(FrameWalker.restore(saved, options), "no frame is like that");
}
