/** The chart's alerts and dashboard ask for metrics that the processes have, with labels that these have. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import type { Registry } from "@prometheus-io/client";
import { AgentMetrics } from "#control/agent/metrics.ts";
import { ControllerMetrics } from "#control/kubernetes/controller/metrics.ts";
import { WebhookMetrics } from "#control/kubernetes/webhook/metrics.ts";

const CHART = join(import.meta.dirname, "../../charts/holdfast");
const rules = readFileSync(join(CHART, "templates/monitoring.yaml"), "utf8");
const dashboard = JSON.parse(readFileSync(join(CHART, "dashboard.json"), "utf8")) as {
  panels: { title: string; targets: { expr: string }[] }[];
};

/** As Prometheus would find them. */
async function exposed(): Promise<Set<string>> {
  const registries: Registry[] = [
    new ControllerMetrics().registry,
    new AgentMetrics(new Map()).registry,
    new WebhookMetrics(() => 0).registry,
  ];
  const names = new Set<string>();
  for (const registry of registries)
    for (const [, name = "", type] of (await registry.metrics()).matchAll(/^# TYPE (\S+) (\S+)/gm)) {
      names.add(name);
      if (type === "histogram") for (const part of ["bucket", "sum", "count"]) names.add(`${name}_${part}`);
    }
  return names;
}

describe("the chart's monitoring", () => {
  it("has the alerts that are promised, each with what to do", () => {
    const alerts = rules.split(/^ +- alert: /m).slice(1);
    assert.deepEqual(
      alerts.map((text) => text.split("\n", 1)[0]),
      [
        ...["MoveFailed", "MoveStuck", "WorkloadNotMovable", "SidecarMissing", "PauseBudgetBurn"],
        ...["WatchSilent", "CertificateExpires"],
      ].map((name) => `Holdfast${name}`),
    );
    for (const text of alerts) assert.match(text, /expr:.*severity:.*summary: .*description: /s);
  });

  it("asks for metrics that there are", async () => {
    const names = await exposed();
    const asked = [
      ...rules.matchAll(/\bholdfast_\w+/g),
      ...dashboard.panels.flatMap(({ targets }) =>
        targets.flatMap(({ expr }) => [...expr.matchAll(/\bholdfast_\w+/g)]),
      ),
    ].map(([name]) => name);
    assert.ok(asked.length > 25, String(asked.length));
    assert.deepEqual(
      [...new Set(asked)].filter((name) => !names.has(name)),
      [],
    );
  });

  it("asks for pauses by a bound that the histogram has, whatever the values say", async () => {
    const schema = JSON.parse(readFileSync(join(CHART, "values.schema.json"), "utf8"));
    const allowed = schema.properties.monitoring.properties.prometheusRule.properties.pauseSeconds
      .enum as number[];
    const text = await new ControllerMetrics().registry.metrics();
    const bounds = [...text.matchAll(/^holdfast_controller_pause_seconds_bucket\{le="([\d.]+)"/gm)];
    assert.deepEqual(
      bounds.map(([, bound]) => Number(bound)),
      allowed,
    );
  });
});
