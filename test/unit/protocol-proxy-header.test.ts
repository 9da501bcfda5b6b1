/** PROXY protocol headers, versions 1 and 2: what the specification allows, what it does not, and every way to cut them. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { crc32c, HEADER_BYTES_MAX, readProxyHeader, writeProxyHeader } from "#proxy/protocol/proxy-header.ts";
import { binaryHeader, SIGNATURE, tlv } from "#test/support/proxy-headers.ts";

const V4 = Buffer.from([192, 0, 2, 1, 198, 51, 100, 9, 0x12, 0x34, 0x01, 0xbb]);
const V6 = Buffer.concat([
  Buffer.from("20010db8000000000000000000000001", "hex"),
  Buffer.from("20010db8000000000000000000000002", "hex"),
  Buffer.from([0x12, 0x34, 0x01, 0xbb]),
]);
const MAPPED = Buffer.concat([
  Buffer.from("00000000000000000000ffffc0000201", "hex"),
  Buffer.from("00000000000000000000ffffc0000202", "hex"),
  Buffer.from([0, 80, 0, 81]),
]);
const UNIX = Buffer.alloc(216, "/run/x");

function line(text: string): Buffer {
  return Buffer.from(text, "latin1");
}

function withChecksum(change = 0): Buffer {
  const header = binaryHeader(0x21, 0x11, V4, tlv(0x01, "h2"), tlv(0x03, Buffer.alloc(4)), tlv(0x04, ""));
  header.writeUInt32BE((crc32c(header) ^ change) >>> 0, 16 + 12 + 5 + 3);
  return header;
}

/** An unspecified family: what follows are addresses of that, or TLVs; a checksum counts where it can be found. */
function localWithChecksum(change: number): Buffer {
  const header = binaryHeader(0x20, 0x00, Buffer.alloc(0), tlv(0x03, Buffer.alloc(4)));
  header.writeUInt32BE((crc32c(header) ^ change) >>> 0, 16 + 3);
  return header;
}

const GOOD: [what: string, bytes: Buffer, client: string | null][] = [
  ["TCP4", line("PROXY TCP4 192.0.2.1 198.51.100.9 4660 443\r\n"), "192.0.2.1:4660"],
  ["TCP6", line("PROXY TCP6 2001:DB8::1 ::1 4660 443\r\n"), "[2001:db8::1]:4660"],
  ["an IPv4 address within IPv6", line("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"), "192.0.2.1:1"],
  [
    "the longest TCP6",
    line(
      `PROXY TCP6 ${"ffff:f…f:ffff".replace("f…f", Array(6).fill("ffff").join(":"))} ${Array(8).fill("ffff").join(":")} 65535 65535\r\n`,
    ),
    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
  ],
  ["ports 0", line("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"), "0.0.0.0:0"],
  ["UNKNOWN", line("PROXY UNKNOWN\r\n"), null],
  ["UNKNOWN, and more to be ignored", line(`PROXY UNKNOWN ${"x".repeat(91)}\r\n`), null],
  ["version 2, TCP over IPv4", binaryHeader(0x21, 0x11, V4), "192.0.2.1:4660"],
  ["version 2, TCP over IPv6", binaryHeader(0x21, 0x21, V6), "[2001:db8::1]:4660"],
  ["version 2, IPv4 within IPv6", binaryHeader(0x21, 0x21, MAPPED), "192.0.2.1:80"],
  ["version 2, UDP", binaryHeader(0x21, 0x12, V4), "192.0.2.1:4660"],
  ["version 2, a Unix socket", binaryHeader(0x21, 0x31, UNIX), null],
  ["version 2, unspecified", binaryHeader(0x21, 0x00, Buffer.from("whatever")), null],
  ["version 2, LOCAL", binaryHeader(0x20, 0x00, Buffer.alloc(0)), null],
  ["version 2, LOCAL with addresses, which are nobody's", binaryHeader(0x20, 0x11, V4), null],
  ["version 2, LOCAL of an unknown family", binaryHeader(0x20, 0xf7, Buffer.from([1, 2, 3])), null],
  ["version 2, LOCAL with a checksum", localWithChecksum(0), null],
  [
    "version 2, with TLVs",
    binaryHeader(0x21, 0x11, V4, tlv(0x02, "chat.example"), tlv(0xee, "x"), tlv(0x05, "u".repeat(128))),
    "192.0.2.1:4660",
  ],
  ["version 2, with a checksum", withChecksum(), "192.0.2.1:4660"],
  [
    "version 2, as long as may be",
    binaryHeader(0x21, 0x11, V4, tlv(0x20, Buffer.alloc(HEADER_BYTES_MAX - 16 - 12 - 3))),
    "192.0.2.1:4660",
  ],
];

const BAD: [what: string, bytes: Buffer, why: RegExp][] = [
  ["HTTP", line("GET / HTTP/1.1\r\n"), /something else/],
  ["TLS", Buffer.from([0x16, 0x03, 0x01]), /something else/],
  ["small letters", line("proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), /something else/],
  ["another word", line("PROXZ"), /something else/],
  ["a tab", line("PROXY\tTCP4"), /something else/],
  ["a lone LF", line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n"), /CRLF/],
  ["a CR within", line("PROXY UNKNOWN \r x\r\n"), /CRLF/],
  ["no end", line(`PROXY UNKNOWN ${"x".repeat(93)}`), /over 107 bytes/],
  ["one byte too long", line(`PROXY UNKNOWN ${"x".repeat(92)}\r\n`), /over 107 bytes/],
  ["another protocol", line("PROXY UDP4 1.1.1.1 1.1.1.1 1 1\r\n"), /protocol/],
  ["no protocol", line("PROXY \r\n"), /protocol/],
  ["two spaces", line("PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n"), /addresses/],
  ["a space at the end", line("PROXY TCP4 1.1.1.1 1.1.1.1 1 1 \r\n"), /addresses/],
  ["a port missing", line("PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n"), /addresses/],
  ["a name", line("PROXY TCP4 localhost 1.1.1.1 1 1\r\n"), /addresses/],
  ["IPv6 as TCP4", line("PROXY TCP4 ::1 ::1 1 1\r\n"), /addresses/],
  ["IPv4 as TCP6", line("PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n"), /addresses/],
  ["a zone", line("PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n"), /addresses/],
  ["leading zeros", line("PROXY TCP4 1.1.1.01 1.1.1.1 1 1\r\n"), /addresses/],
  ["a port with a leading zero", line("PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n"), /ports/],
  ["a port too large", line("PROXY TCP4 1.1.1.1 1.1.1.1 65536 1\r\n"), /ports/],
  ["a signed port", line("PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n"), /ports/],
  ["half a signature", line("\r\n\r\nGET"), /signature/],
  ["version 1 in the binary form", binaryHeader(0x11, 0x11, V4), /version is 1/],
  ["version 3", binaryHeader(0x31, 0x11, V4), /version is 3/],
  ["an unknown command", binaryHeader(0x22, 0x11, V4), /command is 2/],
  ["an unknown family", binaryHeader(0x21, 0x41, V4), /protocol is 0x41/],
  ["an unknown transport", binaryHeader(0x21, 0x13, V4), /protocol is 0x13/],
  ["too short for IPv4", binaryHeader(0x21, 0x11, V4.subarray(1)), /too short/],
  ["too short for IPv6", binaryHeader(0x21, 0x21, V4), /too short/],
  ["too short for a Unix socket", binaryHeader(0x21, 0x31, V6), /too short/],
  ["too long", Buffer.concat([SIGNATURE, Buffer.from([0x21, 0x11, 0xff, 0xff])]), /more than 16384/],
  ["a TLV cut within its head", binaryHeader(0x21, 0x11, V4, Buffer.from([1, 0])), /within a TLV/],
  ["a TLV longer than the header", binaryHeader(0x21, 0x11, V4, Buffer.from([1, 0, 9, 1])), /within a TLV/],
  ["a unique id too long", binaryHeader(0x21, 0x11, V4, tlv(0x05, "u".repeat(129))), /unique id/],
  ["a checksum of 3 bytes", binaryHeader(0x21, 0x11, V4, tlv(0x03, "abc")), /4 bytes/],
  ["a wrong checksum", withChecksum(1), /checksum is wrong/],
  ["a wrong checksum of LOCAL", localWithChecksum(1), /checksum is wrong/],
];

describe("a PROXY protocol header", () => {
  for (const [what, bytes, client] of GOOD) {
    it(`is read to its end and no further: ${what}`, () => {
      for (const rest of ["", "G", "PROXY TCP4 ", "\r\n"]) {
        const header = readProxyHeader(Buffer.concat([bytes, Buffer.from(rest)]));
        assert.deepEqual(header, { is: "complete", bytes: bytes.length, client });
      }
      for (let length = 0; length < bytes.length; length++)
        assert.equal(readProxyHeader(bytes.subarray(0, length)).is, "incomplete", `${length} bytes`);
    });
  }

  for (const [what, bytes, why] of BAD) {
    it(`is refused, and stays so: ${what}`, () => {
      const header = readProxyHeader(bytes);
      assert.ok(header.is === "invalid", header.is);
      assert.match(header.why, why);
      let isRefused = false;
      for (let length = 0; length <= bytes.length; length++) {
        const { is } = readProxyHeader(bytes.subarray(0, length));
        assert.notEqual(is, "complete");
        if (isRefused) assert.equal(is, "invalid");
        isRefused ||= is === "invalid";
      }
    });
  }

  it("is never waited for beyond its longest, and never anything but read, refused or incomplete", () => {
    const beginning = fc.constantFrom(
      "",
      "PROXY ",
      "PROXY TCP4 ",
      "PROXY UNKNOWN",
      SIGNATURE.toString("latin1"),
    );
    fc.assert(
      fc.property(beginning, fc.uint8Array({ maxLength: 300 }), (start, noise) => {
        const bytes = Buffer.concat([Buffer.from(start, "latin1"), noise]);
        const header = readProxyHeader(bytes);
        if (header.is === "complete") assert.ok(header.bytes <= bytes.length);
        const filled = Buffer.concat([bytes, Buffer.alloc(HEADER_BYTES_MAX, 0x20)]);
        assert.notEqual(readProxyHeader(filled).is, "incomplete");
      }),
      { numRuns: 2_000 },
    );
  });

  it("has the checksum that RFC 3720 B.4 shows", () => {
    assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
    assert.equal(crc32c(Buffer.alloc(32, 0xff)), 0x62a8ab43);
    assert.equal(crc32c(Buffer.from(Array.from({ length: 32 }, (_, index) => index))), 0x46dd794e);
    assert.equal(crc32c(Buffer.from("123456789")), 0xe3069283);
  });
});

describe("a PROXY protocol header that is written", () => {
  it("is read as what it was written for", () => {
    for (const [client, destination, text] of [
      [{ address: "192.0.2.7", port: 4711 }, { address: "10.0.0.1", port: 80 }, "192.0.2.7:4711"],
      [{ address: "2001:db8::7", port: 1 }, { address: "fd00::", port: 65_535 }, "[2001:db8::7]:1"],
      [{ address: "::1", port: 2 }, { address: "10.0.0.1", port: 80 }, "[::1]:2"],
      [{ address: "192.0.2.7", port: 3 }, { address: "::", port: 80 }, "192.0.2.7:3"],
      [{ address: "::ffff:192.0.2.7", port: 3 }, { address: "::", port: 80 }, "192.0.2.7:3"],
      [null, { address: "10.0.0.1", port: 80 }, null],
      [{ address: "nowhere", port: 3 }, { address: "::", port: 80 }, null],
    ] as const) {
      const header = writeProxyHeader(client, destination);
      const read = readProxyHeader(Buffer.concat([header, Buffer.from("more")]));
      assert.deepEqual(read, { is: "complete", bytes: header.length, client: text });
    }
  });

  it("has the bytes that the specification says", () => {
    const header = writeProxyHeader({ address: "192.0.2.7", port: 4711 }, { address: "10.0.0.1", port: 80 });
    assert.equal(header.toString("hex"), "0d0a0d0a000d0a515549540a2111000cc00002070a00000112670050");
  });
});
