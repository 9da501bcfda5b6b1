/**
 * What our containers ask for in a pod, so that it is let in where it was without them: by a ResourceQuota, a LimitRange, and what it has said
 * of itself as a whole; and so that its class of service stays. Pure.
 */
import {
  type Amounts,
  DEFAULT_PROXY_RESOURCES,
  type ProxyResources,
  type SaidResources,
  SIZED,
  type Sized,
} from "../../config/proxy-resources.ts";
import { formatQuantity, parseQuantity } from "../../config/quantity.ts";
import type { Container, Pod } from "./pod.ts";

type Spec = Pod["spec"];
type Resources = Container["resources"];
type Quantity = string | number;

/** Of a container that ends before the others begin: what it asks for is not added to theirs. */
const COPIED = new Set<string>([...SIZED, "ephemeral-storage"]);

/**
 * What the container that moves has: whatever a LimitRange asks of containers, that is let in already. The pod asks for no more by it, as
 * this one has ended when the other begins.
 */
export function initResources({ resources }: Container): Pick<Container, "resources"> {
  const copied = (["requests", "limits"] as const).flatMap((kind) => {
    const kept = Object.entries(resources?.[kind] ?? {}).filter(([name]) => COPIED.has(name));
    return kept.length === 0 ? [] : [[kind, Object.fromEntries(kept)] as const];
  });
  return copied.length === 0 ? {} : { resources: Object.fromEntries(copied) };
}

export type SidecarResources = {
  requests: Amounts;
  limits?: Partial<Amounts>;
};

/**
 * Where the pod asks for something, or says how much; null: nowhere. A limit where each of its containers has one, or the pod as a whole: not
 * above the largest of these, as a LimitRange may have a maximum of containers, and not below what is requested.
 */
export function sidecarResources(
  spec: Spec,
  said: SaidResources | null,
  sizes: ProxyResources = DEFAULT_PROXY_RESOURCES,
): SidecarResources | null {
  const whole = spec.resources;
  const all = resourcesOf(spec);
  if (said === null && ![whole, ...all].some(asks)) return null;
  const isWhole = asks(whole);
  // of a pod that says something as a whole, that decides its class
  const isGuaranteed = (isWhole ? [whole] : all).every(isEven);
  const requests = { ...sizes.requests };
  const limits: Partial<Amounts> = {};
  for (const name of SIZED) {
    const own = [whole, ...all].flatMap((one) => one?.limits?.[name] ?? []);
    const isLimited = whole?.limits?.[name] != null || all.every((one) => one?.limits?.[name] != null);
    const most = said?.limits?.[name];
    const request = said?.requests?.[name] ?? least(sizes.requests[name], most ?? sizes.requests[name]);
    const limit = most ?? largest(request, least(sizes.limits[name], own.reduce(largest, "0")));
    requests[name] = isGuaranteed ? limit : request;
    if (isLimited || most !== undefined) limits[name] = limit;
  }
  return { requests, ...(Object.keys(limits).length === 0 ? {} : { limits }) };
}

/**
 * What a pod asks for as a whole (`spec.resources`, from Kubernetes 1.34 on), with what is added to it: its own containers keep what they had, and
 * the sum of all is not more than the whole, which the API server would refuse. null: it asks for nothing so
 */
export function wholeWith(spec: Spec, { requests, limits = {} }: SidecarResources): Resources | null {
  const whole = spec.resources;
  if (!asks(whole)) return null;
  const isNamed = (name: Sized): boolean =>
    resourcesOf(spec).some((one) => one?.requests?.[name] != null || one?.limits?.[name] != null);
  const raised = { requests: { ...whole?.requests }, limits: { ...whole?.limits } };
  for (const name of SIZED) {
    const most = whole?.limits?.[name];
    // left out it is what containers ask for, or else the limit (pkg/apis/core/v1/defaults.go): none but ours would ask now
    const asked = whole?.requests?.[name] ?? (isNamed(name) ? null : most);
    if (asked != null) raised.requests[name] = sum(asked, requests[name]);
    if (most != null && limits[name] !== undefined) raised.limits[name] = sum(most, limits[name]);
  }
  const kept = Object.entries(raised).filter(([, amounts]) => Object.keys(amounts).length > 0);
  return { ...whole, ...Object.fromEntries(kept) };
}

function resourcesOf({ containers, initContainers }: Spec): Resources[] {
  return [...containers, ...(initContainers ?? [])].map(({ resources }) => resources);
}

function asks(one: Resources): boolean {
  return Object.keys({ ...one?.requests, ...one?.limits }).length > 0;
}

/** Of both all that it may have, as Kubernetes wants it of each container of a guaranteed pod. */
function isEven(one: Resources): boolean {
  return SIZED.every((name) => {
    const limit = one?.limits?.[name];
    return limit != null && amountOf(one?.requests?.[name] ?? limit) === amountOf(limit);
  });
}

function largest(one: Quantity, other: Quantity): string {
  return String(amountOf(one) >= amountOf(other) ? one : other);
}

function least(one: Quantity, other: Quantity): string {
  return String(amountOf(one) <= amountOf(other) ? one : other);
}

function sum(one: Quantity, other: Quantity): string {
  return formatQuantity(amountOf(one) + amountOf(other));
}

/** What is none the API server refuses, whatever we make of it. */
function amountOf(quantity: Quantity): bigint {
  return parseQuantity(quantity) ?? 0n;
}
