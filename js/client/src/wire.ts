import { Deferred, Emitter, report, Signal, within } from "./async.js";
import {
  Connection,
  type ConnectionListener,
  type SignIn,
  type State,
  type StateDetail,
} from "./connection.js";
import {
  type AnyMessage,
  encode,
  type Incoming,
  isType,
  makeMessage,
  type Outgoing,
} from "./envelope.js";
import { ConnectionLost, OutcomeUnknown, refusal, TimedOut, TrunklineError } from "./errors.js";
import { Mailbox } from "./mailbox.js";
import type { Ack, ClientPayloads, Cursor, GatewayPayloads } from "./messages.js";
import { type Entry, Outbox, Pace } from "./outbox.js";
import type { ReconnectPolicy } from "./policy.js";
import type { WebSocketConstructor } from "./socket.js";
import { BURST_SHARE, Throttle } from "./throttle.js";

/** Durable messages on their way at a time; who sends more waits. */
const MAX_UNACKED = 1_000;

/** Called once, with the answer or with why there is none, before the next frame is read. */
export type Answer = (reply: AnyMessage | TrunklineError) => void;

/** A session, as the wire sees it. */
export interface Attachment {
  readonly id: string;
  readonly attached: boolean;
  readonly cursor: Cursor | undefined;
  /** A frame of the session came. */
  receive(message: AnyMessage): void;
  /** One's own message has its place in the log. */
  stored(entry: Entry, ack: Ack): void;
  /** There is a new connection. */
  rejoin(): void;
  /** The connection is gone. */
  detached(): void;
  /** The session is over for this client; quietly without an error. */
  ended(error?: TrunklineError): void;
}

/** The events of a wire. */
export interface WireEvents {
  state: [State, StateDetail];
  message: [AnyMessage];
}

/** The answers to requests, by the request's type. */
export interface Answers {
  agent_heartbeat: "agent_heartbeat_ok";
  agent_list: "agent_list";
  agent_register: "agent_registered";
  agent_unregister: "agent_unregistered";
  auth: "auth_success";
  broadcast: "ack";
  connect: "hello_ok";
  health: "health";
  ping: "pong";
  route_explain: "route_explain";
  session_close: "session_info";
  session_create: "session_info";
  session_history: "session_history";
  session_invite: "session_info";
  session_join: "session_info";
  session_leave: "session_info";
  session_list: "session_list";
  session_patch: "session_info";
  session_remove: "session_info";
  sync_state: "sync_state";
}

/** How a request is made. */
export interface CallOptions<T extends keyof Answers> {
  sessionId?: string;
  /** Milliseconds, over all tries. */
  timeoutMs?: number;
  /** Ask again if the connection is lost before the answer; true by default. */
  repeat?: boolean;
  /** Called with the answer before the next frame is read. */
  then?: (payload: GatewayPayloads[Answers[T]], message: Incoming) => void;
  signal?: AbortSignal | undefined;
}

/** The connection was lost, and may come back. */
class Interrupted extends ConnectionLost {}

/**
 * Everything that goes over one logical connection: requests, answers, the outbox.
 *
 * It hands answers to those who wait for them, keeps durable messages until they are acknowledged,
 * and gives everything else to the session or the callback that it is for, in the order of the frames.
 */
export class Wire implements ConnectionListener {
  readonly connection: Connection;
  readonly sessions = new Map<string, Attachment>();
  readonly events = new Emitter<WireEvents>();
  /** Called at each new connection with what joins the sessions again; has to call it in the end. */
  beforeResume: ((resume: () => void) => void) | undefined;
  /** Why the connection is over; undefined while it may still come back. */
  error: TrunklineError | undefined;
  /** Resolves once the connection is over. */
  readonly over = new Deferred<TrunklineError>();
  /** How fast the pieces of answers to requests may go out. */
  streamPace = new Pace();
  readonly #timeoutMs: number;
  readonly #outbox = new Outbox();
  readonly #acks = new Map<string, Deferred<Ack>>();
  #replies = new Map<string, Answer>();
  readonly #streams = new Map<string, Mailbox<AnyMessage>>();
  readonly #throttle: Throttle;
  readonly #changed = new Signal();
  readonly #room = new Signal();
  #started = false;
  #closing = false;

  constructor(
    signIn: SignIn,
    make: WebSocketConstructor,
    policy: ReconnectPolicy,
    requestTimeoutMs: number,
  ) {
    this.connection = new Connection(signIn, make, policy, this);
    this.#timeoutMs = requestTimeoutMs;
    this.#throttle = new Throttle(this.#outbox, (frame) => this.connection.post(frame));
  }

  // Opening and closing

  /** Connects; rejects if that fails for good. */
  async open(): Promise<void> {
    this.#started = true;
    void this.#run();
    await this.ready();
  }

  async #run(): Promise<void> {
    try {
      await this.connection.run();
      this.#over(new ConnectionLost("this client has been closed"));
    } catch (error) {
      if (error instanceof TrunklineError) return this.#over(error);
      report(error);
      this.#over(new ConnectionLost(`the client failed: ${error}`));
    }
  }

  #over(error: TrunklineError): void {
    if (this.error !== undefined) return;
    this.error = error;
    this.connection.state = "closed";
    for (const session of [...this.sessions.values()]) {
      session.ended(this.#closing ? undefined : error);
    }
    for (const [id, ack] of this.#acks) {
      const lost = `${error.message}; no acknowledgement came`;
      ack.reject(this.#outbox.withdraw(id) ? error : new OutcomeUnknown(lost));
    }
    this.#changed.notify();
    this.#room.notify();
    this.over.resolve(error);
    this.events.emit("state", "closed", { error });
  }

  /** Closes the connection for good; a second call waits for the same end. */
  async close(): Promise<void> {
    this.#closing = true;
    if (!this.#started) return this.#over(new ConnectionLost("this client has been closed"));
    await this.connection.close();
    await this.over.promise;
  }

  /** Waits for a connection; rejects if none will come. */
  async ready(): Promise<void> {
    while (!this.connection.connected) {
      if (this.error !== undefined) throw this.error;
      await this.#changed.wait();
    }
    if (this.error !== undefined) throw this.error;
  }

  // What the connection tells

  onReady(): void {
    const { limits } = this.connection;
    this.#throttle.limit(limits);
    this.streamPace = new Pace(limits.streamRate, (limits.streamBurst ?? 1) * BURST_SHARE);
    if (this.beforeResume === undefined) this.resume();
    else this.beforeResume(() => this.resume());
    this.#changed.notify();
  }

  /** Joins the sessions again where they were left. */
  resume(): void {
    for (const session of [...this.sessions.values()]) session.rejoin();
  }

  onLost(): void {
    this.#throttle.clear();
    for (const session of [...this.sessions.values()]) session.detached();
    const replies = this.#replies;
    this.#replies = new Map();
    const interrupted = new Interrupted("the connection was interrupted");
    for (const answer of replies.values()) answer(interrupted);
    for (const box of this.#streams.values()) box.end(interrupted);
  }

  onState(state: State, detail: StateDetail): void {
    this.events.emit("state", state, detail);
  }

  onMessage(message: AnyMessage): void {
    this.events.emit("message", message);
    if (message.replyTo != null && this.#answered(message.replyTo, message)) return;
    this.sessions.get(message.sessionId ?? "")?.receive(message);
  }

  /** Whether the frame was an answer and is nothing else. */
  #answered(id: string, message: AnyMessage): boolean {
    if (this.#outbox.has(id) && (message.type === "ack" || message.type === "error")) {
      this.#settle(id, message as Incoming<"ack" | "error">);
      return true;
    }
    const answer = this.#replies.get(id);
    if (answer !== undefined) {
      this.#replies.delete(id);
      answer(isType(message, "error") ? refusal(message.payload) : message);
      // A change of the session is the answer and a message of the log in one.
      return message.seq == null;
    }
    const box = this.#streams.get(id);
    if (box !== undefined) this.#offer(id, box, message);
    return box !== undefined;
  }

  #offer(id: string, box: Mailbox<AnyMessage>, message: AnyMessage): void {
    if (!box.full) return box.put(message, JSON.stringify(message.payload).length);
    this.#streams.delete(id);
    this.cancelRequest(id);
    const text = "the answer was read too slowly; the request was cancelled";
    box.end(new TrunklineError("OVERLOADED", text));
  }

  // Requests

  /** Encodes a message; throws `MESSAGE_TOO_LARGE` if the gateway would not take it. */
  frame(message: Outgoing): string {
    const frame = encode(message);
    const limit = this.connection.maxMessageSize;
    if (frame.length * 3 <= limit) return frame;
    const size = new TextEncoder().encode(frame).length;
    if (size <= limit) return frame;
    const text = `the message has ${size} bytes, the gateway takes ${limit}`;
    throw new TrunklineError("MESSAGE_TOO_LARGE", text, { details: { limit } });
  }

  /** Sends what is not answered; without a connection it is dropped. */
  post(message: Outgoing): void {
    this.connection.post(this.frame(message));
  }

  /** Sends a request; `answer` is called before the next frame is read. */
  ask(message: Outgoing, answer: Answer): void {
    const frame = this.frame(message);
    if (!this.connection.connected) return answer(new Interrupted("there is no connection"));
    this.#replies.set(message.id, answer);
    this.connection.post(frame);
  }

  /**
   * Sends a request and waits for its answer.
   *
   * @throws {@link TrunklineError} The gateway refused, or the connection is over;
   * {@link OutcomeUnknown}: it was lost, and `repeat` is false; {@link TimedOut}: no answer in time.
   */
  async call<T extends keyof Answers>(
    type: T,
    payload: ClientPayloads[T],
    options: CallOptions<T> = {},
  ): Promise<GatewayPayloads[Answers[T]]> {
    const ms = options.timeoutMs ?? this.#timeoutMs;
    const late = () => new TimedOut(`no answer to ${type} within ${ms} ms`);
    const control = { id: "" };
    try {
      return await within(
        this.#callUntil(type, payload, options, control),
        ms,
        late,
        options.signal,
      );
    } finally {
      this.#replies.delete(control.id);
    }
  }

  async #callUntil<T extends keyof Answers>(
    type: T,
    payload: ClientPayloads[T],
    { sessionId, repeat = true, then, signal }: CallOptions<T>,
    control: { id: string },
  ): Promise<GatewayPayloads[Answers[T]]> {
    while (true) {
      await this.ready();
      if (signal?.aborted) throw signal.reason;
      const message = makeMessage<string>(type, payload, sessionId);
      control.id = message.id;
      try {
        return await this.#askOnce<T>(message, then);
      } catch (error) {
        if (!(error instanceof Interrupted)) throw error;
        if (!repeat) throw new OutcomeUnknown(`${error.message}; no answer to ${type}`);
      }
    }
  }

  #askOnce<T extends keyof Answers>(
    message: Outgoing,
    then: CallOptions<T>["then"],
  ): Promise<GatewayPayloads[Answers[T]]> {
    return new Promise((resolve, reject) => {
      this.ask(message, (reply) => {
        if (reply instanceof Error) return reject(reply);
        const payload = reply.payload as unknown as GatewayPayloads[Answers[T]];
        then?.(payload, reply as Incoming);
        resolve(payload);
      });
    });
  }

  /** Sends a request that is answered more than once; `closeStream` ends it. */
  openStream(message: Outgoing): Mailbox<AnyMessage> {
    const frame = this.frame(message);
    const box = new Mailbox<AnyMessage>(10_000, 32 * 1024 * 1024);
    this.#streams.set(message.id, box);
    if (!this.connection.connected) box.end(new Interrupted("there is no connection"));
    this.connection.post(frame);
    return box;
  }

  /** Nobody reads the answers any more. */
  closeStream(id: string): void {
    this.#streams.delete(id);
  }

  /** Tells the gateway that nobody waits for a request's answer any more. */
  cancelRequest(id: string): void {
    this.post(makeMessage("route_cancel", { requestId: id }));
  }

  /** Whether an error says that the connection was lost and may come back. */
  static interrupted(error: unknown): boolean {
    return error instanceof Interrupted;
  }

  // Durable messages

  /**
   * Stores a message in a session's log, whatever happens to the connection.
   *
   * @throws {@link TrunklineError} The gateway refused, or the connection is over and it was not
   * sent; {@link OutcomeUnknown}: it may or may not be stored.
   */
  async publish(session: Attachment, message: Outgoing): Promise<Ack> {
    const frame = this.frame(message);
    while (this.#acks.size >= MAX_UNACKED && this.error === undefined) await this.#room.wait();
    if (this.error !== undefined) throw this.error;
    if (this.#outbox.has(message.id)) {
      throw new TrunklineError("ID_CONFLICT", "a message with this id is on its way");
    }
    const ack = new Deferred<Ack>();
    const entry = this.#outbox.add(message.id, session.id, frame);
    this.#acks.set(message.id, ack);
    if (session.attached) this.#throttle.send(entry);
    try {
      return await ack.promise;
    } finally {
      this.#acks.delete(message.id);
      this.#room.notify();
    }
  }

  /** Sends all that waits for a session which has just been joined. */
  flush(sessionId: string): void {
    this.#throttle.flush(sessionId);
  }

  /** The log cannot tell any more whether these were stored. */
  giveUpSent(sessionId: string, reason: string): void {
    const text = `the session's log was reset (${reason}) before the acknowledgement`;
    this.#drop(this.#outbox.forgetSent(sessionId), new OutcomeUnknown(text));
  }

  /** The session has ended. */
  giveUp(sessionId: string, error: TrunklineError): void {
    this.#drop(this.#outbox.forget(sessionId), error);
  }

  #drop(entries: Entry[], error: TrunklineError): void {
    for (const { id } of entries) {
      this.#acks.get(id)?.reject(error);
      this.#throttle.settled(id);
    }
  }

  #settle(id: string, message: Incoming<"ack" | "error">): void {
    const error = message.type === "error" ? refusal(message.payload) : undefined;
    const entry = this.#outbox.get(id) as Entry;
    if (error?.code === "RATE_LIMITED") {
      return this.#throttle.refused(entry, error.retryAfterMs ?? 1_000);
    }
    this.#outbox.settle(id);
    this.#throttle.settled(id);
    const ack = this.#acks.get(id);
    if (error !== undefined) {
      ack?.reject(error);
    } else {
      this.sessions.get(entry.session)?.stored(entry, message.payload as Ack);
      ack?.resolve(message.payload as Ack);
    }
  }
}
