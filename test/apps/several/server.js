/**
 * Several of the applications here in one process, so that one workload has sessions of many kinds.
 *
 *   HTTP  chat: WebSocket, and HTTP/1.1
 *   TCP   echo, counted
 *   GRPC  grpc: HTTP/2
 *
 * Each is where to listen; HOST is on which address (127.0.0.1).
 */
for (const [name, app] of [
  ["HTTP", "chat"],
  ["TCP", "echo"],
  ["GRPC", "grpc"],
]) {
  if (process.env[name] === undefined) continue;
  process.env.PORT = process.env[name];
  await import(`../${app}/server.js`);
}
