/**
 * Calls over any duplex stream (Unix socket to a proxy, TLS between agents).
 *
 * Frame: u32 BE header length, u32 BE body length, header (JSON, UTF-8), body (bytes).
 * To be written: see the class below for the shape everybody codes against.
 */
