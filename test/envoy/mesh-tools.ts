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
  return requireOfIstio("pilot-discovery");
}

/** Path of the definitions of its resources (CustomResourceDefinitions). @throws Error with the cure, when set-up has not kept them */
export function requireIstioDefinitions(): string {
  return requireOfIstio("crds.yaml");
}

/** Path of what set-up keeps of Istio by that name. @throws Error with the cure, when it has not */
export function requireOfIstio(file: string): string {
  const module = readFileSync(join(import.meta.dirname, "istio/go.mod"), "utf8");
  const version = /\bistio\.io\/istio v(\S+)/.exec(module)?.[1] ?? "";
  return required(join(CACHE_DIR, `istio-${version}`, file));
}

function required(file: string): string {
  if (!existsSync(file)) throw new Error(`no ${file}: run scripts/setup.sh mesh`);
  return file;
}
