/** HDR curves as `BenchResults` has them: values at percentiles, and the curve of several rounds. Pure. */
import { median } from "../figures.ts";
import type { Figure, Percentile } from "../results.ts";

/** Where curves are read; each as far as it reaches. */
const READ_AT = [
  0, 10, 25, 50, 60, 70, 75, 80, 85, 90, 92.5, 95, 97.5, 98, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.995,
  99.999,
];

/** The least recorded value that at least `p` per cent are not above; null: the curve has no such point. */
export function quantile(curve: Percentile[], p: number): number | null {
  let best: Percentile | null = null;
  for (const point of curve) if (point.p >= p - 1e-9 && (best === null || point.p < best.p)) best = point;
  return best?.valueUs ?? null;
}

/** Of each round, in µs; null: it has none. */
export function p99s(figure: Pick<Figure, "percentiles"> | undefined): (number | null)[] {
  return percentilesOf(figure, 99);
}

/** One of each round. */
export function percentilesOf(
  figure: Pick<Figure, "percentiles"> | undefined,
  percentile: number,
): (number | null)[] {
  return (figure?.percentiles ?? []).map((curve) => (curve === null ? null : quantile(curve, percentile)));
}

/** Of the rounds at each percentile the median: as far as all of them reach beside their greatest value. */
export function middleCurve(curves: (Percentile[] | null)[]): Percentile[] {
  const measured = curves.filter((curve) => curve !== null).filter((curve) => curve.length > 0);
  if (measured.length === 0) return [];
  // 100 is the greatest value of a round, however many there were: it says nothing of a percentile just below it.
  const reach = Math.min(
    ...measured.map((curve) => Math.max(...curve.map(({ p }) => p).filter((p) => p < 100), 0)),
  );
  return READ_AT.filter((p) => p <= reach).map((p) => ({
    p,
    valueUs: median(measured.map((curve) => quantile(curve, p) ?? Number.NaN)),
  }));
}
