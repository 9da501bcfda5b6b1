/**
 * The application of bulk transfers: HTTP/1.1, so that every peer can carry it. `GET /BYTES` is answered with so many, `POST`
 * with 200 when its whole body is here. It looks at no byte of a body: the kernel's copies are the work.
 */
import { serve } from "./program.ts";
import { read, write } from "./raw-sockets.ts";
import { type Session, SocketServer } from "./socket-server.ts";

export interface BulkState {
  port: number;
  /** requests answered, or being answered */
  seen: number;
}

const CHUNK_BYTES = 256 * 1024;
const HEAD_BYTES_MAX = 8 * 1024;

const into = Buffer.allocUnsafeSlow(CHUNK_BYTES);
const zeros = Buffer.alloc(CHUNK_BYTES);
let seen = 0;

class BulkSession implements Session {
  #head = "";
  /** of a request's body that are still to come */
  #bytesIn = 0;
  /** of an answer's body that are still to go */
  #bytesOut = 0;

  onReadable(fd: number): boolean {
    const bytes = read(fd, into);
    if (bytes === null) return true;
    if (bytes === 0) return false;
    if (this.#bytesIn > 0) return this.#received(fd, bytes);
    this.#head += into.toString("latin1", 0, bytes);
    const end = this.#head.indexOf("\r\n\r\n");
    if (end < 0) return this.#head.length <= HEAD_BYTES_MAX;
    const head = this.#head.slice(0, end + 2);
    const early = this.#head.length - end - 4;
    this.#head = "";
    const [, method, asked] = /^(GET|POST) \/(\d*) HTTP\/1\.1\r\n/.exec(head) ?? [];
    if (method === undefined) return false;
    if (method === "GET") return early === 0 && this.#answer(fd, Number(asked));
    this.#bytesIn = Number(/\r\ncontent-length: *(\d+)\r\n/i.exec(head)?.[1]);
    return this.#bytesIn > 0 && this.#received(fd, early);
  }

  onWritable(fd: number): boolean {
    while (this.#bytesOut > 0) {
      const taken = write(fd, zeros, Math.min(this.#bytesOut, CHUNK_BYTES));
      if (taken === null) return true;
      if (taken === 0) return false;
      this.#bytesOut -= taken;
    }
    server.wantsToWrite(fd, false);
    return true;
  }

  #received(fd: number, bytes: number): boolean {
    this.#bytesIn -= bytes;
    return this.#bytesIn > 0 || (this.#bytesIn === 0 && this.#answer(fd, 0));
  }

  #answer(fd: number, bytes: number): boolean {
    seen++;
    const head = Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`);
    if (write(fd, head) !== head.length) return false;
    this.#bytesOut = bytes;
    if (bytes > 0) server.wantsToWrite(fd, true);
    return true;
  }
}

const server = new SocketServer();
const port = server.listen(() => new BulkSession());
serve((): BulkState => ({ port, seen }));
server.start();
