import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parse } from "yaml";
import { EXIT, EXIT_HELP } from "#control/api/exit-status.ts";
import { AdminClient } from "#control/cli/admin-client.ts";
import { findAgent, SOCKET_PATTERNS } from "#control/cli/find-agent.ts";
import { runProgram } from "#control/cli/program.ts";
import { parseWebhookConfig } from "#control/config/webhook.ts";
import { factsOf } from "#proxy/contract/error-codes.ts";
import type { HoldfastError } from "#proxy/contract/errors.ts";

type Answer = (response: ServerResponse, body: string) => void | Promise<void>;

const root = resolve(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "holdfast-cli-"));
const socket = join(folder, "agent.sock");
/** what the fake agent answers, by "METHOD /path" */
const answers = new Map<string, Answer>();
let asked: { route: string; body: unknown }[] = [];
let server: Server;

const json =
  (value: unknown, status = 200): Answer =>
  (response) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(value));
  };

/** NDJSON; numbers are pauses in milliseconds, promises are waited for */
const lines =
  (...values: (object | string | number | Promise<void>)[]): Answer =>
  async (response) => {
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    for (const value of values) {
      if (typeof value === "number") await sleep(value);
      else if (value instanceof Promise) await value;
      else response.write(typeof value === "string" ? value : `${JSON.stringify(value)}\n`);
    }
    response.end();
  };

const move = {
  from: "a",
  to: "b",
  downstream: "takeover",
  sessions: 100,
  messages: null,
  lost: null,
  repeated: null,
  resets: 0,
  blackoutMs: { p50: 80.25, p99: 90, max: 120.5 },
  phasesMs: { prepare: 12, dump: 60 },
  criuMs: { dump: 60, restore: 50 },
  notKept: [],
  outcome: "moved",
  reason: null,
};
const phase = (name: string, state: "start" | "done", more: object = {}) => ({
  type: "phase",
  phase: name,
  state,
  ...more,
});
const MIGRATE = "POST /v1/workloads/chat/migrate";

before(async () => {
  server = createServer(async (request: IncomingMessage, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    const route = `${request.method} ${request.url}`;
    asked.push({ route, body: body === "" ? null : JSON.parse(body) });
    const answer =
      answers.get(route) ??
      json({ error: { code: "WORKLOAD_UNKNOWN", message: "no such workload here" } }, 404);
    await answer(response, body);
  });
  server.listen(socket);
  await once(server, "listening");
});
beforeEach(() => {
  answers.clear();
  asked = [];
});
after(() => {
  server.close();
  server.closeAllConnections();
  rmSync(folder, { recursive: true });
});

interface Outcome {
  status: number;
  out: string;
  err: string;
}

async function run(
  args: string[],
  options: { tty?: boolean; agent?: string; interruptAfterMs?: number; onOutput?(out: string): void } = {},
): Promise<Outcome> {
  let out = "";
  let err = "";
  const status = await runProgram(args, {
    out: {
      write: (text) => {
        out += text;
        options.onOutput?.(out);
      },
      isTTY: options.tty,
    },
    err: { write: (text) => (err += text) },
    env: { HOLDFAST_AGENT: options.agent ?? socket },
    runAgent: async () => assert.fail("an agent"),
    runGateway: async () => assert.fail("a gateway"),
    runWebhook: async () => assert.fail("a webhook"),
    runController: async () => assert.fail("a controller"),
    runEndpoints: async () => assert.fail("endpoints"),
    readInput: async () => assert.fail("standard input"),
    onInterrupt: (first) => {
      if (options.interruptAfterMs !== undefined) setTimeout(first, options.interruptAfterMs);
      return () => {};
    },
  });
  return { status, out, err };
}

function oneObject(text: string): Record<string, unknown> {
  assert.equal(text.trimEnd().split("\n").length, 1, text);
  return JSON.parse(text) as Record<string, unknown>;
}

describe("holdfast migrate", () => {
  test("shows each phase with its time, then a summary, and exits with 0", async () => {
    answers.set(
      MIGRATE,
      lines(
        phase("prepare", "start"),
        phase("prepare", "done", { ms: 12.34, note: "standby ready" }),
        phase("dump", "start"),
        '{"type":"phase","phase":"dump",',
        5,
        '"state":"done","ms":61}\n\n',
        { type: "result", move },
      ),
    );
    const { status, out, err } = await run(["migrate", "chat", "--to", "b", "--deadline", "5000"]);
    assert.equal(err, "");
    assert.equal(status, 0);
    assert.match(
      out,
      /^✔ prepare +12\.3 ms {2}standby ready\n✔ dump +61\.0 ms\nmoved chat from a to b \(takeover\), 100 sessions\n/,
    );
    assert.match(out, /blackout {2}p50 80\.3 ms {2}p99 90\.0 ms {2}max 121 ms\n/);
    assert.deepEqual(asked[0], { route: MIGRATE, body: { to: "b", deadlineMs: 5000 } });
  });

  test("on a terminal the phase under way is drawn live", async () => {
    const drawn = Promise.withResolvers<void>();
    answers.set(
      MIGRATE,
      lines(phase("prepare", "start"), drawn.promise, phase("prepare", "done", { ms: 150 }), {
        type: "result",
        move,
      }),
    );
    const { out } = await run(["migrate", "chat", "--to", "b"], {
      tty: true,
      onOutput: (shown) => {
        if (shown.includes("⠙ prepare")) drawn.resolve();
      },
    });
    assert.match(out, /✔ prepare +150 ms\n/);
  });

  test("--json prints one object with every field, also those the agent left out", async () => {
    const { from, to, downstream, outcome } = move;
    answers.set(
      MIGRATE,
      lines(phase("prepare", "start"), { type: "result", move: { from, to, downstream, outcome } }),
    );
    const { status, out } = await run(["migrate", "chat", "--to", "b", "--json"]);
    assert.equal(status, 0);
    const none = { sessions: null, messages: null, lost: null, repeated: null, resets: null, reason: null };
    const blackoutMs = { p50: null, p99: null, max: null };
    const criuMs = { dump: null, restore: null };
    assert.deepEqual(oneObject(out), {
      from,
      to,
      downstream,
      outcome,
      ...none,
      blackoutMs,
      phasesMs: {},
      criuMs,
      notKept: [],
    });
    answers.set(MIGRATE, lines({ type: "result", move }));
    assert.deepEqual(oneObject((await run(["migrate", "chat", "--to", "b", "--json"])).out), move);
  });

  test("what a move could not keep is told", async () => {
    const notKept = ["process 13 (sleep): stat tty was 34816 and is 0"];
    answers.set(MIGRATE, lines({ type: "result", move: { ...move, notKept } }));
    const { out } = await run(["migrate", "chat", "--to", "b"]);
    assert.match(out, /\nnot kept {2}process 13 \(sleep\): stat tty was 34816 and is 0\n$/);
  });

  test("a move that was rolled back exits with 1 and says why", async () => {
    const result = {
      type: "result",
      move: { ...move, outcome: "rolled-back", reason: "target b died in restore" },
    };
    answers.set(MIGRATE, lines(phase("restore", "start"), result));
    const { status, out } = await run(["migrate", "chat", "--to", "b"]);
    assert.equal(status, 1);
    assert.match(out, /✖ restore/);
    assert.match(out, /rolled back: chat stays on a: target b died in restore\n$/);
    assert.equal((await run(["migrate", "chat", "--to", "b", "--json"])).status, 1);
  });

  test("refusals exit with 4, failures with 1, on one line of stderr", async () => {
    for (const [answer, status] of [
      [json({ error: { code: "MIGRATION_BUSY", message: "a move to c is under way" } }, 409), 4],
      [lines({ type: "error", error: { code: "STORE_BUSY", message: "a move to c is under way" } }), 4],
      [json({ error: { code: "NODE_UNKNOWN", message: "b is no peer" } }, 404), 4],
      [json({ error: { code: "ALREADY_THERE", message: "chat is on b" } }, 409), 4],
      [json({ error: { code: "REQUEST_INVALID", message: "deadlineMs: too big" } }, 400), 2],
      [
        lines(phase("prepare", "start"), {
          type: "error",
          error: { code: "STORE_UNKNOWN", message: "Redis is\ngone" },
        }),
        1,
      ],
      [json({ error: { code: "INTERNAL", message: "x" } }, 500), 1],
    ] as const) {
      answers.set(MIGRATE, answer);
      const outcome = await run(["migrate", "chat", "--to", "b"]);
      assert.equal(outcome.status, status);
      assert.match(outcome.err, /^holdfast: [^\n]+\n$/);
      const asJson = await run(["migrate", "chat", "--to", "b", "--json"]);
      assert.equal(asJson.status, status);
      assert.ok((oneObject(asJson.out).error as { code: string }).code);
    }
    assert.equal((await run(["migrate", "nothing", "--to", "b"])).status, 4);
  });

  test("an agent that goes away, or talks nonsense, exits with 3", async () => {
    for (const answer of [
      lines(phase("dump", "start")),
      lines(phase("dump", "start"), "nonsense\n"),
      lines({ type: "surprise" }),
      lines({ type: "result" }),
      lines("x".repeat(1_100_000)),
      json([1, 2]),
      json("no error field", 502),
      ((response) => {
        response.writeHead(200, { "content-type": "application/x-ndjson" });
        response.write("{");
        setTimeout(() => response.destroy(), 10);
      }) satisfies Answer,
    ]) {
      answers.set(MIGRATE, answer);
      const { status, err } = await run(["migrate", "chat", "--to", "b"]);
      assert.equal(status, 3, err);
      assert.match(err, /^holdfast: [^\n]+\n$/);
    }
  });

  test("Ctrl-C asks the agent to cancel and waits for the outcome", async () => {
    const cancelled = Promise.withResolvers<void>();
    answers.set("POST /v1/workloads/chat/cancel", (response) => {
      cancelled.resolve();
      json({})(response, "");
    });
    answers.set(MIGRATE, async (response) => {
      response.writeHead(200, { "content-type": "application/x-ndjson" });
      response.write(`${JSON.stringify(phase("hold", "start"))}\n`);
      await cancelled.promise;
      response.end(
        JSON.stringify({ type: "result", move: { ...move, outcome: "rolled-back", reason: "cancelled" } }),
      );
    });
    const { status, out } = await run(["migrate", "chat", "--to", "b"], { interruptAfterMs: 30 });
    assert.equal(status, 1);
    assert.match(out, /cancelling; waiting/);
    assert.match(out, /stays on a: cancelled/);
    // Too late: the agent refuses to cancel, the move ends as it ends.
    answers.set(
      "POST /v1/workloads/chat/cancel",
      json({ error: { code: "MOVE_COMMITTED", message: "already committed" } }, 409),
    );
    answers.set(MIGRATE, lines(phase("release", "start"), 80, { type: "result", move }));
    const late = await run(["migrate", "chat", "--to", "b", "--json"], { interruptAfterMs: 10 });
    assert.equal(late.status, 0);
    assert.match(late.err, /did not cancel: already committed/);
    assert.deepEqual(oneObject(late.out), move);
  });

  test("a move that was refused beforehand says why, one finding a line", async () => {
    const findings = [
      {
        id: "target.port-taken",
        node: "b",
        workload: "chat",
        severity: "error",
        what: "taken",
        cure: "stop it",
      },
      { id: "target.kernel-older", node: "b", workload: "chat", severity: "warning", what: "old", cure: "x" },
    ];
    const refused = { ...move, outcome: "rolled-back", reason: "cannot be moved: …", check: { findings } };
    answers.set(MIGRATE, lines({ type: "result", move: refused }));
    const { status, out } = await run(["migrate", "chat", "--to", "b"]);
    assert.equal(status, 1);
    assert.equal(
      out,
      "refused: chat stays on a, and nobody was held\n  ✖ node b: taken → stop it  [target.port-taken]\n",
    );
  });
});

const restarted = {
  workload: "chat",
  node: "a",
  sessions: 12,
  replayed: 3,
  refused: 0,
  reset: 1,
  pauseMs: 431.5,
  phasesMs: { pause: 2, stop: 210, start: 200, resume: 4 },
  outcome: "restarted",
  reason: null,
};
const RESTART = "POST /v1/workloads/chat/restart";

describe("holdfast restart", () => {
  test("shows each phase, attempts that came to nothing, and a summary", async () => {
    answers.set(
      RESTART,
      lines(
        phase("pause", "start"),
        phase("pause", "done", { ms: 2 }),
        phase("start", "start"),
        phase("start", "start", { note: "ended with status 1: no such file" }),
        phase("start", "done", { ms: 200 }),
        { type: "result", restart: restarted },
      ),
    );
    const { status, out, err } = await run(["restart", "chat", "--drain", "50"]);
    assert.deepEqual([status, err], [0, ""]);
    assert.equal(
      out.replaceAll(/ {2,}/g, "  "),
      `✔ pause  2.0 ms
  ended with status 1: no such file
✔ start  200 ms
restarted chat on a: clients waited 432 ms
sessions  12 went on, 3 requests sent again, 1 reset
`,
    );
    assert.deepEqual(asked, [{ route: RESTART, body: { drainMs: 50 } }]);
    const { out: json } = await run(["restart", "chat", "--json"]);
    assert.deepEqual(oneObject(json), restarted);
    assert.deepEqual(asked.at(-1), { route: RESTART, body: {} });
  });

  test("cancelled and failed restarts exit with 1, refused ones with 4", async () => {
    answers.set(
      RESTART,
      lines({ type: "result", restart: { ...restarted, outcome: "cancelled", reason: "cancelled" } }),
    );
    assert.deepEqual(await run(["restart", "chat"]), {
      status: 1,
      out: "cancelled: chat goes on as before\n",
      err: "",
    });
    answers.set(
      RESTART,
      lines(phase("start", "start"), {
        type: "error",
        error: { code: "APPLICATION_DOWN", message: "chat did not come up: ended with status 1: no luck" },
      }),
    );
    const failed = await run(["restart", "chat"]);
    assert.equal(failed.status, 1);
    assert.match(failed.err, /^holdfast: chat did not come up: ended with status 1: no luck\n$/);
    for (const [code, status] of [
      ["RESTART_BUSY", 4],
      ["MIGRATION_BUSY", 4],
      ["NOT_OWNER", 4],
      ["CONFIG_INVALID", 2],
    ] as const) {
      answers.set(RESTART, json({ error: { code, message: "no" } }, 409));
      assert.equal((await run(["restart", "chat"])).status, status, code);
    }
    answers.set(RESTART, lines({ type: "result" }));
    assert.equal((await run(["restart", "chat"])).status, 3);
  });

  test("Ctrl-C asks the agent to cancel and waits for the outcome", async () => {
    let cancelled = () => {};
    const untilCancelled = new Promise<void>((resolve) => {
      cancelled = resolve;
    });
    answers.set("POST /v1/workloads/chat/cancel", (response) => {
      json({ cancelled: true })(response, "");
      cancelled();
    });
    answers.set(RESTART, async (response, body) => {
      await untilCancelled;
      await lines({ type: "result", restart: { ...restarted, outcome: "cancelled" } })(response, body);
    });
    const { status, out } = await run(["restart", "chat"], { interruptAfterMs: 20 });
    assert.equal(status, 1);
    assert.match(out, /cancelling; waiting for the outcome.*\ncancelled: chat goes on as before\n$/s);
  });
});

describe("holdfast lookup", () => {
  const found = {
    name: "user/42",
    workload: "chat",
    node: "b",
    epoch: 3,
    ports: [
      { listen: 8080, address: "10.99.0.50" },
      { listen: 8443, address: "fd00::50" },
    ],
  };

  test("tells where the session of that name is served", async () => {
    answers.set("GET /v1/lookup/user%2F42", json(found));
    assert.deepEqual(await run(["lookup", "user/42"]), {
      status: 0,
      out: "chat on node b (epoch 3): 10.99.0.50:8080, [fd00::50]:8443\n",
      err: "",
    });
    assert.deepEqual(oneObject((await run(["lookup", "user/42", "--json"])).out), found);
    answers.set("GET /v1/lookup/user%2F42?workload=chat", json(found));
    assert.equal((await run(["lookup", "user/42", "--workload", "chat"])).status, 0);
  });

  test("an unknown name exits with 4 and says so", async () => {
    const message = "no session of that name has been seen in the last hour; workloads that were asked: chat";
    answers.set("GET /v1/lookup/42", json({ error: { code: "NAME_UNKNOWN", message } }, 404));
    assert.deepEqual(await run(["lookup", "42"]), { status: 4, out: "", err: `holdfast: ${message}\n` });
    answers.set("GET /v1/lookup/42", json({ error: { code: "NAME_AMBIGUOUS", message: "two" } }, 409));
    assert.equal((await run(["lookup", "42"])).status, 4);
  });
});

describe("holdfast status, sessions, check, start, stop", () => {
  test("status is a table, or the agent's answer as it is", async () => {
    const status = {
      node: "a",
      pid: 7,
      uptimeMs: 125_000,
      store: { url: "redis://10.99.0.1:6379", ok: false, reason: "ECONNREFUSED" },
      peers: [{ node: "b", address: "10.99.0.3:7400", connected: true }],
      workloads: [
        {
          name: "chat",
          role: "owner",
          owner: "a",
          epoch: 3,
          state: "released",
          downstream: "forward",
          sessions: 12,
          moving: null,
        },
        { name: "\u001b[2Jevil", moving: { to: "b", step: "dump" } },
        { name: "mail", state: "waiting", problem: { what: "node b cannot be asked", cure: "start it" } },
      ],
      newer: true,
    };
    answers.set("GET /v1/status", json(status));
    const { status: exit, out } = await run(["status"]);
    assert.equal(exit, 0);
    assert.match(
      out,
      /^node a {2}pid 7 {2}up 2 min\nstore .* NOT REACHABLE: ECONNREFUSED\npeer b 10\.99\.0\.3:7400 {2}connected\n/,
    );
    assert.match(out, /chat +owner +a +3 +released +forward +12 +-/);
    assert.match(out, /to b, dump/);
    assert.match(out, /\n\nmail: node b cannot be asked\n {2}start it\n$/);
    assert.ok(!out.includes("\u001b"), "control characters of others never reach the terminal");
    assert.deepEqual(oneObject((await run(["status", "--json"])).out), status);
  });

  test("sessions, also none and of an unknown workload", async () => {
    const route = "GET /v1/workloads/chat/sessions";
    const one = {
      id: "s1",
      port: 0,
      client: "10.0.0.9:4000",
      anchor: "a",
      place: "here",
      state: "open",
      bytesIn: 5,
      bytesOut: 6,
      ageMs: 1500,
    };
    answers.set(route, json({ sessions: [one] }));
    const { status, out } = await run(["sessions", "chat"]);
    assert.equal(status, 0);
    assert.match(
      out,
      /^SESSION +CLIENT.* PROTOCOL +IN FLIGHT +BYTES IN.*\ns1 +10\.0\.0\.9:4000 +0 +a +here +open +- +- +5 +6 +1 s\n$/,
    );
    const named = { ...one, protocol: "http", requestsInFlight: 2, requests: 7, continuity: "replay" };
    const name = `4\u001b[31m2${"x".repeat(100)}`;
    answers.set(
      route,
      json({
        sessions: [
          { ...named, name },
          { ...named, name: null },
        ],
      }),
    );
    const both = (await run(["sessions", "chat"])).out;
    assert.match(both, / PROTOCOL +NAME +IN FLIGHT /);
    assert.match(both, / open +http +4 \[31m2x{16}… +2 +5 /);
    assert.match(both, / open +http +- +2 +5 /);
    answers.set(route, json({ sessions: [one] }));
    assert.deepEqual(oneObject((await run(["sessions", "chat", "--json"])).out), { sessions: [one] });
    answers.set(route, json({ sessions: [] }));
    assert.equal((await run(["sessions", "chat"])).out, "no sessions\n");
    assert.equal((await run(["sessions", "../x"])).status, 4);
    assert.equal(asked.at(-1)?.route, "GET /v1/workloads/..%2Fx/sessions");
  });

  test("check shows what is well, what blocks and its cure, and exits with 1 when something blocks", async () => {
    const on = { node: "a", workload: null };
    const chat = { node: "a", workload: "chat" };
    const checked = [
      { ...on, category: "store" },
      { ...on, category: "disk" },
      { ...chat, category: "descriptors" },
    ];
    const hint = {
      ...on,
      id: "node.disk-full",
      category: "disk",
      severity: "warning",
      what: "disk full",
      cure: "free",
    };
    const bad = {
      ...chat,
      id: "descriptor.io-uring",
      category: "descriptors",
      severity: "error",
      what: "pid 7 has \u001b[2Jio_uring",
      cure: "use seccomp",
    };
    answers.set("GET /v1/check", json({ checked, findings: [] }));
    assert.deepEqual(await run(["check"]), {
      status: 0,
      out: "node a\n  ✔ store\n  ✔ disk\nworkload chat on node a\n  ✔ descriptors\n✔ nothing stands in the way of a move\n",
      err: "",
    });
    answers.set("GET /v1/check", json({ checked, findings: [hint] }));
    assert.equal((await run(["check"])).status, 0);
    answers.set("GET /v1/check", json({ checked, findings: [bad, hint] }));
    const { status, out } = await run(["check"]);
    assert.equal(status, 1);
    assert.equal(
      out,
      "node a\n  ✔ store\n  ! disk full → free  [node.disk-full]\n" +
        "workload chat on node a\n  ✖ pid 7 has  [2Jio_uring → use seccomp  [descriptor.io-uring]\n1 blocking, 1 warnings\n",
    );
    const asJson = await run(["check", "--json"]);
    assert.equal(asJson.status, 1);
    assert.deepEqual(oneObject(asJson.out), { checked, findings: [bad, hint] });
  });

  test("check asks of one workload and one node", async () => {
    answers.set("GET /v1/check?workload=chat&to=b", json({ findings: [] }));
    assert.equal((await run(["check", "chat", "--to", "b"])).status, 0);
    answers.set("GET /v1/check?to=b%26", json({ findings: [] }));
    assert.equal((await run(["check", "--to", "b&"])).status, 0);
  });

  test("check --dry-run shows the phases, the findings and how long clients would wait", async () => {
    const route = "POST /v1/workloads/chat/check";
    const range = { low: 60, likely: 100, high: 450.4 };
    const prediction = { pauseMs: range, parts: [{ phase: "dump", ms: range, from: "1 \u001b processes" }] };
    const check = { checked: [{ node: "b", workload: "chat", category: "files" }], findings: [], prediction };
    answers.set(
      route,
      lines(phase("prepare", "done", { ms: 3 }), phase("undo", "done", { ms: 4 }), { type: "result", check }),
    );
    const { status, out } = await run(["check", "chat", "--to", "b", "--dry-run"]);
    assert.equal(status, 0);
    assert.equal(
      out,
      "✔ prepare              3.0 ms\n✔ undo                 4.0 ms\n" +
        "workload chat on node b\n  ✔ files\n✔ nothing stands in the way of a move\n" +
        "clients would wait about 100 ms (60-450 ms)\n  dump         100 ms       60-450 ms  1   processes\n",
    );
    assert.deepEqual(asked.at(-1), { route, body: { to: "b" } });
    const failed = { id: "rehearsal.failed", workload: "chat", severity: "error", what: "no", cure: "x" };
    answers.set(route, lines({ type: "result", check: { findings: [failed] } }));
    assert.equal((await run(["check", "chat", "--to", "b", "--dry-run", "--json"])).status, 1);
    assert.equal((await run(["check", "chat", "--dry-run"])).status, 2);
    assert.equal((await run(["check", "--to", "b", "--dry-run"])).status, 2);
  });

  test("check --allow takes the ids of findings that do not block", async () => {
    const of = (id: string) => ({ id, workload: "chat", severity: "error", what: id, cure: "x" });
    answers.set("GET /v1/check", json({ findings: [of("a.b"), of("c.d.e")] }));
    assert.equal((await run(["check", "--allow", "a.b"])).status, 1);
    assert.equal((await run(["check", "--allow", "a", "--allow", "c.d.eff"])).status, 1);
    const { status, out } = await run(["check", "--allow", "a.b", "--allow", "c.d"]);
    assert.equal(status, 0);
    assert.match(out, /- a\.b → x .*\n.*- c\.d\.e → x .*\n0 blocking, 0 warnings, 2 allowed\n$/);
    const { findings } = oneObject((await run(["check", "--json", "--allow", "a.b"])).out) as {
      findings: { allowed?: true }[];
    };
    assert.deepEqual(
      findings.map(({ allowed }) => allowed),
      [true, undefined],
    );
  });

  test("start says what was refused, with the cure, and asks by force only when told to", async () => {
    const route = "POST /v1/workloads/chat/start";
    answers.set(route, json({}));
    assert.deepEqual(await run(["start", "chat"]), { status: 0, out: "started chat\n", err: "" });
    assert.deepEqual(asked.at(-1)?.body, { force: false });
    assert.equal((await run(["start", "chat", "--force"])).status, 0);
    assert.deepEqual(asked.at(-1)?.body, { force: true });
    answers.set(route, json({ error: { code: "OWNER_UNKNOWN", message: "ask b, or --force" } }, 409));
    const { status, err } = await run(["start", "chat"]);
    assert.deepEqual([status, err], [4, "holdfast: ask b, or --force\n"]);
  });

  test("stop takes a plain answer or lines", async () => {
    const route = "POST /v1/workloads/chat/stop";
    answers.set(route, json({ ok: true }));
    assert.deepEqual(await run(["stop", "chat"]), { status: 0, out: "stopped chat\n", err: "" });
    answers.set(route, lines(phase("kill", "done", { ms: 3 }), { type: "result" }));
    assert.match((await run(["stop", "chat"])).out, /✔ kill +3\.0 ms\nstopped chat\n/);
    assert.deepEqual(oneObject((await run(["stop", "chat", "--json"])).out), { workload: "chat" });
  });
});

describe("usage", () => {
  test("wrong usage exits with 2 and asks the agent nothing", async () => {
    for (const args of [
      [],
      ["fly"],
      ["migrate"],
      ["migrate", "chat"],
      ["migrate", "chat", "--to", "b", "--deadline", "soon"],
      ["status", "--loud"],
      ["status", "extra"],
      ["agent"],
      ["gateway"],
      ["agent", "--config", "x", "--log-level", "shout"],
      ["status", "--agent", "nonsense"],
    ]) {
      const { status, out, err } = await run(args);
      assert.equal(status, 2, args.join(" "));
      assert.equal(out, "", args.join(" "));
      assert.notEqual(err, "");
    }
    assert.deepEqual(asked, []);
  });

  test("--help everywhere tells the exit statuses", async () => {
    for (const command of [
      [],
      ["agent"],
      ["gateway"],
      ["status"],
      ["sessions"],
      ["check"],
      ["migrate"],
      ["start"],
      ["stop"],
    ]) {
      const { status, out } = await run([...command, "--help"]);
      assert.equal(status, 0);
      assert.match(out, /Exit status:\n {2}0 {4}done/);
    }
    assert.match((await run(["--version"])).out, /^\d+\.\d+\.\d+\n$/);
  });

  test("the README's exit statuses are those of --help", () => {
    const readme = readFileSync(join(root, "README.md"), "utf8");
    const [, rows = ""] = /\n\| exit status \| \|\n\|---\|---\|\n((?:\|.*\n)+)/.exec(readme) ?? [];
    const help = EXIT_HELP.replaceAll(/\n {7}/g, " ")
      .split("\n")
      .slice(2);
    assert.deepEqual(
      rows.replaceAll("`", "").trimEnd().split("\n"),
      help.map((line) => line.trim().replace(/^(\d+) +(.*)$/, "| $1 | $2 |")),
    );
    assert.deepEqual(
      help.map((line) => Number.parseInt(line, 10)),
      Object.values(EXIT),
    );
  });

  test("--help names everybody who may be out of reach, or refuse", () => {
    const registry = readFileSync(join(root, "proxy/contract/error-codes.ts"), "utf8");
    const codes = [...registry.matchAll(/^ {2}([A-Z][A-Z0-9_]+): \{/gm)].map(([, code = ""]) => code);
    const [, unreachable = "", refused = ""] =
      /\n3 (.*)\n4 (.*)\n130 /.exec(
        EXIT_HELP.replaceAll(/\n {7}/g, " ")
          .replaceAll(/ +/g, " ")
          .replaceAll("\n ", "\n"),
      ) ?? assert.fail(EXIT_HELP);
    const others = { KUBERNETES: /API server/, KUBECTL: /kubectl/, ENVOY: /Envoy/ };
    for (const code of codes) {
      const exit = factsOf(code)?.exit;
      if (exit !== "unreachable" && exit !== "refused") continue;
      const [who = ""] = code.split("_");
      const name = Object.hasOwn(others, who) ? others[who as keyof typeof others] : /agent/;
      assert.match(exit === "refused" ? refused : unreachable, name, code);
    }
  });

  test("a mistake in the configuration is one line and exits with 2", async () => {
    const file = join(folder, "bad.yaml");
    writeFileSync(file, "node: A\n");
    const { status, err } = await run(["agent", "--config", file]);
    assert.equal(status, 2);
    assert.equal(
      err,
      `holdfast: ${file}: node: expected a name of 1-63 small letters, digits and dashes, with dots between, got "A"\n`,
    );
  });

  test("no agent exits with 3 and says what to do", async () => {
    const { status, err, out } = await run(["status", "--json"], { agent: join(folder, "absent.sock") });
    assert.equal(status, 3);
    assert.match(
      err,
      /^holdfast: no answer from the agent at .*absent\.sock: there is no such socket; is the agent running/,
    );
    assert.equal((oneObject(out).error as { code: string }).code, "AGENT_UNREACHABLE");
    assert.equal((await run(["status", "--agent", "http://127.0.0.1:1"])).status, 3);
  });

  test("an agent can be reached over HTTP", async () => {
    const http = createServer((_request, response) => json({ node: "z" })(response, "")).listen(
      0,
      "127.0.0.1",
    );
    await once(http, "listening");
    const { port } = http.address() as AddressInfo;
    for (const agent of [`http://127.0.0.1:${port}`, `127.0.0.1:${port}`]) {
      assert.match((await run(["status", "--agent", agent])).out, /^node z /);
    }
    http.close();
    await once(http, "close");
  });

  test("logs shows its token to an agent over HTTP, as every command that asks one does", async () => {
    const tokenFile = join(folder, "admin.token");
    writeFileSync(tokenFile, "0123456789abcdef\n");
    const http = createServer(({ headers, url }, response) => {
      response.writeHead(headers.authorization === "Bearer 0123456789abcdef" ? 200 : 401);
      response.end(`${url}\n`);
    }).listen(0, "127.0.0.1");
    await once(http, "listening");
    const { port } = http.address() as AddressInfo;
    const agent = ["--agent", `http://127.0.0.1:${port}`, "--token-file", tokenFile];
    const { status, out, err } = await run(["logs", "chat", "-n", "5", ...agent]);
    assert.deepEqual(
      { status, out, err },
      { status: 0, out: "/v1/workloads/chat/logs?lines=5&follow=0\n", err: "" },
    );
    http.close();
    await once(http, "close");
  });

  test("the README tells which commands ask an agent and which print JSON, and where a socket is looked for", async () => {
    const readme = readFileSync(join(root, "README.md"), "utf8");
    const table = readme.slice(readme.indexOf("| command | what it does |"));
    const commands = new Set(
      [...table.slice(0, table.indexOf("\n\n")).matchAll(/`npx holdfast (\w+)/g)].map(
        ([, name = ""]) => name,
      ),
    );
    assert.ok(commands.size > 12, [...commands].join());
    const [, without = "", silent = "", places = ""] =
      /All but (.*?) take `--agent`[^.]*? and `--token-file`; these but (.*?) take `--json`\. (Without[^.]*(?:\.\w[^.]*)*)\./.exec(
        table.replaceAll(/\s+/g, " "),
      ) ?? assert.fail("no sentence about --agent");
    const named = (text: string): string[] => [...text.matchAll(/`(\w+)`/g)].map(([, name = ""]) => name);
    for (const command of commands) {
      const { out } = await run([command, "--help"]);
      const asksAgent = !named(without).includes(command);
      for (const option of ["--agent <", "--token-file <"])
        assert.equal(out.includes(`  ${option}`), asksAgent, `${command} ${option}`);
      const isJson = asksAgent && !named(silent).includes(command);
      assert.equal(/^ {2}--json /m.test(out), isJson, `${command} --json`);
    }
    for (const pattern of SOCKET_PATTERNS) assert.ok(places.includes(`\`${pattern}\``), pattern);
    assert.match(places, /HOLDFAST_AGENT.*agent\.sock/);
  });

  test("diagnostics, which are of a whole cluster, take no namespace", async () => {
    const { status, err } = await run(["diagnostics", "-n", "games"]);
    assert.equal(status, 2);
    assert.match(err, /unknown option '-n'/);
  });

  test("webhook --help has a file with every key, and says where the API server asks", async () => {
    const { out } = await run(["webhook", "--help"]);
    const file = out.slice(out.indexOf("The file:\n") + "The file:\n".length);
    const text = file.slice(0, file.indexOf("\n\n"));
    const raw = parse(text);
    const read = parseWebhookConfig(text, "webhook.yaml");
    for (const key of [[], ["proxy"], ["proxy", "resources"], ["renewal"]] as string[][]) {
      const keysAt = (one: unknown): string[] =>
        Object.keys(key.reduce((inner, name) => (inner as never)[name], one as object)).toSorted();
      assert.deepEqual(keysAt(raw), keysAt(read), key.join("."));
    }
    const served = readFileSync(join(root, "control/kubernetes/webhook/server.ts"), "utf8");
    const paths = [...served.matchAll(/"(\/[a-z]+)":/g)].map(([, path = ""]) => path);
    assert.equal(paths.length, 5);
    for (const path of paths) assert.match(text, new RegExp(`${path}\\b`));
  });

  test("without --agent the only socket is taken; none and several are errors", async () => {
    const patterns = [join(folder, "state/*/agent.sock")];
    const code = (expected: string) => (error: HoldfastError) => error.code === expected;
    mkdirSync(join(folder, "state/a"), { recursive: true });
    writeFileSync(join(folder, "state/a/agent.sock"), "not a socket");
    assert.throws(() => findAgent(undefined, patterns), code("AGENT_NOT_FOUND"));
    const others: Server[] = [];
    for (const node of ["b", "c"]) {
      mkdirSync(join(folder, "state", node));
      const path = join(folder, "state", node, "agent.sock");
      const other = createServer().listen(path);
      await once(other, "listening");
      others.push(other);
      if (node === "b") assert.deepEqual(findAgent(undefined, patterns), { type: "socket", path });
    }
    assert.throws(() => findAgent("", patterns), /several agents .*b\/agent\.sock, .*c\/agent\.sock/);
    for (const other of others) other.close();
  });

  test("a client that is closed lets the process end", async () => {
    const client = new AdminClient({ type: "socket", path: socket });
    await client.close();
  });
});

describe("bin/holdfast", () => {
  const launch = (path: string, args: string[]) =>
    spawn(path, args, { env: { ...process.env, HOLDFAST_AGENT: socket }, cwd: "/" });

  async function finish(child: ReturnType<typeof launch>): Promise<Outcome> {
    let out = "";
    let err = "";
    child.stdout.on("data", (chunk) => (out += chunk));
    child.stderr.on("data", (chunk) => (err += chunk));
    const [status] = (await once(child, "close")) as [number];
    return { status, out, err };
  }

  test("starts from anywhere, through symbolic links", async () => {
    mkdirSync(join(folder, "bin"));
    symlinkSync(join(root, "bin/holdfast"), join(folder, "bin/first"));
    symlinkSync("first", join(folder, "bin/holdfast"));
    answers.set("GET /v1/status", json({ node: "a" }));
    const { status, out, err } = await finish(launch(join(folder, "bin/holdfast"), ["status", "--json"]));
    assert.equal(err, "");
    assert.equal(status, 0);
    assert.equal(oneObject(out).node, "a");
  });

  test("says so when set-up has not been run", async () => {
    mkdirSync(join(folder, "clone/bin"), { recursive: true });
    copyFileSync(join(root, "bin/holdfast"), join(folder, "clone/bin/holdfast"));
    const { status, err } = await finish(launch(join(folder, "clone/bin/holdfast"), ["status"]));
    assert.equal(status, 2);
    assert.match(err, /^holdfast: set-up has not been run: [^\n]+\n$/);
  });

  test("one SIGINT cancels and waits, a second one leaves with 130", async () => {
    let cancels = 0;
    answers.set("POST /v1/workloads/chat/cancel", (response) => {
      cancels += 1;
      json({})(response, "");
    });
    answers.set(MIGRATE, (response) => {
      response.writeHead(200, { "content-type": "application/x-ndjson" });
      response.write(`${JSON.stringify(phase("hold", "done", { ms: 1 }))}\n`);
    });
    const child = launch(join(root, "bin/holdfast"), ["migrate", "chat", "--to", "b"]);
    const finished = finish(child);
    await once(child.stdout, "data");
    child.kill("SIGINT");
    while (cancels === 0) await sleep(5);
    assert.equal(child.exitCode, null);
    child.kill("SIGINT");
    const { status, out } = await finished;
    assert.equal(status, 130);
    assert.match(out, /cancelling/);
    assert.equal(cancels, 1);
  });
});
