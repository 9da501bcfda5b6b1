/**
 * Whether the other end of a link is there: a connection that is dead without an error says nothing, and one that has nothing to say does
 * not either. So after some silence an end that waits for an acknowledgement asks, and the dialler takes it for dead without an answer.
 * Time is counted in looks of the watch (`link-watch.ts`).
 */

/** since anything was heard: a dialler whose bytes nothing has followed asks … */
const LOOKS_UNTIL_DOUBT = 2;
/** … and either end that keeps bytes, to be rid of them */
const LOOKS_UNTIL_ASKED = 8;
/** … after it has asked: the connection is taken for dead */
const LOOKS_UNTIL_LOST = 3;

export class LinkPulse {
  /** looks since anything was heard */
  #quiet = 0;
  #heardSinceSent = true;
  /** {@link #quiet} when it asked; -1: it has not */
  #askedAt = -1;
  /** … of its connection, then */
  #progressAsked = 0;

  heard(): void {
    this.#heardSinceSent = true;
    this.#quiet = 0;
    this.#askedAt = -1;
  }

  /** Something that the other end is to follow by anything. */
  sent(): void {
    this.#heardSinceSent = false;
  }

  /** Nothing is outstanding. */
  followed(): void {
    this.#heardSinceSent = true;
  }

  /** There is no connection that could answer. */
  lost(): void {
    this.#askedAt = -1;
  }

  /** Another connection has begun. */
  restart(): void {
    this.#askedAt = -1;
    this.#quiet = 0;
  }

  /** One more, of a link with a connection. */
  look(): void {
    this.#quiet++;
  }

  get hasAsked(): boolean {
    return this.#askedAt >= 0;
  }

  /** It has asked, and something might have come since. @param progress of the connection: its answer may be behind what is others' */
  isSilent(progress: number): boolean {
    if (this.#quiet - this.#askedAt < LOOKS_UNTIL_LOST) return false;
    if (progress === this.#progressAsked) return true;
    this.#askedAt = this.#quiet;
    this.#progressAsked = progress;
    return false;
  }

  /** Something is outstanding, and it is time to ask for it. */
  isToAsk(isDialler: boolean): boolean {
    const isDoubtful = isDialler && !this.#heardSinceSent && this.#quiet >= LOOKS_UNTIL_DOUBT;
    return isDoubtful || this.#quiet >= LOOKS_UNTIL_ASKED;
  }

  /** False: it has, or has heard something just now. @param progress of the connection */
  ask(progress: number): boolean {
    if (this.hasAsked || this.#quiet < LOOKS_UNTIL_DOUBT) return false;
    this.#askedAt = this.#quiet;
    this.#progressAsked = progress;
    return true;
  }
}
