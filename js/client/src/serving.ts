import type { Agent } from "./agent.js";
import { Deferred, Signal, sleep, within } from "./async.js";
import { RunContext, ToolContext } from "./context.js";
import { type AnyMessage, type Incoming, isType, makeMessage, type Outgoing } from "./envelope.js";
import { ConnectionLost, refusal, ToolError, TrunklineError } from "./errors.js";
import type { Gateway } from "./gateway.js";
import type {
  AgentRegister,
  AgentRegistered,
  ChatComplete,
  RouteDelivery,
  RouteResponse,
  RunState,
  SessionInfo,
} from "./messages.js";
import type { Pieces } from "./pieces.js";
import type { Session } from "./session.js";
import { Slots } from "./slots.js";
import { argumentsOf, failureText, piecesOf, reasonOf, type Tool } from "./tools.js";

/** Heartbeats in the time after which the gateway would give the agent up. */
const BEATS_PER_LEASE = 3;

/** How many ended answers are kept, and their characters; a lost connection has swallowed fewer. */
const KEPT_ENDS = 100;
const KEPT_SIZE = 4 * 1024 * 1024;

/** How the ids of answers to requests begin: `a_<requestId>.<number>`. */
const ANSWER = "a_";

/** Characters of what others are told about a failure. */
const MAX_REASON = 4_096;

/** One agent on one connection: its registration, its runs, its requests. */
export class Serving {
  /** The agent's connection. */
  readonly gateway: Gateway;
  readonly #agent: Agent;
  readonly #slots: Slots;
  /** A run's id is unique only within its session. */
  readonly #runs = new Map<string, RunContext>();
  readonly #requests = new Map<string, ToolContext>();
  readonly #ended = new Map<string, Pieces>();
  readonly #work = new Set<Promise<void>>();
  readonly #changed = new Signal();
  readonly #over = new Deferred<void>();
  #stopping = false;
  #drained: Promise<void> | undefined;
  #generation: number | undefined;
  #announced = "";
  #registered = false;
  #refused: TrunklineError | undefined;
  #beat: ReturnType<typeof setInterval> | undefined;

  /** @internal */
  constructor(agent: Agent, gateway: Gateway) {
    this.gateway = gateway;
    this.#agent = agent;
    this.#slots = new Slots(agent.options.maxConcurrent ?? 0);
  }

  // Beginning and end

  /** @internal Connects, registers and joins; rejects as `Agent.run` does. */
  async open(): Promise<void> {
    const { wire } = this.gateway;
    wire.beforeResume = (resume) => this.#register(resume);
    this.gateway.on("message", (message) => this.#onMessage(message));
    this.gateway.on("state", (state) => {
      if (state !== "open") this.#registered = false;
      this.#changed.notify();
    });
    void this.gateway.closed.then((error) => this.#end(this.#refused ?? error));
    await this.gateway.open();
    await this.#online();
    for (const sessionId of this.#agent.options.sessions ?? []) {
      const session = await this.gateway.join(sessionId);
      this.#follow(session);
      await this.#takeUp(session, session.runs);
    }
  }

  /** Resolves after `stop`; rejects with why the agent cannot go on. */
  get stopped(): Promise<void> {
    return this.#over.promise;
  }

  /** Begins no more work, finishes what is at work, unregisters and closes. */
  stop(): Promise<void> {
    this.#stopping = true;
    this.#drained ??= this.#drain();
    return this.#drained;
  }

  async #drain(): Promise<void> {
    const { wire } = this.gateway;
    if (wire.error === undefined && this.#refused === undefined) {
      wire.post(this.#heartbeat());
      const ended = Promise.allSettled(this.#work);
      const { drainTimeoutMs = 10_000 } = this.#agent.options;
      await within(ended, drainTimeoutMs, () => new Error("too long")).catch(() => {});
      const leave = { id: this.#agent.id };
      await wire.call("agent_unregister", leave, { timeoutMs: 2_000 }).catch(() => {});
    }
    await this.close();
  }

  /** @internal Stops everything at once. */
  async close(): Promise<void> {
    this.#stopping = true;
    clearInterval(this.#beat);
    for (const context of [...this.#runs.values(), ...this.#requests.values()]) context.cancel();
    await this.gateway.close();
    this.#over.resolve();
  }

  #end(error: TrunklineError): void {
    clearInterval(this.#beat);
    this.#changed.notify();
    // Unless one's own stop is the reason.
    if (!this.#stopping) this.#over.reject(error);
  }

  #start(work: Promise<void>): void {
    const kept = work.catch((error) => {
      console.error(`trunkline-client: agent ${this.#agent.id}:`, error);
    });
    this.#work.add(kept);
    void kept.then(() => this.#work.delete(kept));
  }

  // Registration

  /** Registers before the sessions are joined: their runs are ours again then. */
  #register(resume: () => void): void {
    this.#registered = false;
    const registration = this.#agent.registration(this.#generation);
    this.#announced = JSON.stringify(this.#agent.registration());
    this.gateway.wire.ask(makeMessage("agent_register", registration), (reply) => {
      if (!(reply instanceof Error)) {
        this.#onRegistered(reply.payload as unknown as AgentRegistered);
        resume();
      } else if (reply instanceof ConnectionLost) {
        // The next connection registers.
      } else if (reply.retryable) {
        setTimeout(() => this.#register(resume), reply.retryAfterMs ?? 1_000);
      } else {
        this.#refused = reply;
        this.#end(reply);
      }
    });
  }

  #onRegistered({ generation, leaseMs, runs, requests, received }: AgentRegistered): void {
    this.#generation = generation;
    clearInterval(this.#beat);
    const beat = () => this.gateway.wire.post(this.#heartbeat());
    this.#beat = setInterval(beat, leaseMs / BEATS_PER_LEASE);
    const open = new Map(runs.map((run) => [keyOf(run.sessionId, run.runId), run.index]));
    for (const [key, run] of this.#runs) {
      const index = open.get(key);
      if (index === undefined) run.cancel();
      else run.answer.rewind(index);
    }
    for (const [id, request] of this.#requests) {
      if (!requests.includes(id)) request.cancel();
    }
    this.#registered = true;
    this.#changed.notify();
    for (const id of requests) this.#answerAgain(id, received?.[id] ?? 0);
    this.announce();
  }

  /** Sends what was written to a connection that was lost already, and never arrived. */
  #answerAgain(requestId: string, received: number): void {
    const pieces = this.#requests.get(requestId)?.pieces ?? this.#ended.get(requestId);
    if (pieces === undefined) return;
    const missing = pieces.broken ? [pieces.last] : pieces.after(received);
    if (missing === undefined) return this.#giveUp(requestId, 0);
    for (const frame of missing) this.gateway.wire.connection.post(frame);
  }

  /** Ends a request, after `ms`, whose answer has a hole: none is better than a wrong one. */
  #giveUp(requestId: string, ms: number): void {
    const request = this.#requests.get(requestId);
    const pieces = request?.pieces ?? this.#ended.get(requestId);
    if (pieces === undefined || pieces.broken) return;
    request?.cancel();
    const { wire } = this.gateway;
    const error = { code: "AGENT_LOST", message: "a piece of the answer was lost on the way" };
    const end = { requestId, ok: false, error, done: true };
    const id = `${ANSWER}${requestId}.${pieces.count}`;
    const frame = wire.frame(makeMessage("route_response", end, undefined, { id }));
    pieces.broken = true;
    pieces.add(frame);
    this.#keep(requestId, pieces);
    setTimeout(() => wire.connection.post(frame), ms);
  }

  /** @internal Tells the gateway what has changed since the agent told it last. */
  announce(): void {
    const now: AgentRegister = this.#agent.registration();
    const text = JSON.stringify(now);
    if (text === this.#announced || !this.#registered) return;
    this.#announced = text;
    this.gateway.wire.ask(makeMessage("agent_register", now), (reply) => {
      if (reply instanceof Error && !(reply instanceof ConnectionLost)) {
        console.error(`trunkline-client: agent ${this.#agent.id}: not taken:`, reply);
      }
    });
  }

  /** Waits until the agent is registered on a live connection. */
  async #online(): Promise<void> {
    while (true) {
      const error = this.#refused ?? this.gateway.wire.error;
      if (error !== undefined) throw error;
      if (this.#registered && this.gateway.wire.connection.connected) return;
      await this.#changed.wait();
    }
  }

  #heartbeat(): Outgoing {
    const load = this.#runs.size + this.#requests.size;
    const status = this.#stopping ? "busy" : "online";
    return makeMessage("agent_heartbeat", { id: this.#agent.id, status, load });
  }

  // What the gateway sends

  #onMessage(message: AnyMessage): void {
    if (isType(message, "route_request")) this.#onRequest(message.payload);
    else if (isType(message, "route_cancel")) {
      this.#requests.get(message.payload.requestId)?.cancel();
    } else if (isType(message, "run_cancel")) {
      this.#runs.get(keyOf(message.sessionId, message.payload.runId))?.cancel();
    } else if (isType(message, "session_info")) this.#onSessionInfo(message.payload);
    else if (isType(message, "error")) this.#onError(message);
  }

  /** A chunk or answer was refused: too many at a time, or one before it was. */
  #onError({ replyTo, payload }: Incoming<"error">): void {
    const at = replyTo?.lastIndexOf(".") ?? -1;
    if (replyTo == null || at < 0) return;
    if (replyTo.startsWith(ANSWER)) {
      const requestId = replyTo.slice(ANSWER.length, at);
      return this.#onRefusedPiece(requestId, Number(replyTo.slice(at + 1)), refusal(payload));
    }
    for (const run of this.#runs.values()) {
      if (run.chunkPrefix === replyTo.slice(0, at)) {
        run.chunkRefused(Number(replyTo.slice(at + 1)), refusal(payload));
      }
    }
  }

  /** Sends a refused end again, after the time that is asked for; behind a piece more has followed. */
  #onRefusedPiece(requestId: string, number: number, error: TrunklineError): void {
    const ended = this.#ended.get(requestId);
    const ms = error.retryAfterMs ?? 0;
    if (ended !== undefined && number === ended.count - 1 && error.retryable) {
      setTimeout(() => this.gateway.wire.connection.post(ended.last), ms);
    } else if (ended !== undefined || this.#requests.has(requestId)) {
      this.#giveUp(requestId, ms);
    }
  }

  #onSessionInfo(info: SessionInfo): void {
    if (info.agentId !== this.#agent.id) return;
    const known = this.gateway.wire.sessions.get(info.sessionId) as Session | undefined;
    if (info.status === "assigned") {
      // One that it is in already is joined again, from where it was left.
      const session = known ?? this.gateway.enter(info);
      if (known === undefined) this.#follow(session);
      this.#start(this.#takeUp(session, info.runs ?? []));
    } else if (info.status === "unassigned") {
      known?.ended();
    }
  }

  // Sessions and runs

  #follow(session: Session): void {
    void this.#listen(session).catch((error) => {
      if (this.gateway.wire.error === undefined) {
        console.warn(`trunkline-client: agent ${this.#agent.id} left ${session.id}:`, error);
      }
    });
  }

  async #listen(session: Session): Promise<void> {
    for await (const event of session.events()) {
      if (event.type === "chat") await this.#onChat(session, event);
      else if (event.type === "chat_complete") this.#onComplete(event);
    }
  }

  async #onChat(session: Session, message: Incoming<"chat">): Promise<void> {
    const runId = `${message.seq}.${this.#agent.id}`;
    if (!message.addressed?.includes(this.#agent.id)) return;
    // From before the last join, with nobody who waits for an answer.
    const past = (message.seq ?? 0) <= (session.info?.head ?? 0);
    if (past && session.runs.every((run) => run.runId !== runId)) return;
    await this.#begin(session, message, runId);
  }

  /** Stops a run that the gateway has ended. */
  #onComplete({ sessionId, payload, from }: Incoming<"chat_complete">): void {
    if (from?.kind !== "gateway" || payload.runId == null) return;
    this.#runs.get(keyOf(sessionId, payload.runId))?.cancel();
  }

  /** Answers what an earlier process, or another agent, left open. */
  async #takeUp(session: Session, runs: RunState[]): Promise<void> {
    for (const { runId, agentId } of runs) {
      const seq = Number(runId.split(".")[0]);
      if (agentId !== this.#agent.id || !Number.isInteger(seq)) continue;
      const page = await session.history({ after: seq - 1, limit: 1 });
      for (const message of page.messages) {
        if (message.type === "chat") await this.#begin(session, message, runId);
      }
    }
  }

  async #begin(session: Session, message: Incoming<"chat">, runId: string): Promise<void> {
    const handler = this.#agent.chatHandler;
    const key = keyOf(session.id, runId);
    if (this.#stopping || handler === undefined || this.#runs.has(key)) return;
    const { gateway } = this;
    const run = new RunContext(gateway, this.#agent.tools, session, message, runId);
    this.#runs.set(key, run);
    const send = () => run.sendText();
    session.joined.add(send);
    const done = () => {
      run.ended();
      this.#runs.delete(key);
      session.joined.delete(send);
    };
    this.#start(this.#answer(run).finally(done));
    // Further chats wait in the session, where their number is bounded.
    await this.#slots.room();
  }

  async #answer(run: RunContext): Promise<void> {
    const handler = this.#agent.chatHandler;
    let failure: string | undefined;
    try {
      await this.#slots.use(async () => handler && run.consume(handler), run.signal);
    } catch (error) {
      // The gateway ended the run before it told us so, or the agent stops.
      if (run.signal.aborted) return;
      failure =
        error instanceof ToolError ? error.message.slice(0, MAX_REASON) : "the agent failed";
      if (!(error instanceof ToolError)) console.error(`trunkline-client: ${run.runId}:`, error);
    }
    if (run.signal.aborted) return;
    await this.#complete(run, failure);
  }

  async #complete(run: RunContext, failure: string | undefined): Promise<void> {
    const { runId, answer, message, session } = run;
    const status: ChatComplete["status"] = failure === undefined ? "ok" : "error";
    const end = { runId, content: answer.text, status, error: failure };
    while (true) {
      try {
        await session.publish("chat_complete", end, { replyTo: message.id });
        return;
      } catch (error) {
        if (error instanceof TrunklineError && error.code === "RUN_ENDED") return;
        if (!(error instanceof TrunklineError) || !error.retryable) throw error;
        await sleep(error.retryAfterMs ?? 1_000);
      }
    }
  }

  // Requests

  #onRequest(delivery: RouteDelivery): void {
    const { requestId } = delivery;
    const context = new ToolContext(this.gateway, requestId);
    this.#requests.set(requestId, context);
    const done = () => void this.#requests.delete(requestId);
    this.#start(this.#serve(delivery, context).finally(done));
  }

  async #serve(delivery: RouteDelivery, context: ToolContext): Promise<void> {
    try {
      const tool = this.#findTool(delivery);
      await this.#slots.use(() => this.#call(tool, delivery, context), context.signal);
    } catch (error) {
      // Nobody waits for it any more.
      if (context.signal.aborted || this.gateway.wire.error !== undefined) return;
      const known = error instanceof ToolError ? error : undefined;
      if (known === undefined) console.error(`trunkline-client: ${context.workId}:`, error);
      const reason = reasonOf(known, failureText(error), MAX_REASON);
      await this.#respond(context, { ok: false, error: reason, done: true });
    }
  }

  #findTool({ method, capability }: RouteDelivery): Tool {
    if (this.#stopping) throw new ToolError("the agent is shutting down", "OVERLOADED");
    const names = [method, capability?.replace(/^tools:/, "")];
    for (const name of names) {
      const tool = name == null ? undefined : this.#agent.tools.get(name);
      if (tool !== undefined) return tool;
    }
    throw new ToolError(`there is no tool ${names[0] ?? names[1]}`, "UNKNOWN_TOOL");
  }

  async #call(tool: Tool, delivery: RouteDelivery, context: ToolContext): Promise<void> {
    const never = () => new Error();
    const unlessCancelled = <T>(work: Promise<T> | T): Promise<T> => {
      const { signal } = context;
      return within(Promise.resolve(work), Number.POSITIVE_INFINITY, never, signal);
    };
    const outcome = tool.handler(argumentsOf(delivery.params), context);
    const whole = outcome instanceof Promise ? await unlessCancelled(outcome) : outcome;
    const pieces = piecesOf(whole);
    if (pieces === undefined) return this.#respond(context, { result: whole, done: true });
    const all: unknown[] = [];
    try {
      while (true) {
        const { done, value } = await unlessCancelled(pieces.next());
        if (done) break;
        if (delivery.stream) await this.#respond(context, { chunk: value, done: false });
        else all.push(value);
      }
    } finally {
      // Not awaited: a cancelled generator may be in the middle of something.
      void Promise.resolve(pieces.return?.()).catch(() => {});
    }
    // What the gateway refused it has said before it answers this; then there is no end to send.
    if (delivery.stream) await this.gateway.wire.call("ping", {});
    await this.#respond(context, { result: delivery.stream ? undefined : all, done: true });
  }

  /** Answers on whatever connection the agent has by then, no faster than the gateway takes it. */
  async #respond(context: ToolContext, answer: Omit<RouteResponse, "requestId">): Promise<void> {
    const { wire } = this.gateway;
    const { workId: requestId, pieces } = context;
    await this.#online();
    let wait = wire.streamPace.take(performance.now());
    while (wait > 0) {
      await sleep(wait);
      await this.#online();
      wait = wire.streamPace.take(performance.now());
    }
    if (context.signal.aborted) return;
    const response = { ok: true, ...answer, requestId };
    const id = `${ANSWER}${requestId}.${pieces.count}`;
    const frame = wire.frame(makeMessage("route_response", response, undefined, { id }));
    wire.connection.post(frame);
    pieces.add(frame);
    if (answer.done) this.#keep(requestId, pieces);
    await wire.connection.drain();
  }

  /** Keeps an answer that has ended for a while, in case it does not arrive. */
  #keep(requestId: string, pieces: Pieces): void {
    this.#ended.set(requestId, pieces);
    let size = 0;
    for (const each of this.#ended.values()) size += each.size;
    for (const [oldest, { size: freed }] of this.#ended) {
      if (this.#ended.size <= 1 || (this.#ended.size <= KEPT_ENDS && size <= KEPT_SIZE)) return;
      this.#ended.delete(oldest);
      size -= freed;
    }
  }
}

function keyOf(sessionId: string | null | undefined, runId: string): string {
  return `${sessionId ?? ""} ${runId}`;
}
