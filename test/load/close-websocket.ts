/** The end of a WebSocket client of a load: in order. */
import { WebSocket } from "ws";

/** Resolves when it is closed; at once when it was. */
export function closeWebSocket(socket: WebSocket): Promise<void> {
  return new Promise((done) => {
    if (socket.readyState === WebSocket.CLOSED) return done();
    socket.once("close", () => done());
    socket.close(1000);
  });
}
