/** CRIU's files.img, by bytes written after images/fdinfo.proto and images/sk-unix.proto. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { withoutConnectionNames } from "#control/criu/connection-names.ts";
import { encodeImage } from "#control/criu/image-file.ts";
import { encodeFields, type Field } from "#control/criu/protobuf.ts";

const stream = 1;
const datagram = 2;
const established = 1;
const listening = 10;

const unix = (type: number, state: number, name: Field[]): Buffer =>
  encodeFields([
    [1, 5],
    [16, encodeFields([[1, 5], [2, 77], [3, type], [4, state], [10, "options"], ...name, [12, 3]])],
  ]);
const named: Field[] = [
  [11, "/run/name"],
  [14, "/run"],
  [15, true],
];
const image = (...entries: Buffer[]): Buffer => encodeImage("files", entries);

describe("names in files.img", () => {
  it("are left out of Unix connections, with the folder and that it was deleted", () => {
    const changed = withoutConnectionNames(image(unix(stream, established, named)));
    assert.deepEqual(changed, image(unix(stream, established, [[11, ""]])));
  });

  it("stay where they can be connected to, and everything else stays byte for byte", () => {
    const kept = image(
      unix(stream, listening, named),
      unix(datagram, established, named),
      unix(stream, established, [[11, ""]]),
      encodeFields([
        [1, 1],
        [3, "a file"],
      ]),
    );
    assert.equal(withoutConnectionNames(kept), null);
  });
});
