/**
 * What a terminal has written and nobody has read, in CRIU's `tty-data.img` (images/tty.proto; MIT). Pure.
 *
 * CRIU 4.2 puts it back by writing it to the terminal's slave (`pty_restore_queued_data` in criu/tty.c), which turns each newline into
 * a carriage return and a newline (termios(3), OPOST and ONLCR) though that had been done. So it gets the text as the application had
 * written it. Of what was written before the terminal was set so, a newline alone gets a carriage return. In packet mode (ioctl_tty(2), TIOCPKT)
 * CRIU has read the byte that says what follows, which the kernel puts before it again.
 */
import { decodeImage, encodeImage } from "./image-file.ts";
import { decodeFields, encodeFields } from "./protobuf.ts";

/** tty_info_entry, termios_entry, tty_pty_entry, tty_data_entry: numbers of fields */
const INFO = { id: 1, packetMode: 5, rdev: 8, termios: 9, pty: 12 } as const;
const OUTPUT_FLAGS = 2;
const INDEX = 1;
const DATA = { id: 1, data: 2 } as const;
/** of /dev/ptmx: 5, 2 (Documentation/admin-guide/devices.txt) */
const PTMX = 0x502;
const OPOST = 0x1;
const ONLCR = 0x4;
/** include/uapi/asm-generic/ioctls.h */
const TIOCPKT_DATA = 0;

/** @returns the image with such text changed; null when there is none */
export function fitTerminalData(ttyData: Buffer, ttyInfo: Buffer): Buffer | null {
  const masters = new Map<number, number>();
  const translating = new Set<number>();
  const packets = new Set<number>();
  for (const message of decodeImage("ttyInfo", ttyInfo)) {
    const fields = decodeFields(message);
    const numberOf = (wanted: number): number =>
      Number(fields.find(({ number }) => number === wanted)?.varint ?? 0n);
    const inside = (wanted: number, number: number): number | null => {
      const bytes = fields.find((field) => field.number === wanted)?.bytes;
      const found = bytes === undefined ? undefined : decodeFields(bytes).find((of) => of.number === number);
      return bytes === undefined ? null : Number(found?.varint ?? 0n);
    };
    const index = inside(INFO.pty, INDEX);
    if (index === null) continue;
    const flags = inside(INFO.termios, OUTPUT_FLAGS) ?? 0;
    if (numberOf(INFO.rdev) === PTMX) {
      masters.set(numberOf(INFO.id), index);
      if (numberOf(INFO.packetMode) !== 0) packets.add(numberOf(INFO.id));
    } else if ((flags & OPOST) !== 0 && (flags & ONLCR) !== 0) translating.add(index);
  }
  let isChanged = false;
  const messages = decodeImage("ttyData", ttyData).map((message) => {
    const fields = decodeFields(message);
    const id = Number(fields.find(({ number }) => number === DATA.id)?.varint ?? 0n);
    const index = masters.get(id);
    const data = fields.find(({ number }) => number === DATA.data)?.bytes;
    if (data === undefined || index === undefined) return message;
    const read = packets.has(id) ? withoutStatus(data) : data;
    const written = translating.has(index)
      ? Buffer.from(read.toString("latin1").replaceAll("\r\n", "\n"), "latin1")
      : read;
    if (written.equals(data)) return message;
    isChanged = true;
    return encodeFields([
      [DATA.id, id],
      [DATA.data, written],
    ]);
  });
  return isChanged ? encodeImage("ttyData", messages) : null;
}

/** The first read's, and that of the next where the first told of something else than text. */
function withoutStatus(data: Buffer): Buffer {
  return data.subarray(data[0] !== TIOCPKT_DATA && data[1] === TIOCPKT_DATA ? 2 : 1);
}
