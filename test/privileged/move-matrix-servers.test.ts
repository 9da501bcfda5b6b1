/** Programs of the matrix (`test/matrix/`) that `npm test` moves too: servers, moved there and back in both modes. */
import { go } from "../matrix/programs/go.ts";
import { memcached } from "../matrix/programs/memcached.ts";
import { mosquitto } from "../matrix/programs/mosquitto.ts";
import { nodeCluster } from "../matrix/programs/node-cluster.ts";
import { testProgram } from "../matrix/test-program.ts";

testProgram(go);
testProgram(memcached);
testProgram(mosquitto);
testProgram(nodeCluster);
