/**
 * JSON as container runtimes write it: integers have 64 bits there ("unlimited" is 18446744073709551615), more than a number of JavaScript holds
 * (https://tc39.es/proposal-json-parse-with-source/).
 */

/** An integer that a number would not hold is kept as it is written: JSON.stringify writes it so again. Whoever counts with it finds no number. */
export function parseExactJson(text: string): unknown {
  const keep = (_key: string, value: unknown, context: { source?: string }): unknown =>
    typeof value === "number" && !Number.isSafeInteger(value) && /^-?\d+$/.test(context.source ?? "")
      ? raw(context.source as string)
      : value;
  return JSON.parse(text, keep as (this: unknown, key: string, value: unknown) => unknown);
}

function raw(text: string): object {
  return (JSON as unknown as { rawJSON(text: string): object }).rawJSON(text);
}
