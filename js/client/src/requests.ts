import { abortReason, within } from "./async.js";
import { type AnyMessage, isType, makeMessage } from "./envelope.js";
import { OutcomeUnknown, refusal, routeRefusal, TimedOut, TrunklineError } from "./errors.js";
import { randomId } from "./ids.js";
import type { Mailbox } from "./mailbox.js";
import type { RouteAnswer, RouteRequest } from "./messages.js";
import { Wire } from "./wire.js";

/** Milliseconds past a request's deadline in which the gateway has to say that it passed. */
const ANSWER_GRACE = 5_000;

/** What is asked of an agent; `capability` or `agentId` is needed. */
export interface RequestOptions {
  /** What the agent must be able to do, such as a tool's name. */
  capability?: string | undefined;
  /** The agent itself. */
  agentId?: string | undefined;
  /** The tool, where the capability does not say so. */
  method?: string | undefined;
  /** The tool's arguments. */
  params?: unknown;
  /** Milliseconds, at most an hour; a minute by default. */
  timeoutMs?: number | undefined;
  /**
   * The request may be carried out twice: as long as nothing has been answered it may be given to
   * another agent, and is repeated after a lost connection.
   */
  idempotent?: boolean | undefined;
  /** Labels that the agent must have. */
  labels?: Record<string, string> | undefined;
  /** Which of several agents is taken. */
  policy?: RouteRequest["policy"];
  /** The run or request that one is serving with this. */
  parentId?: string | undefined;
  /** The session of that run. */
  session?: { readonly id: string } | string | undefined;
  /** Cancels the request. */
  signal?: AbortSignal | undefined;
}

/** Takes a request's options apart. */
export function routeOf(options: RequestOptions, stream: boolean): RouteRequest {
  const { session: _session, signal: _signal, timeoutMs = 60_000, ...route } = options;
  return { ...route, timeoutMs: Math.max(1, Math.round(timeoutMs)), stream };
}

/** Returns the session of a request's options, if they name one. */
export function sessionOf({ session }: RequestOptions): string | undefined {
  return typeof session === "object" ? session.id : session;
}

/** One request to an agent, asked again where that is allowed. */
export class RouteCall {
  readonly #wire: Wire;
  readonly #route: RouteRequest;
  readonly #sessionId: string | undefined;
  readonly #signal: AbortSignal | undefined;
  readonly #deadline: number;

  constructor(wire: Wire, options: RequestOptions, stream: boolean) {
    this.#wire = wire;
    this.#route = routeOf(options, stream);
    this.#sessionId = sessionOf(options);
    this.#signal = options.signal;
    this.#deadline = performance.now() + (this.#route.timeoutMs ?? 0);
  }

  /** Asks, and gives the answer piece by piece. */
  async *pieces(): AsyncGenerator<unknown, void, undefined> {
    let answered = false;
    while (true) {
      await this.#ready();
      try {
        for await (const piece of this.#attempt()) {
          answered = true;
          yield piece;
        }
        return;
      } catch (error) {
        if (!Wire.interrupted(error)) throw error;
        if (answered || !this.#route.idempotent) {
          const text = "the connection was lost; the request may have been carried out";
          throw new OutcomeUnknown(text);
        }
      }
    }
  }

  #ready(): Promise<void> {
    const late = () => new TimedOut("no connection in time");
    const left = Math.max(0, this.#deadline - performance.now());
    return within(this.#wire.ready(), left, late, this.#signal);
  }

  async *#attempt(): AsyncGenerator<unknown, void, undefined> {
    const timeoutMs = Math.max(1, Math.round(this.#deadline - performance.now()));
    const route = { ...this.#route, timeoutMs };
    const message = makeMessage("route_request", route, this.#sessionId, { id: randomId("q_") });
    const box = this.#wire.openStream(message);
    let ended = false;
    try {
      while (!ended) {
        const answer = await this.#take(box);
        ended = answer.done;
        for (const piece of [answer.chunk, answer.result]) {
          if (piece != null) yield piece;
        }
      }
    } catch (error) {
      ended = error instanceof RouteEnd;
      throw error instanceof RouteEnd ? routeRefusal(error.reason) : error;
    } finally {
      this.#wire.closeStream(message.id);
      if (!ended) this.#wire.cancelRequest(message.id);
    }
  }

  async #take(box: Mailbox<AnyMessage>): Promise<RouteAnswer> {
    const left = this.#deadline + ANSWER_GRACE - performance.now();
    const text = "no answer in time; the request may have been carried out";
    if (this.#signal?.aborted) throw abortReason(this.#signal);
    await within(box.ready(), Math.max(0, left), () => new OutcomeUnknown(text), this.#signal);
    return answerOf(box.take()?.item as AnyMessage);
  }
}

/** The request has ended, and not well. */
class RouteEnd extends Error {
  constructor(readonly reason: TrunklineError) {
    super(reason.message);
  }
}

function answerOf(message: AnyMessage): RouteAnswer {
  if (isType(message, "error")) throw new RouteEnd(refusal(message.payload));
  const answer = message.payload as unknown as RouteAnswer;
  if (answer.ok) return answer;
  const { code = "HANDLER_ERROR", message: text = "" } = answer.error ?? {};
  throw new RouteEnd(new TrunklineError(code, text));
}
