import { TrunklineError } from "./errors.js";
import { type ConnectOptions, Gateway } from "./gateway.js";
import { isId } from "./ids.js";
import type { AgentRegister } from "./messages.js";
import { Serving } from "./serving.js";
import type { ChatHandler, Tool, ToolHandler, ToolOptions } from "./tools.js";

/** What an agent is; each may be left out. */
export interface AgentOptions {
  /** Its name for people; absent: the id. */
  name?: string;
  /** What kind it is. */
  type?: AgentRegister["type"];
  /** The sessions that it joins; they are made if there are none. Others it is assigned to. */
  sessions?: readonly string[];
  /** Further words under which it is found. */
  modes?: string[];
  /** Anything; those who list agents see it. */
  metadata?: Record<string, unknown>;
  /** For requests that choose by label. */
  labels?: Record<string, string>;
  /** Chats and requests at a time; 0, the default, is unlimited. */
  maxConcurrent?: number;
  /** Milliseconds, at most 60 000, that its work outlives a lost connection; 10 000 by default. */
  graceMs?: number;
  /** Milliseconds that work gets to end when the agent stops; 10 000 by default. */
  drainTimeoutMs?: number;
}

/** How an agent connects; unless said otherwise its role is `node`, and it tries for ever. */
export type ServeOptions = ConnectOptions;

/**
 * A program that answers chats and offers tools.
 *
 * Put to work by `run`, or by `start` and `stop`.
 */
export class Agent {
  /** Its id; it belongs to the user that registers it first. */
  readonly id: string;
  /** @internal */
  readonly options: AgentOptions;
  /** @internal */
  readonly tools = new Map<string, Tool>();
  /** @internal */
  chatHandler: ChatHandler | undefined;
  readonly #serving = new Set<Serving>();

  constructor(id: string, options: AgentOptions = {}) {
    if (!isId(id)) throw new TrunklineError("INVALID_PAYLOAD", `not an agent's id: ${id}`);
    this.id = id;
    this.options = options;
  }

  /** Answers chats with this function; see {@link ChatHandler}. What it throws ends the answer badly. */
  onChat(handler: ChatHandler): this {
    this.chatHandler = handler;
    this.#announce();
    return this;
  }

  /** Offers a function as a tool; a later one of the same name takes its place. */
  // biome-ignore lint/suspicious/noExplicitAny: what the arguments are is the schema's business
  tool<Args = any>(name: string, options: ToolOptions, handler: ToolHandler<Args>): this {
    if (!isId(name)) throw new TrunklineError("INVALID_PAYLOAD", `not a tool's name: ${name}`);
    const { description, inputSchema = { type: "object" } } = options;
    this.tools.set(name, { spec: { name, description, inputSchema }, handler });
    this.#announce();
    return this;
  }

  /** Offers a tool no more. */
  removeTool(name: string): void {
    if (this.tools.delete(name)) this.#announce();
  }

  #announce(): void {
    for (const serving of this.#serving) serving.announce();
  }

  /** @internal What it announces; with the `generation` of the registration to take over. */
  registration(generation?: number): AgentRegister {
    const { name, type = "custom", modes = [], graceMs = 10_000, ...options } = this.options;
    const chat = this.chatHandler !== undefined;
    const tools = [...this.tools.values()].map((tool) => tool.spec);
    return {
      id: this.id,
      type,
      name: name ?? this.id,
      capabilities: { chat, streaming: chat, tools, modes },
      metadata: options.metadata,
      maxConcurrent: options.maxConcurrent,
      labels: options.labels,
      graceMs,
      resume: generation === undefined ? undefined : { generation },
    };
  }

  /**
   * Serves until `stop`; comes back by itself after a lost connection.
   *
   * @param options - How to connect; when its `signal` is aborted the agent stops.
   * @throws {@link SignInFailed}: another credential is needed; {@link TrunklineError}: the gateway
   * refuses the registration; {@link ConnectionLost}: it does not want the connection any more, such as
   * when another program has registered the id.
   */
  async run(url: string | URL, options: ServeOptions = {}): Promise<void> {
    const { signal, ...rest } = options;
    const serving = await this.start(url, rest);
    const stop = () => void serving.stop();
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted) stop();
    try {
      await serving.stopped;
    } finally {
      signal?.removeEventListener("abort", stop);
      await serving.stop();
    }
  }

  /** Begins to serve; when it returns, the agent is registered and in its sessions. See `run`. */
  async start(url: string | URL, options: ServeOptions = {}): Promise<Serving> {
    const policy = { openTimeout: Number.POSITIVE_INFINITY, ...options.policy };
    const serving = new Serving(this, new Gateway(url, { role: "node", ...options, policy }));
    this.#serving.add(serving);
    void serving.gateway.closed.then(() => this.#serving.delete(serving));
    try {
      await serving.open();
    } catch (error) {
      await serving.close();
      throw error;
    }
    return serving;
  }

  /** Begins no more work, finishes what is at work, unregisters and closes; `run` returns. */
  async stop(): Promise<void> {
    await Promise.all([...this.#serving].map((serving) => serving.stop()));
  }
}
