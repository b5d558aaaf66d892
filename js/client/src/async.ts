/** What is awaited here and settled elsewhere. */
export class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (error: unknown) => void;

  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // Whoever awaits it sees a rejection; if nobody does, that is no crash.
    this.promise.catch(() => {});
  }
}

/** Something that can be waited for again and again. */
export class Signal {
  #next = new Deferred<void>();

  /** Wakes all that wait now. */
  notify(): void {
    const now = this.#next;
    this.#next = new Deferred<void>();
    now.resolve();
  }

  /** Resolves at the next `notify`. */
  wait(): Promise<void> {
    return this.#next.promise;
  }
}

/**
 * Waits for `work`, but not beyond a time or an abort.
 *
 * @param ms - Milliseconds; `Infinity` for ever.
 * @param late - Makes the error for when the time is over.
 */
export async function within<T>(
  work: Promise<T>,
  ms: number,
  late: () => Error,
  signal?: AbortSignal,
): Promise<T> {
  if (ms === Number.POSITIVE_INFINITY && signal === undefined) return work;
  const stop = new Deferred<never>();
  const timer = Number.isFinite(ms) ? setTimeout(() => stop.reject(late()), ms) : undefined;
  const abort = () => stop.reject(abortReason(signal));
  signal?.addEventListener("abort", abort, { once: true });
  if (signal?.aborted) abort();
  try {
    return await Promise.race([work, stop.promise]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

/** Returns why a signal was aborted. */
export function abortReason(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason;
  return reason instanceof Error ? reason : new DOMException("aborted", "AbortError");
}

/** Resolves after some milliseconds, or at once when `wake` notifies. */
export async function sleep(ms: number, wake?: Signal): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const over = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await (wake === undefined ? over : Promise.race([over, wake.wait()]));
  clearTimeout(timer);
}

/** Callbacks by name. */
export class Emitter<Events extends { [K in keyof Events]: unknown[] }> {
  #callbacks: { [K in keyof Events]?: Set<{ call: (...args: Events[K]) => void }> } = {};

  /** Calls back at every `name`; returns how to stop that. */
  on<K extends keyof Events>(name: K, callback: (...args: Events[K]) => void): () => void {
    // An own entry per call, so that registering twice is two registrations.
    const entry = { call: callback };
    const set = this.#callbacks[name] ?? new Set();
    this.#callbacks[name] = set.add(entry);
    return () => void set.delete(entry);
  }

  /** Tells all; what a callback throws is reported and harms nobody else. */
  emit<K extends keyof Events>(name: K, ...args: Events[K]): void {
    for (const { call } of [...(this.#callbacks[name] ?? [])]) guarded(() => call(...args));
  }
}

/** Runs the application's code; what it throws is reported as an uncaught error would be. */
export function guarded(work: () => void): void {
  try {
    work();
  } catch (error) {
    report(error);
  }
}

/** Reports an error that nobody awaits. */
export function report(error: unknown): void {
  console.error("trunkline-client: nobody awaited this error:", error);
}
