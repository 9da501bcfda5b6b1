/**
 * What an owner asks of an anchor in a move, and what that has answered: HOLD and HELD, MOVE and PREPARED, COUNT and COUNTED. A link that
 * goes on over another connection asks again what is not answered.
 */
import { type Destination, encodeMove, FRAME, frame, type Prepared } from "./link-codec.ts";

export class LinkQuestions {
  /** the answer to the last MOVE; null: none yet */
  prepared: Prepared | null = null;
  /** the answer to the last COUNT, in bytes of the session; -1: none yet */
  countedBytes = -1;
  #holding = false;
  /** HOLDs that are not answered */
  #holdsAwaited = 0;
  #wasHeld = false;
  #move: Destination | null = null;
  #isCounting = false;

  /** HELD has come since the last HOLD. */
  get isHeld(): boolean {
    return this.#wasHeld && this.#holdsAwaited === 0;
  }

  // Each gives the frame that asks.

  hold(): Buffer {
    this.#holding = true;
    this.#holdsAwaited++;
    this.#wasHeld = false;
    this.#isCounting = false;
    return frame(FRAME.hold);
  }

  resume(): Buffer {
    this.#holding = false;
    this.#wasHeld = false;
    this.#isCounting = false;
    this.#move = null;
    return frame(FRAME.resume);
  }

  move(to: Destination): Buffer {
    this.prepared = null;
    this.#move = to;
    return encodeMove(to);
  }

  count(): Buffer {
    this.countedBytes = -1;
    this.#isCounting = true;
    return frame(FRAME.count);
  }

  onHeld(): void {
    this.#holdsAwaited = Math.max(0, this.#holdsAwaited - 1);
    this.#wasHeld = this.#holding;
  }

  /** What the dialler may not have heard on the connection before, or its answer. @param isAnchorHolding as it says itself */
  again(isAnchorHolding: boolean): Buffer[] {
    const asked: Buffer[] = [];
    if (this.#holding && !(this.isHeld && isAnchorHolding)) {
      this.#holdsAwaited = 1;
      asked.push(frame(FRAME.hold));
    } else if (!this.#holding) {
      this.#holdsAwaited = 0;
      if (isAnchorHolding) asked.push(frame(FRAME.resume));
    }
    if (this.#move !== null && this.prepared === null) asked.push(encodeMove(this.#move));
    if (this.#isCounting && this.countedBytes < 0) asked.push(frame(FRAME.count));
    return asked;
  }
}
