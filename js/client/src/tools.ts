import type { RunContext, ToolContext } from "./context.js";
import { ToolError, type TrunklineError } from "./errors.js";
import type { ToolSpec } from "./messages.js";

/** How a tool is announced. */
export interface ToolOptions {
  /** What it does, for people and models. */
  description?: string;
  /** JSON Schema of the arguments; the gateway refuses calls that do not fit. */
  inputSchema?: Record<string, unknown>;
}

/**
 * Carries out a call: a function that returns the result, a promise of it, or an (async) generator or
 * stream whose pieces the asker gets one by one.
 */
// biome-ignore lint/suspicious/noExplicitAny: what the arguments are is the schema's business
export type ToolHandler<Args = any> = (args: Args, ctx: ToolContext) => unknown;

/** Answers a chat: an (async) generator or stream of text, or a promise of the whole text. */
export type ChatHandler = (ctx: RunContext, message: RunContext["message"]) => ChatOutcome;

/** What a {@link ChatHandler} may return; `undefined` is an empty answer. */
export type ChatOutcome =
  | AsyncIterable<string>
  | Iterable<string>
  // biome-ignore lint/suspicious/noConfusingVoidType: an async function without a return is one too
  | Promise<string | undefined | void>;

/** What an agent offers under a name. */
export interface Tool {
  readonly spec: ToolSpec;
  readonly handler: ToolHandler;
}

/** What everybody else is told of an error that is not a {@link ToolError}. */
export const FAILED = "the tool failed";

/** Says what others may know of an error. */
export function failureText(error: unknown): string {
  return error instanceof ToolError ? error.message : FAILED;
}

/** Reads the arguments of a call; absent ones are none. */
export function argumentsOf(params: unknown): Record<string, unknown> {
  if (params == null) return {};
  if (typeof params === "object" && !Array.isArray(params))
    return params as Record<string, unknown>;
  throw new ToolError("the arguments are not an object", "INVALID_PAYLOAD");
}

/** Returns the pieces of a result that comes in pieces; undefined if it comes as a whole. */
export function piecesOf<T = unknown>(outcome: unknown): AsyncIterator<T> | undefined {
  if (outcome === null || typeof outcome !== "object") return undefined;
  const { [Symbol.asyncIterator]: many } = outcome as Partial<AsyncIterable<T>>;
  if (typeof many === "function") return many.call(outcome);
  const plain = outcome as Partial<IterableIterator<T>>;
  if (typeof plain.next !== "function" || typeof plain[Symbol.iterator] !== "function") {
    return undefined;
  }
  return promised(plain as Iterator<T>);
}

/** Makes an asynchronous iterator of a plain generator. */
function promised<T>(iterator: Iterator<T>): AsyncIterator<T> {
  return {
    next: async () => iterator.next(),
    return: async () => iterator.return?.() ?? { done: true, value: undefined },
  };
}

/** Names a failure for the asker. */
export function reasonOf(error: TrunklineError | undefined, text: string, max: number) {
  return { code: error?.code ?? "HANDLER_ERROR", message: text.slice(0, max) };
}
