/** Descriptors between processes (unix(7), SCM_RIGHTS). */
import { constants } from "node:os";
import { close } from "./descriptors.ts";
import { check, errno, failure, keep, libc } from "./libc.ts";
import { CONTROL_HEADER_BYTES, controlMessage, messageHeader } from "./message-header.ts";
import {
  AF_UNIX,
  MSG_DONTWAIT,
  MSG_NOSIGNAL,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOCK_NONBLOCK,
  SOL_SOCKET,
  socket,
} from "./socket.ts";

/** A socket that takes messages at a path, close-on-exec and non-blocking. */
export function bindUnixDatagram(path: string): number {
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  try {
    const address = unixAddress(path);
    check(libc().bind(fd, address, address.length), `bind(${path})`);
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}

/** sun_path, with the NUL that ends it */
const UNIX_PATH_BYTES = 108;

function unixAddress(path: string): Buffer {
  const address = Buffer.alloc(2 + UNIX_PATH_BYTES);
  address.writeUInt16LE(AF_UNIX, 0);
  if (address.write(path, 2) >= UNIX_PATH_BYTES)
    throw failure(`sockaddr_un(${path})`, constants.errno.ENAMETOOLONG);
  return address;
}

/** SCM_MAX_FD is 253; nobody here sends as many */
const DESCRIPTORS_SENT_MAX = 16;
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x40000000;

/** Sends a message and duplicates of descriptors to the socket at a path; does not wait for room. */
export function sendDescriptors(path: string, message: Buffer, descriptors: number[]): void {
  const control = Buffer.alloc(CONTROL_HEADER_BYTES + Math.ceil(descriptors.length / 2) * 8);
  control.writeBigUInt64LE(BigInt(CONTROL_HEADER_BYTES + descriptors.length * 4), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  descriptors.forEach((fd, index) => {
    control.writeInt32LE(fd, CONTROL_HEADER_BYTES + index * 4);
  });
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    const address = unixAddress(path);
    const { header, vector } = messageHeader(address, message, control);
    check(libc().sendmsg(fd, header, MSG_DONTWAIT | MSG_NOSIGNAL), `sendmsg(${path})`);
    keep(address, vector, message, control);
  } finally {
    close(fd);
  }
}

/** Takes one message with its descriptors, close-on-exec; null: there is none. */
export function receiveDescriptors(
  fd: number,
  bytesMax: number,
): { message: Buffer; descriptors: number[] } | null {
  const part = Buffer.alloc(bytesMax);
  const control = Buffer.alloc(CONTROL_HEADER_BYTES + DESCRIPTORS_SENT_MAX * 4);
  const { header, vector } = messageHeader(null, part, control);
  const size = libc().recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) {
    const error = errno();
    if (error === constants.errno.EAGAIN) return null;
    throw failure("recvmsg", error);
  }
  keep(vector);
  const descriptors: number[] = [];
  const came = controlMessage(header, control, SOL_SOCKET, SCM_RIGHTS) ?? Buffer.alloc(0);
  for (let at = 0; at + 4 <= came.length; at += 4) descriptors.push(came.readInt32LE(at));
  return { message: part.subarray(0, size), descriptors };
}
