/** The Envoy and the istiod that `scripts/setup.sh mesh` keeps outside the checkout; `bench` brings the Envoy too. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { CACHE_DIR } from "../kube/kube-tools.ts";

/** As scripts/setup.sh has it. */
export const ENVOY_VERSION = "1.40.0";
/** may be missing */
export const ENVOY = join(CACHE_DIR, `bench/envoy-${ENVOY_VERSION}/bin/envoy-binary`);

/** @throws Error with the cure, when set-up has not brought it */
export function requireEnvoy(): void {
  required(ENVOY);
}

/** Its path. @throws Error with the cure, when set-up has not built it */
export function requireIstiod(): string {
  const module = readFileSync(join(import.meta.dirname, "istio/go.mod"), "utf8");
  const version = /\bistio\.io\/istio v(\S+)/.exec(module)?.[1] ?? "";
  return required(join(CACHE_DIR, `istio-${version}/pilot-discovery`));
}

function required(program: string): string {
  if (!existsSync(program)) throw new Error(`no ${program}: run scripts/setup.sh mesh`);
  return program;
}
