/** The Envoy that `scripts/setup.sh mesh` (and `bench`) keeps outside the checkout. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CACHE_DIR } from "../kube/kube-tools.ts";

/** As scripts/setup.sh has it. */
export const ENVOY_VERSION = "1.40.0";
/** may be missing */
export const ENVOY = join(CACHE_DIR, `bench/envoy-${ENVOY_VERSION}/bin/envoy-binary`);

/** @throws Error with the cure, when set-up has not brought it */
export function requireEnvoy(): void {
  if (!existsSync(ENVOY)) throw new Error(`no ${ENVOY}: run scripts/setup.sh mesh`);
}
