import { ConnectionLost, SignInFailed, TrunklineError } from "./errors.js";

const SECRETS = new Set(["token", "access_token", "api_key", "password", "auth", "code"]);
const SCHEMES: Record<string, string> = {
  "http:": "ws:",
  "https:": "wss:",
  "ws:": "ws:",
  "wss:": "wss:",
};

/** Close codes after which a connection is worth another try, where the reason says nothing. */
const TRANSIENT = new Set([1001, 1006, 1011, 1012, 1013, 1014, 4008, 4029]);

/**
 * Returns the WebSocket URL to connect to.
 *
 * @param secret - Whether a credential will be sent there.
 * @param insecure - Allow a credential to travel unencrypted to another machine.
 * @throws {@link TrunklineError} `INVALID_URL` or `INSECURE`.
 */
export function endpoint(url: string | URL, secret: boolean, insecure = false): string {
  const parts = parse(url);
  const scheme = SCHEMES[parts.protocol];
  if (scheme === undefined || parts.hostname === "") {
    throw new TrunklineError(
      "INVALID_URL",
      "a gateway's address begins with ws, wss, http or https",
    );
  }
  if (parts.username || parts.password || [...parts.searchParams.keys()].some(isSecret)) {
    throw new TrunklineError("INVALID_URL", "an address must not hold a credential; pass token");
  }
  if (secret && scheme === "ws:" && !insecure && !isLoopback(parts.hostname)) {
    const text = `a credential would travel unencrypted to ${parts.hostname}: use wss://, or insecure`;
    throw new TrunklineError("INSECURE", `${text} if the network itself is private`);
  }
  const path = parts.pathname === "/" ? "/ws" : parts.pathname;
  return `${scheme}//${parts.host}${path}${parts.search}`;
}

function parse(url: string | URL): URL {
  try {
    return new URL(url);
  } catch {
    throw new TrunklineError("INVALID_URL", "not a gateway's address");
  }
}

function isSecret(name: string): boolean {
  return SECRETS.has(name.toLowerCase());
}

/** Whether `host`, as a `URL` spells it, is this machine. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "[::1]" || /^127(?:\.\d+){3}$/.test(host);
}

/** What to do after a connection ended or could not be made. */
export interface Verdict {
  /** What happened. */
  error: TrunklineError;
  /** Whether to connect again. */
  again: boolean;
  /** Milliseconds to wait before; undefined: as the backoff says. */
  afterMs?: number | undefined;
}

/**
 * Judges a closed connection.
 *
 * @param code - The close code; 1006 when the connection broke without one.
 * @param reason - The close reason, `reconnect=yes|no[;afterMs=N][;text]`.
 * @param goingAway - Milliseconds, if the gateway announced when to come back.
 */
export function afterClose(code: number, reason: string, goingAway?: number): Verdict {
  const words = new Map(reason.split(";").map((part) => splitOnce(part)));
  const wait = words.get("afterMs") ?? "";
  const afterMs = /^\d{1,9}$/.test(wait) ? Number(wait) : goingAway;
  const told = words.get("reconnect");
  const again = told === undefined ? TRANSIENT.has(code) : told === "yes";
  const text = `the gateway closed the connection (${code}${reason && `, ${reason}`})`;
  if (code === 4001) return { error: new SignInFailed("AUTH_REQUIRED", text), again, afterMs };
  if (code === 4003) return { error: new SignInFailed("AUTH_EXPIRED", text), again, afterMs };
  return { error: new ConnectionLost(text, code), again, afterMs };
}

function splitOnce(part: string): [string, string] {
  const at = part.indexOf("=");
  return at < 0 ? ["", ""] : [part.slice(0, at), part.slice(at + 1)];
}

/**
 * Judges a socket that could not be opened.
 *
 * @param text - What the WebSocket says; browsers say nothing, that of `ws` names the HTTP status.
 */
export function afterRefusal(text: string): Verdict {
  const status = Number(/server response: (\d{3})/.exec(text)?.[1] ?? 0);
  const error = new ConnectionLost(`no connection: ${text}`);
  return { error, again: status === 0 || status === 429 || status >= 500 };
}

/** Judges a refused sign-in; only a lock or a limit is worth another try. */
export function afterSignIn(error: TrunklineError): Verdict {
  const failed = new SignInFailed(error.code, error.message, error);
  return { error: failed, again: error.retryable, afterMs: error.retryAfterMs };
}

/** How long to wait between tries. */
export interface ReconnectPolicy {
  /** Milliseconds; the upper bound of the first wait, 500 by default. */
  initialDelay?: number;
  /** Milliseconds; no wait is longer, 30 000 by default. */
  maxDelay?: number;
  /** Milliseconds to keep trying for the first connection, 10 000 by default; 0 tries once. */
  openTimeout?: number;
}

/** Waits that grow exponentially, with full jitter, so that many clients do not return together. */
export class Backoff {
  #tries = 0;

  constructor(
    readonly initialDelay = 500,
    readonly maxDelay = 30_000,
    readonly chance: () => number = Math.random,
  ) {}

  /** Returns the milliseconds to wait now, and expects to wait longer next time. */
  next(): number {
    const bound = Math.min(this.maxDelay, this.initialDelay * 2 ** Math.min(this.#tries, 32));
    this.#tries += 1;
    return bound * this.chance();
  }

  /** Begins anew: the connection was good. */
  reset(): void {
    this.#tries = 0;
  }
}
