import { type Entry, type Outbox, Pace } from "./outbox.js";

/** How much of the gateway's burst is for durable messages; the rest is for requests. */
const BURST_SHARE = 0.8;

/**
 * Sends durable messages as fast as the gateway takes them, and never out of order.
 *
 * What the gateway refuses because it is too much at a time is held, with all that comes behind it in
 * its session, and goes out one by one.
 */
export class Throttle {
  readonly #outbox: Outbox;
  readonly #post: (frame: string) => void;
  #pace = new Pace();
  /** Sessions in which the gateway wants less at a time: what is on its way; null in a pause. */
  readonly #slow = new Map<string, string | null>();
  #timers = new Set<ReturnType<typeof setTimeout>>();

  constructor(outbox: Outbox, post: (frame: string) => void) {
    this.#outbox = outbox;
    this.#post = post;
  }

  /** Takes what the gateway said of its limits. */
  limit({ publishRate, publishBurst = 1 }: Record<string, number>): void {
    this.#pace = new Pace(publishRate, publishBurst * BURST_SHARE);
  }

  /** The connection is gone; the next sends everything anew. */
  clear(): void {
    this.#slow.clear();
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
  }

  /** Sends a message as soon as the gateway is likely to take it. */
  send(id: string, session: { id: string; attached: boolean }): void {
    if (this.#slow.has(session.id)) {
      this.#outbox.hold(id);
    } else if (session.attached) {
      const wait = this.#pace.take(performance.now());
      if (wait > 0) this.slowDown(id, wait);
      else this.#post(this.#outbox.send(id) as string);
    }
  }

  /** Sends a message in `ms` milliseconds, and what is behind it one by one. */
  slowDown(id: string, ms: number): void {
    const session = this.#outbox.hold(id);
    if (session === undefined || (this.#slow.get(session) ?? id) !== id) return;
    if (this.#slow.get(session) === null) return;
    this.#slow.set(session, null);
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      if (this.#slow.get(session) === null) this.#sendHeld(session);
    }, ms);
    this.#timers.add(timer);
  }

  /** The gateway has answered for a message. */
  settled(entry: Entry): void {
    if (this.#slow.get(entry.session) === entry.id) this.#sendHeld(entry.session);
  }

  /** Sends the next held message of a session; without one, it is slow no more. */
  #sendHeld(session: string): void {
    const entry = this.#outbox.nextHeld(session);
    if (entry === undefined) {
      this.#slow.delete(session);
    } else {
      this.#slow.set(session, entry.id);
      this.#post(entry.frame);
    }
  }
}
