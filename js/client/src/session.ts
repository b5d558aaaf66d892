import { guarded, Signal } from "./async.js";
import { LogCursor } from "./cursor.js";
import {
  type AnyMessage,
  type Incoming,
  isType,
  makeMessage,
  type Outgoing,
  ownMessage,
} from "./envelope.js";
import { ConnectionLost, OutcomeUnknown, TrunklineError } from "./errors.js";
import { EventLoop } from "./loop.js";
import { Mailbox } from "./mailbox.js";
import type {
  Ack,
  ApprovalRequest,
  Cursor,
  HistoryPage,
  Patch,
  Presence,
  RunState,
  Sender,
  SessionCreate,
  SessionInfo,
} from "./messages.js";
import type { Entry } from "./outbox.js";
import { Answer, RunEvents, type RunFeed } from "./runs.js";
import type { Attachment, Wire } from "./wire.js";

/** Milliseconds that something may be missing before it is asked for. */
const GAP_PATIENCE = 1_000;

/** Messages in a page that is read to catch up. */
const CATCH_UP = 300;

/** Says that what was read before is no longer a prefix of the log; reading goes on with `next`. */
export interface ResetEvent {
  type: "reset";
  sessionId: string;
  seq?: undefined;
  payload: {
    /** `epoch`, `trimmed` or `ahead`. */
    reason: string;
    epoch: string;
    /** The first `seq` to come. */
    next: number;
  };
}

/** What {@link Session.events} gives; custom types come too, as {@link AnyMessage}. */
export type SessionEvent =
  | Incoming<
      | "chat"
      | "chat_stream"
      | "chat_complete"
      | "tool_start"
      | "tool_update"
      | "tool_result"
      | "approval_request"
      | "approval_response"
      | "presence"
      | "session_info"
      | "broadcast"
    >
  | ResetEvent;

/** How something is said. */
export interface ChatOptions {
  /** The agents that are to answer; absent: as the session is set up. */
  mentions?: string[] | undefined;
  /** Anything that may help them. */
  context?: Record<string, unknown> | undefined;
  /** The message's id: the same id and text are stored once, however often they are sent. */
  id?: string | undefined;
}

/** A piece of a session's log, oldest message first. */
export interface Page extends Omit<HistoryPage, "messages"> {
  messages: SessionEvent[];
}

/** How {@link Session.history} is read. */
export interface HistoryOptions {
  /** Read the page that ends before this `seq`; neither: the last page. */
  before?: number;
  /** Read forward from the message after this `seq`. */
  after?: number;
  /** At most so many messages, up to 300; 50 by default. */
  limit?: number;
}

/** How {@link Gateway.join} joins. */
export interface JoinOptions {
  /** Replay what came after this place. */
  since?: Cursor | undefined;
  /** Without such a place, or where it is void: replay the last so many messages, at most 1000. */
  tail?: number | undefined;
  /**
   * Make the session with these values if there is none, then and whenever the gateway has
   * forgotten it; false: that is an error. `{}` by default.
   */
  create?: SessionCreate | false | undefined;
}

/**
 * A group of clients with one ordered log.
 *
 * What is in the log comes exactly once and in order, across reconnects; what is not (`chat_stream`,
 * `tool_update`, `presence`) as it comes. A reader that is slower than the session has the log read
 * again later; it loses nothing but ephemeral messages.
 */
export class Session implements Attachment {
  readonly id: string;
  /** Whether it is joined on the present connection. */
  attached = false;
  /** What the gateway said at the last join or change. */
  info: SessionInfo | undefined;
  /** Up to where the reader of `events` has taken the log; store it with what was done, for `since`. */
  cursor: Cursor | undefined;
  /** What to call after each join, the first and every later one, with what the gateway said. */
  readonly joined = new Set<(info: SessionInfo) => void>();
  readonly #wire: Wire;
  readonly #cursor: LogCursor;
  readonly #tail: number | undefined;
  readonly #inbox = new Mailbox<SessionEvent>();
  readonly #members = new Map<string, Sender>();
  readonly #streams = new Map<string, { events: RunEvents; news: Signal }>();
  readonly #changed = new Signal();
  #over: TrunklineError | undefined;
  #create: SessionCreate | false;
  #current: SessionEvent | undefined;
  #wanted = false;
  #joining = false;
  #lagging = false;
  #catchingUp = false;
  #reading = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @internal */
  constructor(wire: Wire, id: string, { since, tail, create = false }: JoinOptions = {}) {
    this.id = id;
    this.cursor = since;
    this.#wire = wire;
    this.#tail = tail;
    this.#create = create;
    this.#cursor = new LogCursor(since);
  }

  // Saying something

  /**
   * Says something, and waits until it is stored.
   *
   * @returns Where it is stored, and the runs that will answer it.
   * @throws {@link TrunklineError} The gateway refused; {@link OutcomeUnknown}: the log was reset, or
   * the connection is over, before an answer.
   */
  async send(text: string, options: ChatOptions = {}): Promise<Ack> {
    return this.#wire.publish(this, this.#chat(text, options));
  }

  /** Says something at once, and returns the answers to it; see {@link Answer}. */
  chat(text: string, options: ChatOptions = {}): Answer {
    const message = this.#chat(text, options);
    const stream = { events: new RunEvents(), news: new Signal() };
    this.#streams.set(message.id, stream);
    const ack = this.#wire.publish(this, message);
    const feed: RunFeed = {
      ...stream,
      cancelRun: (runId) => this.cancelRun(runId),
      done: () => void this.#streams.delete(message.id),
    };
    ack.catch(feed.done);
    return new Answer(message.id, ack, feed);
  }

  #chat(text: string, { mentions, context, id }: ChatOptions): Outgoing {
    return makeMessage("chat", { message: text, mentions, context }, this.id, { id });
  }

  /** Stores a durable message of any type; see `send` for what may be thrown. */
  async publish(
    type: string,
    payload: object,
    { id, replyTo }: { id?: string; replyTo?: string } = {},
  ): Promise<Ack> {
    return this.#wire.publish(this, makeMessage<string>(type, payload, this.id, { id, replyTo }));
  }

  /** Sends an ephemeral message; without a connection it is dropped. */
  post(
    type: string,
    payload: object,
    { id, replyTo }: { id?: string; replyTo?: string } = {},
  ): void {
    this.#wire.post(makeMessage<string>(type, payload, this.id, { id, replyTo }));
  }

  /**
   * Answers an agent that asks whether it may run a tool; needs the scope `approve`.
   *
   * @param request - The `approval_request` message, or its payload, as it was received.
   * @throws {@link TrunklineError} `ALREADY_DECIDED`: somebody was faster, or it is too late.
   */
  async approve(
    request: Incoming<"approval_request"> | ApprovalRequest,
    decision: "allow" | "deny",
    reason?: string,
  ): Promise<Ack> {
    const { approvalId, digest } = "payload" in request ? request.payload : request;
    return this.publish("approval_response", { approvalId, decision, digest, reason });
  }

  /** Tells the other members how one is. */
  presence(status: Presence["status"]): void {
    this.post("presence", { status });
  }

  /** Stops a run; its `complete` event says how it went. */
  cancelRun(runId: string): void {
    this.post("run_cancel", { runId });
  }

  // What the gateway knows about it

  /** Who is here: connections, this one included; in large sessions the first 100. */
  get members(): Sender[] {
    return [...this.#members.values()];
  }

  /** The last `seq` that is known to exist. */
  get head(): number {
    return this.#cursor.head;
  }

  /** Which log `head` and all `seq` belong to. */
  get epoch(): string {
    return this.#cursor.epoch ?? "";
  }

  /** The runs that were open at the last join. */
  get runs(): RunState[] {
    return this.info?.runs ?? [];
  }

  /** The `approval_request` messages that were open at the last join. */
  get approvals(): Incoming<"approval_request">[] {
    return (this.info?.approvals ?? []) as Incoming<"approval_request">[];
  }

  /** Reads a page of the log without moving one's place in it. */
  async history(options: HistoryOptions = {}): Promise<Page> {
    const page = await this.#wire.call("session_history", options, { sessionId: this.id });
    return page as Page;
  }

  /** Changes settings; returns the session after the change, `metadata` included. */
  async patch(changes: Patch): Promise<SessionInfo> {
    return this.#change("session_patch", { patch: changes });
  }

  /** Lets a user into a private session. */
  async invite(userId: string): Promise<void> {
    await this.#change("session_invite", { userId });
  }

  /** Takes a user's invitation back and removes their connections. */
  async remove(userId: string): Promise<void> {
    await this.#change("session_remove", { userId });
  }

  /** Ends the session for everybody; `delete` removes its log too. */
  async close(options: { delete?: boolean } = {}): Promise<void> {
    await this.#change("session_close", options);
  }

  /** Leaves the session, after all that was sent before. */
  async leave(): Promise<void> {
    this.#wanted = false;
    try {
      await this.#wire.call("session_leave", {}, { sessionId: this.id });
    } catch (error) {
      // A gateway that was restarted meanwhile may know no more of it.
      const code = error instanceof TrunklineError ? error.code : "";
      if (code !== "NOT_A_MEMBER" && code !== "SESSION_NOT_FOUND") throw error;
    }
    this.ended();
  }

  #change<T extends "session_patch" | "session_invite" | "session_remove" | "session_close">(
    type: T,
    payload: Parameters<Wire["call"]>[1] & object,
  ): Promise<SessionInfo> {
    return this.#wire.call(type as "session_patch", payload as { patch: Patch }, {
      sessionId: this.id,
    });
  }

  // Reading

  /**
   * Gives everything that comes, one's own messages included; see {@link Session}.
   *
   * One loop at a time; what came while there was none waits. The loop ends when the session or the
   * client is closed, and throws when the connection is lost for good.
   */
  events(): AsyncIterableIterator<SessionEvent> {
    if (this.#reading) throw new TrunklineError("BUSY", "there is another loop over these events");
    this.#reading = true;
    return new EventLoop<SessionEvent>(
      () => this.#next(),
      () => this.#stopReading(),
    );
  }

  async #next(): Promise<SessionEvent | undefined> {
    this.#taken();
    while (this.#reading) {
      const entry = this.#inbox.take();
      if (entry !== undefined) {
        this.#current = entry.item;
        if (this.#lagging && this.#inbox.halfEmpty) void this.#catchUp();
        return entry.item;
      }
      const news = this.#inbox.news();
      if (this.#inbox.length === 0 && this.#inbox.ended) {
        await this.#inbox.ready();
        break;
      }
      await news;
    }
    this.#stopReading();
    return undefined;
  }

  #stopReading(): void {
    this.#taken();
    this.#reading = false;
    this.#inbox.wake();
  }

  /** The application is done with the message that it got last. */
  #taken(): void {
    const event = this.#current;
    this.#current = undefined;
    if (event?.type === "reset") {
      this.cursor = { epoch: event.payload.epoch, seq: event.payload.next - 1 };
    } else if (event?.seq != null && this.cursor !== undefined) {
      this.cursor = { epoch: this.cursor.epoch, seq: event.seq };
    }
  }

  /** Reads the log page by page, as fast as the reader takes it, and joins again at its end. */
  async #catchUp(): Promise<void> {
    if (this.#catchingUp) return;
    this.#catchingUp = true;
    try {
      while (this.#lagging && this.attached && this.#inbox.halfEmpty) {
        const page = await this.history({ after: this.#cursor.last, limit: CATCH_UP });
        const fits = page.epoch === this.epoch && page.first <= this.#cursor.last + 1;
        if (fits) {
          for (const message of page.messages) {
            if (message.seq === this.#cursor.last + 1) this.#accept(message);
          }
        }
        if (!fits || !page.more) {
          this.#lagging = false;
          this.rejoin();
        }
      }
    } catch {
      // Without a connection the next join brings what is missing; refused, the next read asks again.
    } finally {
      this.#catchingUp = false;
    }
  }

  // Joining

  /** @internal Joins for the first time. */
  async join(): Promise<void> {
    const sessionId = this.id;
    const then = (info: SessionInfo) => this.enter(info);
    const ask = { since: this.#cursor.position, tail: this.#tail };
    try {
      await this.#wire.call("session_join", ask, { sessionId, then });
    } catch (error) {
      const absent = error instanceof TrunklineError && error.code === "SESSION_NOT_FOUND";
      if (!absent || this.#create === false) throw error;
      const make = { ...this.#create, joinIfExists: true };
      await this.#wire.call("session_create", make, { sessionId, then });
    }
  }

  /** Waits until it is joined on the present connection; rejects if it is over. */
  async ready(): Promise<this> {
    while (!this.attached) {
      if (this.#over !== undefined) throw this.#over;
      await this.#changed.wait();
    }
    return this;
  }

  /** @internal Joins again where reading stopped; does nothing while that is under way. */
  rejoin(): void {
    if (!this.#wanted || this.#joining) return;
    this.#joining = true;
    this.#lagging = false;
    const ask = { since: this.#cursor.position };
    this.#wire.ask(makeMessage("session_join", ask, this.id), (reply) => this.#onRejoined(reply));
  }

  #onRejoined(reply: AnyMessage | TrunklineError): void {
    this.#joining = false;
    if (!(reply instanceof Error)) {
      this.enter(reply.payload as unknown as SessionInfo);
    } else if (reply instanceof ConnectionLost) {
      // The next connection joins.
    } else if (reply.retryable) {
      setTimeout(() => this.rejoin(), reply.retryAfterMs ?? 1_000);
    } else if (reply.code === "SESSION_NOT_FOUND" && this.#create !== false) {
      // The gateway has forgotten the session; the new one has another epoch.
      const make = makeMessage("session_create", { ...this.#create, joinIfExists: true }, this.id);
      this.#create = false;
      this.#joining = true;
      this.#wire.ask(make, (answer) => this.#onRejoined(answer));
    } else {
      this.ended(reply);
    }
  }

  /** @internal Takes part from here on, as `info` says. */
  enter(info: SessionInfo): void {
    const reason = this.#cursor.joined(info);
    this.info = info;
    this.#members.clear();
    for (const member of info.members ?? []) this.#members.set(member.clientId, member);
    this.#wanted = this.attached = true;
    this.cursor ??= this.#cursor.position;
    if (reason !== undefined) this.#onReset(reason);
    for (const stream of this.#streams.values()) stream.events.rejoined(info.runs ?? []);
    this.#wire.flush(this.id);
    for (const callback of [...this.joined]) guarded(() => callback(info));
    this.#changed.notify();
  }

  #onReset(reason: string): void {
    this.#wire.giveUpSent(this.id, reason);
    for (const stream of this.#streams.values()) {
      if (stream.events.opened) {
        stream.events.fail(new OutcomeUnknown(`the session's log was reset (${reason})`));
        stream.news.notify();
      }
    }
    const payload = { reason, epoch: this.epoch, next: this.#cursor.last + 1 };
    this.#inbox.put({ type: "reset", sessionId: this.id, payload });
  }

  /** @internal The connection is gone; `rejoin` comes with the next. */
  detached(): void {
    this.attached = this.#joining = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  /** @internal Takes part no more; who reads gets `error` after what is left. */
  ended(error?: TrunklineError): void {
    this.detached();
    this.#wanted = false;
    const over = error ?? new ConnectionLost("the session is over");
    this.#over = over;
    this.#changed.notify();
    if (this.#wire.error === undefined) {
      if (this.#wire.sessions.get(this.id) === this) this.#wire.sessions.delete(this.id);
      this.#wire.giveUp(this.id, over);
    }
    for (const stream of this.#streams.values()) {
      stream.events.fail(over);
      stream.news.notify();
    }
    this.#inbox.end(error);
  }

  // What the gateway sends

  /** @internal Takes a frame of the session. */
  receive(message: AnyMessage): void {
    if (message.seq == null) return this.#onEphemeral(message);
    this.#feed(message);
    this.#placed(message.seq, () => this.#accept(message));
  }

  /** Accepts a message of the log if it is the next and there is room. */
  #placed(seq: number, accept: () => void): void {
    const place = this.#cursor.place(seq);
    if (place === "ahead") this.#watch();
    if (place !== "next" || this.#lagging) return;
    if (this.#inbox.full) this.#lagging = true;
    else accept();
  }

  #onEphemeral(message: AnyMessage): void {
    if (isType(message, "head")) {
      this.#cursor.sawHead(message.payload.epoch, message.payload.head);
      return this.#watch();
    }
    if (["session_info", "ack", "error"].includes(message.type)) return;
    this.#feed(message);
    if (isType(message, "presence")) this.#onPresence(message);
    if (!this.#inbox.full && !this.#lagging) this.#put(message);
  }

  #onPresence({ from, payload }: Incoming<"presence">): void {
    if (from == null) return;
    if (payload.status === "offline") this.#members.delete(from.clientId);
    else this.#members.set(from.clientId, from);
  }

  #feed(message: AnyMessage): void {
    const mine = message.type === "chat" ? this.#streams.get(message.id) : undefined;
    if (mine !== undefined && message.seq != null) {
      // Replayed before its acknowledgement came: the runs may follow at once.
      const runs = (message.addressed ?? []).map((agentId) => {
        return { runId: `${message.seq}.${agentId}`, agentId };
      });
      mine.events.begin(runs);
      mine.news.notify();
    }
    for (const [id, { events, news }] of this.#streams) {
      if (!events.feed(message)) continue;
      news.notify();
      if (events.complete) this.#streams.delete(id);
    }
  }

  #put(message: AnyMessage | SessionEvent): void {
    this.#inbox.put(message as SessionEvent, JSON.stringify(message.payload).length);
  }

  #accept(message: AnyMessage | SessionEvent): void {
    this.#cursor.advance();
    this.#put(message);
    if (isType(message, "session_info")) this.#onChange(message.payload);
  }

  #onChange(info: SessionInfo): void {
    const me = this.#members.get(this.#wire.connection.hello?.clientId ?? "");
    const sentOut = info.status === "removed" && info.userId === me?.userId;
    if (sentOut || info.status === "closed") {
      this.ended();
    } else if (info.status === "patched" && this.info !== undefined) {
      const { name, metadata, visibility } = info;
      this.info = { ...this.info, name, metadata, visibility };
    }
  }

  /** @internal One's own message has its place in the log, and takes it in the reading too. */
  stored(entry: Entry, ack: Ack): void {
    const stream = this.#streams.get(entry.id);
    stream?.events.begin(ack.runs ?? []);
    stream?.news.notify();
    // A duplicate was stored earlier: the replay has it, in its place.
    if (ack.seq == null || ack.duplicate || ack.epoch !== this.#cursor.epoch) return;
    const { seq } = ack;
    const me = this.#members.get(this.#wire.connection.hello?.clientId ?? "");
    this.#placed(seq, () => this.#accept(ownMessage(entry.frame, seq, me)));
  }

  /** Looks again in a moment whether something is missing. */
  #watch(): void {
    if (this.#timer !== undefined || !this.attached || !this.#cursor.behind) return;
    const { last } = this.#cursor;
    this.#timer = setTimeout(() => this.#check(last), GAP_PATIENCE);
  }

  #check(last: number): void {
    this.#timer = undefined;
    if (this.#lagging || this.#joining || !this.#cursor.behind) return;
    // A replay may be on its way.
    if (this.#cursor.last > last) this.#watch();
    else this.rejoin();
  }
}
