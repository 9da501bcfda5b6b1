/** Entry point of `holdfast`: hands the process's streams, environment and signals, and the agent, to the command line. */
import { keepCompiled } from "#proxy/contract/compiled.ts";
import { EXIT } from "./api/exit-status.ts";

keepCompiled();
const { runProgram } = await import("./cli/program.ts");

// A reader that went away (`holdfast status | head -1`) is no error.
process.stdout.on("error", () => process.exit(EXIT.ok));

const status = await runProgram(process.argv.slice(2), {
  out: process.stdout,
  err: process.stderr,
  env: process.env,
  // The agent needs the kernel and half of the code base; the other commands start without it.
  runAgent: async (config, options) => (await import("./agent/main.ts")).runAgent(config, options),
  runGateway: async (config, options) => (await import("./gateway/main.ts")).runGateway(config, options),
  runWebhook: async (config, options) =>
    (await import("./kubernetes/webhook/main.ts")).runWebhook(config, options),
  runController: async (config) =>
    (await import("./kubernetes/controller/main.ts")).runController(config, process.env),
  runEndpoints: async (config, options) =>
    (await import("#envoy/endpoints/main.ts")).runEndpoints(config, options),
  readInput: async (bytesMax) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    for await (const chunk of process.stdin) {
      bytes += chunk.length;
      if (bytes > bytesMax) throw new Error(`expected at most ${bytesMax} bytes`);
      chunks.push(chunk);
    }
    return Buffer.concat(chunks).toString("utf8");
  },
  onInterrupt: (first, leave) => {
    let asked = false;
    const onSignal = () => {
      if (asked) {
        leave();
        process.exit(EXIT.interrupted);
      }
      asked = true;
      first();
    };
    process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
    return () => process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  },
});
// Pipes are written asynchronously: leave only when everything is out.
process.stdout.write("", () => process.exit(status));
