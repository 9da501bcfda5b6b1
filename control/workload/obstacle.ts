/** What keeps a workload from being what the configuration says, as `status` and `check` show it. */
import type { Problem } from "./claim.ts";

export class Obstacle {
  #problem: Problem | null = null;
  #startFailed = false;

  /** What was found when it was last started, moved or looked at. */
  get problem(): Problem | null {
    return this.#problem;
  }
  /** It is to run here, and its start came to nothing. */
  get startFailed(): boolean {
    return this.#startFailed;
  }

  found(problem: Problem | null): void {
    this.#problem = problem;
  }
  startHasFailed(problem: Problem): void {
    this.#startFailed = true;
    this.#problem = problem;
  }
  clear(): void {
    this.#startFailed = false;
    this.#problem = null;
  }
}
