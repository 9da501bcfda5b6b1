/** Terminals: ioctl_tty(2), termios(3), pts(4). Numbers from include/uapi/asm-generic/ioctls.h and termbits.h, the same on x86-64 and arm64. */
import { constants } from "node:fs";
import { ioctlBuffer, tryIoctlInt } from "./descriptors.ts";
import { O_CLOEXEC } from "./files.ts";
import { check, int, intView, libc } from "./libc.ts";

const { O_RDWR, O_NOCTTY, O_NONBLOCK } = constants;

const TCXONC = 0x540a;
const TCOOFF = 0;
const TCOON = 1;
const TIOCSTI = 0x5412;
const TIOCPKT = 0x5420;
const TIOCGPTPEER = 0x5441;
const TIOCGPTN = 0x80045430;
const TIOCGDEV = 0x80045432;
const TIOCGPKT = 0x80045438;
const TCGETS2 = 0x802c542a;
const TCSETS2 = 0x402c542b;

/** struct termios2 (asm-generic/termbits.h): c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc[19], c_ispeed, c_ospeed */
const TERMIOS_BYTES = 44;
const OUTPUT_FLAGS = 4;
const LOCAL_FLAGS = 12;
const CHARACTERS = 17;
const CHARACTERS_COUNT = 19;
const IXON = 0x400;
const ICANON = 0x2;
const VEOF = 4;
const VTIME = 5;
const VMIN = 6;
const VSTOP = 9;
const VEOL = 11;
const VEOL2 = 16;

/** Number of the terminal whose master it is. null: it is no master */
export function numberOfMaster(fd: number): number | null {
  const number = tryIoctlInt(fd, TIOCGPTN);
  return number < 0 ? null : number;
}

/** … whose slave it is, also by the name /dev/tty. null: it is none, or has hung up */
export function numberOfSlave(fd: number): number | null {
  const device = tryIoctlInt(fd, TIOCGDEV);
  return device < 0 || majorOf(device) !== SLAVE_MAJOR ? null : minorOf(device);
}

/** Documentation/admin-guide/devices.txt */
export const SLAVE_MAJOR = 136;

/** As stat(2) and TIOCGDEV have them (new_encode_dev() in include/linux/kdev_t.h). */
export function majorOf(device: number): number {
  return (device >> 8) & 0xfff;
}

function minorOf(device: number): number {
  return (device & 0xff) | ((device >>> 12) & 0xfff00);
}

/** Another descriptor of a master's slave, which does not wait. While it is open the master does not see that nobody else has one. */
export function openSlave(master: number): number {
  return check(
    libc().ioctlValue(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC),
    "ioctl(TIOCGPTPEER)",
  );
}

/** Whether reads of a master begin with a byte that says what follows. */
export function isInPacketMode(master: number): boolean {
  return tryIoctlInt(master, TIOCGPKT) > 0;
}

/** When it begins, what was to be told before is forgotten. */
export function setPacketMode(master: number, on: boolean): void {
  intView.setInt32(0, on ? 1 : 0, true);
  check(libc().ioctl(master, TIOCPKT, int), "ioctl(TIOCPKT)");
}

/** As if it had been typed, when it returns (CAP_SYS_ADMIN). */
export function type(slave: number, byte: number): void {
  check(libc().ioctl(slave, TIOCSTI, Buffer.of(byte)), "ioctl(TIOCSTI)");
}

/** What is written waits, as by tcflow(3). */
export function stopOutput(slave: number): void {
  check(libc().ioctlValue(slave, TCXONC, TCOOFF), "ioctl(TCXONC)");
}

/** What was stopped by {@link stopOutput} goes on, and nothing else. */
export function resumeOutput(slave: number): void {
  check(libc().ioctlValue(slave, TCXONC, TCOON), "ioctl(TCXONC)");
}

/** How a terminal treats what is typed and written. */
export class Settings {
  readonly #bytes: Buffer;

  private constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  static of(fd: number): Settings {
    const bytes = Buffer.alloc(TERMIOS_BYTES);
    ioctlBuffer(fd, TCGETS2, bytes);
    return new Settings(bytes);
  }

  /** At once. */
  set(fd: number): void {
    ioctlBuffer(fd, TCSETS2, Buffer.from(this.#bytes));
  }

  /** What is typed is read line by line. */
  get isByLine(): boolean {
    return (this.#bytes.readUInt32LE(LOCAL_FLAGS) & ICANON) !== 0;
  }

  /** The byte that stops output when it is typed. 0: none does */
  get stop(): number {
    return (this.#bytes.readUInt32LE(0) & IXON) !== 0 ? this.#character(VSTOP) : 0;
  }

  /** Whether a line may end with this byte, beside a newline. */
  endsLine(byte: number): boolean {
    return byte !== 0 && (byte === this.#character(VEOL) || byte === this.#character(VEOL2));
  }

  /** What is typed can be read at once, a line or not; reads do not wait. */
  asBytes(): Settings {
    const bytes = Buffer.from(this.#bytes);
    bytes.writeUInt32LE(this.#bytes.readUInt32LE(LOCAL_FLAGS) & ~ICANON, LOCAL_FLAGS);
    bytes[CHARACTERS + VMIN] = 0;
    bytes[CHARACTERS + VTIME] = 0;
    return new Settings(bytes);
  }

  /**
   * Nothing that is typed or written is changed, echoed or obeyed; lines stay lines, as a change of that has all that waits be one.
   * @param ends byte that ends a line, and one that ends input without being part of it (VEOF)
   */
  verbatim(ends: { line: number; input: number }): Settings {
    const bytes = Buffer.from(this.#bytes);
    bytes.writeUInt32LE(0, 0);
    bytes.writeUInt32LE(0, OUTPUT_FLAGS);
    bytes.writeUInt32LE(this.#bytes.readUInt32LE(LOCAL_FLAGS) & ICANON, LOCAL_FLAGS);
    bytes.fill(0, CHARACTERS, CHARACTERS + CHARACTERS_COUNT);
    bytes[CHARACTERS + VEOL] = ends.line;
    bytes[CHARACTERS + VEOF] = ends.input;
    bytes[CHARACTERS + VMIN] = 1;
    return new Settings(bytes);
  }

  #character(index: number): number {
    return this.#bytes[CHARACTERS + index] ?? 0;
  }
}
