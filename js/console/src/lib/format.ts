/** Times, numbers and names as people read them. */

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

const short = new Intl.DateTimeFormat(undefined, {
  month: "short",
  day: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

/** Day and time, without the year. */
export const shortTime = (ms: number) => (ms ? short.format(ms) : "");

export const timeOf = (ms: number) => (ms ? clock.format(ms) : "");
export const fullTime = (ms: number) => (ms ? full.format(ms) : "");
export const sameDay = (a: number, b: number) =>
  new Date(a).toDateString() === new Date(b).toDateString();

export function dayOf(ms: number): string {
  if (sameDay(ms, Date.now())) return "Today";
  if (sameDay(ms, Date.now() - 86_400_000)) return "Yesterday";
  return day.format(ms);
}

/** How long something took or has been going on. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms) || ms < 0) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${Math.floor(ms / 3_600_000)} h`;
  return `${Math.floor(ms / 86_400_000)} d`;
}

export function ago(ms: number): string {
  if (!ms) return "–";
  const past = Date.now() - ms;
  return past < 5000 ? "now" : `${duration(past)} ago`;
}

export function bytes(n: number): string {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(n < 10_240 ? 1 : 0)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

export function count(n: number): string {
  if (n < 10_000) return Math.round(n).toLocaleString("en");
  return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(n);
}

/** A number with its noun: "1 tool", "2 tools". */
export const plural = (n: number, noun: string) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

/** A stable hue for a name, in degrees. */
export function hue(name: string): number {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  return (hash >>> 0) % 360;
}

export function initials(name: string): string {
  const words = name.split(/[\s._:@-]+/).filter(Boolean);
  const letters =
    words.length > 1 ? [words[0], words[1]].map((w) => [...(w ?? "")][0]) : [...name].slice(0, 2);
  return letters.join("").toUpperCase();
}

/** JSON in one line, cut to a length. */
export function inline(value: unknown, max = 80): string {
  if (value === undefined || value === null) return "";
  const shown =
    typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value as object)
          .map(([key, entry]) => `${key}: ${JSON.stringify(entry)}`)
          .join(", ")
      : JSON.stringify(value);
  return shown.length > max ? `${shown.slice(0, max - 1)}…` : shown;
}

export const pretty = (value: unknown) =>
  typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? "");
