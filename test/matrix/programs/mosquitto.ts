/** mosquitto with its own clients: subscriptions at all levels of delivery, retained messages, a session of one who is away. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";

const configuration = `listener ${upstreamPort} 127.0.0.1
allow_anonymous true
persistence false
user root
max_queued_messages 0
`;

export const mosquitto: Program = {
  name: "mosquitto",
  title: "mosquitto",
  needs: ["mosquitto", "mosquitto_pub", "mosquitto_sub"],
  version: () => versionFrom(["mosquitto", "-h"]),
  prepare: (folder) => writeFileSync(join(folder, "mosquitto.conf"), configuration),
  command: ["mosquitto", "-c", `${inside}/mosquitto.conf`],
  port: 1883,
  keeps: "subscriptions, retained messages, the queue of a client that is away; QoS 0, 1 and 2",
  async use(stage) {
    const to = ["-h", stage.address, "-p", String(mosquitto.port), "-k", "30"];
    const publish = async (...args: string[]): Promise<void> => {
      const client = stage.talk(["mosquitto_pub", ...to, ...args]);
      assert.equal(await client.finish(), 0, client.complaints);
    };
    await publish("-r", "-q", "1", "-t", "kept/one", "-m", "retained");
    // one who subscribed for good, and is away while it moves
    const away = ["mosquitto_sub", ...to, "-c", "-i", "unavailable", "-q", "1", "-t", "queued/#"];
    const subscribing = stage.talk([...away, "-E"]);
    assert.equal(await subscribing.finish(), 0, subscribing.complaints);

    for (const qos of ["0", "1", "2"]) {
      const topic = `flow/${qos}`;
      const subscriber = stage.talk(["mosquitto_sub", ...to, "-q", qos, "-t", topic, "-t", "kept/#"]);
      // the retained message says that the subscription is there
      assert.equal(await subscriber.line(), "retained");
      const publisher = stage.talk(["mosquitto_pub", ...to, "-q", qos, "-t", topic, "-l"]);
      stage.client(`QoS ${qos}`, async ({ beat, over, pace }) => {
        for (let n = 1; !over(); n++) {
          publisher.say(`message ${n}\n`);
          assert.equal(await subscriber.line(), `message ${n}`);
          beat();
          await pace();
        }
        assert.equal(publisher.over, null, publisher.complaints);
      });
    }
    let queued = 0;
    await stage.moves(() => publish("-q", "1", "-t", "queued/x", "-m", `for later ${++queued}`));
    await stage.finish();
    const back = stage.talk(away);
    for (let n = 1; n <= queued; n++) assert.equal(await back.line(), `for later ${n}`);
    const late = stage.talk(["mosquitto_sub", ...to, "-t", "kept/#"]);
    assert.equal(await late.line(), "retained");
  },
};
