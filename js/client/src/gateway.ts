import { Emitter } from "./async.js";
import type { Secret, SignIn, State, StateDetail } from "./connection.js";
import { type AnyMessage, isType } from "./envelope.js";
import { ConnectionLost, TrunklineError } from "./errors.js";
import { isId, randomId } from "./ids.js";
import type {
  AgentEntry,
  AgentList,
  Auth,
  AuthExpiring,
  AuthSuccess,
  Broadcast,
  Connect,
  HelloOk,
  RouteCandidate,
  SessionCreate,
  SessionEntry,
  SessionInfo,
  StateSnapshot,
} from "./messages.js";
import { endpoint, type ReconnectPolicy } from "./policy.js";
import { type RequestOptions, RouteCall, routeOf, sessionOf } from "./requests.js";
import { type JoinOptions, Session } from "./session.js";
import type { WebSocketConstructor } from "./socket.js";
import { Wire } from "./wire.js";

/** How to connect, and as whom; each may be left out. */
export interface ConnectOptions {
  /** A bearer token, or where to get one at each sign-in. It is only ever sent in the `auth` message. */
  token?: Secret | undefined;
  /** The user that the password belongs to, where the gateway knows several. */
  user?: string | undefined;
  password?: string | undefined;
  /** A single-use sign-in code; the token that comes for it signs in after a lost connection. */
  code?: string | undefined;
  /** Which of the credential's roles to take; absent: the first granted. */
  role?: Connect["role"];
  /** A name for this client, stable across restarts; absent: a random one. */
  deviceId?: string | undefined;
  /** Its name for people. */
  deviceName?: string | undefined;
  /** What kind of client this is. */
  clientType?: Auth["clientType"];
  /** What opens sockets; absent: the global `WebSocket`, which Node has from version 22 on. */
  WebSocket?: WebSocketConstructor | undefined;
  /** How long to wait between tries, and how long to try. */
  policy?: ReconnectPolicy | undefined;
  /** Milliseconds that a request waits for its answer, reconnects included; 30 000 by default. */
  requestTimeoutMs?: number | undefined;
  /** Send the credential unencrypted to another machine all the same. */
  insecure?: boolean | undefined;
  /** Closes the connection when it is aborted. */
  signal?: AbortSignal | undefined;
}

/** What a {@link Gateway} tells. */
export interface GatewayEvents {
  /** The state has changed. */
  state: [State, StateDetail];
  /** A frame came, answers included. */
  message: [AnyMessage];
  /** The credential ends in a minute; {@link Gateway.refresh} brings a new one. */
  expiring: [AuthExpiring];
}

/**
 * Connects to a gateway and signs in.
 *
 * @param url - `ws:`, `wss:`, `http:` or `https:`; without a path, `/ws` is meant.
 * @throws {@link TrunklineError} `INVALID_URL`, `INSECURE`, `NO_WEBSOCKET`; {@link SignInFailed}: the
 * credential is missing or wrong, or may not take the role; {@link ConnectionLost}: no gateway.
 */
export async function connect(url: string | URL, options: ConnectOptions = {}): Promise<Gateway> {
  const gateway = new Gateway(url, options);
  await gateway.open();
  return gateway;
}

/** A connection to a gateway that comes back by itself; made by {@link connect}. */
export class Gateway {
  /** @internal */
  readonly wire: Wire;
  /** This client's own name, the same on every connection. */
  readonly deviceId: string;
  readonly #signal: AbortSignal | undefined;
  readonly #events = new Emitter<GatewayEvents>();
  readonly #joins = new Map<string, Promise<Session>>();

  /** Makes a connection that is not opened yet; see {@link connect} for the errors. */
  constructor(url: string | URL, options: ConnectOptions = {}) {
    const signIn = signInOf(url, options);
    this.deviceId = signIn.deviceId;
    this.#signal = options.signal;
    const make = options.WebSocket ?? globalWebSocket();
    const { policy = {}, requestTimeoutMs = 30_000 } = options;
    this.wire = new Wire(signIn, make, policy, requestTimeoutMs);
    this.wire.events.on("state", (state, detail) => this.#events.emit("state", state, detail));
    this.wire.events.on("message", (message) => {
      this.#events.emit("message", message);
      if (isType(message, "auth_expiring")) this.#events.emit("expiring", message.payload);
    });
  }

  /** Connects and signs in; {@link connect} has done so. */
  async open(): Promise<void> {
    const abort = () => void this.close();
    this.#signal?.throwIfAborted();
    this.#signal?.addEventListener("abort", abort, { once: true });
    const retry = () => this.retry();
    globalThis.addEventListener?.("online", retry);
    void this.wire.over.promise.then(() => {
      this.#signal?.removeEventListener("abort", abort);
      globalThis.removeEventListener?.("online", retry);
    });
    try {
      await this.wire.open();
    } catch (error) {
      this.#signal?.throwIfAborted();
      throw error;
    }
  }

  /** Sends what is queued, then closes; messages without an acknowledgement are `OutcomeUnknown`. */
  async close(): Promise<void> {
    await this.wire.close();
  }

  // The connection

  /** What the connection is doing. */
  get state(): State {
    return this.wire.connection.state;
  }

  /** Resolves with why, once the connection is over for good. */
  get closed(): Promise<TrunklineError> {
    return this.wire.over.promise;
  }

  /** Who one is; empty where the gateway asks for no credential, until a session is joined. */
  get userId(): string {
    const { identity } = this.wire.connection;
    if (identity !== undefined) return identity.userId;
    for (const session of this.wire.sessions.values()) {
      const members = (session as Session).members;
      const me = members.find((member) => member.clientId === this.clientId);
      if (me !== undefined) return me.userId;
    }
    return "";
  }

  /** The gateway's name for the present connection. */
  get clientId(): string {
    return this.wire.connection.hello?.clientId ?? "";
  }

  /** The role of this connection. */
  get role(): string {
    const { hello, identity } = this.wire.connection;
    // What `auth` answered may be the first role granted, not the one that was taken.
    return hello?.role ?? identity?.role ?? "";
  }

  /** What one may do. */
  get scopes(): string[] {
    const { hello, identity } = this.wire.connection;
    return hello?.scopes ?? identity?.scopes ?? [];
  }

  /** What the gateway said of itself last: version, features, limits, who is there. */
  get hello(): HelloOk {
    const { hello } = this.wire.connection;
    if (hello === undefined) throw new ConnectionLost("there was no connection yet");
    return hello;
  }

  /** The limits that the gateway told, in wire spelling. */
  get limits(): Record<string, number> {
    return this.wire.connection.limits;
  }

  /** The token that signs in at the next connection; after a sign-in by code, the one that came for it. */
  get token(): string | undefined {
    const { token } = this.wire.connection.signIn;
    return typeof token === "string" ? token : undefined;
  }

  /** Calls back at every event of a kind; returns how to stop that. */
  on<K extends keyof GatewayEvents>(
    event: K,
    callback: (...args: GatewayEvents[K]) => void,
  ): () => void {
    return this.#events.on(event, callback);
  }

  /** Tries at once to come back, instead of waiting; a browser that is online again does so by itself. */
  retry(): void {
    this.wire.connection.retry();
  }

  /** Signs the same user in with a new token, on this connection and on those to come. */
  async refresh(token: string): Promise<AuthSuccess> {
    const then = (identity: AuthSuccess) => {
      this.wire.connection.identity = identity;
      this.wire.connection.signIn.token = token;
    };
    return this.wire.call("auth", { token }, { repeat: false, then });
  }

  /** Returns the milliseconds that the gateway takes to answer. */
  async ping(): Promise<number> {
    const began = performance.now();
    await this.wire.call("ping", {});
    return performance.now() - began;
  }

  // Sessions

  /**
   * Joins a session; one that is joined already is returned as it is.
   *
   * @throws {@link TrunklineError} There is no such session for this user, or it is full.
   */
  async join(sessionId: string, options: JoinOptions = {}): Promise<Session> {
    const begun = this.#joins.get(sessionId);
    if (begun !== undefined) return begun;
    const known = this.wire.sessions.get(sessionId) as Session | undefined;
    if (known !== undefined) return known.ready();
    const joining = this.#join(sessionId, options);
    this.#joins.set(sessionId, joining);
    try {
      return await joining;
    } finally {
      this.#joins.delete(sessionId);
    }
  }

  async #join(sessionId: string, options: JoinOptions): Promise<Session> {
    const session = new Session(this.wire, sessionId, { create: {}, ...options });
    this.wire.sessions.set(sessionId, session);
    try {
      await session.join();
    } catch (error) {
      if (this.wire.sessions.get(sessionId) === session) this.wire.sessions.delete(sessionId);
      throw error;
    }
    return session;
  }

  /**
   * Makes a session, owns it and is in it; without `sessionId` it gets one that nobody can guess.
   *
   * @throws {@link TrunklineError} The id is in use, no agent fits, or a quota is used up.
   */
  async createSession(options: SessionCreate = {}): Promise<Session> {
    const made: Session[] = [];
    const then = (info: SessionInfo) => void made.push(this.enter(info));
    // Made twice, a session without an id would be two.
    const repeat = options.sessionId != null;
    await this.wire.call("session_create", options, { repeat, then });
    return made[0] as Session;
  }

  /** @internal Takes part in a session that the gateway has put this client into. */
  enter(info: SessionInfo): Session {
    const known = this.wire.sessions.get(info.sessionId) as Session | undefined;
    const session = known ?? new Session(this.wire, info.sessionId);
    this.wire.sessions.set(session.id, session);
    session.enter(info);
    return session;
  }

  /** Returns all sessions that one owns, is in or is invited to; with `control`, all. */
  async sessions(): Promise<SessionEntry[]> {
    const found: SessionEntry[] = [];
    let more = true;
    while (more) {
      const page = await this.wire.call("session_list", { after: found.at(-1)?.sessionId });
      found.push(...page.sessions);
      more = page.more && page.sessions.length > 0;
    }
    return found;
  }

  // Agents

  /** Returns the agents that fit all that is given. */
  async agents(filter: AgentList = {}): Promise<AgentEntry[]> {
    return (await this.wire.call("agent_list", filter)).agents;
  }

  /** Returns the sessions, agents and presence that one may see. */
  async sync(): Promise<StateSnapshot> {
    return this.wire.call("sync_state", {});
  }

  /** Tells many connections at once; nothing is stored. Returns to how many it went. */
  async broadcast(message: unknown, options: Omit<Broadcast, "message"> = {}): Promise<number> {
    const ack = await this.wire.call("broadcast", { ...options, message }, { repeat: false });
    return ack.delivered ?? 0;
  }

  /**
   * Asks an agent and returns its result.
   *
   * @throws {@link TrunklineError} No agent fits, it is busy, or it says no; {@link OutcomeUnknown}:
   * the agent or the connection was lost on the way; {@link TimedOut}: no answer in time, and the
   * agent was not asked; the signal's reason: it was aborted.
   */
  async request<T = unknown>(options: RequestOptions): Promise<T> {
    let last: unknown;
    for await (const piece of new RouteCall(this.wire, options, false).pieces()) last = piece;
    return last as T;
  }

  /**
   * Asks an agent and gives its answer piece by piece, with the errors of `request`.
   *
   * A tool that does not stream gives its result. Leaving the loop early cancels the request.
   */
  requestStream<T = unknown>(options: RequestOptions): AsyncGenerator<T, void, undefined> {
    const call = new RouteCall(this.wire, options, true);
    return call.pieces() as AsyncGenerator<T, void, undefined>;
  }

  /** Returns which agents fit a request, and why they would be asked or not. */
  async explain(options: RequestOptions): Promise<RouteCandidate[]> {
    const sessionId = sessionOf(options);
    const where = sessionId === undefined ? {} : { sessionId };
    const answer = await this.wire.call("route_explain", routeOf(options, false), where);
    return answer.candidates;
  }
}

function signInOf(url: string | URL, options: ConnectOptions): SignIn {
  const { token, user, password, code, role, deviceName, clientType, insecure } = options;
  const deviceId = options.deviceId ?? randomId("", 8);
  if (!isId(deviceId))
    throw new TrunklineError("INVALID_PAYLOAD", `not a device's id: ${deviceId}`);
  const secret = token !== undefined || password !== undefined || code !== undefined;
  const target = endpoint(url, secret, insecure);
  return { url: target, deviceId, deviceName, role, clientType, token, user, password, code };
}

function globalWebSocket(): WebSocketConstructor {
  const found = (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
  if (found !== undefined) return found;
  const text =
    "there is no global WebSocket; before Node 22 pass one, such as that of the ws package";
  throw new TrunklineError("NO_WEBSOCKET", text);
}
