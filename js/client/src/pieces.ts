/** Characters of one request's answer that are kept; a lost connection has swallowed fewer. */
const MAX_KEPT = 1024 * 1024;

/** What one request was answered with, as frames, kept in case it does not arrive. */
export class Pieces {
  /** Pieces so far, those that are not kept any more among them. */
  count = 0;
  /** Characters of those that are kept. */
  size = 0;
  /** Whether the last one says that a piece before it was lost. */
  broken = false;
  readonly #kept: string[] = [];

  /** Keeps a piece that has been sent; the oldest go when they are too much. */
  add(frame: string): void {
    this.count += 1;
    this.size += frame.length;
    this.#kept.push(frame);
    while (this.size > MAX_KEPT && this.#kept.length > 1) {
      this.size -= (this.#kept.shift() as string).length;
    }
  }

  /** Returns the pieces behind the first `received`; undefined if one of them is not kept. */
  after(received: number): string[] | undefined {
    const missing = this.count - received;
    if (missing > this.#kept.length) return undefined;
    return this.#kept.slice(this.#kept.length - Math.max(0, missing));
  }

  /** The newest piece. */
  get last(): string {
    return this.#kept.at(-1) ?? "";
  }
}
