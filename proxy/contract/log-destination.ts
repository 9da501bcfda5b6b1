/** Where every process of Holdfast logs to: its standard error, which may be a file. */
import pino from "pino";

/** of lines that cannot be written now; what is beyond is dropped */
const WAITING_BYTES_MAX = 1024 * 1024;

/**
 * A disk that is full costs lines and nothing else: pino throws what cannot be written into whoever logs (`filterBrokenPipe` in pino/lib/tools.js),
 * and a process of ours would end with all its sessions.
 */
export function logDestination(): pino.DestinationStream {
  const destination = pino.destination({ dest: 2, sync: true, maxLength: WAITING_BYTES_MAX });
  destination.on("error", () => {});
  return destination;
}
