/**
 * Makes large reservations of address space restorable, in CRIU's `mm-PID.img` (images/mm.proto, images/vma.proto; MIT).
 *
 * CRIU 4.2 maps private memory writable while it restores, whatever it was in the source (`premap_private_vma` in
 * criu/mem.c: where images have parents, and memory that a child shares). Writable memory counts as used for the
 * kernel's overcommit heuristics, which refuse any single mapping larger than RAM and swap together
 * (Documentation/mm/overcommit-accounting.rst, `__vm_enough_memory`): a database that reserves 8 TiB of PROT_NONE could
 * not be restored anywhere. With MAP_NORESERVE the kernel does not count it. Only mappings that would be refused are
 * changed, and of what the process sees only the letters "nr" in smaps and that a later mprotect(2) is not counted either.
 *
 * CRIU also counts the pages of a mapping in an int, so what has 2^31 of them (8 TiB) and a page in it is cut up; the kernel joins
 * the parts again when they are in their place.
 */
import { decodeImage, encodeImage } from "./image-file.ts";
import { decodeFields, encodeFields, type Field } from "./protobuf.ts";

const VMAS = 14;
/** fields of vma_entry, by their numbers */
const [START, END, FLAGS, STATUS] = [1, 2, 6, 7];
const MAP_NORESERVE = 0x4000n;
const MAP_HUGETLB = 0x40000n;
/** criu/include/image.h */
const VMA_FILE_PRIVATE = 1n << 6n;
const VMA_ANON_PRIVATE = 1n << 9n;
const VMA_AREA_AIORING = 1n << 13n;
const PART_BYTES_MAX = 1n << 42n;

/**
 * @param image of one process
 * @param countedBytesMax the largest single mapping that the kernel's heuristics allow; null: they are off
 * @returns the image with such mappings changed; null when there is none
 */
export function fitReservations(image: Buffer, countedBytesMax: number | null): Buffer | null {
  let isChanged = false;
  const messages = decodeImage("mm", image).map((message) => {
    const fields: Field[] = [];
    for (const { number, varint, bytes, isVarint } of decodeFields(message)) {
      if (number !== VMAS) {
        fields.push([number, isVarint ? varint : bytes]);
        continue;
      }
      const parts = fitMapping(bytes, countedBytesMax);
      if (parts !== null) isChanged = true;
      for (const part of parts ?? [bytes]) fields.push([number, part]);
    }
    return encodeFields(fields);
  });
  return isChanged ? encodeImage("mm", messages) : null;
}

/**
 * Address ranges whose pages CRIU writes into every dump, whatever an earlier one has (`generate_vma_iovs` in criu/mem.c), in order.
 * Huge pages (MAP_HUGETLB): it reads them from the dump's own images only, and takes no notice of those that are marked as being
 * in a parent (`premap_priv_vmas`). Rings of io_setup(2), which the kernel writes: a container of ours has none (`not-carried.ts`).
 */
export function alwaysDumped(image: Buffer): { start: number; end: number }[] {
  const ranges: { start: number; end: number }[] = [];
  for (const message of decodeImage("mm", image))
    for (const { number, bytes } of decodeFields(message)) {
      if (number !== VMAS) continue;
      const fields = new Map(decodeFields(bytes).map((field) => [field.number, field.varint]));
      const isHuge = ((fields.get(FLAGS) ?? 0n) & MAP_HUGETLB) !== 0n;
      if (!isHuge && ((fields.get(STATUS) ?? 0n) & VMA_AREA_AIORING) === 0n) continue;
      ranges.push({ start: Number(fields.get(START) ?? 0n), end: Number(fields.get(END) ?? 0n) });
    }
  return ranges.sort((one, other) => one.start - other.start);
}

/** null: it can stay as it is */
function fitMapping(entry: Buffer, countedBytesMax: number | null): Buffer[] | null {
  const fields = new Map(decodeFields(entry).map(({ number, varint }) => [number, varint]));
  const field = (number: number): bigint => fields.get(number) ?? 0n;
  const [start, end, flags, status] = [field(START), field(END), field(FLAGS), field(STATUS)];
  if ((status & (VMA_ANON_PRIVATE | VMA_FILE_PRIVATE)) === 0n || (flags & MAP_HUGETLB) !== 0n) return null;
  const isCounted = (flags & MAP_NORESERVE) === 0n;
  const isRefused = isCounted && countedBytesMax !== null && end - start > BigInt(countedBytesMax);
  const isCut = (status & VMA_ANON_PRIVATE) !== 0n && end - start > PART_BYTES_MAX;
  if (!isRefused && !isCut) return null;
  if (isRefused) fields.set(FLAGS, flags | MAP_NORESERVE);
  const parts: Buffer[] = [];
  for (let at = start; at < end; ) {
    const to = isCut && end - at > PART_BYTES_MAX ? at + PART_BYTES_MAX : end;
    fields.set(START, at);
    fields.set(END, to);
    parts.push(encodeFields([...fields]));
    at = to;
  }
  return parts;
}
