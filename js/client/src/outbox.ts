/** One durable message on its way. */
export interface Entry {
  readonly id: string;
  readonly session: string;
  /** The whole message, as first sent. */
  readonly frame: string;
  /** Whether it may have reached the gateway. */
  sent: boolean;
  /** Whether it waits because the gateway wanted less at a time. */
  held: boolean;
}

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
    this.#interval = 1000 / rate;
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

  get size(): number {
    return this.#entries.size;
  }

  has(id: string): boolean {
    return this.#entries.has(id);
  }

  /** Keeps a message until it is settled. */
  add(id: string, session: string, frame: string): void {
    this.#entries.set(id, { id, session, frame, sent: false, held: false });
  }

  /** Removes and returns what the gateway has answered for. */
  settle(id: string): Entry | undefined {
    const entry = this.#entries.get(id);
    this.#entries.delete(id);
    return entry;
  }

  /** Removes a message that never left; returns whether that was still possible. */
  withdraw(id: string): boolean {
    return this.#entries.get(id)?.sent === false && this.#entries.delete(id);
  }

  /** Returns all frames of a session, in order; from now on they count as sent. */
  take(session: string): string[] {
    const mine = this.#of(session);
    for (const entry of mine) {
      entry.sent = true;
      entry.held = false;
    }
    return mine.map((entry) => entry.frame);
  }

  /** Keeps a message back until `nextHeld` has its turn; returns its session. */
  hold(id: string): string | undefined {
    const entry = this.#entries.get(id);
    if (entry !== undefined) entry.held = true;
    return entry?.session;
  }

  /** Returns the first message of a session that is held; from now on it counts as sent. */
  nextHeld(session: string): Entry | undefined {
    const entry = this.#of(session).find((each) => each.held);
    if (entry !== undefined) {
      entry.sent = true;
      entry.held = false;
    }
    return entry;
  }

  /** Returns one frame; from now on it counts as sent. */
  send(id: string): string | undefined {
    const entry = this.#entries.get(id);
    if (entry !== undefined) entry.sent = true;
    return entry?.frame;
  }

  /** Removes and returns what may or may not have been stored before a reset. */
  forgetSent(session: string): Entry[] {
    return this.#remove(this.#of(session).filter((entry) => entry.sent));
  }

  /** Removes and returns everything of a session that has ended. */
  forget(session: string): Entry[] {
    return this.#remove(this.#of(session));
  }

  #of(session: string): Entry[] {
    return [...this.#entries.values()].filter((entry) => entry.session === session);
  }

  #remove(entries: Entry[]): Entry[] {
    for (const entry of entries) this.#entries.delete(entry.id);
    return entries;
  }
}
