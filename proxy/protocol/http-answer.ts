/** Answers that the proxy gives in the application's place: complete HTTP/1.1 messages (RFC 9112). */
import { Buffer } from "node:buffer";

const TEXTS = {
  429: ["Too Many Requests", "Too many requests are being held for this application."],
  500: ["Internal Server Error", "The request could not be passed on to the application."],
  502: ["Bad Gateway", "The application did not complete its answer."],
  503: ["Service Unavailable", "The application is being moved or restarted."],
  504: ["Gateway Timeout", "The application has not come back in time."],
} as const;

export interface Refusal {
  status: keyof typeof TEXTS;
  /** Retry-After, seconds; also in the text */
  retryAfterS: number;
  /** the connection ends after it: says so to the client; closing is the caller's */
  close: boolean;
  /** the request was HEAD: the same head, no body */
  headOnly: boolean;
}

export function refusal({ status, retryAfterS, close, headOnly }: Refusal): Buffer {
  const [reason, text] = TEXTS[status];
  const body = `${text} Try again in ${retryAfterS} s.\n`;
  const head = [
    `HTTP/1.1 ${status} ${reason}`,
    "Content-Type: text/plain; charset=utf-8",
    `Content-Length: ${Buffer.byteLength(body)}`,
    `Retry-After: ${retryAfterS}`,
    "Cache-Control: no-store",
    `Connection: ${close ? "close" : "keep-alive"}`,
  ];
  return Buffer.from(`${head.join("\r\n")}\r\n\r\n${headOnly ? "" : body}`, "latin1");
}
