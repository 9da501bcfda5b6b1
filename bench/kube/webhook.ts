/**
 * Admissions at a fixed rate. Two things are asked in turn: the webhook of the chart, in its pod, over TLS, as the API server asks it; and the API
 * server, to make pods (dry runs), in a namespace that asks for injection and in one that does not.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { API_PORT } from "#test/kube/credentials.ts";
import { nodeBinary, projectRoot } from "#test/lab/lab.ts";
import { podShapes } from "#test/support/pod-shapes.ts";
import { reviewOf } from "#test/support/reviews.ts";
import { GAMES, SYSTEM } from "../../scripts/kube-stage.ts";
import { median } from "../figures.ts";
import type { BenchPiece, Run } from "../piece.ts";
import { KUBE } from "../report/kube-goals.ts";
import { p99s } from "../report/percentiles.ts";
import type { Figure, Percentile } from "../results.ts";
import type { Answers, AskOptions } from "./asker.ts";
import { type KubeLab, OPEN_SECONDS, type SharedLab } from "./laboratory.ts";

const PER_SECOND = 50;
const PERCENTILES = [50, 75, 90, 95, 99, 99.9, 100];
const WEBHOOK = "holdfast";
/** nobody asks for injection there */
const PLAIN = "default";

export function webhookPiece(shared: SharedLab): BenchPiece {
  return {
    name: `${KUBE}webhook`,
    title: `${PER_SECOND} admissions a second`,
    estimateSeconds: ({ seconds }) => OPEN_SECONDS + 3 * (seconds + 4),
    async measure(run) {
      const lab = await shared.open(run);
      const figures: Figure[] = [];
      for (const [asked, question] of [
        ["webhook", await toWebhook(lab)],
        ["API server, injected", toApiServer(lab, GAMES)],
        ["API server, plain", toApiServer(lab, PLAIN)],
      ] as const)
        figures.push(...(await ask(run, lab, asked, question)));
      return figures;
    },
  };
}

type Question = Omit<AskOptions, "bodies" | "perSecond" | "seconds"> & { texts: string[] };

async function ask(run: Run, lab: KubeLab, asked: string, question: Question): Promise<Figure[]> {
  const { cluster } = lab;
  const { texts, ...where } = question;
  const bodies = join(cluster.lab.dir, "bodies.json");
  writeFileSync(bodies, JSON.stringify(texts));
  const options: AskOptions = { ...where, bodies, perSecond: PER_SECOND, seconds: run.seconds };
  const argv = [nodeBinary, join(projectRoot, "bench/kube/asker.ts"), JSON.stringify(options)];
  const timeoutMs = run.seconds * 1_000 + 120_000;
  const { status, stderr, json } = await cluster.run(argv, { timeoutMs });
  if (status !== 0 || json === undefined) throw new Error(`${asked} was not asked: ${stderr}`);
  return figuresOf(run, asked, json as Answers);
}

/** None where one question was not answered as it should be: how soon somebody fails is no latency. */
export function figuresOf(
  { say, problem }: Pick<Run, "say" | "problem">,
  asked: string,
  { ms, lateMs, failures }: Answers,
): Figure[] {
  for (const failure of failures) problem(`${asked}, ${PER_SECOND} admissions/s`, failure);
  if (failures.length > 0) return [];
  const curve = curveOf(ms);
  const figure = (metric: string, value: number): Figure => ({
    ...{ peer: "holdfast", parameters: { asked, perSecond: PER_SECOND }, metric, rounds: [value] },
  });
  const latency: Figure = { ...figure("latencyUs", median(ms) * 1_000), percentiles: [curve] };
  const [p99Us, lateP99Us] = p99s({ percentiles: [curve, curveOf(lateMs)] }) as [number, number];
  say(`${asked}: p50 ${median(ms).toFixed(1)} ms, p99 ${(p99Us / 1_000).toFixed(1)} ms`);
  return [latency, figure("generatorLateP99Us", lateP99Us)];
}

async function toWebhook({ cluster }: KubeLab): Promise<Question> {
  const selector = encodeURIComponent("app.kubernetes.io/component=webhook");
  const { items } = await cluster.api("GET", `/api/v1/namespaces/${SYSTEM}/pods?labelSelector=${selector}`);
  const [pod] = items;
  const configuration = await cluster.api(
    "GET",
    `/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/${WEBHOOK}`,
  );
  const { service, caBundle } = configuration.webhooks[0].clientConfig;
  const authority = join(cluster.lab.dir, "webhook-ca.pem");
  writeFileSync(authority, Buffer.from(caBundle, "base64"));
  const { ports } = pod.spec.containers[0];
  return {
    host: pod.status.podIP,
    port: ports.find(({ name }: { name: string }) => name === "https").containerPort,
    path: service.path,
    serverName: `${service.name}.${service.namespace}.svc`,
    authority,
    texts: podShapes().map(({ pod: shape }) => JSON.stringify(reviewOf(shape, { namespace: GAMES }))),
  };
}

function toApiServer({ cluster }: KubeLab, namespace: string): Question {
  const pod = {
    ...{ apiVersion: "v1", kind: "Pod", metadata: { generateName: "chat-" } },
    spec: { containers: [{ name: "app", image: "app", command: ["/app"], ports: [{ containerPort: 80 }] }] },
  };
  return {
    ...{ host: cluster.lab.switch.address, port: API_PORT, serverName: "kubernetes.default.svc" },
    path: `/api/v1/namespaces/${namespace}/pods?dryRun=All`,
    ...{ authority: cluster.serverCertificate.authority, kubeconfig: cluster.kubeconfig },
    texts: [JSON.stringify(pod)],
  };
}

function curveOf(ms: readonly number[]): Percentile[] {
  const sorted = ms.toSorted((one, other) => one - other);
  return PERCENTILES.map((p) => {
    const at = sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)] ?? 0;
    return { p, valueUs: at * 1_000 };
  });
}
