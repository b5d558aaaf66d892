/** One durable message on its way. */
export interface Entry {
  readonly id: string;
  readonly session: string;
  /** The whole message, as first sent. */
  readonly frame: string;
  /** Whether it may have reached the gateway. */
  sent: boolean;
  /** Its place among all messages. */
  readonly order: number;
}

/** Messages per second where a gateway tells 0, because it rounds. */
const ROUNDED_RATE = 0.5;

/**
 * How fast messages may go out: `burst` at once, then `rate` a second.
 *
 * Sending faster than the gateway takes them would have it refuse some and take others behind them.
 */
export class Pace {
  readonly #interval: number;
  readonly #slack: number;
  #due = Number.NEGATIVE_INFINITY;

  constructor(rate = Number.POSITIVE_INFINITY, burst = 1) {
    this.#interval = 1000 / (rate > 0 ? rate : ROUNDED_RATE);
    this.#slack = Math.max(0, burst - 1) * this.#interval;
  }

  /** Returns 0 if a message may go out at `now`, in milliseconds; else how long to wait. */
  take(now: number): number {
    const due = Math.max(this.#due, now - this.#slack);
    if (due > now) return due - now;
    this.#due = due + this.#interval;
    return 0;
  }
}

/**
 * Durable messages that the gateway has not yet answered for, in the order in which they were added.
 *
 * A message stays here until its `ack` or `error` comes. After a reconnect what was sent is sent
 * again under the same id, in order and before anything newer, and the gateway stores it once. Where
 * the log was reset the gateway can no longer tell: those are given back and never sent twice.
 */
export class Outbox {
  readonly #entries = new Map<string, Entry>();
  #added = 0;

  get size(): number {
    return this.#entries.size;
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  get(id: string): Entry | undefined {
    return this.#entries.get(id);
  }

  /** Keeps a message until it is settled. */
  add(id: string, session: string, frame: string): Entry {
    this.#added += 1;
    const entry = { id, session, frame, sent: false, order: this.#added };
    this.#entries.set(id, entry);
    return entry;
  }

  /** Removes what the gateway has answered for. */
  settle(id: string): void {
    this.#entries.delete(id);
  }

  /** Removes a message that never left; returns whether that was still possible. */
  withdraw(id: string): boolean {
    return this.#entries.get(id)?.sent === false && this.#entries.delete(id);
  }

  /** Removes and returns what may or may not have been stored before a reset. */
  forgetSent(session: string): Entry[] {
    return this.#remove(this.of(session).filter((entry) => entry.sent));
  }

  /** Removes and returns everything of a session that has ended. */
  forget(session: string): Entry[] {
    return this.#remove(this.of(session));
  }

  /** Returns what waits of a session, in order. */
  of(session: string): Entry[] {
    return [...this.#entries.values()].filter((entry) => entry.session === session);
  }

  #remove(entries: Entry[]): Entry[] {
    for (const entry of entries) this.#entries.delete(entry.id);
    return entries;
  }
}
