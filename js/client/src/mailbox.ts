import { Signal } from "./async.js";

/** A bounded queue between the connection and whoever reads. */
export class Mailbox<T> {
  #items: { item: T; size: number }[] = [];
  #head = 0;
  #size = 0;
  #news = new Signal();
  #end: { error: Error | undefined } | undefined;

  /**
   * @param maxItems - Above so many it is full.
   * @param maxSize - Above this sum of sizes, in characters, it is full.
   */
  constructor(
    readonly maxItems = 2_000,
    readonly maxSize = 8 * 1024 * 1024,
  ) {}

  get length(): number {
    return this.#items.length - this.#head;
  }

  /** Whether nothing more should be put. */
  get full(): boolean {
    return this.length >= this.maxItems || this.#size >= this.maxSize;
  }

  /** Whether so much has been taken that fetching more is worthwhile. */
  get halfEmpty(): boolean {
    return this.length <= this.maxItems / 2 && this.#size <= this.maxSize / 2;
  }

  /** Whether nothing more will come. */
  get ended(): boolean {
    return this.#end !== undefined;
  }

  /** Adds an item, whether full or not; after `end` it is dropped. */
  put(item: T, size = 0): void {
    if (this.#end !== undefined) return;
    this.#items.push({ item, size });
    this.#size += size;
    this.#news.notify();
  }

  /** Takes the next item if there is one. */
  take(): { item: T } | undefined {
    const entry = this.#items[this.#head];
    if (entry === undefined) return undefined;
    this.#head += 1;
    this.#size -= entry.size;
    if (this.#head === this.#items.length || this.#head > 1_000) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return entry;
  }

  /** Waits until `take` has something, or throws what `end` was given; false at a quiet end. */
  async ready(): Promise<boolean> {
    while (this.length === 0) {
      if (this.#end !== undefined) {
        if (this.#end.error !== undefined) throw this.#end.error;
        return false;
      }
      await this.#news.wait();
    }
    return true;
  }

  /** Wakes who waits in `ready`; used by readers that were told to stop. */
  wake(): void {
    this.#news.notify();
  }

  /** Resolves when something was put, or at the end. */
  news(): Promise<void> {
    return this.#news.wait();
  }

  /** Nothing more will come; who waits gets `error`, or a quiet end without one. */
  end(error?: Error): void {
    this.#end ??= { error };
    this.#news.notify();
  }
}
