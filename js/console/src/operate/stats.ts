/** What the gateway measures, looked at every two seconds while somebody watches. */
import { signal } from "@preact/signals";
import { ApiError, api } from "../lib/api";
import type { Json } from "../lib/types";

const PERIOD = 2000;
const KEPT = 150;

export interface Sample {
  /** Seconds since the epoch. */
  at: number;
  stats: Json;
}

export const samples = signal<Sample[]>([]);
export const statsError = signal<ApiError | null>(null);

let watchers = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

async function look(): Promise<void> {
  clearTimeout(timer);
  try {
    const stats = await api("GET", "/stats");
    const last = samples.value.at(-1)?.stats;
    // A gateway that was started anew counts from zero again.
    const kept = last && stats.uptime < last.uptime ? [] : samples.value.slice(1 - KEPT);
    samples.value = [...kept, { at: Date.now() / 1000, stats }];
    statsError.value = null;
  } catch (error) {
    if (error instanceof ApiError) statsError.value = error;
  }
  if (watchers > 0) timer = setTimeout(look, document.hidden ? PERIOD * 5 : PERIOD);
}

/** Begin to look; the returned function ends it. */
export function watch(): () => void {
  watchers++;
  if (watchers === 1) look();
  return () => {
    watchers--;
    if (watchers === 0) clearTimeout(timer);
  };
}

/** The sum of a record of numbers, or the number itself. */
export function total(value: Json): number {
  if (typeof value === "number") return value;
  if (!value || typeof value !== "object") return 0;
  return Object.values(value).reduce((sum: number, entry) => sum + total(entry), 0);
}

/** A measured value at each sample. */
export const level = (of: (stats: Json) => Json): number[] =>
  samples.value.map(({ stats }) => total(of(stats)));

/** How fast a count grew up to each sample, per second; null at the first. */
export function rate(of: (stats: Json) => Json): (number | null)[] {
  return rateOf(
    samples.value.map(({ at }) => at),
    level(of),
  );
}

export function rateOf(times: number[], counts: number[]): (number | null)[] {
  return counts.map((count, index) => {
    const before = counts[index - 1];
    const seconds = (times[index] ?? 0) - (times[index - 1] ?? 0);
    return before === undefined || seconds <= 0 ? null : Math.max(0, count - before) / seconds;
  });
}

/** The names in a record of counts, the greatest first. */
export function names(of: (stats: Json) => Json): [string, number][] {
  const last = samples.value.at(-1)?.stats;
  const record: Record<string, number> = (last && of(last)) ?? {};
  return Object.entries(record)
    .filter(([, count]) => count > 0)
    .sort((a, b) => b[1] - a[1]);
}
