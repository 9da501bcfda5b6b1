/** An API server in memory, for a loop of the controller's: lists, watches, versions, and one call that fails. */
import type { KubernetesApi, WatchEvent } from "#control/kubernetes/client/api.ts";
import type { KubernetesObject } from "#control/kubernetes/client/objects.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { madeUpWatch, type Tell } from "./made-up-watch.ts";

// biome-ignore lint/suspicious/noExplicitAny: objects of any kind, looked at in every place.
export type Raw = any;

/** An API server in memory, as far as this loop asks one. */
export class ApiInMemory {
  /** "METHOD path" of what changes something */
  readonly calls: string[] = [];
  /** paths that were asked for one by one */
  readonly finds: string[] = [];
  /** how often something was listed */
  lists = 0;
  readonly objects = new Map<string, KubernetesObject & Raw>();
  /** thrown by the next call that begins so */
  problem: [string, Error] | null = null;
  #version = 1;
  readonly #watches = new Set<{ under: RegExp; fieldSelector: string; tell: Tell }>();

  put(path: string, object: Raw): void {
    const [, namespace, name] = /\/namespaces\/([^/]+)\/[^/]+\/([^/]+)$/.exec(path) ?? [];
    const metadata = {
      name,
      namespace,
      uid: `uid-${name}`,
      ...object.metadata,
      resourceVersion: `${this.#version++}`,
    };
    const before = this.objects.has(path);
    const whole = { ...object, metadata };
    this.objects.set(path, whole);
    this.#tell(path, { type: before ? "MODIFIED" : "ADDED", object: whole });
  }

  remove(path: string): boolean {
    const object = this.objects.get(path);
    this.objects.delete(path);
    if (object !== undefined) this.#tell(path, { type: "DELETED", object });
    return object !== undefined;
  }

  #tell(path: string, event: WatchEvent<object>): void {
    for (const { under, fieldSelector, tell } of this.#watches)
      if (under.test(path) && hasField(path, event.object, fieldSelector)) tell(event);
  }

  get api(): KubernetesApi {
    const done = async <T>(call: string, deed: () => T): Promise<T> => {
      this.calls.push(call);
      const { problem } = this;
      if (problem !== null && call.startsWith(problem[0])) {
        this.problem = null;
        throw problem[1];
      }
      return deed();
    };
    /** of all namespaces, or of one */
    const under = (path: string): RegExp =>
      new RegExp(
        `^${path.replace(/\/([^/]+)$/, path.includes("/namespaces/") ? "/$1" : "/namespaces/[^/]+/$1")}/`,
      );
    const api: Pick<KubernetesApi, "find" | "list" | "watch" | "create" | "replace" | "patch" | "delete"> = {
      find: async <T>(path: string) => {
        this.finds.push(path);
        return (this.objects.get(path) ?? null) as T | null;
      },
      list: async <T extends KubernetesObject>(
        path: string,
        { labelSelector = "", fieldSelector = "" }: Raw = {},
        _signal?: AbortSignal,
        keep: (item: T) => T = (item) => item,
      ) => {
        this.lists++;
        const wanted = String(labelSelector).split(",");
        const isAsked = ({ metadata: { labels = {} } }: Raw): boolean =>
          wanted.some((one) => !/^[\w./-]+(=[\w.-]*)?$/.test(one)) ||
          wanted.every((one) => {
            const [key = "", value] = one.split("=");
            return value === undefined ? key in labels : labels[key] === value;
          });
        const found = [...this.objects].filter(
          ([at, object]) => under(path).test(at) && isAsked(object) && hasField(at, object, fieldSelector),
        );
        return { items: found.map(([, object]) => keep(object as T)), resourceVersion: "1" };
      },
      watch: <T>(path: string, { fieldSelector = "" }: Raw, signal: AbortSignal) =>
        madeUpWatch<T>(signal, (tell) => this.#watches.add({ under: under(path), fieldSelector, tell })),
      create: <T>(path: string, body: object) =>
        done(`POST ${path}`, () => {
          const { metadata } = body as KubernetesObject;
          const { name, creationTimestamp = new Date().toISOString() } = metadata;
          const at = `${path}/${name}`;
          this.put(at, { ...body, metadata: { ...metadata, creationTimestamp } });
          return this.objects.get(at) as T;
        }),
      replace: <T>(path: string, body: object) =>
        done(`PUT ${path}`, () => {
          this.put(path, body);
          return body as T;
        }),
      patch: <T>(path: string, body: Raw) =>
        done(`PATCH ${path}`, () => {
          const there = this.objects.get(path);
          const { resourceVersion = there.metadata.resourceVersion } = body.metadata ?? {};
          if (there.metadata.resourceVersion !== resourceVersion) throw fail("KUBERNETES_CONFLICT", path);
          this.put(path, merged(there, body));
          return {} as T;
        }),
      delete: (path: string) => done(`DELETE ${path}`, () => this.remove(path)),
    };
    return api as KubernetesApi;
  }
}

/** @param at its path, which has its name @param selector as "metadata.name=m"; "": any */
function hasField(at: string, object: Raw, selector: string): boolean {
  const [field = "", value] = selector.split("=");
  if (field === "metadata.name") return at.endsWith(`/${value}`);
  return field === "" || field.split(".").reduce((one, key) => one?.[key], object) === value;
}

/** RFC 7396 */
function merged(there: Raw, body: Raw): Raw {
  if (typeof body !== "object" || body === null) return body;
  const all = { ...there };
  for (const [key, value] of Object.entries(body))
    if (value === null) delete all[key];
    else all[key] = merged(all[key], value);
  return all;
}
