import { Deferred, within } from "./async.js";
import { approvalDigest } from "./canonical.js";
import { type Incoming, isType } from "./envelope.js";
import { ToolError, type TrunklineError } from "./errors.js";
import type { Gateway } from "./gateway.js";
import { newId, randomId } from "./ids.js";
import type { ApprovalRequest } from "./messages.js";
import { Pieces } from "./pieces.js";
import type { RequestOptions } from "./requests.js";
import type { Session } from "./session.js";
import { AnswerText } from "./text.js";
import { argumentsOf, type ChatHandler, failureText, piecesOf, type Tool } from "./tools.js";

/** Milliseconds past an approval's deadline in which the gateway's own denial should come. */
const PATIENCE = 5_000;

/** What was decided about a tool call. */
export interface Decision {
  /** Whether the tool may run. */
  allowed: boolean;
  reason: string | undefined;
  /** The user who decided; the gateway where nobody did in time. */
  by: string;
}

/** What a request to another agent takes from what is being served. */
export type AskOptions = Omit<RequestOptions, "parentId" | "session">;

/** Base of what an agent's functions get. */
abstract class Context {
  /** The agent's own connection. */
  readonly gateway: Gateway;
  /** The run or request that is being served. */
  readonly workId: string;
  readonly #stop = new AbortController();

  /** @internal */
  constructor(gateway: Gateway, workId: string) {
    this.gateway = gateway;
    this.workId = workId;
  }

  /** Aborted once nobody waits for the outcome any more. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /** @internal Stops the work. */
  cancel(): void {
    this.#stop.abort();
  }

  /**
   * Shows how far a tool call is; a request from outside a session has nobody to show it to.
   *
   * @param percent - From 0 to 100.
   * @param message - A few words for people.
   */
  abstract progress(percent: number, message?: string): void;

  /** The session of the run that is being served, if it is a run. */
  abstract readonly session: Session | undefined;

  /**
   * Asks another agent on behalf of what is being served; ends when that ends. Options, result and
   * errors are those of {@link Gateway.request}.
   */
  async ask<T = unknown>(options: AskOptions): Promise<T> {
    const own = options.signal;
    const signal = own === undefined ? this.signal : AbortSignal.any([this.signal, own]);
    const { workId: parentId, session } = this;
    return this.gateway.request<T>({ ...options, parentId, session, signal });
  }
}

/** What a tool gets besides its arguments. */
export class ToolContext extends Context {
  /** The session that the call is shown in; undefined for a request from outside. */
  readonly session: Session | undefined;
  /** @internal What the request was answered with so far. */
  readonly pieces = new Pieces();
  readonly #call: ToolCall | undefined;

  /** @internal */
  constructor(gateway: Gateway, workId: string, call?: ToolCall) {
    super(gateway, workId);
    this.session = call?.run.session;
    this.#call = call;
    const run = call?.run.signal;
    if (run?.aborted) this.cancel();
    run?.addEventListener("abort", () => this.cancel(), { once: true });
  }

  progress(percent: number, message?: string): void {
    this.#call?.progress(percent, message);
  }
}

/** What a chat handler gets. */
export class RunContext extends Context {
  /** Where the chat was said. */
  readonly session: Session;
  /** The chat. */
  readonly message: Incoming<"chat">;
  /** The answer's id. */
  readonly runId: string;
  /** @internal */
  readonly answer = new AnswerText();
  /** @internal How the ids of its chunks begin: `<prefix>.<index>`. */
  readonly chunkPrefix = newId();
  readonly #tools: ReadonlyMap<string, Tool>;
  readonly #calls: ToolCall[] = [];
  #pause: ReturnType<typeof setTimeout> | undefined;

  /** @internal */
  constructor(
    gateway: Gateway,
    tools: ReadonlyMap<string, Tool>,
    session: Session,
    message: Incoming<"chat">,
    runId: string,
  ) {
    super(gateway, runId);
    this.session = session;
    this.message = message;
    this.runId = runId;
    this.#tools = tools;
  }

  /** What was said. */
  get text(): string {
    return this.message.payload.message;
  }

  progress(percent: number, message?: string): void {
    this.#calls.at(-1)?.progress(percent, message);
  }

  /**
   * Calls one of the agent's own tools, for all to see; the pieces of one that streams come as a list.
   *
   * @throws {@link ToolError} There is no such tool, or it says so.
   */
  async tool<T = unknown>(name: string, args: Record<string, unknown> = {}): Promise<T> {
    return this.toolCall(name, args, async (call) => {
      const tool = this.#tools.get(name);
      if (tool === undefined) throw new ToolError(`there is no tool ${name}`, "UNKNOWN_TOOL");
      const context = new ToolContext(this.gateway, this.workId, call);
      const outcome = await tool.handler(argumentsOf(args), context);
      const pieces = piecesOf(outcome);
      return (pieces === undefined ? outcome : await collect(pieces)) as T;
    });
  }

  /** Shows `work` as a tool call; what it returns is the call's output, what it throws its failure. */
  async toolCall<T>(
    name: string,
    args: Record<string, unknown>,
    work: (call: ToolCall) => Promise<T> | T,
  ): Promise<T> {
    const call = new ToolCall(this, name);
    await call.publish("tool_start", { args });
    this.#calls.push(call);
    try {
      const output = await work(call);
      await call.publish("tool_result", { result: { success: true, output } });
      return output;
    } catch (error) {
      // Cancelled: the run's end says so.
      if (!this.signal.aborted) {
        await call.publish("tool_result", {
          result: { success: false, error: failureText(error) },
        });
      }
      throw error;
    } finally {
      this.#calls.splice(this.#calls.indexOf(call), 1);
    }
  }

  /**
   * Asks the people in the session whether a tool may run with these arguments.
   *
   * @param options - `timeoutMs`: at most 24 hours, after which the answer is no; 5 minutes by default.
   * @throws {@link ToolError} The arguments were changed while one waited; {@link TrunklineError}:
   * they have no canonical JSON, or the gateway refused the question.
   */
  async approve(
    tool: string,
    args: Record<string, unknown> = {},
    { timeoutMs = 300_000 }: { timeoutMs?: number } = {},
  ): Promise<Decision> {
    const digest = await approvalDigest(tool, args);
    const expiresAt = Date.now() + timeoutMs;
    const { runId } = this;
    const request = { approvalId: randomId("a_"), tool, args, digest, expiresAt, runId };
    const decision = await this.#decided(request, timeoutMs);
    if (decision.allowed && (await approvalDigest(tool, args)) !== digest) {
      throw new ToolError("the arguments are not those that were approved");
    }
    return decision;
  }

  async #decided(request: ApprovalRequest, timeoutMs: number): Promise<Decision> {
    const decided = new Deferred<Decision>();
    const forget = this.gateway.on("message", (message) => {
      if (!isType(message, "approval_response")) return;
      const { approvalId, digest, decision, reason } = message.payload;
      if (approvalId !== request.approvalId) return;
      const allowed = decision === "allow" && digest.toLowerCase() === request.digest;
      decided.resolve({ allowed, reason: reason ?? undefined, by: message.from?.userId ?? "" });
    });
    const late = new Error("no answer came in time");
    try {
      await this.session.publish("approval_request", request, { replyTo: this.message.id });
      const wait = timeoutMs + PATIENCE;
      return await within(decided.promise, wait, () => late, this.signal);
    } catch (error) {
      if (error !== late) throw error;
      return { allowed: false, reason: late.message, by: "" };
    } finally {
      forget();
    }
  }

  /** @internal Runs a handler and sends what it says. */
  async consume(handler: ChatHandler): Promise<void> {
    const outcome = handler(this, this.message);
    const pieces = piecesOf<string>(outcome);
    if (pieces === undefined) {
      this.answer.write((await this.#unlessCancelled(outcome as Promise<string>)) ?? "");
      return;
    }
    try {
      while (true) {
        const { done, value } = await this.#unlessCancelled(pieces.next());
        if (done) return;
        this.answer.write(value);
        this.sendText();
        await this.gateway.wire.connection.drain();
      }
    } finally {
      // Not awaited: a cancelled generator may be in the middle of something.
      void Promise.resolve(pieces.return?.()).catch(() => {});
    }
  }

  #unlessCancelled<T>(work: Promise<T> | T): Promise<T> {
    const never = () => new Error();
    return within(Promise.resolve(work), Number.POSITIVE_INFINITY, never, this.signal);
  }

  /** @internal Sends the text that the gateway has not got; without a connection it waits. */
  sendText(): void {
    if (this.#pause !== undefined || this.signal.aborted) return;
    while (this.session.attached) {
      const chunk = this.answer.take();
      if (chunk === undefined) return;
      const id = `${this.chunkPrefix}.${chunk.index}`;
      const payload = { ...chunk, done: false, runId: this.runId };
      this.session.post("chat_stream", payload, { id, replyTo: this.message.id });
    }
  }

  /** @internal Sends again from the chunk that the gateway expects, after the time it asks for. */
  chunkRefused(index: number, error: TrunklineError): void {
    const told = error.details.expected;
    const expected = typeof told === "number" ? told : error.retryable ? index : undefined;
    if (expected === undefined) return;
    this.answer.rewind(expected - 1);
    this.#pause ??= setTimeout(() => {
      this.#pause = undefined;
      this.sendText();
    }, error.retryAfterMs ?? 0);
  }

  /** @internal Nothing is sent any more. */
  ended(): void {
    clearTimeout(this.#pause);
  }
}

/** A tool call that everybody in the session can see. */
export class ToolCall {
  /** The call's id. */
  readonly id = randomId();
  /** The run that it belongs to. */
  readonly run: RunContext;
  /** The tool. */
  readonly name: string;

  /** @internal */
  constructor(run: RunContext, name: string) {
    this.run = run;
    this.name = name;
  }

  /** Shows how far it is: `percent` from 0 to 100, and a few words. */
  progress(percent: number, message?: string): void {
    const progress = Math.min(100, Math.max(0, percent));
    this.run.session.post("tool_update", { ...this.#base(), progress, message }, this.#where());
  }

  /** @internal */
  async publish(type: "tool_start" | "tool_result", facts: object): Promise<void> {
    await this.run.session.publish(type, { ...this.#base(), ...facts }, this.#where());
  }

  #base() {
    return { runId: this.run.runId, tool: this.name, toolCallId: this.id };
  }

  #where() {
    return { replyTo: this.run.message.id };
  }
}

async function collect(pieces: AsyncIterator<unknown>): Promise<unknown[]> {
  const all: unknown[] = [];
  for (let next = await pieces.next(); !next.done; next = await pieces.next()) all.push(next.value);
  return all;
}
