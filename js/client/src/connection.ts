import { Signal, sleep, within } from "./async.js";
import { type AnyMessage, encode, isType, makeMessage } from "./envelope.js";
import { ConnectionLost, refusal, SignInFailed, TrunklineError } from "./errors.js";
import type { Auth, AuthSuccess, Connect, HelloOk, SessionInfo } from "./messages.js";
import {
  afterClose,
  afterRefusal,
  afterSignIn,
  Backoff,
  type ReconnectPolicy,
  type Verdict,
} from "./policy.js";
import { HANDSHAKE_TIMEOUT, Socket, SocketClosed, type WebSocketConstructor } from "./socket.js";

/** Milliseconds after which a connection was good, and the backoff begins anew. */
const STABLE = 5_000;

/** Characters waiting to be written above which `Connection.drain` waits. */
const HIGH_WATER = 256 * 1024;

/** Milliseconds between two looks at what waits to be written; no event tells. */
const DRAIN_POLL = 5;

export const PROTOCOL_VERSION = 1;

/** What a connection is doing; `waiting` is the time between two tries. */
export type State = "connecting" | "open" | "waiting" | "closed";

/** Why a connection is in its state. */
export interface StateDetail {
  /** What ended the last connection or try. */
  error?: TrunklineError;
  /** Milliseconds until the next try, when `waiting`. */
  retryInMs?: number;
}

/** A credential, or where to get it at each sign-in. */
export type Secret = string | (() => string | Promise<string>);

/** Where to connect, and as whom. */
export interface SignIn {
  readonly url: string;
  readonly deviceId: string;
  readonly deviceName?: string | undefined;
  readonly role?: Connect["role"];
  readonly clientType?: Auth["clientType"];
  token?: Secret | undefined;
  readonly user?: string | undefined;
  readonly password?: string | undefined;
  code?: string | undefined;
}

/** What a connection tells its owner; nothing here may throw. */
export interface ConnectionListener {
  /** Signed in; what is posted now goes first. */
  onReady(): void;
  onMessage(message: AnyMessage): void;
  /** The socket is gone; another may come. */
  onLost(): void;
  onState(state: State, detail: StateDetail): void;
}

/** A connection that comes back, over as many sockets as it takes. */
export class Connection {
  readonly signIn: SignIn;
  readonly #make: WebSocketConstructor;
  readonly #listener: ConnectionListener;
  readonly #policy: ReconnectPolicy;
  readonly #wake = new Signal();
  #socket: Socket | undefined;
  #opening: Socket | undefined;
  #closing = false;
  #goingAway: number | undefined;
  state: State = "connecting";
  hello: HelloOk | undefined;
  identity: AuthSuccess | undefined;
  /** Bytes; a larger message would end the connection. */
  maxMessageSize = 1024 * 1024;
  limits: Record<string, number> = {};

  constructor(
    signIn: SignIn,
    make: WebSocketConstructor,
    policy: ReconnectPolicy,
    listener: ConnectionListener,
  ) {
    this.signIn = signIn;
    this.#make = make;
    this.#policy = policy;
    this.#listener = listener;
  }

  /** Whether frames can be posted. */
  get connected(): boolean {
    return this.#socket !== undefined;
  }

  /** Sends a frame; without a socket it is dropped. */
  post(frame: string): void {
    this.#socket?.send(frame);
  }

  /** Waits while much is queued; returns at once without a socket. */
  async drain(): Promise<void> {
    while (this.#socket !== undefined && this.#socket.buffered > HIGH_WATER) {
      await sleep(DRAIN_POLL);
    }
  }

  /** Ends a wait between two tries. */
  retry(): void {
    this.#wake.notify();
  }

  /** Stays connected until `close`; rejects with why there will be no connection any more. */
  async run(): Promise<void> {
    const { initialDelay, maxDelay, openTimeout = 10_000 } = this.#policy;
    const backoff = new Backoff(initialDelay, maxDelay);
    const giveUp = Date.now() + openTimeout;
    this.#listener.onState(this.state, {});
    while (true) {
      const began = Date.now();
      const verdict = await this.#live();
      if (this.#closing) return;
      if (Date.now() - began > STABLE) backoff.reset();
      const wait = verdict.afterMs ?? backoff.next();
      const tooLate = this.hello === undefined && Date.now() + wait >= giveUp;
      if (!verdict.again || tooLate) throw verdict.error;
      this.#setState("waiting", { error: verdict.error, retryInMs: wait });
      await sleep(wait, this.#wake);
      if (this.#closing) return;
      this.#setState("connecting", { error: verdict.error });
    }
  }

  /** Writes what is queued, and closes. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#wake.notify();
    this.#opening?.abort();
    await this.#socket?.close();
  }

  #setState(state: State, detail: StateDetail = {}): void {
    this.state = state;
    this.#listener.onState(state, detail);
  }

  /** Opens a socket, uses it until it ends, and judges the end. */
  async #live(): Promise<Verdict> {
    let socket: Socket;
    try {
      socket = await Socket.open(this.#make, this.signIn.url);
    } catch (error) {
      return afterRefusal(error instanceof Error ? error.message : String(error));
    }
    this.#goingAway = undefined;
    this.#opening = socket;
    try {
      const silent = () => new ConnectionLost("the gateway fell silent");
      const hello = await within(this.#greet(socket), HANDSHAKE_TIMEOUT, silent);
      this.#opening = undefined;
      if (this.#closing) await socket.close();
      const end = await this.#talk(socket, hello);
      return afterClose(end.code, end.reason, this.#goingAway);
    } catch (error) {
      socket.abort();
      return judge(error);
    } finally {
      this.#opening = undefined;
    }
  }

  async #greet(socket: Socket): Promise<HelloOk> {
    const welcome = await socket.next();
    if (isType(welcome, "error")) throw new Refused(refusal(welcome.payload));
    if (!isType(welcome, "session_info")) {
      throw new Refused(new ConnectionLost("the other side is no Trunkline gateway"));
    }
    this.#takeLimits(welcome.payload);
    if (welcome.payload.authRequired) socket.send(await this.#auth());
    socket.send(this.#connect());
    while (true) {
      const message = await socket.next();
      if (isType(message, "hello_ok")) return message.payload;
      if (isType(message, "error")) throw new Refused(refusal(message.payload));
      if (isType(message, "auth_error")) throw new Refused(new TrunklineError("AUTH_FAILED"));
      if (isType(message, "auth_success")) this.#signedIn(message.payload);
    }
  }

  #takeLimits(info: SessionInfo): void {
    this.limits = info.limits ?? {};
    this.maxMessageSize = this.limits.maxMessageSize ?? this.maxMessageSize;
  }

  #signedIn(identity: AuthSuccess): void {
    this.identity = identity;
    if (this.signIn.code !== undefined && identity.token != null) {
      // The code is used up; the token that came for it signs in from now on.
      this.signIn.code = undefined;
      this.signIn.token = identity.token;
    }
  }

  async #auth(): Promise<string> {
    const { token, user, password, code, clientType } = this.signIn;
    if (token === undefined && password === undefined && code === undefined) {
      const text = "the gateway asks for a credential";
      throw new Refused(new SignInFailed("AUTH_REQUIRED", text));
    }
    const auth: Auth = { password, code, clientType, user };
    if (token !== undefined) auth.token = typeof token === "string" ? token : await token();
    return encode(makeMessage("auth", auth));
  }

  #connect(): string {
    const { deviceId, deviceName, role } = this.signIn;
    const hello = { deviceId, deviceName, role, protocolVersion: PROTOCOL_VERSION };
    return encode(makeMessage("connect", hello));
  }

  async #talk(socket: Socket, hello: HelloOk): Promise<SocketClosed> {
    this.hello = hello;
    this.#socket = socket;
    this.#listener.onReady();
    this.#setState("open");
    return new Promise((resolve) => {
      socket.listen({
        onFrame: (message) => {
          if (isType(message, "going_away")) this.#goingAway = message.payload.reconnectInMs;
          this.#listener.onMessage(message);
        },
        onClose: (end) => {
          this.#socket = undefined;
          this.#listener.onLost();
          resolve(end);
        },
      });
    });
  }
}

/** What ended a greeting for good, or until later as the error says. */
class Refused extends Error {
  constructor(readonly error: TrunklineError) {
    super(error.message);
  }
}

function judge(error: unknown): Verdict {
  if (error instanceof SocketClosed) return afterClose(error.code, error.reason);
  if (error instanceof Refused) {
    const { error: reason } = error;
    return reason instanceof ConnectionLost ? { error: reason, again: false } : afterSignIn(reason);
  }
  if (error instanceof ConnectionLost) return { error, again: true };
  // The application's own function for the token failed.
  const text = error instanceof Error ? error.message : String(error);
  return { error: new SignInFailed("AUTH_FAILED", `no credential: ${text}`), again: false };
}
