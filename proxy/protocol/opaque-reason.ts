/** Why the observer can no longer name what passes. Stable: labels of a counter. */
export const OPAQUE_REASONS = [
  // RFC 9112: a message's head
  "request-line",
  "status-line",
  "method",
  "http-version",
  "bare-lf",
  "bare-cr",
  "obs-fold",
  "field-name",
  "field-value",
  "head-too-large",
  "too-many-fields",
  "too-many-empty-lines",
  // … its body
  "content-length",
  "transfer-encoding",
  "length-and-transfer-encoding",
  "body-not-allowed",
  "chunk-size",
  "chunk-extension",
  "chunk-end",
  "trailer",
  // … and the conversation
  "too-many-requests",
  "request-after-close",
  "unsolicited-answer",
  "expectation",
  "upgrade",
  // RFC 6455
  "websocket-mask",
  "websocket-reserved-bits",
  "websocket-opcode",
  "websocket-control",
  "websocket-length",
  "websocket-continuation",
  "websocket-close",
  // the port is told to carry what these bytes are not
  "not-tls",
  "not-h2",
] as const;

export type OpaqueReason = (typeof OPAQUE_REASONS)[number];
