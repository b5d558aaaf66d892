import type { ErrorPayload } from "./messages.js";

/** What a {@link TrunklineError} carries besides its code and text. */
export interface ErrorFacts {
  /** Facts for programs, in wire spelling. */
  details?: Record<string, unknown> | undefined;
  /** Whether the same request may succeed later. */
  retryable?: boolean | undefined;
  /** Milliseconds to wait before that, if the gateway said so. */
  retryAfterMs?: number | undefined;
}

const RETRYABLE = new Set([
  "AUTH_LOCKED",
  "RATE_LIMITED",
  "OVERLOADED",
  "STORAGE_FULL",
  "AGENT_NOT_FOUND",
]);

/**
 * Base of every error of this library, and what a refusal of the gateway or of an agent becomes.
 *
 * `code` is one of the protocol's error codes, an agent's own word, or one of the library's:
 * `CONNECTION_LOST`, `OUTCOME_UNKNOWN`, `INVALID_URL`, `INSECURE`, `NO_WEBSOCKET`, `RUN_FAILED`.
 */
export class TrunklineError extends Error {
  readonly code: string;
  readonly details: Record<string, unknown>;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;

  constructor(code: string, message = "", facts: ErrorFacts = {}) {
    super(message || code.replaceAll("_", " ").toLowerCase());
    this.name = new.target.name;
    this.code = code;
    this.details = facts.details ?? {};
    this.retryable = facts.retryable ?? RETRYABLE.has(code);
    this.retryAfterMs = facts.retryAfterMs;
  }
}

/** The credential is missing, wrong, expired or revoked; or it may not take the role. */
export class SignInFailed extends TrunklineError {}

/** The connection has ended and will not come back by itself. */
export class ConnectionLost extends TrunklineError {
  /** The WebSocket close code, if one was received. */
  readonly closeCode: number | undefined;

  constructor(message: string, closeCode?: number) {
    super("CONNECTION_LOST", message);
    this.closeCode = closeCode;
  }
}

/** The answer was lost: what was asked may have happened, or not. It is never repeated blindly. */
export class OutcomeUnknown extends TrunklineError {
  constructor(message: string, details?: Record<string, unknown>) {
    super("OUTCOME_UNKNOWN", message, { details });
  }
}

/** No answer came in time, and nothing was done. */
export class TimedOut extends TrunklineError {
  constructor(message: string) {
    super("TIMEOUT", message);
  }
}

/**
 * Thrown inside a tool or chat handler to tell the asker why it failed.
 *
 * Anything else that is thrown reaches the asker as a generic failure, so that nothing internal leaks.
 */
export class ToolError extends TrunklineError {
  constructor(message: string, code = "TOOL_ERROR") {
    super(code, message);
  }
}

/** Turns the payload of an `error` message into the error to throw. */
export function refusal(error: ErrorPayload): TrunklineError {
  const told = error.retryAfterMs ?? error.details?.retryAfterMs;
  return new TrunklineError(error.code, error.message, {
    details: error.details ?? undefined,
    retryable: error.retryable ?? undefined,
    retryAfterMs: typeof told === "number" ? told : undefined,
  });
}

/** Turns a routed request's end into the error to throw. */
export function routeRefusal(error: TrunklineError): TrunklineError {
  const ambiguous = error.code === "AGENT_LOST" || error.code === "TIMEOUT";
  if (ambiguous && error.details.delivered) {
    const text = `${error.code}: ${error.message}; the agent had received the request`;
    return new OutcomeUnknown(text, { ...error.details, code: error.code });
  }
  return error.code === "TIMEOUT" ? new TimedOut(error.message) : error;
}

/** Makes an error of whatever was thrown. */
export function asError(thrown: unknown): TrunklineError {
  if (thrown instanceof TrunklineError) return thrown;
  return new TrunklineError(
    "HANDLER_ERROR",
    thrown instanceof Error ? thrown.message : `${thrown}`,
  );
}
