/** userfaultfd(2), for one thing: which pages of private memory were written (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7). */
import { ioctlBuffer } from "./descriptors.ts";

/** x86-64 */
export const SYS_USERFAULTFD = 323;
/** enough for pages that are only ever resolved by the kernel, and nobody needs a privilege for it */
export const UFFD_USER_MODE_ONLY = 1;

const UFFD_API = 0xaan;
const UFFDIO_API = 0xc018aa3f;
const UFFDIO_REGISTER = 0xc020aa00;
const UFFD_FEATURE_WP_UNPOPULATED = 1n << 13n;
const UFFD_FEATURE_WP_ASYNC = 1n << 15n;
const UFFDIO_REGISTER_MODE_WP = 2n;

/** Once, before anything is registered. @throws HoldfastError EINVAL: this kernel cannot */
export function trackWrites(fd: number): void {
  const api = Buffer.alloc(24);
  api.writeBigUInt64LE(UFFD_API, 0);
  api.writeBigUInt64LE(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED, 8);
  ioctlBuffer(fd, UFFDIO_API, api);
}

/**
 * From now on the kernel remembers which pages there were written; at first it counts all as written. Repeating it changes nothing.
 * @throws HoldfastError EINVAL (a kind of memory that cannot be), ENOMEM, EBUSY (somebody else's), ESRCH (the process has ended)
 */
export function register(fd: number, start: number, end: number): void {
  const range = Buffer.alloc(32);
  range.writeBigUInt64LE(BigInt(start), 0);
  range.writeBigUInt64LE(BigInt(end - start), 8);
  range.writeBigUInt64LE(UFFDIO_REGISTER_MODE_WP, 16);
  ioctlBuffer(fd, UFFDIO_REGISTER, range);
}
