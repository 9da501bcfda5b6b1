/** `scripts/run crds`: writes the definitions of our resources into the chart. A test compares them with the schemas. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { type CustomResourceDefinition, customResourceDefinitions } from "#control/api/crd.ts";

const folder = join(import.meta.dirname, "../charts/holdfast/crds");

export function crdFileOf({ metadata }: CustomResourceDefinition): string {
  return join(folder, `${metadata.name}.yaml`);
}

export function crdText(definition: CustomResourceDefinition): string {
  return `# made by \`scripts/run crds\` of control/api/resources.ts\n${stringify(definition, { lineWidth: 110 })}`;
}

if (import.meta.main)
  for (const definition of customResourceDefinitions())
    writeFileSync(crdFileOf(definition), crdText(definition));
