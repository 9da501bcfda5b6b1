/** One stage for all tests of a file: the sessions live through every scenario; after a failure the next one is new. */
import { after, afterEach } from "node:test";
import { MoveStage, type StageOptions } from "./move-stage.ts";

export function staged(
  options: StageOptions,
): (work: (stage: MoveStage) => Promise<void>) => () => Promise<void> {
  let stage: MoveStage | null = null;
  let broken = false;
  const close = async (): Promise<void> => {
    const closing = stage;
    stage = null;
    await closing?.close();
  };
  after(close);
  afterEach(async () => {
    if (broken) await close().catch(() => {});
    broken = false;
  });
  return (work) => async () => {
    broken = true;
    stage ??= await MoveStage.open(options);
    await work(stage);
    broken = false;
  };
}
