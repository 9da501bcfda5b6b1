/** The first phase: nobody waits yet, and most of what there is to send goes over. */
import { mkdir, rm } from "node:fs/promises";
import type { Channel } from "#proxy/contract/channel.ts";
import { fail } from "#proxy/contract/error-codes.ts";
import { HoldfastError } from "#proxy/contract/errors.ts";
import type { Endpoint } from "#proxy/contract/snapshot.ts";
import type { DepartureFacts } from "../../api/check.ts";
import { refuse } from "../../api/finding.ts";
import {
  type ImagesOpenReply,
  imagesOpenReply,
  type PrepareCall,
  type StandbyReply,
} from "../../api/migration.ts";
import { FORMAT, RAW_FORMAT } from "../../audit/fingerprint.ts";
import { semaphoresOf } from "../../audit/semaphores-of.ts";
import { takeFingerprint } from "../../audit/take.ts";
import { ImageSender } from "../../criu/images.ts";
import { PrecopyRounds } from "../../criu/precopy-rounds.ts";
import { CriuWorker, canLeavePages } from "../../criu/worker.ts";
import { roomForThreads } from "../../runtime/cgroups.ts";
import { highestInnerTid, treeOf } from "../../runtime/processes.ts";
import { SignalTrace } from "../../runtime/signal-trace.ts";
import { audited } from "../audited.ts";
import { probeCriu } from "../probe-criu.ts";
import { tracedTree } from "../traced-tree.ts";
import { WatchedFiles } from "../watched-files.ts";
import { lostWatches } from "../watches.ts";
import { FileSender, LAYER } from "./file-sender.ts";
import { imagesDirOf, type Move } from "./move.ts";
import { NO_LINK } from "./reached.ts";

/** threads that the application can make all the same while a guest is there (`guest-thread.ts`) */
const ROOM_MIN = 16;

export interface Prepared {
  readonly channel: Channel;
  /** of the application's processes, as this agent sees it */
  readonly root: number;
  /** the target's */
  readonly epoch: number;
  /** where the target's proxy takes links */
  readonly link: Endpoint;
  /** has sent all files once */
  readonly files: FileSender;
  /** has sent layers of memory, unless there is too much of it */
  readonly sender: ImageSender;
  /** the target begins to restore before it has the last of memory */
  readonly memoryLast: boolean;
  /** which both nodes' agents know */
  readonly fingerprintFormat: number;
  readonly watched: WatchedFiles;
  /** null: this kernel does not tell who sends what */
  readonly trace: SignalTrace | null;
  /** waits for its request */
  readonly worker: CriuWorker;
}

export async function prepare(move: Move): Promise<Prepared> {
  const { host, options } = move;
  const root = await host.container.applicationRoot();
  if (root === null) throw fail("WORKLOAD_DOWN", `${host.name} is not running`);
  const channel = await dial(move);
  const facts = await check(move, channel);
  const epoch = await reserve(move);
  await askForContainer(move, { channel, root, epoch, facts });
  const files = new FileSender(move, channel, root);
  const made = standby(move, channel, files);
  const [link, { layers, ...here }] = await together(made, readyHere(move, { channel, root, files }, made));
  if (host.downstream !== "takeover") await host.anchors.prepare(epoch, options.to, link, options.signal);
  move.stop.throwIfStopped();
  await layers?.sendWhatIsNew();
  return { channel, root, epoch, link, files, ...here };
}

/** Side by side. When one has failed neither is under way any more. */
async function together<A, B>(one: Promise<A>, other: Promise<B>): Promise<[A, B]> {
  await Promise.allSettled([one, other]);
  return Promise.all([one, other]);
}

/** The target makes everything ready, and gets all files. */
async function standby(move: Move, channel: Channel, files: FileSender): Promise<Endpoint> {
  const { container } = move.host;
  const send = (mount: string): Promise<void> => move.stop.untilStopped(files.sendAll(mount));
  // a layer that is in use there is filled from within
  if (!container.layerInUse) await send(LAYER);
  const link = await askForStandby(move, channel);
  if (container.layerInUse) await send(LAYER);
  for (const mount of container.travels) await send(mount);
  return link;
}

/** What is made ready on this node meanwhile; and, as soon as the target takes it, memory. @param made the target's standby */
async function readyHere(
  move: Move,
  { channel, root, files }: Pick<Prepared, "channel" | "root" | "files">,
  made: Promise<unknown>,
): Promise<
  Pick<Prepared, "watched" | "worker" | "sender" | "memoryLast" | "fingerprintFormat" | "trace"> & {
    layers: Layers | null;
  }
> {
  const failed = new AbortController();
  made.catch((error: unknown) => failed.abort(error));
  const watched = await findWatchedFiles(move, root);
  const worker = await startWorker(move);
  const trace = await openTrace(move);
  const sender = imageSender(move, channel, files);
  // a standby that cannot be made never takes any
  const asked = imagesOpen(move, channel);
  const open = await Promise.race([asked, made.then(() => asked)]);
  if (open === null) await made;
  const signal = AbortSignal.any([move.options.signal, failed.signal]);
  const layers = await sendLayers(move, { root, sender }, signal);
  const fingerprintFormat = Math.min(open?.fingerprintFormat ?? RAW_FORMAT, FORMAT);
  return { watched, worker, sender, memoryLast: open?.memoryLast ?? false, fingerprintFormat, trace, layers };
}

async function openTrace({ options, openToTheEnd }: Move): Promise<SignalTrace | null> {
  const trace = options.rehearse ? null : await SignalTrace.open();
  openToTheEnd.add(() => trace?.close());
  return trace;
}

/** When the target takes memory, while it makes its standby. null: an old one does not know the question, and takes it afterwards */
async function imagesOpen({ stop }: Move, channel: Channel): Promise<ImagesOpenReply | null> {
  try {
    const { result } = await stop.call<unknown>(channel, "imagesOpen", {});
    return imagesOpenReply.parse(result ?? {});
  } catch (error) {
    if (error instanceof HoldfastError && error.code === "CHANNEL_METHOD") return null;
    throw error;
  }
}

async function dial({ host, options, reached, progress }: Move): Promise<Channel> {
  const channel = await host.context.dial(options.to);
  reached.dialled(channel);
  channel.on("released", () => progress.pause.ends());
  return channel;
}

/** @throws HoldfastError where there is a finding that keeps it from moving */
async function check({ host, options, stop, progress }: Move, channel: Channel): Promise<DepartureFacts> {
  const { facts, ...report } = await stop.untilStopped(host.preflight(options.to, channel));
  progress.result.check = report;
  refuse(report.findings, host.context.node);
  if (facts === null) throw fail("WORKLOAD_DOWN", `${host.name} is not running`);
  return facts;
}

/** @returns the epoch that the target is to have */
async function reserve({ id, host, options, reached }: Move): Promise<number> {
  const { context, journal } = host;
  const next = journal.epoch + 1;
  // on record before the store is asked: a reservation that nobody knows of would refuse every later move
  reached.reserving();
  host.record({
    moving: {
      side: "source",
      id,
      peer: options.to,
      epoch: next,
      step: "prepared",
      criu: null,
      stopped: [],
      ran: false,
      watches: [],
      link: null,
      anchors: [],
    },
  });
  const ownership = await host.outbox.reserve(id, options.to);
  context.faults.at("source:reserved");
  const epoch = ownership.migration?.epoch ?? next;
  reached.reserved(epoch);
  host.see(epoch);
  host.recordMoving({ epoch });
  context.faults.at("source:prepare");
  return epoch;
}

async function askForContainer(
  { id, host, options, stop }: Move,
  { channel, root, epoch, facts }: Pick<Prepared, "channel" | "root" | "epoch"> & { facts: DepartureFacts },
): Promise<void> {
  // the first look takes several times as long as the next, and the next one clients wait for
  const { fingerprint } = takeFingerprint({
    ...(await audited(host.config, host.container, root)),
    isRunning: true,
  });
  const call: PrepareCall = {
    workload: host.name,
    migration: id,
    from: host.context.node,
    epoch,
    anchors: host.anchors.afterLeaving(options.to),
    highestTid: await highestInnerTid(await treeOf(root)),
    facts,
    ownerEpoch: host.journal.epoch,
    semaphores: semaphoresOf(fingerprint).length,
  };
  await stop.call(channel, "prepare", call);
}

async function askForStandby({ host, stop }: Move, channel: Channel): Promise<Endpoint> {
  const { result } = await stop.call<StandbyReply>(channel, "standby", {});
  const link = result.link ?? NO_LINK;
  if (host.downstream !== "takeover") host.recordMoving({ link });
  return link;
}

/** Finds watched files ahead, as there may be many. One that cannot be found is a reason when everything is frozen. */
async function findWatchedFiles({ host, opened }: Move, root: number): Promise<WatchedFiles> {
  const { container, config, runtime } = host;
  const { lower } = await runtime.plan(config);
  const watched = new WatchedFiles(container, lower);
  opened.add(() => watched.close());
  await lostWatches(watched, await treeOf(root));
  return watched;
}

function imageSender({ host, rehearsal, opened }: Move, channel: Channel, files: FileSender): ImageSender {
  const sender = new ImageSender(imagesDirOf(host), (pieces) =>
    rehearsal.sent(
      pieces,
      () => !files.isSending,
      () =>
        channel.send(
          "images",
          { pieces: pieces.map((piece) => ({ ...piece, bytes: piece.bytes.length })) },
          pieces.filter(({ from }) => from === undefined).map(({ bytes }) => bytes),
        ),
    ),
  );
  opened.addReader(() => sender.abandon());
  opened.add(() => sender.close());
  return sender;
}

async function startWorker({ host, rehearsal, opened }: Move): Promise<CriuWorker> {
  const imagesDir = imagesDirOf(host);
  const freezer = await host.freezer();
  await rm(imagesDir, { recursive: true, force: true });
  await mkdir(imagesDir, { mode: 0o700 });
  const options = {
    criu: host.context.criu.sealed(),
    imagesDir,
    initPid: host.container.init.pid,
    // not where it would freeze with the application
    cgroupProcs: (await host.container.cgroupProcs()).filter((path) => path !== freezer?.procs),
    inherit: [],
    outlivesAgent: false,
    leavesPages: true,
  };
  await probeCriu(options, (ask) => rehearsal.timed("criuMs", ask)); // how long CRIU takes here
  const worker = await CriuWorker.start(options);
  opened.add(() => worker.close());
  return worker;
}

interface Layers {
  /** Last before the hold, so that as little as possible changes in between. */
  sendWhatIsNew(): Promise<void>;
}

/** null: none are sent before the hold */
async function sendLayers(
  { host, stop, rehearsal, progress }: Move,
  { root, sender }: Pick<Prepared, "root" | "sender">,
  signal: AbortSignal,
): Promise<Layers | null> {
  const tree = () => tracedTree(root);
  const { precopyBytesMax, trackedBytesMin, imagesBytesMax } = host.limits;
  if (precopyBytesMax === 0) return null;
  // what is compared as CRIU writes it is read in any case
  const isLeft = (await host.freezer()) !== null && (await canLeavePages(host.context.criu.sealed()));
  // a limit of theirs counts our threads, too
  const hasRoom = Number.isFinite(trackedBytesMin) && (await roomForThreads(root)) >= ROOM_MIN;
  const trackedFrom = isLeft && hasRoom ? trackedBytesMin : undefined;
  const rounds = new PrecopyRounds(imagesBytesMax);
  const send = async (work: () => Promise<void>): Promise<void> => {
    await stop.untilStopped(rehearsal.rounds(work));
    progress.copied(rounds);
  };
  await send(() => sender.sendLayers(tree, precopyBytesMax, rounds, signal, trackedFrom));
  return {
    sendWhatIsNew: async () => {
      if (rounds.isLate()) await send(() => sender.sendLayer(tree, rounds));
    },
  };
}
