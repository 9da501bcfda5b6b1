/**
 * The one error class of the project, and its closed list of sources.
 *
 * `assert` is for our own bugs; whatever a peer, the kernel, CRIU, Redis or a person sends wrong becomes a
 * {@link HoldfastError}: a stable `code` to test for, where it came from, whether trying again can help, and
 * a message that says what to do.
 */

export type ErrorSource =
  | "downstream"
  | "upstream"
  | "link"
  | "kernel"
  | "criu"
  | "container"
  | "store"
  | "peer"
  | "config"
  | "migration";

export interface HoldfastErrorOptions {
  /** Stable, upper-case, for tests and scripts: `STORE_UNREACHABLE`. */
  code: string;
  source: ErrorSource;
  /** True when the same call can succeed later without anybody changing anything. */
  retryable?: boolean;
  cause?: unknown;
}

export class HoldfastError extends Error {
  readonly code: string;
  readonly source: ErrorSource;
  readonly retryable: boolean;

  constructor(message: string, options: HoldfastErrorOptions) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "HoldfastError";
    this.code = options.code;
    this.source = options.source;
    this.retryable = options.retryable ?? false;
  }

  /** What crosses a process boundary: no stack, no cause (either may hold secrets). */
  toJSON(): { code: string; source: ErrorSource; retryable: boolean; message: string } {
    return { code: this.code, source: this.source, retryable: this.retryable, message: this.message };
  }
}

/** The message of anything thrown, in one line. */
export function messageOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/\s*\n\s*/g, "; ");
}
