/** Which pods gateways' Services are for, as the API server has them now: what says `holdfast.dev/mode` of a pod with the proxy in it that says nothing of it. */
import { GATEWAY_ENABLED, GATEWAY_LABEL, SELECTOR_ANNOTATION } from "../../api/gateway-table.ts";
import { isSelected, type Service } from "../client/objects.ts";
import { pathOf } from "../client/paths.ts";
import { Watches, type WatchesOptions } from "../client/watches.ts";
import { parseSelector } from "./adopt.ts";

export class GatewayServices {
  readonly #watches: Watches;
  #byNamespace = new Map<string, Record<string, string>[]>();
  #isKnown = false;

  constructor(options: WatchesOptions) {
    this.#watches = new Watches(options);
    this.#watches.open<Service>("services of gateways", {
      path: pathOf("services"),
      query: { labelSelector: `${GATEWAY_LABEL}=${GATEWAY_ENABLED}` },
      onAll: (services) => {
        this.#byNamespace = selectorsOf(services);
        this.#isKnown = true;
      },
    });
  }

  get isKnown(): boolean {
    return this.#isKnown;
  }

  /** One of that namespace is for pods with these labels. */
  select(namespace: string, labels: Record<string, string>): boolean {
    return (this.#byNamespace.get(namespace) ?? []).some((matchLabels) =>
      isSelected({ matchLabels }, labels),
    );
  }

  close(): Promise<void> {
    return this.#watches.close();
  }
}

function selectorsOf(services: readonly Service[]): Map<string, Record<string, string>[]> {
  const found = new Map<string, Record<string, string>[]>();
  for (const { metadata, spec } of services) {
    const text = metadata.annotations?.[SELECTOR_ANNOTATION];
    // one that the webhook has not seen has its selector yet
    const selector = text === undefined ? spec.selector : parseSelector(text);
    if (selector == null || Object.keys(selector).length === 0) continue;
    const namespace = metadata.namespace ?? "";
    found.set(namespace, [...(found.get(namespace) ?? []), selector]);
  }
  return found;
}
