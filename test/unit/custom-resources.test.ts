/** Our resources: the chart's definitions are those of the schemas, and follow Kubernetes' rules. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, it } from "node:test";
import { parse } from "yaml";
import { customResourceDefinitions } from "#control/api/crd.ts";
import {
  type ContinuityPolicy,
  continuityPolicy,
  migration,
  policiesIn,
  policyOf,
} from "#control/api/resources.ts";
import { crdFileOf, crdText } from "../../scripts/crds.ts";

type Schema = Record<string, unknown>;

function* schemasOf(schema: Schema, at: string): Generator<[string, Schema]> {
  yield [at, schema];
  for (const [name, inner] of Object.entries((schema.properties ?? {}) as Record<string, Schema>))
    yield* schemasOf(inner, `${at}.${name}`);
  for (const key of ["items", "additionalProperties"])
    if (typeof schema[key] === "object") yield* schemasOf(schema[key] as Schema, `${at}.${key}`);
}

const definitions = customResourceDefinitions();

describe("the definitions in the chart", () => {
  it("are those of the schemas: `scripts/run crds` writes them", () => {
    for (const definition of definitions) {
      const text = readFileSync(crdFileOf(definition), "utf8");
      assert.equal(text, crdText(definition));
      assert.deepEqual(parse(text), JSON.parse(JSON.stringify(definition)));
    }
    const folder = dirname(crdFileOf(definitions[0] as (typeof definitions)[0]));
    assert.deepEqual(
      readdirSync(folder).map((file) => join(folder, file)),
      definitions.map(crdFileOf).sort(),
    );
  });

  for (const definition of definitions) {
    const spec = definition.spec as {
      versions: { schema: { openAPIV3Schema: Schema }; additionalPrinterColumns: { jsonPath: string }[] }[];
    };
    const version = spec.versions[0];
    assert.ok(version !== undefined);
    const schemas = [...schemasOf(version.schema.openAPIV3Schema, "")];

    it(`of ${definition.metadata.name} are structural, and every text and list is bounded`, () => {
      for (const [at, schema] of schemas) {
        assert.equal(typeof schema.type, "string", `${at} has a type`);
        assert.ok(!("properties" in schema && "additionalProperties" in schema), `${at} has one of the two`);
        for (const key of ["$schema", "$ref", "anyOf", "oneOf", "allOf", "const", "definitions"])
          assert.ok(!(key in schema), `${at} has ${key}`);
        if (schema.type === "string" && !/^\.(apiVersion|kind)$/.test(at))
          assert.ok("maxLength" in schema || "enum" in schema, `${at} has no longest`);
        if (schema.type === "array") assert.ok("maxItems" in schema, `${at} has no most`);
        if ("additionalProperties" in schema) assert.ok("maxProperties" in schema, `${at} has no most`);
      }
    });

    it(`of ${definition.metadata.name} have columns of what is there`, () => {
      const known = new Set([".metadata.creationTimestamp", ...schemas.map(([at]) => at)]);
      for (const { jsonPath } of version.additionalPrinterColumns) assert.ok(known.has(jsonPath), jsonPath);
    });
  }
});

describe("a Migration", () => {
  const metadata = {
    name: "m",
    namespace: "shop",
    uid: "1",
    resourceVersion: "5",
    creationTimestamp: "2026-01-01T00:00:00Z",
  };

  it("is read without what it does not say, and with what a later version says", () => {
    const read = migration.parse({
      apiVersion: "holdfast.dev/v1alpha1",
      metadata: { ...metadata, managedFields: [] },
      spec: { pod: "chat-0", later: 1 },
    });
    assert.deepEqual(read.status, {});
    assert.deepEqual(read.metadata.finalizers, []);
    assert.equal(read.spec.pod, "chat-0");
  });

  it("of a pod that no pod can be named is refused", () => {
    for (const pod of ["", "A", "a/b", "-a", "a".repeat(254)])
      assert.ok(!migration.safeParse({ metadata, spec: { pod } }).success, pod);
  });
});

describe("the policy of a namespace", () => {
  const policy = (name: string, spec: object): ContinuityPolicy =>
    continuityPolicy.parse({
      metadata: {
        name,
        namespace: "shop",
        uid: name,
        resourceVersion: "1",
        creationTimestamp: "2026-01-01T00:00:00Z",
      },
      spec,
    });

  it("is what the first by name says, then the next, then the default", () => {
    const policies = [
      policy("b", { movesPerNode: 9, attemptsMax: 9 }),
      policy("a", { movesPerNode: 1, evictionStrategy: "External" }),
    ];
    assert.deepEqual(policyOf(policies), {
      ...policyOf([]),
      evictionStrategy: "External",
      attemptsMax: 9,
      movesPerNode: 1,
    });
    assert.equal(policyOf([]).evictionDeadlineSeconds, 600);
  });

  it("leaves out what is of a later version", () => {
    const { metadata } = policy("a", {});
    const later = { metadata, spec: { evictionStrategy: "Teleport", movesPerNode: 1 } };
    const understood = policiesIn([later, policy("b", { attemptsMax: 9 }), { metadata: {} }]);
    assert.deepEqual(
      understood.map(({ metadata: { name } }) => name),
      ["b"],
    );
  });
});
