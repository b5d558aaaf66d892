import { Deferred } from "./async.js";
import { type AnyMessage, decode, encode, makeMessage } from "./envelope.js";

/** What is needed of a WebSocket: the browser's, Node's from version 22 on, or that of `ws`. */
export interface WebSocketLike {
  readonly readyState: number;
  readonly bufferedAmount: number;
  // biome-ignore lint/suspicious/noExplicitAny: the event types of the implementations differ
  onopen: ((event: any) => any) | null;
  // biome-ignore lint/suspicious/noExplicitAny: the event types of the implementations differ
  onmessage: ((event: any) => any) | null;
  // biome-ignore lint/suspicious/noExplicitAny: the event types of the implementations differ
  onclose: ((event: any) => any) | null;
  // biome-ignore lint/suspicious/noExplicitAny: the event types of the implementations differ
  onerror: ((event: any) => any) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

/** Makes a WebSocket and begins to open it. */
export type WebSocketConstructor = new (url: string, protocols?: string[]) => WebSocketLike;

const SUBPROTOCOL = "trunkline.v1";
const OPEN = 1;

/** Milliseconds for opening a socket, and again for signing in. */
export const HANDSHAKE_TIMEOUT = 10_000;

/** Milliseconds without a frame after which the gateway is asked whether it is there. */
const QUIET = 24_000;

/** Milliseconds that it then has to answer. */
const PONG_TIMEOUT = 8_000;

/** How a socket ended. */
export class SocketClosed extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
  ) {
    super(`closed with ${code}${reason && `: ${reason}`}`);
  }
}

/** Who is told of frames and of the end. */
export interface FrameListener {
  onFrame(message: AnyMessage): void;
  onClose(end: SocketClosed): void;
}

/** An open pipe of messages. */
export class Socket {
  readonly #ws: WebSocketLike;
  #waiting: AnyMessage[] = [];
  #taker: Deferred<AnyMessage> | undefined;
  #listener: FrameListener | undefined;
  #end: SocketClosed | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #lastFrame = Date.now();
  #asked = false;
  #over = new Deferred<void>();

  private constructor(ws: WebSocketLike) {
    this.#ws = ws;
    ws.onmessage = (event) => this.#onMessage(event.data);
    ws.onclose = (event) => this.#onClose(new SocketClosed(event.code, event.reason ?? ""));
    ws.onerror = () => {};
    this.#watch(QUIET);
  }

  /** Opens a socket; rejects with an `Error` if that fails, or takes too long. */
  static async open(make: WebSocketConstructor, url: string): Promise<Socket> {
    const ws = new make(url, [SUBPROTOCOL]);
    const opened = new Deferred<Socket>();
    const timer = setTimeout(() => {
      opened.reject(new Error("timed out"));
      drop(ws);
    }, HANDSHAKE_TIMEOUT);
    ws.onopen = () => opened.resolve(new Socket(ws));
    ws.onerror = (event) => opened.reject(new Error(event?.message || "it could not be opened"));
    ws.onclose = (event) => opened.reject(new Error(`closed with ${event.code}`));
    try {
      return await opened.promise;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Characters that were sent and have not left yet. */
  get buffered(): number {
    return this.#ws.bufferedAmount;
  }

  /** Waits for the next message; rejects with {@link SocketClosed}. Not after `listen`. */
  next(): Promise<AnyMessage> {
    const taker = new Deferred<AnyMessage>();
    const message = this.#waiting.shift();
    if (message !== undefined) taker.resolve(message);
    else if (this.#end !== undefined) taker.reject(this.#end);
    else this.#taker = taker;
    return taker.promise;
  }

  /** From now on all messages, those that wait too, and the end go to `listener` at once. */
  listen(listener: FrameListener): void {
    this.#listener = listener;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const message of waiting) listener.onFrame(message);
    if (this.#end !== undefined) listener.onClose(this.#end);
  }

  /** Sends a frame; on a socket that is closing it is dropped. */
  send(frame: string): void {
    if (this.#ws.readyState === OPEN) this.#ws.send(frame);
  }

  /** Sends what is queued, closes with 1000 and waits for the other side, a second at most. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.abort(), 1_000);
    this.#ws.close(1000);
    await this.#over.promise;
    clearTimeout(timer);
  }

  /** Drops what is left of it; may be called more than once. */
  abort(): void {
    drop(this.#ws);
    this.#onClose(new SocketClosed(1006, ""));
  }

  #onMessage(data: unknown): void {
    this.#lastFrame = Date.now();
    this.#asked = false;
    const message = decode(data);
    if (message === undefined) {
      console.warn("trunkline-client: a frame of the gateway makes no sense");
    } else if (this.#listener !== undefined) {
      this.#listener.onFrame(message);
    } else if (this.#taker !== undefined) {
      this.#taker.resolve(message);
      this.#taker = undefined;
    } else {
      this.#waiting.push(message);
    }
  }

  #onClose(end: SocketClosed): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    clearTimeout(this.#timer);
    this.#over.resolve();
    this.#taker?.reject(end);
    this.#listener?.onClose(end);
  }

  /** Asks a quiet gateway whether it is there, and drops the socket of one that does not answer. */
  #watch(ms: number): void {
    this.#timer = setTimeout(() => {
      const quiet = Date.now() - this.#lastFrame;
      if (quiet < QUIET) {
        this.#watch(QUIET - quiet);
      } else if (this.#asked) {
        this.abort();
      } else {
        this.#asked = true;
        this.send(encode(makeMessage("ping", {})));
        this.#watch(PONG_TIMEOUT);
      }
    }, ms);
  }
}

function drop(ws: WebSocketLike & { terminate?: () => void }): void {
  ws.onopen = ws.onmessage = ws.onclose = null;
  // The `ws` package throws an error event that nobody listens to.
  ws.onerror = () => {};
  if (ws.terminate) ws.terminate();
  else ws.close();
}
