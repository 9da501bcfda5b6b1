/**
 * Loaded into the proxy's process ahead of it (`node --import`, with `?into=FILE`): SIGUSR2 begins a CPU profile, SIGUSR2
 * again ends it and writes the file, whole or not at all. The proxy itself knows nothing of it.
 */
import { renameSync, writeFileSync } from "node:fs";
import { Session } from "node:inspector";

const SAMPLE_US = 250;

const into = new URL(import.meta.url).searchParams.get("into") ?? "";
const session = new Session();
let recording = false;

process.on("SIGUSR2", () => {
  if (!recording) {
    session.connect();
    session.post("Profiler.enable");
    session.post("Profiler.setSamplingInterval", { interval: SAMPLE_US });
    session.post("Profiler.start");
    recording = true;
    return;
  }
  session.post("Profiler.stop", (error, { profile }) => {
    if (error !== null) throw error;
    writeFileSync(`${into}.new`, JSON.stringify(profile));
    renameSync(`${into}.new`, into);
    recording = false;
    session.disconnect();
  });
});
