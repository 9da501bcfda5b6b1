/**
 * How much of what the application writes may wait in the kernel, not sent yet: TCP_NOTSENT_LOWAT on the sockets it listens with,
 * which what they accept inherits (sk_clone_lock() in net/core/sock.c). Without it a connection whose client does not read has up to
 * tcp_wmem[2], 4 MiB, on the application's side alone, and a move carries it while everybody waits. The application sees a
 * full queue earlier; its own setting, where it has one, stays.
 */
import { listSockets } from "#proxy/kernel/diag.ts";
import * as sock from "#proxy/kernel/socket.ts";
import { socketInodes, withSocketAt } from "../migration/sockets.ts";
import { networkOf } from "../runtime/network-namespace.ts";
import { treeOf } from "../runtime/processes.ts";

const UNSENT_BYTES = 16 * 1024;

export class UnsentBound {
  /** inodes of listeners that have it, or one of their own, or are not the application's */
  #known = new Set<number>();

  /**
   * Once more for listeners that have come since; a look that finds none costs one question to the kernel.
   * @param init PID of the container's init
   * @param ports where the proxy connects to
   */
  async look(init: number, ports: number[]): Promise<void> {
    const listeners = listSockets({ states: ["LISTEN"] }, networkOf([init])).filter(({ local }) =>
      ports.includes(local.port),
    );
    const unknown = listeners.filter(({ inode }) => !this.#known.has(inode));
    const places = unknown.length === 0 ? new Map() : await socketInodes(await treeOf(init));
    for (const { inode } of unknown) {
      const place = places.get(inode);
      if (place === undefined) continue;
      withSocketAt(place, (fd) => {
        if (sock.getsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT) === 0)
          sock.setsockoptInt(fd, sock.IPPROTO_TCP, sock.TCP_NOTSENT_LOWAT, UNSENT_BYTES);
      });
    }
    this.#known = new Set(listeners.map(({ inode }) => inode));
  }
}
