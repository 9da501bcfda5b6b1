/**
 * Malformed and ambiguous HTTP/1.1 and WebSocket input, as data: what a hostile or broken client sends, and what a hostile
 * or broken application answers. What a receiver makes of it is not said here; what a proxy makes of it must be nothing.
 *
 * The classes are those of the published desync work (CL.TE, TE.CL, TE.TE, CL.0, TE.0, bare LF and CR, chunk extensions,
 * obs-fold, …), of RFC 9110, 9112 and 6455, and of Autobahn's list of WebSocket cases; the payloads are our own. A request
 * that some parser may find inside another one asks for `/smuggled`. HTTP/2 and TLS are left out.
 */
import { createHash } from "node:crypto";

export interface Malformed {
  /** kebab-case, begins with its class; unique */
  name: string;
  protocol: "http" | "websocket";
  /** who sends it */
  side: "client" | "server";
  bytes: Buffer;
  /** what the other side has sent before; the request that a server's bytes answer */
  before: Buffer;
  /** WebSocket: how many of `bytes` are a sound opening handshake, after which its answer may be waited for; else 0 */
  handshakeBytes: number;
  /** where `bytes` is to be split when that matters: lengths of the parts; the rest is one more */
  chunks?: number[];
  /** one line, with the section that forbids or allows it */
  why: string;
  /** two honest receivers may find a different number of messages in it */
  ambiguous: boolean;
}

interface Extra {
  ambiguous?: boolean;
  chunks?: number[];
  before?: Buffer;
}

const latin1 = (text: string): Buffer => Buffer.from(text, "latin1");
const NOTHING = Buffer.alloc(0);

const HTTP_HUGE_BYTES = 192 * 1024;
const WEBSOCKET_HUGE_BYTES = 256 * 1024;

const SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
/** A chunked body that ends, as a content-length reader sees it: 5 bytes, then a request. */
const ENDED_CHUNKS = `0\r\n\r\n${SMUGGLED}`;
/** One chunk that holds a request, as a reader of `Content-Length: 4` sees it: 4 bytes, then a request. */
const CHUNKED_SMUGGLED = `${SMUGGLED.length.toString(16)}\r\n${SMUGGLED}\r\n0\r\n\r\n`;

function httpClient(name: string, why: string, text: string, extra: Extra = {}): Malformed {
  return {
    name,
    protocol: "http",
    side: "client",
    bytes: latin1(text),
    before: NOTHING,
    handshakeBytes: 0,
    why,
    ambiguous: false,
    ...extra,
  };
}

/** A POST with these header lines (each with its end of line) and this body. */
function post(name: string, why: string, headers: string, body: string, extra: Extra = {}): Malformed {
  return httpClient(name, why, `POST /first HTTP/1.1\r\nHost: a\r\n${headers}\r\n${body}`, extra);
}

/** A GET with these header lines, followed by nothing. */
function get(name: string, why: string, headers: string, extra: Extra = {}): Malformed {
  return httpClient(name, why, `GET /first HTTP/1.1\r\n${headers}\r\n`, extra);
}

const AMBIGUOUS: Extra = { ambiguous: true };
const CHUNKED = "Transfer-Encoding: chunked\r\n";

/** Ways to write a Transfer-Encoding that one receiver takes for `chunked` and another does not. */
const TE_DISGUISES: [name: string, why: string, line: string][] = [
  ["space-before-colon", "RFC 9112 5.1: no whitespace before the colon", "Transfer-Encoding : chunked\r\n"],
  ["tab-before-colon", "RFC 9112 5.1: no whitespace before the colon", "Transfer-Encoding\t: chunked\r\n"],
  ["tab-after-colon", "RFC 9110 5.6.3: a tab is optional whitespace", "Transfer-Encoding:\tchunked\r\n"],
  ["vertical-tab", "RFC 9110 5.6.3: %x0B is no whitespace", "Transfer-Encoding:\x0bchunked\r\n"],
  ["form-feed", "RFC 9110 5.6.3: %x0C is no whitespace", "Transfer-Encoding: chunked\x0c\r\n"],
  ["nul-after", "RFC 9110 5.5: NUL in a field value", "Transfer-Encoding: chunked\x00\r\n"],
  ["no-break-space", "RFC 9110 5.6.3: %xA0 is no whitespace", "Transfer-Encoding:\xa0chunked\r\n"],
  ["leading-space", "RFC 9112 2.2: whitespace before the first field", " Transfer-Encoding: chunked\r\n"],
  ["bare-cr-before", "RFC 9112 2.2: bare CR", "X: y\rTransfer-Encoding: chunked\r\n"],
  ["bare-lf-before", "RFC 9112 2.2: bare LF ends a line for some", "X: y\nTransfer-Encoding: chunked\r\n"],
  ["folded", "RFC 9112 5.2: obs-fold", "Transfer-Encoding:\r\n chunked\r\n"],
  ["folded-in-name", "RFC 9112 5.2: a fold before the colon", "Transfer-Encoding\r\n : chunked\r\n"],
  ["quoted", "RFC 9112 6.1: a quoted coding", 'Transfer-Encoding: "chunked"\r\n'],
  ["single-quoted", "RFC 9112 6.1: no token", "Transfer-Encoding: 'chunked'\r\n"],
  ["prefixed", "RFC 9112 6.1: unknown coding", "Transfer-Encoding: xchunked\r\n"],
  ["suffixed", "RFC 9112 6.1: unknown coding", "Transfer-Encoding: chunkedx\r\n"],
  ["trailing-comma", "RFC 9110 5.6.1: empty list element", "Transfer-Encoding: chunked,\r\n"],
  ["leading-comma", "RFC 9110 5.6.1: empty list element", "Transfer-Encoding: ,chunked\r\n"],
  ["parameter", "RFC 9112 7: chunked has no parameters", "Transfer-Encoding: chunked;q=1\r\n"],
  ["identity", "RFC 9112 7: identity is gone", "Transfer-Encoding: identity\r\n"],
  ["identity-then-chunked", "RFC 9112 7: identity is gone", "Transfer-Encoding: identity, chunked\r\n"],
  ["not-final", "RFC 9112 6.1: chunked is not the last coding", "Transfer-Encoding: chunked, gzip\r\n"],
  ["twice-in-list", "RFC 9112 6.1: chunked applied twice", "Transfer-Encoding: chunked, chunked\r\n"],
  [
    "two-fields",
    "RFC 9112 6.1: two fields make one list",
    "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n",
  ],
  [
    "two-fields-reversed",
    "RFC 9112 6.1: chunked is not the last coding",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n",
  ],
  ["mixed-case", "RFC 9112 7: codings ignore case", "tRANSFER-eNCODING: cHuNKeD\r\n"],
  ["underscore", "RFC 9110 5.1: another name, the same for CGI", "Transfer_Encoding: chunked\r\n"],
  ["empty", "RFC 9112 6.1: an empty list", "Transfer-Encoding:\r\n"],
  ["high-bit-name", "RFC 9110 5.1: no token", "Transfer-Encodin\xe7: chunked\r\n"],
];

/** Lengths that are read as different numbers, or as none. */
const LENGTHS: [name: string, value: string][] = [
  ["plus-sign", "+5"],
  ["minus-sign", "-5"],
  ["minus-zero", "-0"],
  ["leading-zeros", "0000000005"],
  ["hexadecimal", "0x5"],
  ["octal-like", "010"],
  ["fraction", "5.0"],
  ["exponent", "5e0"],
  ["underscore", "1_0"],
  ["inner-space", "5 5"],
  ["empty", ""],
  ["word", "five"],
  ["nul", "5\x00"],
  ["list-of-equals", "5, 5"],
  ["list-of-unequals", "5, 6"],
  ["list-with-empty", "5,"],
  ["beyond-32-bits", "4294967301"],
  ["beyond-53-bits", "9007199254740993"],
  ["beyond-64-bits", "18446744073709551621"],
  ["digits-without-end", "9".repeat(400)],
  ["full-width-digit", "\xef\xbc\x95"],
];

/** Sizes of the first chunk: the line without its end. */
const CHUNK_SIZES: [name: string, why: string, size: string][] = [
  ["prefixed", "0x is not hexadecimal here", "0x5"],
  ["plus-sign", "a sign is no digit", "+5"],
  ["minus-sign", "a sign is no digit", "-5"],
  ["empty", "at least one digit", ""],
  ["no-digit", "no hexadecimal digit", "g"],
  ["leading-space", "whitespace before the size", " 5"],
  ["trailing-space", "whitespace after the size", "5 "],
  ["trailing-tab", "whitespace after the size", "5\t"],
  ["leading-zeros", "any number of zeros is allowed", "0".repeat(64) + 5],
  ["beyond-32-bits", "wraps to 5 in 32 bits", "100000005"],
  ["beyond-53-bits", "rounded in a double", "20000000000001"],
  ["beyond-64-bits", "wraps to 5 in 64 bits", "10000000000000005"],
  ["digits-without-end", "wraps anywhere", "f".repeat(400)],
  ["underscore", "some parsers' digits", "0_5"],
  ["comma", "a list is no size", "5,5"],
  ["nul", "NUL after the size", "5\x00"],
];

const CHUNK_EXTENSIONS: [name: string, why: string, line: string][] = [
  ["bare-lf", "LF in an extension ends the line for some", "5;a\nb\r\n"],
  ["bare-cr", "CR in an extension", "5;a\rb\r\n"],
  ["quoted-line-end", "CRLF in a quoted value", '5;a="\r\n"\r\n'],
  ["no-name", "an empty extension", "5;\r\n"],
  ["no-semicolon", "junk after the size", "5 junk\r\n"],
  ["nul", "NUL in an extension", "5;a=\x00\r\n"],
  ["huge", "RFC 9112 7.1.1: bound the total length of extensions", `5;${"a".repeat(20_000)}\r\n`],
];

const httpRequests: Malformed[] = [
  // ---- two framings in one request
  post(
    "cl-te-plain",
    "RFC 9112 6.3: both; Transfer-Encoding overrides, or the request is refused",
    `Content-Length: ${ENDED_CHUNKS.length}\r\n${CHUNKED}`,
    ENDED_CHUNKS,
    AMBIGUOUS,
  ),
  post(
    "te-cl-plain",
    "RFC 9112 6.3: both, the other way round",
    `${CHUNKED}Content-Length: 4\r\n`,
    CHUNKED_SMUGGLED,
    AMBIGUOUS,
  ),
  post(
    "cl-te-zero-length",
    "RFC 9112 6.3: a length of zero beside chunked",
    `Content-Length: 0\r\n${CHUNKED}`,
    ENDED_CHUNKS,
    AMBIGUOUS,
  ),
  post(
    "cl-te-unfinished",
    "RFC 9112 6.3: the next request becomes part of the body",
    `Content-Length: 6\r\n${CHUNKED}`,
    "0\r\n\r\nG",
    AMBIGUOUS,
  ),
  post(
    "te-cl-unfinished",
    "RFC 9112 6.3: the body ends before the chunk does",
    `${CHUNKED}Content-Length: 3\r\n`,
    "8\r\nSMUGGLED\r\n0\r\n\r\n",
    AMBIGUOUS,
  ),
  ...TE_DISGUISES.map(([name, why, line]) =>
    post(`te-te-${name}`, why, `Content-Length: ${ENDED_CHUNKS.length}\r\n${line}`, ENDED_CHUNKS, AMBIGUOUS),
  ),
  ...TE_DISGUISES.slice(0, 12).map(([name, why, line]) =>
    post(`te-cl-${name}`, why, `${line}Content-Length: 4\r\n`, CHUNKED_SMUGGLED, AMBIGUOUS),
  ),
  httpClient(
    "te-on-http-1-0",
    "RFC 9112 6.1: Transfer-Encoding in HTTP/1.0 is faulty framing",
    `POST /first HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n${CHUNKED}\r\n${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  httpClient(
    "te-only-in-get",
    "RFC 9110 9.3.1: content of GET has no meaning, and still has a length",
    `GET /first HTTP/1.1\r\nHost: a\r\n${CHUNKED}\r\n${CHUNKED_SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "te-0-options-body",
    "TE.0: a receiver that ignores chunked sees a request",
    CHUNKED,
    CHUNKED_SMUGGLED,
    AMBIGUOUS,
  ),
  httpClient(
    "cl-0-get-with-body",
    "CL.0: a receiver that ignores the length of a GET sees a request",
    `GET /first HTTP/1.1\r\nHost: a\r\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "cl-0-head-with-body",
    "CL.0 with HEAD",
    `HEAD /first HTTP/1.1\r\nHost: a\r\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "cl-0-delete-chunked",
    "CVE-2026-29057: DELETE with a chunked body becomes two requests in naive proxies",
    `DELETE /first HTTP/1.1\r\nHost: a\r\n${CHUNKED}\r\n${CHUNKED_SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "cl-0-connect-with-body",
    "RFC 9110 9.3.6: what follows CONNECT is the tunnel's",
    `CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "cl-0-expect-continue",
    "RFC 9110 10.1.1: a body that does not wait for 100",
    `GET /first HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "cl-0-expect-unknown",
    "RFC 9110 10.1.1: an expectation that nobody knows, and 100-continue as well",
    "Expect: y 100-continue\r\nContent-Length: 5\r\n",
    "hello",
    AMBIGUOUS,
  ),
  post(
    "te-te-upgrade-with-body",
    "RFC 9110 7.8: an upgrade with a body, which comes before the other protocol",
    `Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: ${SMUGGLED.length}\r\n`,
    SMUGGLED,
    AMBIGUOUS,
  ),

  // ---- lengths
  post(
    "cl-cl-unequal",
    "RFC 9112 6.3: two lengths that differ",
    `Content-Length: 5\r\nContent-Length: ${5 + SMUGGLED.length}\r\n`,
    `hello${SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "cl-cl-equal",
    "RFC 9112 6.3: two equal lengths may be taken as one",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "hello",
    AMBIGUOUS,
  ),
  ...LENGTHS.map(([name, value]) =>
    post(
      `cl-value-${name}`,
      "RFC 9110 8.6: Content-Length is 1*DIGIT; RFC 9112 6.3: an invalid one is unrecoverable",
      `Content-Length: ${value}\r\n`,
      `hello${SMUGGLED}`,
      AMBIGUOUS,
    ),
  ),
  post(
    "cl-name-space",
    "RFC 9112 5.1: whitespace before the colon",
    `Content-Length : ${SMUGGLED.length}\r\n`,
    SMUGGLED,
    AMBIGUOUS,
  ),
  post(
    "cl-name-underscore",
    "RFC 9110 5.1: another name, the same for CGI",
    `Content_Length: ${SMUGGLED.length}\r\n`,
    SMUGGLED,
    AMBIGUOUS,
  ),
  post(
    "cl-folded",
    "RFC 9112 5.2: the length on a folded line",
    `Content-Length:\r\n ${SMUGGLED.length}\r\n`,
    SMUGGLED,
    AMBIGUOUS,
  ),
  post(
    "cl-folded-second-digit",
    "RFC 9112 5.2: a fold between digits",
    "Content-Length: 5\r\n 5\r\n",
    `hello${SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "cl-nominated-by-connection",
    "RFC 9110 7.6.1: a length that a proxy would drop",
    `Connection: content-length\r\nContent-Length: ${SMUGGLED.length}\r\n`,
    SMUGGLED,
    AMBIGUOUS,
  ),
  post(
    "cl-truncated-body",
    "RFC 9112 8: the connection ends in the body",
    "Content-Length: 500\r\n",
    "hello",
  ),

  // ---- chunked bodies
  ...CHUNK_SIZES.map(([name, why, size]) =>
    post(
      `chunk-size-${name}`,
      `RFC 9112 7.1: ${why}`,
      CHUNKED,
      `${size}\r\nhello\r\n${ENDED_CHUNKS}`,
      AMBIGUOUS,
    ),
  ),
  ...CHUNK_EXTENSIONS.map(([name, why, line]) =>
    post(
      `chunk-extension-${name}`,
      `RFC 9112 7.1.1: ${why}`,
      CHUNKED,
      `${line}hello\r\n${ENDED_CHUNKS}`,
      AMBIGUOUS,
    ),
  ),
  post(
    "chunk-line-bare-lf",
    "RFC 9112 7.1: LF alone ends the chunk line",
    CHUNKED,
    `5\nhello\r\n${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-line-bare-cr",
    "RFC 9112 7.1: CR alone ends the chunk line",
    CHUNKED,
    `5\rhello\r\n${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-data-bare-lf",
    "RFC 9112 7.1: LF alone ends the data",
    CHUNKED,
    `5\r\nhello\n${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-data-without-end",
    "RFC 9112 7.1: the next size follows the data at once",
    CHUNKED,
    `5\r\nhello${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-data-too-long",
    "RFC 9112 7.1: more data than the size says",
    CHUNKED,
    `5\r\nhello, world\r\n${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-data-two-junk-bytes",
    "RFC 9112 7.1: any two bytes taken for the CRLF",
    CHUNKED,
    `5\r\nhelloXX${ENDED_CHUNKS}`,
    AMBIGUOUS,
  ),
  post(
    "chunk-last-without-trailer-end",
    "RFC 9112 7.1.2: the trailer section never ends",
    CHUNKED,
    "5\r\nhello\r\n0\r\n",
  ),
  post(
    "chunk-last-many-zeros",
    "RFC 9112 7.1: last-chunk is 1*0",
    CHUNKED,
    `5\r\nhello\r\n00000000${"\r\n\r\n"}`,
  ),
  post("chunk-truncated-in-size", "RFC 9112 8: the connection ends in a size", CHUNKED, "5"),
  post("chunk-truncated-in-data", "RFC 9112 8: the connection ends in the data", CHUNKED, "5\r\nhel"),
  post(
    "chunk-one-byte-each",
    "RFC 9112 7.1: as much framing as one likes around few bytes",
    CHUNKED,
    `${"1\r\nx\r\n".repeat(2_000)}0\r\n\r\n`,
  ),
  post(
    "trailer-framing-fields",
    "RFC 9110 6.5.1: no framing in trailers",
    CHUNKED,
    `0\r\nContent-Length: ${SMUGGLED.length}\r\nTransfer-Encoding: chunked\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "trailer-bare-lf",
    "RFC 9112 7.1.2: LF alone ends the trailer section",
    CHUNKED,
    `0\r\nX: y\n\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  post(
    "trailer-huge",
    "RFC 9112 7.1.2: bound the trailer section",
    CHUNKED,
    `0\r\nX: ${"y".repeat(HTTP_HUGE_BYTES)}\r\n\r\n`,
  ),
  post(
    "trailer-many",
    "RFC 9112 7.1.2: bound the trailer section",
    CHUNKED,
    `0\r\n${"X: y\r\n".repeat(20_000)}\r\n`,
  ),

  // ---- lines
  httpClient(
    "line-bare-lf",
    "RFC 9112 2.2: LF may be taken for the end of a line",
    "GET /first HTTP/1.1\nHost: a\n\n",
    AMBIGUOUS,
  ),
  httpClient(
    "line-bare-cr",
    "RFC 9112 2.2: bare CR is invalid, or a space",
    "GET /first HTTP/1.1\rHost: a\r\r",
    AMBIGUOUS,
  ),
  httpClient(
    "line-lf-cr",
    "RFC 9112 2.2: LF CR is no end of line",
    "GET /first HTTP/1.1\n\rHost: a\n\r\n\r",
    AMBIGUOUS,
  ),
  httpClient(
    "line-cr-cr-lf",
    "RFC 9112 2.2: CR before CRLF",
    "GET /first HTTP/1.1\r\r\nHost: a\r\r\n\r\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "line-mixed-ends",
    "RFC 9112 2.2: a head ended by LF CRLF",
    `GET /first HTTP/1.1\r\nHost: a\r\nX: y\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "line-lf-hides-body",
    "RFC 9112 2.2: an LF LF inside the head",
    `POST /first HTTP/1.1\r\nHost: a\r\nX: y\n\nContent-Length: ${SMUGGLED.length}\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "line-empty-before-request",
    "RFC 9112 2.2: one empty line is to be ignored",
    "\r\nGET /first HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "line-many-empty-before-request",
    "RFC 9112 2.2: many are not said to be",
    `${"\r\n".repeat(5_000)}GET /first HTTP/1.1\r\nHost: a\r\n\r\n`,
    AMBIGUOUS,
  ),
  httpClient(
    "line-empty-after-body",
    "RFC 9112 2.2: an extra CRLF after the body of a POST",
    `POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\n${SMUGGLED}`,
  ),
  httpClient(
    "line-space-before-request",
    "RFC 9112 2.2: whitespace before the request line",
    " GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),

  // ---- request line
  httpClient("start-http-0-9", "RFC 1945: a simple request", "GET /first\r\n", AMBIGUOUS),
  httpClient(
    "start-http-0-9-then-1-1",
    "RFC 1945: a simple request, then another",
    `GET /first\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "start-version-2-0",
    "RFC 9112 2.3: a version of another protocol",
    "GET /first HTTP/2.0\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-version-1-2",
    "RFC 9112 2.3: an unknown minor version",
    "GET /first HTTP/1.2\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-version-two-digits",
    "RFC 9112 2.3: one digit each",
    "GET /first HTTP/1.10\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-version-lower-case",
    "RFC 9112 2.3: HTTP-name is case-sensitive",
    "GET /first http/1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-version-missing-slash",
    "RFC 9112 2.3",
    "GET /first HTTP1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-two-targets",
    "RFC 9112 3: a space in the target",
    "GET /first /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient("start-tabs", "RFC 9112 3: tabs for spaces", "GET\t/first\tHTTP/1.1\r\nHost: a\r\n\r\n"),
  httpClient(
    "start-many-spaces",
    "RFC 9112 3: several spaces",
    "GET    /first    HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-request-in-target",
    "RFC 9112 3: a whole request line in the target",
    "GET /first%20HTTP/1.1\x0b/x HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-absolute-form",
    "RFC 9112 3.2.2: the target's host against Host",
    "GET http://b/first HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient("start-no-target", "RFC 9112 3", "GET HTTP/1.1\r\nHost: a\r\n\r\n", AMBIGUOUS),
  httpClient("start-empty-method", "RFC 9112 3.1", " /first HTTP/1.1\r\nHost: a\r\n\r\n", AMBIGUOUS),
  httpClient(
    "start-method-no-token",
    "RFC 9110 9.1: the method is a token",
    "G@T /first HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-method-lower-case",
    "RFC 9110 9.1: methods are case-sensitive",
    "get /first HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-method-huge",
    "RFC 9112 3: a method longer than any",
    `${"A".repeat(HTTP_HUGE_BYTES)} /first HTTP/1.1\r\nHost: a\r\n\r\n`,
  ),
  httpClient(
    "start-target-huge",
    "RFC 9112 3: a target longer than any",
    `GET /${"a".repeat(HTTP_HUGE_BYTES)} HTTP/1.1\r\nHost: a\r\n\r\n`,
  ),
  httpClient(
    "start-target-high-bytes",
    "RFC 9112 3.2: raw UTF-8 and Latin-1",
    "GET /\xc3\xa9\xff HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient(
    "start-target-nul",
    "RFC 9112 3.2: NUL in the target",
    "GET /fi\x00rst HTTP/1.1\r\nHost: a\r\n\r\n",
  ),
  httpClient("start-without-end", "RFC 9112 3: a request line that never ends", "A".repeat(HTTP_HUGE_BYTES)),
  httpClient(
    "start-h2-preface-cut",
    "RFC 9113 3.4: the beginning of HTTP/2's preface, then HTTP/1.1",
    "PRI * HTTP/2.0\r\n\r\nGET /first HTTP/1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-tls-then-http",
    "RFC 8446 5.1: a handshake record's first bytes, then HTTP",
    "\x16\x03\x01\x00\x05GET /first HTTP/1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient(
    "start-proxy-protocol",
    "PROXY protocol: a line before the request that names another client",
    "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET /first HTTP/1.1\r\nHost: a\r\n\r\n",
    AMBIGUOUS,
  ),
  httpClient("start-nothing", "RFC 9112 8: a connection that ends before its first byte", ""),
  httpClient("start-one-letter", "RFC 9112 8: a connection that ends after its first byte", "G"),
  httpClient(
    "start-noise",
    "no protocol at all",
    Array.from({ length: 4_096 }, (_, at) => String.fromCharCode((at * 167 + (at >> 3)) & 0xff)).join(""),
  ),

  // ---- fields
  get("field-no-host", "RFC 9112 3.2: Host is required", "X: y\r\n"),
  get("field-two-hosts", "RFC 9112 3.2: exactly one Host", "Host: a\r\nHost: b\r\n"),
  get("field-empty-host", "RFC 9112 3.2", "Host:\r\n"),
  get("field-host-no-authority", "RFC 9112 3.2: an invalid Host", "Host: a/b@c:99999\r\n"),
  get("field-no-colon", "RFC 9112 5: a line without a colon", "Host: a\r\nNoColon\r\n", AMBIGUOUS),
  get("field-empty-name", "RFC 9110 5.1: a name has at least one character", "Host: a\r\n: y\r\n", AMBIGUOUS),
  get("field-name-no-token", "RFC 9110 5.1: the name is a token", "Host: a\r\nX Y(): z\r\n", AMBIGUOUS),
  get("field-name-nul", "RFC 9110 5.1", "Host: a\r\nX\x00: y\r\n", AMBIGUOUS),
  get("field-value-nul", "RFC 9110 5.5: NUL is dangerous", "Host: a\r\nX: y\x00z\r\n", AMBIGUOUS),
  get("field-value-bare-cr", "RFC 9110 5.5: CR is dangerous", "Host: a\r\nX: y\rZ: 1\r\n", AMBIGUOUS),
  get("field-value-high-bytes", "RFC 9110 5.5: obs-text", "Host: a\r\nX: \x80\xff\xc3\x28\r\n"),
  get("field-folded", "RFC 9112 5.2: obs-fold", "Host: a\r\nX: y\r\n z\r\n\tw\r\n", AMBIGUOUS),
  get(
    "field-folded-first",
    "RFC 9112 2.2: whitespace after the request line",
    " X: y\r\nHost: a\r\n",
    AMBIGUOUS,
  ),
  get(
    "field-folded-into-nothing",
    "RFC 9112 5.2: a fold that ends the head for some",
    `Host: a\r\nX: y\r\n \r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  get(
    "field-huge-value",
    "RFC 9110 5.4: no limit is given",
    `Host: a\r\nX: ${"y".repeat(HTTP_HUGE_BYTES)}\r\n`,
  ),
  get(
    "field-huge-name",
    "RFC 9110 5.4: no limit is given",
    `Host: a\r\n${"X".repeat(HTTP_HUGE_BYTES)}: y\r\n`,
  ),
  get("field-many", "RFC 9110 5.4: no limit is given", `Host: a\r\n${"X: y\r\n".repeat(30_000)}`),
  get(
    "field-many-different",
    "names that differ fill a table",
    `Host: a\r\n${Array.from({ length: 5_000 }, (_, at) => `X${at}: y\r\n`).join("")}`,
  ),
  get(
    "field-duplicate-connection",
    "RFC 9110 7.6.1: close and keep-alive at once",
    "Host: a\r\nConnection: close\r\nConnection: keep-alive\r\n",
  ),
  httpClient(
    "field-head-truncated",
    "RFC 9112 8: the connection ends in the head",
    "GET /first HTTP/1.1\r\nHost: a\r\nX",
  ),

  // ---- several requests, upgrades
  httpClient(
    "pipeline-two",
    "RFC 9112 9.3.2: two honest requests in one segment",
    `GET /first HTTP/1.1\r\nHost: a\r\n\r\n${SMUGGLED}`,
  ),
  httpClient(
    "pipeline-many",
    "RFC 9112 9.3.2: far more than anybody answers at once",
    "GET /first HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1_000),
  ),
  httpClient(
    "pipeline-after-close",
    "RFC 9112 9.6: a request after Connection: close",
    `GET /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "pipeline-junk-after-request",
    "RFC 9112 2.2: what follows is no request",
    "GET /first HTTP/1.1\r\nHost: a\r\n\r\n\x00\x01\x02junk\r\n\r\n",
  ),
  httpClient(
    "pipeline-post-then-get",
    "RFC 9112 9.3.2: a request behind a body",
    `POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello${SMUGGLED}`,
  ),
  httpClient(
    "upgrade-unknown-then-request",
    "RFC 9110 7.8: an upgrade that is refused leaves HTTP behind it",
    `GET /first HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: nothing\r\n\r\n${SMUGGLED}`,
  ),
  httpClient(
    "upgrade-websocket-then-request",
    "RFC 6455 4.1: bytes before the answer; a refused upgrade makes them a request",
    `GET /first HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n${SMUGGLED}`,
    AMBIGUOUS,
  ),
  httpClient(
    "upgrade-h2c-then-preface",
    "RFC 7540 3.2: an upgrade that nobody has accepted yet",
    `GET /first HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`,
    AMBIGUOUS,
  ),
];

const GET_BEFORE = latin1("GET /first HTTP/1.1\r\nHost: a\r\n\r\n");
const HEAD_BEFORE = latin1("HEAD /first HTTP/1.1\r\nHost: a\r\n\r\n");
const OK = "HTTP/1.1 200 OK\r\n";
/** An answer inside an answer. */
const SECOND = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";

function httpServer(name: string, why: string, text: string, extra: Extra = {}): Malformed {
  return {
    name,
    protocol: "http",
    side: "server",
    bytes: latin1(text),
    before: GET_BEFORE,
    handshakeBytes: 0,
    why,
    ambiguous: false,
    ...extra,
  };
}

const httpResponses: Malformed[] = [
  httpServer(
    "response-cl-te",
    "RFC 9112 6.3: both in an answer",
    `${OK}Content-Length: 5\r\n${CHUNKED}\r\n0\r\n\r\n`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-cl-cl",
    "RFC 9112 6.3: two lengths",
    `${OK}Content-Length: 5\r\nContent-Length: ${5 + SECOND.length}\r\n\r\nhello${SECOND}`,
    AMBIGUOUS,
  ),
  httpServer("response-cl-negative", "RFC 9110 8.6", `${OK}Content-Length: -1\r\n\r\nhello`, AMBIGUOUS),
  httpServer(
    "response-cl-too-long-body",
    "RFC 9112 9.5: more than the answer's length",
    `${OK}Content-Length: 5\r\n\r\nhello, world`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-cl-truncated",
    "RFC 9112 8: the connection ends in the body",
    `${OK}Content-Length: 500\r\n\r\nhello`,
  ),
  httpServer("response-without-length", "RFC 9112 6.3: until the connection ends", `${OK}\r\nhello`),
  httpServer(
    "response-unasked-second",
    "RFC 9112 9.2: an answer without a request",
    `${OK}Content-Length: 0\r\n\r\n${SECOND}`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-before-request",
    "RFC 9110 7.1: an answer before its request, as 408",
    "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    { before: NOTHING },
  ),
  httpServer(
    "response-head-with-body",
    "RFC 9110 9.3.2: HEAD has no content",
    `${OK}Content-Length: 5\r\n\r\nhello`,
    { ambiguous: true, before: HEAD_BEFORE },
  ),
  httpServer(
    "response-head-chunked",
    "RFC 9112 6.3: HEAD ends with its head whatever it says",
    `${OK}${CHUNKED}\r\n`,
    { before: HEAD_BEFORE },
  ),
  httpServer(
    "response-204-with-body",
    "RFC 9110 15.3.5: 204 has no content",
    `HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-304-with-body",
    "RFC 9110 15.4.5: 304 has no content",
    `HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-100-many",
    "RFC 9110 15.2: any number of interim answers",
    `${"HTTP/1.1 100 Continue\r\n\r\n".repeat(5_000)}${OK}Content-Length: 0\r\n\r\n`,
  ),
  httpServer(
    "response-100-only",
    "RFC 9110 15.2: an interim answer and no final one",
    "HTTP/1.1 100 Continue\r\n\r\n",
  ),
  httpServer(
    "response-101-unasked",
    "RFC 9110 7.8: switching without Upgrade",
    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    AMBIGUOUS,
  ),
  httpServer(
    "response-status-two-digits",
    "RFC 9112 4: three digits",
    "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    AMBIGUOUS,
  ),
  httpServer(
    "response-status-four-digits",
    "RFC 9112 4: three digits",
    "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    AMBIGUOUS,
  ),
  httpServer(
    "response-status-000",
    "RFC 9110 15: the first digit is a class",
    "HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n",
  ),
  httpServer("response-status-word", "RFC 9112 4", "HTTP/1.1 yes OK\r\nContent-Length: 0\r\n\r\n", AMBIGUOUS),
  httpServer(
    "response-without-reason-space",
    "RFC 9112 4: the space before an empty reason is required",
    "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
  ),
  httpServer("response-bare-lf", "RFC 9112 2.2", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", AMBIGUOUS),
  httpServer("response-http-0-9", "RFC 1945: no head at all", "<p>hello</p>", AMBIGUOUS),
  httpServer(
    "response-http-1-0-chunked",
    "RFC 9112 6.1: chunked in HTTP/1.0",
    `HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n${CHUNKED}\r\n0\r\n\r\n`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-te-not-final",
    "RFC 9112 6.3: chunked is not last, so until the connection ends",
    `${OK}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n${SECOND}`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-chunk-size-bad",
    "RFC 9112 7.1",
    `${OK}${CHUNKED}\r\nzz\r\nhello\r\n0\r\n\r\n`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-chunk-size-huge",
    "RFC 9112 7.1: more than 64 bits",
    `${OK}${CHUNKED}\r\n${"f".repeat(40)}\r\nhello`,
    AMBIGUOUS,
  ),
  httpServer("response-chunk-truncated", "RFC 9112 8", `${OK}${CHUNKED}\r\n5\r\nhel`),
  httpServer(
    "response-folded",
    "RFC 9112 5.2: obs-fold in an answer",
    `${OK}X: y\r\n z\r\nContent-Length: 0\r\n\r\n`,
    AMBIGUOUS,
  ),
  httpServer(
    "response-huge-head",
    "RFC 9110 5.4: no limit is given",
    `${OK}X: ${"y".repeat(HTTP_HUGE_BYTES)}\r\nContent-Length: 0\r\n\r\n`,
  ),
  httpServer(
    "response-head-without-end",
    "RFC 9112 4: a status line that never ends",
    `HTTP/1.1 200 ${"O".repeat(HTTP_HUGE_BYTES)}`,
  ),
  httpServer("response-head-truncated", "RFC 9112 8: the connection ends in the head", `${OK}Content-`),
  httpServer("response-nothing", "RFC 9112 8: the connection ends without an answer", ""),
  httpServer(
    "response-noise",
    "no protocol at all",
    Array.from({ length: 4_096 }, (_, at) => String.fromCharCode((at * 89 + (at >> 2)) & 0xff)).join(""),
  ),
];

// ---- WebSocket

const KEY = "aG9sZGZhc3QgbWFsZm9ybQ==";
const ACCEPT = createHash("sha1").update(`${KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
const HANDSHAKE_FIELDS = `Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n`;

/** A sound opening handshake: what every client's frames of the corpus come after. */
export const HANDSHAKE = latin1(
  `GET /first HTTP/1.1\r\n${HANDSHAKE_FIELDS}Sec-WebSocket-Key: ${KEY}\r\n\r\n`,
);

/** The answer to {@link HANDSHAKE}: what every server's frames of the corpus come after. */
export const HANDSHAKE_ANSWER = latin1(
  `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n\r\n`,
);

const FIN = 0x80;
const RSV1 = 0x40;
const RSV2 = 0x20;
const RSV3 = 0x10;
const CONTINUATION = 0;
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PING = 9;
const PONG = 10;
const MASK_KEY = Buffer.of(0x37, 0xfa, 0x21, 0x3d);

interface FrameShape {
  masked?: boolean;
  /** of the length field; the least that will do when left out */
  lengthBytes?: 1 | 2 | 8;
  /** what the length field says; the truth when left out */
  says?: bigint;
}

/** RFC 6455 5.2: one frame, not necessarily a sound one. `first` is its first byte: FIN, RSV and opcode. */
function frame(first: number, payload: Buffer | string, shape: FrameShape = {}): Buffer {
  const body = typeof payload === "string" ? Buffer.from(payload) : payload;
  const masked = shape.masked ?? true;
  const length = shape.says ?? BigInt(body.length);
  const lengthBytes = shape.lengthBytes ?? (length < 126n ? 1 : length < 65_536n ? 2 : 8);
  const head = Buffer.alloc(lengthBytes === 1 ? 2 : 2 + lengthBytes);
  head[0] = first;
  head[1] = (masked ? 0x80 : 0) | (lengthBytes === 1 ? Number(length) : lengthBytes === 2 ? 126 : 127);
  if (lengthBytes === 2) head.writeUInt16BE(Number(length), 2);
  if (lengthBytes === 8) head.writeBigUInt64BE(length, 2);
  if (!masked) return Buffer.concat([head, body]);
  return Buffer.concat([head, MASK_KEY, body.map((byte, at) => byte ^ (MASK_KEY[at & 3] ?? 0))]);
}

function closeFrame(code: number | null, reason: Buffer | string = "", shape: FrameShape = {}): Buffer {
  const payload = Buffer.concat([
    code === null ? NOTHING : Buffer.of(code >> 8, code & 0xff),
    typeof reason === "string" ? Buffer.from(reason) : reason,
  ]);
  return frame(FIN | CLOSE, payload, shape);
}

type Frames = (shape: FrameShape) => Buffer[];

/** What either side may send; masked for a client, not for a server. */
const EITHER_SIDE: [name: string, why: string, frames: Frames, ambiguous?: boolean][] = [
  ["rsv1", "RFC 6455 5.2: RSV1 without an extension", (s) => [frame(FIN | RSV1 | TEXT, "hello", s)]],
  ["rsv2", "RFC 6455 5.2: RSV2", (s) => [frame(FIN | RSV2 | BINARY, "hello", s)]],
  ["rsv3", "RFC 6455 5.2: RSV3", (s) => [frame(FIN | RSV3 | TEXT, "hello", s)]],
  [
    "rsv-all-on-ping",
    "RFC 6455 5.2: all three, on a control frame",
    (s) => [frame(FIN | RSV1 | RSV2 | RSV3 | PING, "hello", s)],
  ],
  [
    "rsv1-on-continuation",
    "RFC 7692 6: RSV1 belongs to the first frame",
    (s) => [frame(TEXT, "hel", s), frame(FIN | RSV1 | CONTINUATION, "lo", s)],
  ],
  ...[3, 4, 5, 6, 7].map((opcode): [string, string, Frames] => [
    `opcode-${opcode}`,
    "RFC 6455 5.2: a reserved data opcode",
    (s) => [frame(FIN | opcode, "hello", s)],
  ]),
  ...[11, 12, 13, 14, 15].map((opcode): [string, string, Frames] => [
    `opcode-${opcode}`,
    "RFC 6455 5.2: a reserved control opcode",
    (s) => [frame(FIN | opcode, "hello", s)],
  ]),
  [
    "control-ping-126",
    "RFC 6455 5.5: a control frame has at most 125 bytes",
    (s) => [frame(FIN | PING, Buffer.alloc(126, 0x61), s)],
  ],
  [
    "control-ping-huge",
    "RFC 6455 5.5",
    (s) => [frame(FIN | PING, Buffer.alloc(WEBSOCKET_HUGE_BYTES, 0x61), s)],
  ],
  ["control-pong-huge", "RFC 6455 5.5", (s) => [frame(FIN | PONG, Buffer.alloc(70_000, 0x61), s)]],
  ["control-close-126", "RFC 6455 5.5", (s) => [closeFrame(1000, "a".repeat(124), s)]],
  [
    "control-ping-fragmented",
    "RFC 6455 5.5: control frames are not fragmented",
    (s) => [frame(PING, "hel", s), frame(FIN | CONTINUATION, "lo", s)],
    true,
  ],
  [
    "control-close-fragmented",
    "RFC 6455 5.5",
    (s) => [frame(CLOSE, Buffer.of(3, 232), s), frame(FIN | CONTINUATION, "x", s)],
    true,
  ],
  [
    "control-long-length-form",
    "RFC 6455 5.2: 5 bytes with a 16-bit length",
    (s) => [frame(FIN | PING, "hello", { ...s, lengthBytes: 2 })],
  ],
  [
    "control-many-pings",
    "RFC 6455 5.5.2: an answer to each is work",
    (s) => [Buffer.concat(Array.from({ length: 5_000 }, () => frame(FIN | PING, "", s)))],
  ],
  [
    "control-pong-unasked",
    "RFC 6455 5.5.3: an unsolicited pong is allowed",
    (s) => [frame(FIN | PONG, "hello", s)],
  ],
  ["close-empty", "RFC 6455 5.5.1: no code is allowed", (s) => [closeFrame(null, "", s)]],
  ["close-one-byte", "RFC 6455 5.5.1: a body begins with a two-byte code", (s) => [closeFrame(null, "x", s)]],
  ...[0, 999, 1004, 1005, 1006, 1012, 1015, 1016, 1100, 2000, 2999, 5000, 65535].map(
    (code): [string, string, Frames] => [
      `close-code-${code}`,
      "RFC 6455 7.4: a code not to be sent, or not defined",
      (s) => [closeFrame(code, "", s)],
    ],
  ),
  [
    "close-reason-invalid-utf8",
    "RFC 6455 5.5.1: the reason is UTF-8",
    (s) => [closeFrame(1000, Buffer.of(0xce, 0xba, 0xe1, 0xff), s)],
  ],
  [
    "close-then-data",
    "RFC 6455 5.5.1: nothing follows a close",
    (s) => [closeFrame(1000, "", s), frame(FIN | TEXT, "hello", s)],
  ],
  [
    "close-twice",
    "RFC 6455 5.5.1: nothing follows a close",
    (s) => [closeFrame(1000, "", s), closeFrame(1001, "", s)],
  ],
  [
    "close-in-message",
    "RFC 6455 5.4: a close between fragments",
    (s) => [frame(TEXT, "hel", s), closeFrame(1000, "", s)],
  ],
  ["utf8-invalid-byte", "RFC 6455 8.1: text is UTF-8", (s) => [frame(FIN | TEXT, Buffer.of(0xff, 0xfe), s)]],
  [
    "utf8-overlong",
    "RFC 3629 3: the overlong form of a slash",
    (s) => [frame(FIN | TEXT, Buffer.of(0xc0, 0xaf), s)],
  ],
  ["utf8-surrogate", "RFC 3629 3: a surrogate", (s) => [frame(FIN | TEXT, Buffer.of(0xed, 0xa0, 0x80), s)]],
  [
    "utf8-beyond-unicode",
    "RFC 3629 3: above U+10FFFF",
    (s) => [frame(FIN | TEXT, Buffer.of(0xf4, 0x90, 0x80, 0x80), s)],
  ],
  [
    "utf8-truncated",
    "RFC 6455 8.1: the message ends in a character",
    (s) => [frame(FIN | TEXT, Buffer.of(0xe2, 0x82), s)],
  ],
  [
    "utf8-split-over-fragments",
    "RFC 6455 5.6: a character may span fragments",
    (s) => [frame(TEXT, Buffer.of(0xe2), s), frame(FIN | CONTINUATION, Buffer.of(0x82, 0xac), s)],
  ],
  [
    "utf8-invalid-in-second-fragment",
    "RFC 6455 8.1",
    (s) => [
      frame(TEXT, "hel", s),
      frame(CONTINUATION, Buffer.of(0xff), s),
      frame(FIN | CONTINUATION, "lo", s),
    ],
  ],
  [
    "length-16-not-minimal",
    "RFC 6455 5.2: the least number of bytes",
    (s) => [frame(FIN | TEXT, "hello", { ...s, lengthBytes: 2 })],
    true,
  ],
  [
    "length-64-not-minimal",
    "RFC 6455 5.2: the least number of bytes",
    (s) => [frame(FIN | TEXT, "hello", { ...s, lengthBytes: 8 })],
    true,
  ],
  [
    "length-64-top-bit",
    "RFC 6455 5.2: the most significant bit is 0",
    (s) => [frame(FIN | BINARY, "hello", { ...s, says: (1n << 63n) + 5n })],
    true,
  ],
  [
    "length-64-all-ones",
    "RFC 6455 5.2: the most significant bit is 0",
    (s) => [frame(FIN | BINARY, "hello", { ...s, says: (1n << 64n) - 1n })],
    true,
  ],
  [
    "length-64-largest",
    "RFC 6455 5.2: more than any memory",
    (s) => [frame(FIN | BINARY, "hello", { ...s, says: (1n << 63n) - 1n })],
  ],
  [
    "length-beyond-53-bits",
    "RFC 6455 5.2: rounded in a double",
    (s) => [frame(FIN | BINARY, "hello", { ...s, says: (1n << 53n) + 1n })],
  ],
  [
    "length-beyond-32-bits",
    "RFC 6455 5.2: 5 in 32 bits",
    (s) => [frame(FIN | BINARY, "hello", { ...s, says: (1n << 32n) + 5n })],
    true,
  ],
  [
    "length-zero-16",
    "RFC 6455 5.2: nothing, with a 16-bit length",
    (s) => [frame(FIN | TEXT, "", { ...s, lengthBytes: 2 })],
  ],
  [
    "fragment-without-start",
    "RFC 6455 5.4: a continuation of nothing",
    (s) => [frame(FIN | CONTINUATION, "hello", s)],
    true,
  ],
  [
    "fragment-without-start-or-end",
    "RFC 6455 5.4",
    (s) => [frame(CONTINUATION, "hel", s), frame(FIN | CONTINUATION, "lo", s)],
    true,
  ],
  [
    "fragment-new-text-in-message",
    "RFC 6455 5.4: messages do not interleave",
    (s) => [frame(TEXT, "hel", s), frame(FIN | TEXT, "lo", s), frame(FIN | CONTINUATION, "", s)],
    true,
  ],
  [
    "fragment-new-binary-in-message",
    "RFC 6455 5.4",
    (s) => [frame(TEXT, "hel", s), frame(BINARY, "lo", s)],
    true,
  ],
  [
    "fragment-after-end",
    "RFC 6455 5.4: a continuation of a finished message",
    (s) => [frame(FIN | TEXT, "hello", s), frame(FIN | CONTINUATION, "more", s)],
    true,
  ],
  [
    "fragment-many-empty",
    "RFC 6455 5.4: any number is allowed",
    (s) => [
      frame(TEXT, "", s),
      Buffer.concat(Array.from({ length: 10_000 }, () => frame(CONTINUATION, "", s))),
      frame(FIN | CONTINUATION, "", s),
    ],
  ],
  [
    "fragment-ping-between",
    "RFC 6455 5.4: control frames may come between",
    (s) => [frame(TEXT, "hel", s), frame(FIN | PING, "p", s), frame(FIN | CONTINUATION, "lo", s)],
  ],
  [
    "fragment-never-ends",
    "RFC 6455 5.4: the connection ends in a message",
    (s) => [frame(TEXT, "hel", s), frame(CONTINUATION, "lo", s)],
  ],
  [
    "message-huge",
    "RFC 6455 10.4: a receiver has its limits",
    (s) => [frame(FIN | BINARY, Buffer.alloc(WEBSOCKET_HUGE_BYTES, 0x61), s)],
  ],
  ["http-after-handshake", "RFC 6455 5: HTTP where frames belong", () => [latin1(SMUGGLED)], true],
  [
    "noise",
    "no protocol at all",
    () => [Buffer.from(Array.from({ length: 4_096 }, (_, at) => (at * 73 + (at >> 2)) & 0xff))],
  ],
];

/** Every place in a header with a 64-bit length, and one in the payload, where the connection may end. */
const CUTS = Array.from({ length: 15 }, (_, at) => at + 1);

function webSocket(
  side: "client" | "server",
  name: string,
  why: string,
  frames: Buffer[],
  ambiguous = false,
): Malformed {
  const opening = side === "client" ? HANDSHAKE : HANDSHAKE_ANSWER;
  return {
    name: `${side === "client" ? "websocket" : "websocket-server"}-${name}`,
    protocol: "websocket",
    side,
    bytes: Buffer.concat([opening, ...frames]),
    before: side === "client" ? NOTHING : HANDSHAKE,
    handshakeBytes: opening.length,
    chunks: [opening.length, ...frames.slice(0, -1).map(({ length }) => length)],
    why,
    ambiguous,
  };
}

function badHandshake(
  side: "client" | "server",
  name: string,
  why: string,
  text: string,
  ambiguous = false,
): Malformed {
  return {
    name: `handshake-${name}`,
    protocol: "websocket",
    side,
    bytes: latin1(text),
    before: side === "client" ? NOTHING : HANDSHAKE,
    handshakeBytes: 0,
    why,
    ambiguous,
  };
}

/** A handshake with these fields, and a frame sent without waiting for the answer. */
function opening(name: string, why: string, fields: string, start = "GET /first HTTP/1.1"): Malformed {
  return badHandshake(
    "client",
    name,
    why,
    `${start}\r\n${fields}\r\n${frame(FIN | TEXT, "hello").toString("latin1")}`,
    true,
  );
}
function answer(
  name: string,
  why: string,
  fields: string,
  start = "HTTP/1.1 101 Switching Protocols",
): Malformed {
  return badHandshake(
    "server",
    name,
    why,
    `${start}\r\n${fields}\r\n${frame(FIN | TEXT, "hello", { masked: false }).toString("latin1")}`,
    true,
  );
}

const ANSWER_FIELDS = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
const KEY_FIELD = `Sec-WebSocket-Key: ${KEY}\r\n`;
const ACCEPT_FIELD = `Sec-WebSocket-Accept: ${ACCEPT}\r\n`;

const webSockets: Malformed[] = [
  ...(["client", "server"] as const).flatMap((side) => {
    const masked = side === "client";
    const sound = frame(FIN | TEXT, Buffer.alloc(70_000, 0x61), { masked });
    return [
      ...EITHER_SIDE.map(([name, why, frames, ambiguous]) =>
        webSocket(side, name, why, frames({ masked }), ambiguous),
      ),
      webSocket(
        side,
        "mask-wrong-way",
        masked ? "RFC 6455 5.1: a client masks every frame" : "RFC 6455 5.1: a server masks none",
        [frame(FIN | TEXT, "hello", { masked: !masked })],
      ),
      webSocket(side, "mask-changes-in-message", "RFC 6455 5.1: one fragment masked, one not", [
        frame(TEXT, "hel", { masked }),
        frame(FIN | CONTINUATION, "lo", { masked: !masked }),
      ]),
      ...CUTS.filter((cut) => masked || cut <= 11).map((cut) =>
        webSocket(side, `truncated-at-${cut}`, "RFC 6455 7.1.7: the connection ends in a frame", [
          sound.subarray(0, cut),
        ]),
      ),
    ];
  }),
  webSocket("client", "mask-zero-key", "RFC 6455 5.3: a key that masks nothing", [
    Buffer.concat([Buffer.of(0x81, 0x85, 0, 0, 0, 0), Buffer.from("hello")]),
  ]),
  opening("no-key", "RFC 6455 4.2.1: a key is required", HANDSHAKE_FIELDS),
  opening("short-key", "RFC 6455 4.2.1: 16 bytes, base64", `${HANDSHAKE_FIELDS}Sec-WebSocket-Key: AAAA\r\n`),
  opening("two-keys", "RFC 6455 4.2.1: one key", `${HANDSHAKE_FIELDS}${KEY_FIELD}${KEY_FIELD}`),
  opening(
    "wrong-version",
    "RFC 6455 4.2.1: version 13",
    `${HANDSHAKE_FIELDS.replace("13", "8")}${KEY_FIELD}`,
  ),
  opening(
    "no-version",
    "RFC 6455 4.2.1: version 13",
    `${HANDSHAKE_FIELDS.replace(/Sec.*\r\n/, "")}${KEY_FIELD}`,
  ),
  opening(
    "no-connection",
    "RFC 6455 4.2.1: Connection: Upgrade",
    `${HANDSHAKE_FIELDS.replace(/Connection.*\r\n/, "")}${KEY_FIELD}`,
  ),
  opening(
    "upgrade-list",
    "RFC 9110 7.8: several protocols offered",
    `${HANDSHAKE_FIELDS.replace("websocket", "h2c, websocket")}${KEY_FIELD}`,
  ),
  opening(
    "by-post",
    "RFC 6455 4.1: the method is GET",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}`,
    "POST /first HTTP/1.1",
  ),
  opening(
    "with-body",
    "RFC 9110 7.8: a length, so the frame may be the body",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}Content-Length: 11\r\n`,
  ),
  opening(
    "chunked",
    "RFC 9110 7.8: chunked, and no chunk follows",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}${CHUNKED}`,
  ),
  opening(
    "http-1-0",
    "RFC 6455 4.1: HTTP/1.1 or higher",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}`,
    "GET /first HTTP/1.0",
  ),
  opening("bare-lf", "RFC 9112 2.2: LF for CRLF", `${HANDSHAKE_FIELDS}${KEY_FIELD}`.replaceAll("\r\n", "\n")),
  opening(
    "huge",
    "RFC 9110 5.4: no limit is given",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}X: ${"y".repeat(HTTP_HUGE_BYTES)}\r\n`,
  ),
  opening(
    "extensions-malformed",
    "RFC 6455 9.1",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}Sec-WebSocket-Extensions: permessage-deflate; ;=;"\r\n`,
  ),
  opening(
    "protocol-empty",
    "RFC 6455 4.1: tokens",
    `${HANDSHAKE_FIELDS}${KEY_FIELD}Sec-WebSocket-Protocol: ,,\r\n`,
  ),
  answer(
    "answer-wrong-accept",
    "RFC 6455 4.1: the key's hash",
    `${ANSWER_FIELDS}Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n`,
  ),
  answer("answer-no-accept", "RFC 6455 4.1", ANSWER_FIELDS),
  answer("answer-no-upgrade", "RFC 6455 4.1", `Connection: Upgrade\r\n${ACCEPT_FIELD}`),
  answer(
    "answer-other-protocol",
    "RFC 6455 4.1: an Upgrade that was not offered",
    `Connection: Upgrade\r\nUpgrade: h2c\r\n${ACCEPT_FIELD}`,
  ),
  answer(
    "answer-with-length",
    "RFC 9110 8.6: no length in 1xx",
    `${ANSWER_FIELDS}${ACCEPT_FIELD}Content-Length: 7\r\n`,
  ),
  answer("answer-chunked", "RFC 9112 6.1: no coding in 1xx", `${ANSWER_FIELDS}${ACCEPT_FIELD}${CHUNKED}`),
  answer(
    "answer-unasked-extension",
    "RFC 6455 4.1: not offered",
    `${ANSWER_FIELDS}${ACCEPT_FIELD}Sec-WebSocket-Extensions: permessage-deflate\r\n`,
  ),
  answer(
    "answer-200",
    "RFC 6455 4.1: no upgrade; the frame is a body until the end",
    `${ANSWER_FIELDS}${ACCEPT_FIELD}`,
    "HTTP/1.1 200 OK",
  ),
  answer(
    "answer-bare-lf",
    "RFC 9112 2.2: LF for CRLF",
    `${ANSWER_FIELDS}${ACCEPT_FIELD}`.replaceAll("\r\n", "\n"),
  ),
  badHandshake(
    "server",
    "answer-truncated",
    "RFC 9112 8: the connection ends in the answer",
    "HTTP/1.1 101 Switching Protocols\r\nConn",
  ),
];

/** Everything, in a fixed order. */
export const MALFORMED: readonly Malformed[] = [...httpRequests, ...httpResponses, ...webSockets];

/** The lengths of the parts that `bytes` is sent in; their sum is its length. `random` gives numbers in [0, 1). */
export function randomSplit(bytes: Buffer, partsMax: number, random: () => number): number[] {
  const at = new Set<number>();
  for (let part = 1; part < partsMax; part++) at.add(1 + Math.floor(random() * bytes.length));
  const ends = [...at].filter((end) => end < bytes.length).sort((one, other) => one - other);
  return [...ends, bytes.length].map((end, index) => end - (ends[index - 1] ?? 0));
}

/** Numbers in [0, 1), the same ones for the same seed (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/** Input without an end, of which a receiver must not keep everything: `block` over and over, after `opening`. */
export interface Endless {
  name: string;
  protocol: "http" | "websocket";
  side: "client" | "server";
  /** what the other side has sent before */
  before: Buffer;
  opening: Buffer;
  block: Buffer;
  why: string;
}

const ENDLESS_BLOCK_BYTES = 48 * 1024;
const blockOf = (part: Buffer | string): Buffer => {
  const bytes = typeof part === "string" ? latin1(part) : part;
  return Buffer.concat(new Array(Math.ceil(ENDLESS_BLOCK_BYTES / bytes.length)).fill(bytes));
};
const REQUEST_HEAD = "POST /first HTTP/1.1\r\nHost: a\r\n";

function endless(
  side: "client" | "server",
  name: string,
  why: string,
  start: string | Buffer,
  part: string | Buffer,
): Endless {
  const protocol = name.startsWith("websocket") ? "websocket" : "http";
  const before = protocol === "http" ? GET_BEFORE : HANDSHAKE;
  return {
    name: `endless-${name}`,
    protocol,
    side,
    before: side === "client" ? NOTHING : before,
    opening: typeof start === "string" ? latin1(start) : start,
    block: blockOf(part),
    why,
  };
}

export const ENDLESS: readonly Endless[] = [
  endless("client", "empty-lines", "RFC 9112 2.2: empty lines before a request", "", "\r\n"),
  endless("client", "target", "RFC 9112 3: a target", "GET /", "a"),
  endless("client", "field-value", "RFC 9110 5.4: one field", `${REQUEST_HEAD}X: `, "y"),
  endless("client", "fields", "RFC 9110 5.4: many fields", REQUEST_HEAD, "X: y\r\n"),
  endless("client", "folds", "RFC 9112 5.2: one folded field", `${REQUEST_HEAD}X: y\r\n`, " y\r\n"),
  endless(
    "client",
    "te-list",
    "RFC 9112 6.1: a list of codings",
    `${REQUEST_HEAD}Transfer-Encoding: `,
    "gzip, ",
  ),
  endless("client", "chunk-size", "RFC 9112 7.1: zeros before a size", `${REQUEST_HEAD}${CHUNKED}\r\n`, "0"),
  endless(
    "client",
    "chunk-extension",
    "RFC 9112 7.1.1: an extension",
    `${REQUEST_HEAD}${CHUNKED}\r\n5;`,
    "a",
  ),
  endless(
    "client",
    "small-chunks",
    "RFC 9112 7.1: chunks of a byte",
    `${REQUEST_HEAD}${CHUNKED}\r\n`,
    "1\r\nx\r\n",
  ),
  endless("client", "trailers", "RFC 9112 7.1.2: trailers", `${REQUEST_HEAD}${CHUNKED}\r\n0\r\n`, "X: y\r\n"),
  endless("client", "pipeline", "RFC 9112 9.3.2: requests without waiting", "", GET_BEFORE),
  endless(
    "client",
    "websocket-fragments",
    "RFC 6455 5.4: one message",
    Buffer.concat([HANDSHAKE, frame(TEXT, "a")]),
    frame(CONTINUATION, "a"),
  ),
  endless(
    "client",
    "websocket-empty-fragments",
    "RFC 6455 5.4: one empty message",
    Buffer.concat([HANDSHAKE, frame(TEXT, "")]),
    frame(CONTINUATION, ""),
  ),
  endless("client", "websocket-pings", "RFC 6455 5.5.2: pings", HANDSHAKE, frame(FIN | PING, "")),
  endless(
    "client",
    "websocket-messages",
    "RFC 6455 5.6: messages nobody answers",
    HANDSHAKE,
    frame(FIN | TEXT, "a"),
  ),
  endless("server", "interim-answers", "RFC 9110 15.2: 103 for ever", "", "HTTP/1.1 103 Early Hints\r\n\r\n"),
  endless("server", "status-line", "RFC 9112 4: a reason", "HTTP/1.1 200 ", "O"),
  endless("server", "answer-fields", "RFC 9110 5.4: many fields", OK, "X: y\r\n"),
  endless(
    "server",
    "answers",
    "RFC 9112 9.2: answers nobody asked for",
    "",
    "HTTP/1.1 204 No Content\r\n\r\n",
  ),
  endless(
    "server",
    "websocket-answer-fragments",
    "RFC 6455 5.4: one message",
    Buffer.concat([HANDSHAKE_ANSWER, frame(TEXT, "a", { masked: false })]),
    frame(CONTINUATION, "a", { masked: false }),
  ),
];
