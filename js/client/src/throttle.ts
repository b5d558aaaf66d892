import { type Entry, type Outbox, Pace } from "./outbox.js";

/** How much of the gateway's burst goes out at once. */
export const BURST_SHARE = 0.5;

/**
 * How much of the burst may be on its way; with the share above below 1, so that the gateway refuses
 * nothing even where a stall makes all that was sent meanwhile arrive together.
 */
const WINDOW_SHARE = 0.4;

/**
 * Sends durable messages in their order, as fast as the gateway takes them.
 *
 * One that was refused behind which another was taken would change their order. So what is sent stays
 * below the gateway's limits; what it refuses all the same goes out again, and then one by one.
 */
export class Throttle {
  readonly #outbox: Outbox;
  readonly #post: (frame: string) => void;
  #pace = new Pace();
  #window = Number.POSITIVE_INFINITY;
  #waiting: Entry[] = [];
  readonly #inFlight = new Set<string>();
  #oneByOne = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(outbox: Outbox, post: (frame: string) => void) {
    this.#outbox = outbox;
    this.#post = post;
  }

  /** Takes what the gateway said of its limits. */
  limit({ publishRate, publishBurst }: Record<string, number>): void {
    if (publishRate === undefined || publishBurst === undefined) return;
    this.#pace = new Pace(publishRate, publishBurst * BURST_SHARE);
    this.#window = Math.max(1, Math.floor(publishBurst * WINDOW_SHARE));
  }

  /** The connection is gone; what has no answer waits for the next. */
  clear(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting = [];
    this.#inFlight.clear();
    this.#oneByOne = false;
  }

  /** Sends what of a session has no answer and is not on its way. */
  flush(session: string): void {
    const busy = new Set([...this.#inFlight, ...this.#waiting.map((entry) => entry.id)]);
    this.#waiting.push(...this.#outbox.of(session).filter((entry) => !busy.has(entry.id)));
    this.#pump();
  }

  /** Sends a message behind those that wait. */
  send(entry: Entry): void {
    this.#waiting.push(entry);
    this.#pump();
  }

  /** The gateway has answered for a message. */
  settled(id: string): void {
    this.#inFlight.delete(id);
    this.#pump();
  }

  /** The gateway wants a message again in `ms` milliseconds. */
  refused(entry: Entry, ms: number): void {
    this.#inFlight.delete(entry.id);
    const behind = this.#waiting.findIndex((each) => each.order > entry.order);
    this.#waiting.splice(behind < 0 ? this.#waiting.length : behind, 0, entry);
    this.#oneByOne = true;
    this.#pause(ms);
  }

  #pump(): void {
    while (this.#timer === undefined && this.#waiting.length > 0) {
      if (this.#inFlight.size >= (this.#oneByOne ? 1 : this.#window)) return;
      const wait = this.#pace.take(performance.now());
      if (wait > 0) return this.#pause(wait);
      const entry = this.#waiting.shift() as Entry;
      // Given up meanwhile.
      if (!this.#outbox.has(entry.id)) continue;
      entry.sent = true;
      this.#inFlight.add(entry.id);
      this.#post(entry.frame);
    }
    if (this.#waiting.length === 0) this.#oneByOne = false;
  }

  #pause(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, ms);
  }
}
