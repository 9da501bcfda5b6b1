/**
 * A Service whose clients are to come to gateways, as the API server is to keep it: its selector is in an annotation, as otherwise Kubernetes
 * would lead clients to the pods themselves beside; and as it was, when it says so no more. Pure.
 */
import { GATEWAY_ENABLED, GATEWAY_LABEL, SELECTOR_ANNOTATION } from "../../api/gateway-table.ts";

export interface AdmittedService {
  metadata?: {
    labels?: Record<string, string> | null;
    annotations?: Record<string, string> | null;
    [field: string]: unknown;
  };
  spec?: { selector?: Record<string, string> | null; [field: string]: unknown };
  [field: string]: unknown;
}

/** @param before null: it is made. @returns null: it is as it is to be */
export function adopt(service: AdmittedService, before: AdmittedService | null): AdmittedService | null {
  const isOf = (one: AdmittedService | null): boolean =>
    one?.metadata?.labels?.[GATEWAY_LABEL] === GATEWAY_ENABLED;
  const labels = Object.entries(service.spec?.selector ?? {});
  const { [SELECTOR_ANNOTATION]: kept, ...annotations } = service.metadata?.annotations ?? {};
  if (isOf(service)) {
    if (labels.length === 0) return null;
    const { selector: _, ...spec } = service.spec ?? {};
    const text = labels.map(([key, value]) => `${key}=${value}`).join(",");
    return {
      ...service,
      metadata: { ...service.metadata, annotations: { ...annotations, [SELECTOR_ANNOTATION]: text } },
      spec,
    };
  }
  const selector = kept === undefined ? null : parseSelector(kept);
  if (!isOf(before) || selector === null) return null;
  return {
    ...service,
    metadata: { ...service.metadata, annotations },
    spec: { ...service.spec, selector: labels.length === 0 ? selector : service.spec?.selector },
  } as AdmittedService;
}

/** `app=chat,tier=game`. null: it is none, or would select every pod */
export function parseSelector(text: string): Record<string, string> | null {
  const parts = text
    .split(",")
    .map((part) => /^\s*([A-Za-z0-9._/-]{1,317})\s*==?\s*([A-Za-z0-9._-]{0,63})\s*$/.exec(part));
  if (parts.some((part) => part === null)) return null;
  return Object.fromEntries(parts.map((part) => [part?.[1], part?.[2]]));
}
