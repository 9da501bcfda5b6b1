/**
 * System calls that CRIU 4.2 makes fail with EINTR: where the kernel would have gone on with the rest of a time-out
 * (ERESTART_RESTARTBLOCK), CRIU has nothing to go on with, and says so in its log. A program that waits in poll(2) for
 * ever, and takes EINTR for an error as tail(1) does, ends after a move; a script in sleep(3) goes on too early.
 *
 * Of poll, futex and sleeps the call is begun again instead, in the thread's registers in its image: exact for poll without a
 * time-out, for futex, whose time-outs are points in time, and for a sleep that is told where what is left of it goes and has
 * that in the place of the request, as sleep(3) has: the kernel wrote it there when it was stopped. Others wait for all of it again.
 * Left as CRIU has them: threads that had been interrupted once before (restart_syscall(2)). x86-64 only: on arm64 the first
 * argument is lost.
 *
 * Source: compel/arch/x86/src/lib/infect.c, images/core.proto and core-x86.proto of CRIU; arch/x86/entry/syscalls;
 * kernel/time/hrtimer.c, nanosleep_copyout().
 */
import { join } from "node:path";
import { decodeImage, encodeImage } from "./image-file.ts";
import { readImage, writeImage } from "./image-files.ts";
import { changeField, decodeFields, encodeFields } from "./protobuf.ts";

/** core_entry.thread_info, thread_info_x86.gpregs */
const THREAD_INFO = 2;
const REGISTERS = 2;
/** fields of user_x86_regs_entry */
const [AX, ORIG_AX, IP, CS] = [11, 16, 17, 18];
const EINTR = 2n ** 64n - 4n;
/** segment of 64-bit code (__USER_CS) */
const CODE_64 = 0x33n;
/** bytes of the instruction `syscall` */
const SYSCALL_BYTES = 2n;
/** poll, nanosleep, futex, clock_nanosleep */
const BEGUN_AGAIN = new Set([7n, 35n, 202n, 230n]);

/** Threads, in the numbers of the container, that CRIU's log says it interrupts. */
export function interruptedThreads(log: string): number[] {
  return [...log.matchAll(/Will restore (\d+) with interrupted system call/g)].map(([, tid]) => Number(tid));
}

/** The image of a thread (`core-TID.img`) that begins its call again; null: it is left as it is. */
export function begunAgain(image: Buffer): Buffer | null {
  const [core, ...rest] = decodeImage("core", image);
  if (core === undefined) return null;
  let isChanged = false;
  const changed = changeField(core, THREAD_INFO, (info) =>
    changeField(info, REGISTERS, (registers) => {
      const values = new Map(decodeFields(registers).map(({ number, varint }) => [number, varint]));
      const call = values.get(ORIG_AX);
      if (values.get(AX) !== EINTR || values.get(CS) !== CODE_64) return registers;
      if (call === undefined || !BEGUN_AGAIN.has(call)) return registers;
      isChanged = true;
      values.set(AX, call).set(IP, (values.get(IP) ?? 0n) - SYSCALL_BYTES);
      return encodeFields([...values]);
    }),
  );
  return isChanged ? encodeImage("core", [changed, ...rest]) : null;
}

/** After a dump, before its images are sent. @param dumpLog of CRIU, warnings included */
export function beginCallsAgain(imagesDir: string, dumpLog: string): void {
  if (process.arch !== "x64") return;
  for (const tid of interruptedThreads(dumpLog)) {
    const path = join(imagesDir, `core-${tid}.img`);
    const image = begunAgain(readImage(path));
    if (image !== null) writeImage(path, image);
  }
}
