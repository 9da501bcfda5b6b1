/** What the benchmarks print: medians of rounds with their spread, ratios, tables. Pure. */

export interface Spread {
  median: number;
  min: number;
  max: number;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? 0)
    : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2;
}

/** Nothing is discarded: the least and the greatest value are those of all rounds. null: there are no values. */
export function spreadOf(values: readonly number[]): Spread | null {
  if (values.length === 0) return null;
  return { median: median(values), min: Math.min(...values), max: Math.max(...values) };
}

/** What two figures make of each other in every round that both have, their rounds side by side. */
export function roundByRound(
  one: readonly (number | null)[],
  other: readonly (number | null)[],
  combine: (one: number, other: number) => number,
): number[] {
  return one.flatMap((a, round) => {
    const b = other[round] ?? null;
    return a === null || b === null ? [] : [combine(a, b)].filter(Number.isFinite);
  });
}

/** The rounds in which it was measured. */
export function measuredRounds(rounds: readonly (number | null)[]): number[] {
  return rounds.filter((value) => value !== null);
}

/** "41.2k (40.1k-42.0k)"; one value alone has no spread to show. */
export function showSpread(spread: Spread | null, show: (value: number) => string): string {
  if (spread === null) return "-";
  if (spread.min === spread.max) return show(spread.median);
  return `${show(spread.median)} (${show(spread.min)}-${show(spread.max)})`;
}

export function thousands(value: number): string {
  return `${(value / 1000).toFixed(1)}k`;
}

/** A number with so many digits after the point, as {@link showSpread} wants it. */
export function fixed(digits: number): (value: number) => string {
  return (value) => value.toFixed(digits);
}

/** Lines with aligned columns, the first to the left. The first row decides how many there are. */
export function table(rows: string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? "").length)),
  );
  return rows.map((row) =>
    row
      .map((cell, column) =>
        column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
      )
      .join("  ")
      .trimEnd(),
  );
}

/** An option's value. @throws TypeError naming the option and what is allowed */
export function wholeNumber(text: string | undefined, option: string, min: number, max: number): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < min || value > max)
    throw new TypeError(`--${option}: expected a whole number ${min}-${max}, got ${text}`);
  return value;
}
