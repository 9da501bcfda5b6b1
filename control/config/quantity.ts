/** Amounts as Kubernetes writes them (apimachinery, resource.Quantity): 250m, 1.5, 64Mi, 1e3. Exact, since the API server compares sums of them. */

/** Kubernetes has nothing that is less, and rounds up */
const BILLIONTHS = 1_000_000_000n;
const FACTORS: Record<string, bigint> = {
  n: 1n,
  u: 1_000n,
  m: 1_000_000n,
  "": BILLIONTHS,
  ...Object.fromEntries([..."kMGTPE"].map((unit, at) => [unit, BILLIONTHS * 1_000n ** BigInt(at + 1)])),
  ...Object.fromEntries([..."KMGTPE"].map((unit, at) => [`${unit}i`, BILLIONTHS * 1_024n ** BigInt(at + 1)])),
};
const WRITTEN = /^\+?(\d*)(?:\.(\d*))?(n|u|m|k|[KMGTPE]i|[MGTPE]|[eE][+-]?\d{1,2})?$/;

/** In billionths. null: it is none, or less than nothing */
export function parseQuantity(text: string | number): bigint | null {
  const [, whole = "", fraction = "", unit = ""] = WRITTEN.exec(String(text)) ?? [];
  const digits = `${whole}${fraction}`;
  if (digits === "") return null;
  // an exponent, where it is not E for 10^18
  const power = FACTORS[unit] === undefined ? Number(unit.slice(1)) : 0;
  const factor = (FACTORS[unit] ?? BILLIONTHS) * 10n ** BigInt(Math.max(0, power));
  const divisor = 10n ** BigInt(fraction.length + Math.max(0, -power));
  return (BigInt(digits) * factor + divisor - 1n) / divisor;
}

/** Thousandths at least. */
export function formatQuantity(billionths: bigint): string {
  const thousandths = (billionths + 999_999n) / 1_000_000n;
  if (thousandths % 1_000n !== 0n) return `${thousandths}m`;
  const whole = thousandths / 1_000n;
  for (const [unit, factor] of [
    ["Mi", 1n << 20n],
    ["Ki", 1n << 10n],
  ] as const)
    if (whole > 0n && whole % factor === 0n) return `${whole / factor}${unit}`;
  return `${whole}`;
}
