/**
 * Servers on raw sockets (raw-sockets.ts) for applications behind peers. Nothing of Node is between the kernel and them
 * until Node's own event loop has something to do, which is the benchmark asking.
 */
import { accept, close, EPOLLIN, EPOLLOUT, eventLoopFd, listen, Poller } from "./raw-sockets.ts";

/** the channel of Node's IPC: Stage.spawn has it behind the three standard descriptors */
const IPC_FD = 3;

/** One client's connection. */
export interface Session {
  /** There is something to read, or it has ended. @returns false: it is to be closed */
  onReadable(fd: number): boolean;
  /** There is room to write, if it has asked for that by {@link SocketServer.wantsToWrite}. */
  onWritable?(fd: number): boolean;
}

/** Of one process: its listeners and their sessions. */
export class SocketServer {
  readonly #poller = new Poller();
  readonly #listeners = new Map<number, () => Session>();
  readonly #sessions: (Session | undefined)[] = [];
  #loop = -1;

  /** @param open called for each client. @returns the port, at 127.0.0.1 */
  listen(open: () => Session): number {
    const { fd, port } = listen();
    this.#listeners.set(fd, open);
    this.#poller.watch(fd, EPOLLIN);
    return port;
  }

  /** From now on `onWritable` is called as long as there is room, and nothing is read; or the other way round. */
  wantsToWrite(fd: number, wants: boolean): void {
    this.#poller.change(fd, wants ? EPOLLOUT : EPOLLIN);
  }

  /** How many clients are connected whose session is of this kind. */
  count(kind: new (...args: never[]) => Session): number {
    return this.#sessions.reduce((sum, session) => sum + (session instanceof kind ? 1 : 0), 0);
  }

  /** Begins when Node's event loop has had its turn (and watches the channel), and does not end. */
  start(): void {
    setImmediate(() => {
      this.#loop = eventLoopFd(IPC_FD);
      this.#poller.watch(this.#loop, EPOLLIN);
      this.#turn();
    });
  }

  #turn(): void {
    const poller = this.#poller;
    for (;;) {
      const count = poller.wait(Number.MAX_SAFE_INTEGER);
      let asked = false;
      for (let index = 0; index < count; index++) {
        const fd = poller.fdAt(index);
        const session = this.#sessions[fd];
        if (session !== undefined) this.#serve(fd, session, poller.eventsAt(index));
        else if (fd === this.#loop) asked = true;
        else this.#accept(fd);
      }
      if (asked) {
        setImmediate(() => this.#turn());
        return;
      }
    }
  }

  #accept(listener: number): void {
    const open = this.#listeners.get(listener);
    // It may also be a descriptor that was closed in this very turn.
    if (open === undefined) return;
    for (let fd = accept(listener); fd !== null; fd = accept(listener)) {
      this.#sessions[fd] = open();
      this.#poller.watch(fd, EPOLLIN);
    }
  }

  #serve(fd: number, session: Session, events: number): void {
    const stays = events & EPOLLOUT && session.onWritable ? session.onWritable(fd) : session.onReadable(fd);
    if (stays) return;
    this.#sessions[fd] = undefined;
    close(fd);
  }
}
