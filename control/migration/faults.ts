/**
 * Faults that tests ask for, so that every step can be made to fail for real:
 * HOLDFAST_FAULT="crash@source:commit" ends this agent by SIGKILL when it comes to that point,
 * "fail@target:restore" makes the step fail, "exec@source:dump=COMMAND" runs a shell command first and waits for it.
 * Several are separated by ";". A product that is not asked does nothing here.
 */
import { execFileSync } from "node:child_process";
import { HoldfastError } from "#proxy/contract/errors.ts";

interface Fault {
  kind: string;
  point: string;
  command: string;
}

export class Faults {
  #faults: Fault[];

  constructor(text: string | undefined) {
    this.#faults = (text ?? "").split(";").flatMap((part) => {
      const found = /^(crash|fail|exec)@([a-z]+:[a-z-]+)(?:=(.*))?$/s.exec(part.trim());
      return found === null ? [] : [{ kind: found[1] ?? "", point: found[2] ?? "", command: found[3] ?? "" }];
    });
  }

  /** Called where `point` is about to happen. */
  at(point: string): void {
    for (const fault of this.#faults) {
      if (fault.point !== point) continue;
      if (fault.kind === "crash") process.kill(process.pid, "SIGKILL");
      if (fault.kind === "exec")
        execFileSync("/bin/sh", ["-c", fault.command], { stdio: ["ignore", "ignore", "inherit"] });
      if (fault.kind === "fail")
        throw new HoldfastError(`fault injected at ${point}`, {
          code: "FAULT_INJECTED",
          source: "migration",
        });
    }
  }
}
