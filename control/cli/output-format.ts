/** What `-o` takes, of commands about a cluster. */
export const FORMATS = ["table", "wide", "json", "yaml"] as const;
export type OutputFormat = (typeof FORMATS)[number];
