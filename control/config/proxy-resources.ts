/** How much a proxy in a pod asks for and may have: of all pods in the webhook's file, and of one in its annotation. */
import * as z from "zod";
import { parseQuantity } from "./quantity.ts";

export const SIZED = ["cpu", "memory"] as const;
export type Sized = (typeof SIZED)[number];
/** as Kubernetes writes them: 50m, 96Mi */
export type Amounts = Record<Sized, string>;

export interface ProxyResources {
  requests: Amounts;
  /** at most: where the pod has limits, and where its own are not less */
  limits: Amounts;
}

/** Of one pod: what it says goes. */
export interface SaidResources {
  requests?: { [Name in Sized]?: string | undefined } | undefined;
  limits?: { [Name in Sized]?: string | undefined } | undefined;
}

/** It holds queues for slow clients; of its memory 58 MB are its own when it has none (Node 26), and as much is mapped from its files. */
export const DEFAULT_PROXY_RESOURCES: ProxyResources = {
  requests: { cpu: "50m", memory: "96Mi" },
  limits: { cpu: "1", memory: "512Mi" },
};

const AMOUNT_EXPECTED = "expected an amount above 0 as Kubernetes writes it, as 50m or 96Mi";
const amount = z
  .union([z.string(), z.number()], AMOUNT_EXPECTED)
  .transform(String)
  .refine((text) => (parseQuantity(text) ?? 0n) > 0n, AMOUNT_EXPECTED);

const someAmounts = z
  .strictObject(
    { cpu: amount.optional(), memory: amount.optional() },
    "expected amounts, as { cpu: 50m, memory: 96Mi }",
  )
  .optional();
export const proxyResources = z
  .strictObject(
    { requests: someAmounts, limits: someAmounts },
    "expected what the proxy asks for, as { requests: { cpu: 50m, memory: 96Mi }, limits: { cpu: 1, memory: 512Mi } }",
  )
  .transform(filled)
  .superRefine(bounded);

/** A limit that nobody has named follows a request above it: it was to bound the default request. */
function filled(said: SaidResources): ProxyResources {
  const requests = { ...DEFAULT_PROXY_RESOURCES.requests, ...said.requests } as Amounts;
  const limits = { ...DEFAULT_PROXY_RESOURCES.limits, ...said.limits } as Amounts;
  for (const name of SIZED)
    if (said.limits?.[name] === undefined && isAbove(requests[name], limits[name]))
      limits[name] = requests[name];
  return { requests, limits };
}

export const saidResources = z
  .strictObject({ requests: someAmounts, limits: someAmounts })
  .superRefine(bounded);

function bounded({ requests = {}, limits = {} }: SaidResources, context: z.RefinementCtx): void {
  for (const name of SIZED) {
    const [asked, most] = [requests[name], limits[name]];
    if (asked === undefined || most === undefined) continue;
    if (!isAbove(asked, most)) continue;
    context.addIssue({
      code: "custom",
      path: ["requests", name],
      message: `expected at most the limit (${most})`,
    });
  }
}

function isAbove(one: string, other: string): boolean {
  return (parseQuantity(one) ?? 0n) > (parseQuantity(other) ?? 0n);
}
