/** What instances of inotify(7) held while they are empty: as the journal keeps it, and as it goes to the target. */
import { z } from "zod";

const WATCHES_MAX = 100_000;
const PATH_BYTES_MAX = 4_096;

/**
 * Where a watched file is found again: by its path in the container, or, where it has no name any more, by what a
 * process has it open as. Bytes of names are written one a character (latin1), so that any name fits into JSON.
 */
export const placeSchema = z.union([
  z.strictObject({ path: z.string().min(1).max(PATH_BYTES_MAX) }),
  z.strictObject({
    /** in the container's numbering */
    pid: z.number().int().positive(),
    link: z.string().regex(/^(fd\/\d{1,10}|cwd|root|exe)$/),
  }),
]);
export type Place = z.infer<typeof placeSchema>;

export const eventSchema = z.strictObject({
  wd: z.number().int(),
  mask: z.number().int().nonnegative(),
  /** pairs the two events of a rename */
  cookie: z.number().int().nonnegative(),
  /** one byte a character; empty: about the watched file itself */
  name: z.string().max(255),
});
export type WatchEvent = z.infer<typeof eventSchema>;

const watchSchema = z.strictObject({
  wd: z.number().int().positive(),
  mask: z.number().int().nonnegative(),
  place: placeSchema,
});

export const instanceSchema = z.strictObject({
  /** in the container's numbering; one of those that have it */
  pid: z.number().int().positive(),
  fd: z.number().int().nonnegative(),
  watches: z.array(watchSchema).max(WATCHES_MAX),
  /** the number of the next new watch; null: not known yet, and whatever comes after the highest */
  next: z.number().int().positive().nullable(),
  /** sends a signal at each event (fcntl(2) O_ASYNC); inotify_init1(2), and so CRIU, does not know that flag */
  isAsync: z.boolean(),
  /** not read yet; null: there were some, and they are lost */
  events: z.array(eventSchema).max(WATCHES_MAX).nullable(),
});
/** What an instance held. */
export type InstanceState = z.infer<typeof instanceSchema>;
