/** Text of terminals in CRIU's images, as it is written once more. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { decodeImage, encodeImage } from "#control/criu/image-file.ts";
import { decodeFields, encodeFields } from "#control/criu/protobuf.ts";
import { fitTerminalData } from "#control/criu/terminal-data.ts";

const PTMX = 0x502;
const SLAVE = 0x8801;
const COOKED = 0x5;

const info = (id: number, rdev: number, oflag: number, index: number, isPacket = false): Buffer =>
  encodeFields([
    [1, id],
    [2, 1],
    [5, isPacket],
    [8, rdev],
    [9, [[2, oflag]]],
    [12, [[1, index]]],
  ]);
const data = (id: number, text: string): Buffer =>
  encodeFields([
    [1, id],
    [2, Buffer.from(text)],
  ]);
const terminals = encodeImage("ttyInfo", [
  info(1, PTMX, 0, 0),
  info(2, SLAVE, COOKED, 0),
  info(3, PTMX, 0, 7),
  info(4, SLAVE, 0, 7),
  info(5, PTMX, 0, 8, true),
  info(6, SLAVE, 0, 8),
  info(7, PTMX, 0, 9, true),
  info(8, SLAVE, COOKED, 9),
]);

function texts(image: Buffer | null): string[] {
  assert.ok(image !== null);
  return decodeImage("ttyData", image).map(
    (message) =>
      decodeFields(message)
        .find(({ number }) => number === 2)
        ?.bytes.toString() ?? "",
  );
}

describe("what a terminal has written", () => {
  it("loses the carriage returns that it gets again, and no others", () => {
    const image = encodeImage("ttyData", [
      data(1, "a\r\nb\rc\r\r\n"),
      data(3, "a\r\nb"),
      data(2, "typed\r\n"),
    ]);
    assert.deepEqual(texts(fitTerminalData(image, terminals)), ["a\nb\rc\r\n", "a\r\nb", "typed\r\n"]);
  });

  it("loses the byte of packet mode that it gets again", () => {
    const image = encodeImage("ttyData", [
      data(5, "\0a\r\nb"),
      data(7, "\0a\r\nb"),
      data(5, "\x03"),
      data(5, "\x03\0a"),
    ]);
    assert.deepEqual(texts(fitTerminalData(image, terminals)), ["a\r\nb", "a\nb", "", "a"]);
  });

  it("stays as it is where nothing is translated", () => {
    const raw = encodeImage("ttyData", [data(3, "a\r\n"), data(2, "typed\n")]);
    assert.equal(fitTerminalData(raw, terminals), null);
  });
});
