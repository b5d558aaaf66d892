import type { Cursor, SessionInfo } from "./messages.js";

/** Where a numbered message stands, as the reader sees it. */
export type Place = "next" | "seen" | "ahead";

/**
 * How far one has read a session's log: exactly once, in order.
 *
 * The gateway numbers durable messages from 1 without holes. The next number is new, a lower one was
 * seen before, a higher one means that something is missing; then one joins again with `position`.
 */
export class LogCursor {
  epoch: string | undefined;
  last: number;
  #known: number;

  constructor(position?: Cursor) {
    this.epoch = position?.epoch;
    this.last = position?.seq ?? 0;
    this.#known = this.last;
  }

  /** Where to resume; undefined before the first join. */
  get position(): Cursor | undefined {
    return this.epoch === undefined ? undefined : { epoch: this.epoch, seq: this.last };
  }

  /** Whether messages are known to exist that have not been read. */
  get behind(): boolean {
    return this.#known > this.last;
  }

  /** The last message that is known to exist. */
  get head(): number {
    return this.#known;
  }

  /**
   * Takes the answer to a join.
   *
   * @returns undefined if what was read is still a prefix of the log; else why it is not (`epoch`,
   * `trimmed`, `ahead`): reading begins anew.
   */
  joined(info: SessionInfo): string | undefined {
    const known = this.epoch !== undefined;
    if (known && info.recovery === "resumed" && info.epoch === this.epoch) {
      this.#known = Math.max(this.#known, info.head ?? 0);
      return undefined;
    }
    const changed = info.epoch !== this.epoch;
    this.epoch = info.epoch ?? "";
    this.last = info.next == null ? (info.head ?? 0) : info.next - 1;
    this.#known = Math.max(this.last, info.head ?? 0);
    if (!known) return undefined;
    return info.reason ?? (changed ? "epoch" : "trimmed");
  }

  /** Tells whether the message is next, was seen, or is ahead of a hole. */
  place(seq: number): Place {
    this.#known = Math.max(this.#known, seq);
    if (seq === this.last + 1) return "next";
    return seq <= this.last ? "seen" : "ahead";
  }

  /** The next message has been read. */
  advance(): void {
    this.last += 1;
  }

  /** The gateway says where the log ends. */
  sawHead(epoch: string, head: number): void {
    // Another epoch's numbers mean nothing here, but there is something to fetch.
    this.#known = Math.max(this.#known, epoch === this.epoch ? head : this.last + 1);
  }
}
