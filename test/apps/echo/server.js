/**
 * A stateful TCP application: it sends back each byte mixed with the number the byte has on its connection, so a byte
 * lost or repeated in either direction, and a server that forgot how far it was, spoil everything after it.
 *
 *   PORT  where to listen                     (9000)
 *   HOST  on which address                    (127.0.0.1)
 *   ECHO  "counted", or "plain" for RFC 862   (counted)
 *
 * A client that ends its side gets the rest of its bytes and then the other end. SIGTERM resets nobody: it ends
 * every connection and then the process.
 */
import { createServer } from "node:net";

const port = Number(process.env.PORT ?? 9000);
const host = process.env.HOST ?? "127.0.0.1";
const counted = process.env.ECHO !== "plain";

const sockets = new Set();
const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
  let count = 0;
  sockets.add(socket);
  socket.on("data", (bytes) => {
    if (counted) {
      for (let i = 0; i < bytes.length; i++, count++) bytes[i] ^= (count ^ (count >>> 8) ^ (count >>> 16)) & 0xff;
    }
    if (!socket.write(bytes)) {
      socket.pause();
      socket.once("drain", () => socket.resume());
    }
  });
  socket.on("end", () => socket.end());
  socket.on("error", (error) => console.log(`client error: ${error.message}`));
  socket.on("close", () => sockets.delete(socket));
});

server.listen(port, host, () => console.log(`echo: listening on ${host}:${port}`));

process.on("SIGTERM", () => {
  console.log("echo: SIGTERM");
  server.close();
  for (const socket of sockets) socket.end();
  setTimeout(() => process.exit(0), 200);
});
