/** A loop over what comes, which may be left and begun again. */
export class EventLoop<T> implements AsyncIterableIterator<T> {
  readonly #take: () => Promise<T | undefined>;
  readonly #stop: () => void;

  /**
   * @param take - Waits for the next; undefined at the end.
   * @param stop - Called when the loop is left.
   */
  constructor(take: () => Promise<T | undefined>, stop: () => void) {
    this.#take = take;
    this.#stop = stop;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<T> {
    return this;
  }

  async next(): Promise<IteratorResult<T>> {
    const value = await this.#take();
    return value === undefined ? { done: true, value } : { done: false, value };
  }

  async return(): Promise<IteratorResult<T>> {
    this.#stop();
    return { done: true, value: undefined };
  }
}
