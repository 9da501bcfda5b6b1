/**
 * The proxy of one workload on one node: `node proxy/main.ts --socket PATH [--http PATH|ADDRESS:PORT] [--log-level L] [--helped]`.
 * `--helped`: it has no capabilities, and agents take for it the steps that need some; nor has it been started by an agent, so it stays
 * when it has been stopped or retired, for what is to be configured next.
 */
import { dirname } from "node:path";
import { keepCompiled } from "#proxy/contract/compiled.ts";

const { argv } = process;
const socket = argv[argv.indexOf("--socket") + 1];
// a container of a pod, whose user is anybody
keepCompiled(argv.includes("--helped") && socket !== undefined ? dirname(socket) : null);
const { runProxy } = await import("./run-proxy.ts");
await runProxy();
