/** How commands about a cluster print what they have: a table, a wider one, or the whole as JSON or YAML. */
import { stringify } from "yaml";
import type { OutputFormat } from "./output-format.ts";
import type { Terminal } from "./terminal.ts";

/** null: a table is wanted */
export function serialiser(format: OutputFormat): ((value: unknown) => string) | null {
  if (format === "json") return (value) => `${JSON.stringify(value)}\n`;
  return format === "yaml" ? stringify : null;
}

/** @param text of the table; `isWide`: with the columns that most do not ask for */
export function print(
  value: unknown,
  text: (isWide: boolean) => string,
  format: OutputFormat,
  { out }: Terminal,
): void {
  out.write(serialiser(format)?.(value) ?? text(format === "wide"));
}
