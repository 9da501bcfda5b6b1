/**
 * Endpoints in files that Envoy watches (`path_config_source` with `watched_directory`): written beside and renamed, as Envoy takes notice
 * of files that are moved into the folder. A file that is there from before stays until something is known: Envoy starts with it, and
 * refuses to start without any.
 */
import { existsSync, mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Assignment, fileOf } from "./assignment.ts";

export class EndpointFiles {
  readonly #folder: string;
  #version = 0;

  /** @throws the system's error: the folder cannot be made, or not be written to */
  constructor(folder: string, clusters: readonly string[]) {
    this.#folder = folder;
    mkdirSync(folder, { recursive: true });
    for (const cluster of clusters)
      if (!existsSync(this.#pathOf(cluster))) this.write({ cluster, places: [] });
  }

  /** @throws the system's error: what Envoy had before is there still */
  write(assignment: Assignment): void {
    const path = this.#pathOf(assignment.cluster);
    const beside = `${path}.tmp`;
    this.#version += 1;
    // for Envoy, whoever it runs as; nothing in it is secret
    writeFileSync(beside, fileOf(assignment, String(this.#version)), { mode: 0o644 });
    renameSync(beside, path);
  }

  #pathOf(cluster: string): string {
    return join(this.#folder, `${cluster}.json`);
  }
}
