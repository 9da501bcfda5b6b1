/** From a policy to the resources that it takes, in the mode that is asked for. Pure. */
import { fail } from "#proxy/contract/error-codes.ts";
import { type Mode, normalised, type Policy } from "../policy.ts";
import { renderAmbient } from "./ambient.ts";
import { renderGateway } from "./envoy-gateway.ts";
import { renderIstio } from "./istio.ts";
import { renderPlain } from "./plain.ts";
import type { Rendered } from "./resource.ts";

/** istiod that was run here; what is older may lack what is made */
export const ISTIO_RUN = "1.31";
/** Sidecar and EnvoyFilter as they are used here (priority of EnvoyFilters: 1.8; persistent-session: 1.16) */
const ISTIO_MINOR_MIN = 20;
/** EnvoyFilters with targetRefs */
const ISTIO_MINOR_MIN_AMBIENT = 27;

/** @throws HoldfastError `CONFIG_INVALID`: what the policy wants cannot be had in this mode, with the cure */
export function render(policy: Policy, mode: Mode, istioVersion = ISTIO_RUN): Rendered {
  const whole = normalised(policy);
  if (mode !== "sidecar" && (whole.egress !== null || whole.outboundTrafficPolicy !== null))
    throw fail(
      "CONFIG_INVALID",
      `egress, outboundTrafficPolicy: expected neither for --mode ${mode}: they are a Sidecar's, and where none of ours is others hold`,
    );
  if (mode === "plain") return renderPlain(whole);
  if (mode === "gateway") return renderGateway(whole);
  const minor = minorOf(istioVersion);
  const minorMin = mode === "ambient" ? ISTIO_MINOR_MIN_AMBIENT : ISTIO_MINOR_MIN;
  if (minor < minorMin)
    throw fail(
      "CONFIG_INVALID",
      `--istio-version: expected 1.${minorMin} or newer for --mode ${mode}, got ${istioVersion}`,
    );
  return mode === "ambient" ? renderAmbient(whole) : renderIstio(whole, mode);
}

function minorOf(version: string): number {
  const match = /^v?1\.(\d{1,3})(\.|-|$)/.exec(version);
  if (match === null)
    throw fail("CONFIG_INVALID", `--istio-version: expected a version, as ${ISTIO_RUN}, got ${version}`);
  return Number(match[1]);
}
