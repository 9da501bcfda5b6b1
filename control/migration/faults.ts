/**
 * Faults that tests ask for, so that every step can be made to fail for real:
 * HOLDFAST_FAULT="crash@source:commit" ends this agent by SIGKILL when it comes to that point,
 * "fail@target:restore" makes the step fail, "exec@source:dump=COMMAND" runs a shell command first and waits for it.
 * Several are separated by ";". "file:PATH" looks into that file at each point, so that a test can change its mind
 * while the agent runs. Each fault happens once. "without@agent:freezer" takes something of the machine's away, for good. A
 * product that is not asked does nothing here.
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { fail } from "#proxy/contract/error-codes.ts";
import { readText } from "../runtime/read-text.ts";

interface Fault {
  kind: string;
  point: string;
  command: string;
}

export class Faults {
  #file: string | null;
  #faults: string[];

  constructor(text: string | undefined) {
    this.#file = text?.startsWith("file:") ? text.slice("file:".length) : null;
    this.#faults = this.#file === null ? split(text ?? "") : [];
  }

  /** Whether the machine is to be taken for one that has no `what`. */
  lacks(what: string): boolean {
    return this.#faults.includes(`without@agent:${what}`);
  }

  /** Called where `point` is about to happen. */
  at(point: string): void {
    if (this.#file !== null) this.#faults = split(readText(this.#file));
    for (const text of [...this.#faults]) {
      const fault = parse(text);
      if (fault?.point !== point) continue;
      this.#faults.splice(this.#faults.indexOf(text), 1);
      if (this.#file !== null) writeFileSync(this.#file, this.#faults.join(";"));
      happen(fault);
    }
  }
}

function happen({ kind, point, command }: Fault): void {
  if (kind === "crash") process.kill(process.pid, "SIGKILL");
  if (kind === "exec") execFileSync("/bin/sh", ["-c", command], { stdio: ["ignore", "ignore", "inherit"] });
  if (kind === "fail") throw fail("FAULT_INJECTED", `fault injected at ${point}`);
}

function split(text: string): string[] {
  return text
    .split(";")
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

function parse(text: string): Fault | null {
  const found = /^(crash|fail|exec)@([a-z]+:[a-z-]+)(?:=(.*))?$/s.exec(text);
  return found === null ? null : { kind: found[1] ?? "", point: found[2] ?? "", command: found[3] ?? "" };
}
