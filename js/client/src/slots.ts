import { Signal, within } from "./async.js";

/** How much is done at a time. */
export class Slots {
  readonly #size: number;
  readonly #freed = new Signal();
  #taken = 0;

  /** @param size - At most so many; 0 is unlimited. */
  constructor(size: number) {
    this.#size = size || Number.POSITIVE_INFINITY;
  }

  /** Waits until something could begin. */
  async room(signal?: AbortSignal): Promise<void> {
    const never = () => new Error();
    while (this.#taken >= this.#size) {
      await within(this.#freed.wait(), Number.POSITIVE_INFINITY, never, signal);
    }
  }

  /** Does some work once there is a slot for it; rejects if it is aborted before. */
  async use(work: () => Promise<unknown>, signal: AbortSignal): Promise<void> {
    // Not awaited when there is one: nobody else may take it meanwhile.
    while (this.#taken >= this.#size) await this.room(signal);
    this.#taken += 1;
    try {
      await work();
    } finally {
      this.#taken -= 1;
      this.#freed.notify();
    }
  }
}
