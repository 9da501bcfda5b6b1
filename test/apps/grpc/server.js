/**
 * A gRPC service without a .proto: one method of bidirectional streams, whose messages are bytes.
 *
 *   PORT   without TLS                                                    (9000)
 *   HOST   on which address                                               (127.0.0.1)
 *   PORTS  over TLS, needs key.pem and cert.pem in $TLS; none without
 *
 * /holdfast.Chain/Extend: each message is answered with the SHA-256 over all messages of the call so far, so one that is
 * lost, repeated or out of order, and a server that forgot, spoil every answer after it.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Server, ServerCredentials } from "@grpc/grpc-js";

const { PORT = 9000, HOST = "127.0.0.1", PORTS, TLS = "." } = process.env;
const bytes = (message) => message;

const chain = {
  Extend: {
    path: "/holdfast.Chain/Extend",
    requestStream: true,
    responseStream: true,
    requestSerialize: bytes,
    requestDeserialize: bytes,
    responseSerialize: bytes,
    responseDeserialize: bytes,
  },
};

function extend(call) {
  const hash = createHash("sha256");
  call.on("data", (message) => {
    hash.update(message);
    call.write(hash.copy().digest());
  });
  call.on("end", () => call.end());
  call.on("error", (error) => console.log(`call: ${error.message}`));
}

const server = new Server();
server.addService(chain, { Extend: extend });
const listen = (port, credentials) =>
  server.bindAsync(`${HOST}:${port}`, credentials, (error) => {
    if (error !== null) throw error;
  });
listen(PORT, ServerCredentials.createInsecure());
if (PORTS !== undefined) {
  const [private_key, cert_chain] = ["key.pem", "cert.pem"].map((name) => readFileSync(join(TLS, name)));
  listen(PORTS, ServerCredentials.createSsl(null, [{ private_key, cert_chain }]));
}
