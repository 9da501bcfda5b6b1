/** The webhook's configuration file: its shape and its defaults. */
import * as z from "zod";
import { PROXY_DEFAULTS, type ProxyDefault } from "#proxy/contract/commands.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import { formatEndpoint } from "./endpoint.ts";
import { DEFAULT_PROXY_RESOURCES, type ProxyResources, proxyResources } from "./proxy-resources.ts";
import { count, endpoint, list, oneOf, truth } from "./schema.ts";
import { beside, invalid, parseFile, readFile } from "./yaml-file.ts";

/** What `holdfast webhook` is started with. */
export interface WebhookFile {
  listen: Endpoint;
  /** PEM files, read again when they change */
  certificate: string;
  key: string;
  /** what is copied into pods */
  image: string;
  imagePullPolicy: "Always" | "IfNotPresent" | "Never" | null;
  /** what runs the proxy in pods, where it is in those that say nothing of it, and what it asks for there; null: never in a pod */
  proxy: { image: string; default: ProxyDefault; resources: ProxyResources } | null;
  /** `/healthz`, `/readyz`, `/metrics` */
  admin: Endpoint | null;
  /** who renews the certificate; null: somebody else */
  renewal: RenewalConfig | null;
  /** the cluster has gateways: pods that say nothing of it are in their mode. Services are looked at in the cluster */
  gateways: boolean;
  /** pods name the controller as one that moves them when an EvictionRequest asks for their eviction */
  evictionRequests: boolean;
  /** how long it goes on answering when it has been told to end: until nobody is led to it any more */
  drainMs: number;
}

/** The webhook itself, in a cluster: the objects that it keeps the certificate in. */
export interface RenewalConfig {
  namespace: string;
  /** with tls.crt, tls.key and ca.crt; kubelet brings its files here */
  secret: string;
  /** objects of these kinds, each of that name, are to trust ca.crt */
  kinds: (typeof CONFIGURATION_KINDS)[number][];
  configuration: string;
  /** names of the Service that the API server uses, the first one first */
  names: string[];
  /** a new certificate is valid for so long, and replaced when a third of that is left */
  days: number;
}

export const CONFIGURATION_KINDS = [
  "MutatingWebhookConfiguration",
  "ValidatingWebhookConfiguration",
] as const;

const DRAIN_MS = 5_000;
const DRAIN_MS_MAX = 60_000;
const pemFile = z.string("expected the path of a PEM file").min(1, "expected the path of a PEM file");
const IMAGE_EXPECTED = "expected the name of an image, as registry.example/holdfast/inside:1";

const image = z.string(IMAGE_EXPECTED).regex(/^[\w.:/@-]{1,500}$/, IMAGE_EXPECTED);
const NAME_EXPECTED = "expected the name of an object in Kubernetes";
const object = z.string(NAME_EXPECTED).regex(/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/, NAME_EXPECTED);
const DAYS_MAX = 3_650;
const renewal = z.strictObject(
  {
    namespace: object,
    secret: object,
    kinds: list(
      oneOf(...CONFIGURATION_KINDS),
      "expected a list of 1-2 kinds of webhook configurations",
      1,
      CONFIGURATION_KINDS.length,
    ).default(["MutatingWebhookConfiguration"]),
    configuration: object,
    names: list(object, "expected a list of 1-10 names of the Service", 1, 10),
    days: count("days", 1, DAYS_MAX),
  },
  "expected what is renewed: { namespace, secret, kinds, configuration, names, days }",
);

const webhookSchema = z.strictObject(
  {
    listen: endpoint,
    certificate: pemFile,
    key: pemFile,
    image,
    imagePullPolicy: oneOf("Always", "IfNotPresent", "Never").optional(),
    proxy: z
      .strictObject(
        {
          image,
          default: oneOf(...PROXY_DEFAULTS).default("auto"),
          resources: proxyResources.default(DEFAULT_PROXY_RESOURCES),
        },
        "expected the proxy, as { image: registry.example/holdfast/control:1, default: auto }",
      )
      .optional(),
    admin: endpoint.optional(),
    renewal: renewal.optional(),
    gateways: truth.default(false),
    evictionRequests: truth.default(false),
    drainMs: count("milliseconds", 0, DRAIN_MS_MAX).default(DRAIN_MS),
  },
  "expected a mapping with listen, certificate, key and image",
);

/** @throws HoldfastError `CONFIG_INVALID`: one line, file and key path first */
export function loadWebhookConfig(fileName: string): WebhookFile {
  return parseWebhookConfig(readFile(fileName), fileName);
}

/** @param fileName for messages, and for relative paths in it. @throws HoldfastError `CONFIG_INVALID` */
export function parseWebhookConfig(contents: string, fileName: string): WebhookFile {
  const {
    certificate,
    key,
    admin,
    imagePullPolicy,
    proxy = null,
    renewal = null,
    ...rest
  } = parseFile(webhookSchema, contents, fileName);
  if (admin !== undefined && formatEndpoint(admin) === formatEndpoint(rest.listen))
    throw invalid(fileName, "admin", "expected an address of its own, got that of listen");
  return {
    ...rest,
    certificate: beside(fileName, certificate),
    key: beside(fileName, key),
    imagePullPolicy: imagePullPolicy ?? null,
    proxy,
    admin: admin ?? null,
    renewal,
  };
}
