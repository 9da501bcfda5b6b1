/**
 * The report of `npm run bench`: what is in the page, in a real Chromium; what is made of figures; and how a run is conducted, cut
 * off and kept. Figures here are made up: nothing is said of how fast anything is.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { pathToFileURL } from "node:url";
import { CalmWatch, cpuTime } from "#bench/calm.ts";
import { conduct } from "#bench/conduct.ts";
import type { BenchPiece } from "#bench/piece.ts";
import { type CpuProfile, callTree, selfTimes } from "#bench/profile/call-tree.ts";
import { renderFlamePage } from "#bench/profile/flame.ts";
import { judge } from "#bench/report/goals.ts";
import { renderMarkdown } from "#bench/report/markdown.ts";
import { renderPage } from "#bench/report/page.ts";
import { middleCurve, quantile } from "#bench/report/percentiles.ts";
import { BEGIN, END, renderSection, replaceSection } from "#bench/report/readme.ts";
import { drawBars, drawLines } from "#bench/report/svg.ts";
import { addRound, type BenchResults, type Figure, type Piece, parseResults } from "#bench/results.ts";
import type { Stage } from "#bench/stage.ts";
import { Browser } from "#test/support/browser.ts";
import { madeUpResults, PEERS } from "#test/support/made-up-results.ts";

interface SeenPicture {
  title: string;
  marks: number;
  /** marks and texts that are not where they can be seen, and numbers that are none */
  wrong: string[];
  /** shown for one unit of the picture */
  scale: number;
  widths: number[];
}

/** What goals are judged by. */
type Judged = Pick<BenchResults, "command" | "pieces">;

/** Runs in the page: what is drawn, by the browser's own measure. */
const LOOK = `[...document.querySelectorAll("svg.picture:not(.swatch)")].map((svg) => {
  const box = svg.getBoundingClientRect();
  const wrong = [];
  const inside = (what, rect) => {
    const numbers = [rect.left, rect.top, rect.right, rect.bottom];
    if (!numbers.every(Number.isFinite)) wrong.push(what + " is nowhere");
    else if (rect.left < box.left - .5 || rect.right > box.right + .5 || rect.top < box.top - .5 || rect.bottom > box.bottom + .5)
      wrong.push(what + " is outside");
  };
  const marks = [...svg.querySelectorAll(".mark")];
  for (const mark of marks) {
    const rect = mark.getBoundingClientRect();
    inside(mark.querySelector("title").textContent, rect);
    if (rect.width === 0 && rect.height === 0) wrong.push(mark.querySelector("title").textContent + " is not drawn");
    const { fill, stroke, display, visibility } = getComputedStyle(mark);
    if ((fill === "none" && stroke === "none") || display === "none" || visibility !== "visible") wrong.push("an invisible mark");
  }
  const texts = [...svg.querySelectorAll("text")];
  const rects = texts.map((text) => text.getBoundingClientRect());
  for (const [index, rect] of rects.entries()) {
    inside(texts[index].textContent, rect);
    for (const [other, there] of rects.entries())
      if (other > index && rect.left < there.right - 1 && there.left < rect.right - 1 && rect.top < there.bottom - 1 && there.top < rect.bottom - 1)
        wrong.push(texts[index].textContent + " is on " + texts[other].textContent);
  }
  if (/NaN|undefined|Infinity|null/.test(svg.outerHTML)) wrong.push("a number that is none");
  return { title: svg.querySelector(".heading").textContent, marks: marks.length, wrong,
    scale: box.width / svg.viewBox.baseVal.width, widths: marks.map((mark) => mark.getBoundingClientRect().width) };
})`;

describe("the report's page in a browser", { timeout: 300_000 }, () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-report-test-"));
  const file = join(directory, "report.html");
  const results = madeUpResults();
  let browser: Browser;

  before(async () => {
    writeFileSync(file, renderPage(results));
    browser = await Browser.start();
    await browser.show({ width: 1400, height: 900 });
    await browser.open(pathToFileURL(file).href);
  });
  after(async () => {
    await browser?.close();
    rmSync(directory, { recursive: true });
  });

  it("has every picture, with everything in it drawn where it can be seen", async () => {
    const pictures = await browser.evaluate<SeenPicture[]>(LOOK);
    assert.deepEqual(
      pictures.map(({ title, marks }) => [title, marks]),
      [
        ...[1, 32, 256].map((count) => [
          `requests/s, ${count} connection${count === 1 ? "" : "s"}`,
          PEERS.length,
        ]),
        ...[1, 32, 256].map((count) => [
          `CPU seconds per million requests, ${count} connection${count === 1 ? "" : "s"}`,
          PEERS.length - 1,
        ]),
        ["1 connection, 5,000/s", PEERS.length],
        ["32 connections, 5,000/s", PEERS.length],
        ["messages/s", 3],
        ["memory of the process a session, kB", 3],
        // two parts of bare CRIU, seven phases of either move
        ...["10", "100", "1,000"].map((count) => [`32 MB memory, ${count} sessions`, 16]),
        ["blackout seen by clients, ms, 32 MB memory", 3],
      ],
    );
    for (const { title, wrong } of pictures) assert.deepEqual(wrong, [], title);
  });

  it("draws bars as long as their figures are large", async () => {
    const [picture] = await browser.evaluate<SeenPicture[]>(LOOK);
    const values = results.pieces[0]?.figures
      .filter(({ metric, parameters }) => metric === "requestsPerSecond" && parameters.connections === 1)
      .map(({ rounds }) => rounds[1] as number);
    assert.ok(picture !== undefined && values !== undefined);
    const perUnit = picture.widths.map((width, index) => width / (values[index] as number));
    for (const each of perUnit) assert.ok(Math.abs(each / (perUnit[0] as number) - 1) < 0.01, `${perUnit}`);
  });

  it("is not blank, in light, in dark and on paper", async () => {
    for (const look of [
      { scheme: "light" },
      { scheme: "dark" },
      { scheme: "dark", media: "print" },
    ] as const) {
      await browser.show({ width: 1400, height: 900, ...look });
      await browser.evaluate(`document.querySelector("#http").scrollIntoView()`);
      const png = await browser.screenshot();
      const colours = await browser.evaluate<[string, number][]>(`(async () => {
        const image = new Image();
        image.src = "data:image/png;base64,${png}";
        await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height);
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
        const counts = new Map();
        for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
        return [...counts].sort((one, other) => other[1] - one[1]).slice(0, 50).map(([pixel, count]) =>
          [(pixel & 0xffffff).toString(16), count]);
      })()`);
      const [background] = colours;
      assert.ok(background !== undefined);
      // Bars of at least five families, each of some thousand pixels.
      assert.ok(
        colours.filter(([, count]) => count > 1_500).length >= 6,
        JSON.stringify(colours.slice(0, 12)),
      );
      const paper = "media" in look || look.scheme === "light";
      assert.equal(background[0], paper ? "ffffff" : "17110d", look.scheme);
    }
  });

  it("fits on a phone, and what is written in the pictures can be read there", async () => {
    await browser.show({ width: 360, height: 740 });
    assert.equal(await browser.evaluate("document.documentElement.scrollWidth"), 360);
    for (const { title, scale, wrong } of await browser.evaluate<SeenPicture[]>(LOOK)) {
      assert.ok(scale * 12 >= 8, `${title}: letters of ${(scale * 12).toFixed(1)} px`);
      assert.deepEqual(wrong, [], title);
    }
  });

  it("says what has to be known before any figure, and what is missing", async () => {
    await browser.show({ width: 1400, height: 900 });
    const notes = await browser.evaluate<string[]>(
      `[...document.querySelectorAll("h1 + .notes li")].map((item) => item.textContent)`,
    );
    assert.equal(notes.length, 4);
    assert.match(notes[0] ?? "", /NOT A CALM MACHINE/);
    assert.match(notes[2] ?? "", /absent \(nobody has <it> & nobody will\)/);
  });

  it("complains of nothing and asks for nothing", () => {
    assert.deepEqual(browser.complaints, []);
    assert.deepEqual(
      browser.requests.filter((url) => !url.startsWith("data:")),
      [pathToFileURL(file).href],
    );
  });
});

describe("pictures", () => {
  const axis = { label: "", scale: "linear" as const, show: String };
  const line = { label: "one", look: "of-other", dots: true };

  it("are not made of what cannot be drawn", () => {
    assert.equal(drawLines({ title: "", x: axis, y: axis, lines: [] }), null);
    assert.equal(
      drawLines({ title: "", x: axis, y: axis, lines: [{ ...line, points: [{ x: 1, y: 1 }] }] }),
      null,
    );
    const holes = [Number.NaN, 1, 2].map((y, x) => ({ x, y }));
    const drawn = drawLines({ title: "", x: axis, y: axis, lines: [{ ...line, points: holes }] }) ?? "";
    assert.equal(drawn.match(/<circle/g)?.length, 2);
    assert.doesNotMatch(drawn, /NaN/);
    // Nought has no place on a log axis, and 100 % none among percentiles.
    const log = { ...axis, scale: "log" as const };
    assert.equal(
      drawLines({
        title: "",
        x: axis,
        y: log,
        lines: [{ ...line, points: holes.map(({ x }) => ({ x, y: 0 })) }],
      }),
      null,
    );
    assert.equal(drawBars({ title: "", bars: [] }), null);
    const none = drawBars({ title: "", bars: [{ label: "", look: "", value: 0, text: "0" }] });
    assert.doesNotMatch(none ?? "NaN", /NaN/);
  });

  it("escape what they are told", () => {
    const text = `<b> & "`;
    const drawn = drawBars({ title: text, bars: [{ label: text, look: "", value: 1, text }] }) ?? "";
    assert.ok(!drawn.includes("<b>"));
    assert.ok(drawn.includes("&lt;b&gt; &amp; &quot;"));
  });
});

describe("what is made of figures", () => {
  const figure = (
    peer: string,
    rounds: (number | null)[],
    parameters: Figure["parameters"] = { connections: 32 },
  ): Figure => ({
    peer,
    parameters,
    metric: "requestsPerSecond",
    rounds,
  });

  it("tells a move's hold beside bare CRIU's, in ms", () => {
    const hold = (peer: string, rounds: number[]): Figure => ({
      peer,
      parameters: { sessions: 100, memoryMb: 32, downstream: peer },
      metric: "holdMs",
      rounds,
    });
    const figures = [
      hold("bare-criu", [100, 110]),
      hold("holdfast-forward", [120, 160]),
      hold("holdfast-takeover", [110, 120]),
    ];
    const found = judge({
      command: "npm run bench",
      pieces: [{ name: "cutover-sessions", title: "", figures }],
    })
      .filter(({ name }) => name.startsWith("hold to release"))
      .map(({ here, verdict }) => [here, verdict]);
    assert.deepEqual(found, [
      ["35.0 ms (20.0 ms–50.0 ms)", "MISSED by 40 %; not in every round"],
      ["10.0 ms (10.0 ms–10.0 ms)", "met"],
    ]);
  });

  it("keeps rounds side by side, also where one was not measured", () => {
    const figures: Figure[] = [];
    addRound(figures, 0, [figure("a", [1])]);
    addRound(figures, 1, [figure("b", [20])]);
    addRound(figures, 2, [figure("a", [3]), figure("b", [30])]);
    assert.deepEqual(
      figures.map(({ peer, rounds }) => [peer, rounds]),
      [
        ["a", [1, null, 3]],
        ["b", [null, 20, 30]],
      ],
    );
  });

  it("judges goals by ratios within a round", () => {
    const command = "npm run bench -- --rounds 3";
    const http = (ours: (number | null)[], theirs: (number | null)[]): Judged => ({
      command,
      pieces: [
        { name: "http", title: "", figures: [figure("holdfast-http", ours), figure("http-proxy", theirs)] },
      ],
    });
    const of = (results: Judged): [boolean | null, string, string] => {
      const found = judge(results).find(({ name }) => name.includes("http-proxy"));
      assert.ok(found !== undefined);
      return [found.met, found.here, found.verdict];
    };
    assert.deepEqual(of(http([40, 50, 60], [10, 10, 10])), [true, "5.00× (4.00×–6.00×)", "met"]);
    assert.deepEqual(of(http([30, 30, 30], [10, 10, 10])), [false, "3.00× (3.00×–3.00×)", "MISSED by 25 %"]);
    assert.deepEqual(of(http([30, 50, 60], [10, 10, 10])), [
      true,
      "5.00× (3.00×–6.00×)",
      "met; not in every round",
    ]);
    // The second round lacks one of them, so it has no ratio: 50 beside 10 were not measured next to each other.
    assert.deepEqual(of(http([40, null, 40], [10, 5, 8])), [true, "4.50× (4.00×–5.00×)", "met"]);
    assert.deepEqual(of(http([], [])), [null, "-", "not measured"]);
    const alone = {
      command,
      pieces: [{ name: "http", title: "", figures: [figure("holdfast-http", [1], { connections: 1 })] }],
    };
    assert.deepEqual(of(alone), [null, "-", "not measured"]);
  });

  it("judges a run in Kubernetes by goals of its own", () => {
    const command = "npm run bench:kube -- --quick";
    const of = (metric: string, rounds: number[], parameters: Figure["parameters"] = {}): Figure => ({
      ...{ peer: "holdfast", parameters, metric, rounds },
    });
    const latency = of("latencyUs", [900], { asked: "webhook", perSecond: 50 });
    const curve = [
      { p: 99, valueUs: 4_200 },
      { p: 100, valueUs: 90_000 },
    ];
    const pieces = [
      { name: "kube-webhook", title: "", figures: [{ ...latency, percentiles: [curve] }] },
      {
        name: "kube-move",
        title: "",
        figures: [
          of("createdToHoldMs", [2_000, 2_400], { runtime: "pods", mode: "forward", way: "there" }),
          of("createdToHoldMs", [4_500, 4_500], { runtime: "pods", mode: "gateway", way: "there" }),
          of("holdMs", [150, 100], { runtime: "pods", way: "there" }),
          of("holdMs", [100, 100], { runtime: "own", way: "there" }),
          of("holdMs", [260, 200], { runtime: "pods", way: "back" }),
          of("holdMs", [200, 200], { runtime: "own", way: "back" }),
        ],
      },
      {
        name: "kube-drain",
        title: "",
        figures: [of("lost", [0, 0, 0, 1]), of("repeated", [0, 0, 0, 0]), of("resets", [])],
      },
      {
        name: "kube-controller",
        title: "",
        figures: [
          of("memoryBytes", [2 ** 27], { pods: 5_000, when: "with them" }),
          of("memoryBytes", [200 * 2 ** 20], { pods: 5_000, when: "at most" }),
        ],
      },
    ];
    assert.deepEqual(
      judge({ command, pieces }).map(({ goal, here, verdict }) => [goal, here, verdict]),
      [
        ["≤ 10.0 ms", "4.2 ms", "met"],
        ["≤ 150 MB", "200 MB", "MISSED by 33 %"],
        ["≤ 3.00 s", "2.20 s (2.00 s–2.40 s)", "met"],
        ["≤ 3.00 s", "4.50 s (4.50 s–4.50 s)", "MISSED by 50 %"],
        ["≤ 1.20×", "1.15× (1.00×–1.50×)", "met; not in every round"],
        ["≤ 0", "1", "MISSED"],
        ["≤ 0", "0", "met"],
        ["≤ 0", "-", "not measured"],
      ],
    );
    const nothing = judge({ command, pieces: [] });
    assert.deepEqual(
      nothing.map(({ goal, verdict }) => [goal, verdict]),
      ["10.0 ms", "150 MB", "3.00 s", "1.20×", "0", "0", "0"].map((limit) => [`≤ ${limit}`, "not measured"]),
    );
  });

  it("reads curves by the value that so many are not above", () => {
    const curve = [
      { p: 50, valueUs: 10 },
      { p: 90, valueUs: 20 },
      { p: 99.9, valueUs: 40 },
      { p: 100, valueUs: 90 },
    ];
    assert.equal(quantile(curve, 50), 10);
    assert.equal(quantile(curve, 75), 20);
    assert.equal(quantile(curve, 99), 40);
    assert.equal(quantile(curve, 100), 90);
    assert.equal(quantile([], 50), null);
    const middle = middleCurve([curve, null, curve.map(({ p, valueUs }) => ({ p, valueUs: valueUs * 3 }))]);
    assert.deepEqual(
      middle.find(({ p }) => p === 90),
      { p: 90, valueUs: 40 },
    );
    assert.equal(middle.at(-1)?.p, 99.9);
  });

  it("is all in the Markdown, and can be read back", () => {
    const results = madeUpResults();
    const text = renderMarkdown(results);
    for (const { title } of results.pieces) assert.ok(text.includes(`## ${title}`));
    for (const peer of PEERS) assert.match(text, new RegExp(`^\\| ${peer} \\|`, "m"));
    assert.match(text, /MISSING: nobody has/);
    assert.match(text, /httpxy, round 2: 3 errors/);
    assert.doesNotMatch(text, /NaN|undefined|Infinity/);
    assert.deepEqual(parseResults(JSON.stringify(results)), results);
    assert.throws(() => parseResults(JSON.stringify({ ...results, pieces: [{}] })), /pieces\[0\]/);
  });

  it("puts one table and one picture into README.md, between its markers and nowhere else", () => {
    const { markdown, picture } = renderSection(madeUpResults());
    assert.match(markdown, /^\| holdfast-tcp \| 71\.3k \(70\.6k-72\.0k\) \|/m);
    assert.match(markdown, /MISSED by 70 %/);
    assert.match(picture, /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" /);
    const readme = `before\n${BEGIN}\nnumbers of yesterday\n${END}\nafter\n`;
    const replaced = replaceSection(readme, markdown);
    assert.ok(replaced.startsWith(`before\n${BEGIN}\n`) && replaced.endsWith(`${END}\nafter\n`));
    assert.ok(!replaced.includes("yesterday") && replaced.includes(markdown));
    assert.equal(replaceSection(replaced, markdown), replaced);
    assert.throws(() => replaceSection("nothing", markdown), /begin/);
    assert.throws(() => renderSection({ ...madeUpResults(), pieces: [] }), /nothing at 32 connections/);
  });
});

describe("a profile", { timeout: 300_000 }, () => {
  const node = (
    id: number,
    functionName: string,
    url: string,
    children: number[] = [],
  ): CpuProfile["nodes"][number] => ({
    id,
    callFrame: { functionName, url, lineNumber: 9 },
    children,
  });
  /** pump 3 + 4 ms, of which its second 4 were of another node; send 2 ms; idle 90 ms */
  const profile: CpuProfile = {
    nodes: [
      node(1, "(root)", "", [2, 3, 4]),
      node(2, "pump", "file:///root/proxy/stream/pump.ts", [5]),
      node(3, "pump", "file:///root/proxy/stream/pump.ts", [6]),
      node(4, "(idle)", ""),
      node(5, "write", "node:net"),
      node(6, "(garbage collector)", ""),
    ],
    startTime: 0,
    endTime: 101_000,
    samples: [2, 5, 3, 6, 4, 4],
    timeDeltas: [100, 3_000, 2_000, 4_000, 1_000, 90_000],
  };
  const tree = callTree(profile, "/root");

  it("is a tree of calls with the time that each ran, without the time in which nothing did", () => {
    assert.equal(tree.totalUs, 10_000);
    assert.deepEqual(
      tree.calls.map(({ name, place, owner, selfUs, totalUs }) => [name, place, owner, selfUs, totalUs]),
      [["pump", "proxy/stream/pump.ts:10", "holdfast", 7_000, 10_000]],
    );
    assert.deepEqual(
      selfTimes(tree).map(({ name, owner, selfUs }) => [name, owner, selfUs]),
      [
        ["pump", "holdfast", 7_000],
        ["write", "node", 2_000],
        ["(garbage collector)", "gc", 1_000],
      ],
    );
  });

  it("names a system call by its caller, since V8 names all of them alike", () => {
    const nodes = [
      node(1, "(root)", "", [2, 4]),
      node(2, "tryRecv", "file:///root/proxy/kernel/socket.ts", [3]),
      node(3, "getxattr", ""),
      node(4, "trySend", "file:///root/proxy/kernel/socket.ts", [5, 6]),
      node(5, "getxattr", ""),
      node(6, "(garbage collector)", ""),
    ];
    const samples = [3, 5, 6, 6];
    const timeDeltas = [0, 3_000, 2_000, 1_000];
    assert.deepEqual(
      selfTimes(callTree({ ...profile, nodes, samples, timeDeltas }, "/root")).map(({ name, selfUs }) => [
        name,
        selfUs,
      ]),
      [
        ["system call of tryRecv", 3_000],
        ["system call of trySend", 2_000],
        ["(garbage collector)", 1_000],
      ],
    );
  });

  it("is drawn as wide as the time it took", async () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-flame-test-"));
    const file = join(directory, "flame.html");
    writeFileSync(file, renderFlamePage("<profile>", tree, [["load", "<none>"]]));
    const browser = await Browser.start();
    try {
      await browser.show({ width: 1400, height: 900 });
      await browser.open(pathToFileURL(file).href);
      const bars = await browser.evaluate<[string, number, number, boolean][]>(`(() => {
        const box = document.querySelector("svg.flame").getBoundingClientRect();
        return [...document.querySelectorAll("svg.flame .mark")].map((mark) => {
          const rect = mark.getBoundingClientRect();
          return [mark.querySelector("title").textContent.split(" ")[0], Math.round(100 * rect.width / box.width),
            Math.round(100 * (rect.left - box.left) / box.width), rect.bottom <= box.bottom + 1];
        });
      })()`);
      assert.deepEqual(bars, [
        ["(root)", 100, 0, true],
        ["pump", 100, 0, true],
        ["write", 20, 0, true],
        ["(garbage", 10, 20, true],
      ]);
      assert.deepEqual(browser.complaints, []);
    } finally {
      await browser.close();
      rmSync(directory, { recursive: true });
    }
  });
});

describe("a run", () => {
  /** A piece that takes so long by the run's clock. */
  const takes = (name: string, seconds: number, measure?: BenchPiece["measure"]): BenchPiece => ({
    name,
    title: name,
    estimateSeconds: () => seconds,
    measure: async (run) => {
      clock.seconds += seconds;
      if (measure !== undefined) return await measure(run);
      return [{ peer: "a", parameters: {}, metric: "x", rounds: [run.round] }];
    },
  });
  const clock = { seconds: 0 };

  async function run(
    pieces: BenchPiece[],
    options: { rounds: number; secondsMax?: number; stage?: { closed: boolean } },
  ): Promise<{ kept: Piece[]; said: string[]; problems: string[]; notes: string[]; order: string[] }> {
    clock.seconds = 0;
    const seen = {
      kept: [] as Piece[],
      said: [] as string[],
      problems: [] as string[],
      notes: [] as string[],
      order: [] as string[],
    };
    await conduct(
      {
        pieces,
        rounds: options.rounds,
        secondsMax: options.secondsMax ?? null,
        peers: [],
        quick: false,
        seconds: 1,
      },
      {
        stage: (options.stage ?? { closed: false }) as Stage,
        contenders: () => Promise.reject(new Error("nobody asks for contenders")),
        introduce: () => assert.fail("nobody has any"),
        say: (line) => seen.said.push(line),
        problem: (where, what) => seen.problems.push(`${where}: ${what}`),
        note: (what) => seen.notes.push(what),
        between: async () => {
          seen.order.push(`${seen.kept.map(({ name, figures }) => `${name}${figures[0]?.rounds.length}`)}`);
        },
        nowSeconds: () => clock.seconds,
      },
      seen.kept,
    ).catch((error: Error) => seen.problems.push(`ended: ${error.message}`));
    return seen;
  }

  it("takes pieces in turn, round by round, and tells the time that is left", async () => {
    const { order, said, kept } = await run([takes("one", 10), takes("two", 20)], { rounds: 2 });
    assert.deepEqual(order, ["one1", "one1,two1", "one2,two1", "one2,two2"]);
    assert.deepEqual(said, [
      "[one, round 1/2, 60 s left] one",
      "[two, round 1/2, 50 s left] two",
      "[one, round 2/2, 30 s left] one",
      "[two, round 2/2, 20 s left] two",
    ]);
    assert.deepEqual(kept[1]?.figures[0]?.rounds, [1, 2]);
  });

  it("takes a piece that is to be the last in the last round only", async () => {
    const last: BenchPiece = { ...takes("last", 20), isLast: true };
    const { order, said, kept } = await run([last, takes("one", 10)], { rounds: 2 });
    assert.deepEqual(order, ["one1", "one1,last1", "one2,last1"]);
    assert.deepEqual(said, [
      "[one, round 1/2, 40 s left] one",
      "[last, round 2/2, 30 s left] last",
      "[one, round 2/2, 10 s left] one",
    ]);
    assert.deepEqual(kept[1]?.figures[0]?.rounds, [2]);
  });

  it("goes on when a piece fails, and says so", async () => {
    const fails = takes("bad", 1, () => Promise.reject(new Error("out of order")));
    const { kept, problems } = await run([fails, takes("good", 1)], { rounds: 2 });
    assert.deepEqual(
      kept.map(({ name }) => name),
      ["good"],
    );
    assert.deepEqual(problems, [
      "bad, round 1: not measured: out of order",
      "bad, round 2: not measured: out of order",
    ]);
  });

  it("leaves out what does not fit, and names it", async () => {
    const { kept, notes, said } = await run([takes("long", 50), takes("longer", 60), takes("short", 40)], {
      rounds: 1,
      secondsMax: 100,
    });
    assert.deepEqual(
      kept.map(({ name }) => name),
      ["long", "short"],
    );
    assert.deepEqual(said, ["[long, round 1/1, 2 min left] long", "[short, round 1/1, 40 s left] short"]);
    assert.deepEqual(notes, ["Left out, as it does not fit into 100 s: longer."]);
  });

  it("that is cut off ends at once and keeps what it has", async () => {
    const stage = { closed: false };
    const cut = takes("cut", 1, async () => {
      stage.closed = true;
      throw new Error("its processes have ended");
    });
    const { kept, problems } = await run([takes("one", 1), cut, takes("never", 1)], { rounds: 3, stage });
    assert.deepEqual(
      kept.map(({ name, figures }) => [name, figures[0]?.rounds]),
      [["one", [1]]],
    );
    assert.deepEqual(problems, ["ended: its processes have ended"]);
  });

  it("notices that others are at work", () => {
    assert.deepEqual(cpuTime("cpu  10 1 5 100 4 0 2 3 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n"), {
      busy: 21,
      all: 125,
    });
    const watch = new CalmWatch();
    watch.looks.push(...Array.from({ length: 20 }, () => 0.01), 0.5);
    assert.ok(watch.calm);
    watch.looks.push(0.5, 0.5);
    assert.ok(!watch.calm, watch.describe());
    assert.match(watch.describe(), /at most 50 %/);
  });
});
