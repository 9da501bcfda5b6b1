/** The JDK's own HTTP server, with a thread a request. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { inside, type Program, upstreamPort, versionFrom } from "../program.ts";
import { useWeb } from "../web-clients.ts";

const server = `
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicLong;

public class Server {
  public static void main(String[] args) throws Exception {
    var total = new AtomicLong();
    var counts = new ConcurrentHashMap<String, AtomicLong>();
    var server = HttpServer.create(new InetSocketAddress("127.0.0.1", ${upstreamPort}), 0);
    server.createContext("/count", exchange -> {
      var here = counts.computeIfAbsent(exchange.getRequestURI().getRawQuery(), name -> new AtomicLong());
      var body = (here.incrementAndGet() + " " + total.incrementAndGet()).getBytes();
      exchange.sendResponseHeaders(200, body.length);
      try (var out = exchange.getResponseBody()) { out.write(body); }
    });
    server.createContext("/stream", exchange -> {
      exchange.sendResponseHeaders(200, 0);
      var out = exchange.getResponseBody();
      try {
        for (long n = 1; ; n++) {
          out.write((n + "\\n").getBytes());
          out.flush();
          Thread.sleep(2);
        }
      } catch (InterruptedException gone) { exchange.close(); }
    });
    server.setExecutor(Executors.newCachedThreadPool());
    server.start();
  }
}
`;

export const java: Program = {
  name: "java",
  title: "Java (OpenJDK, HttpServer)",
  needs: ["java", "javac"],
  version: () => versionFrom(["java", "-version"], /"([^"]+)"/),
  prepare(folder) {
    writeFileSync(join(folder, "Server.java"), server);
    execFileSync("javac", ["-d", folder, join(folder, "Server.java")], { stdio: "pipe" });
  },
  command: ["java", "-Dsun.net.httpserver.nodelay=true", "-cp", inside, "Server"],
  port: 8080,
  keeps: "heap, threads, keep-alive connections, a stream",
  use: (stage) => useWeb(stage, java.port),
};
