/** Programs of the matrix (`test/matrix/`) that `npm test` moves too: servers, moved there and back in one mode or the other. */
import { go } from "../matrix/programs/go.ts";
import { memcached } from "../matrix/programs/memcached.ts";
import { mosquitto } from "../matrix/programs/mosquitto.ts";
import { nodeCluster } from "../matrix/programs/node-cluster.ts";
import { testProgram } from "../matrix/test-program.ts";
import { modes } from "../support/thorough.ts";

testProgram(go, modes("forward"));
testProgram(memcached, modes("takeover"));
testProgram(mosquitto, modes("forward"));
testProgram(nodeCluster, modes("takeover"));
