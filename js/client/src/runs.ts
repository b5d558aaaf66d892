import type { Signal } from "./async.js";
import { type AnyMessage, isType } from "./envelope.js";
import { TrunklineError } from "./errors.js";
import type { Ack, ChatComplete, ChatStream, RunRef, RunState } from "./messages.js";

/** What all events of a run have. */
interface RunEventBase {
  runId: string;
  /** Who answers. */
  agentId: string;
}

/** A piece of the answer. */
export interface TextEvent extends RunEventBase {
  type: "text";
  text: string;
  /**
   * Where the piece belongs, in UTF-16 units from the answer's beginning: the end of what came
   * before, or 0 when the agent began its answer anew.
   */
  offset: number;
}

/** The agent calls a tool. */
export interface ToolStartEvent extends RunEventBase {
  type: "tool_start";
  toolCallId: string;
  tool: string;
  args: unknown;
}

/** A tool call goes on. */
export interface ToolUpdateEvent extends RunEventBase {
  type: "tool_update";
  toolCallId: string;
  /** Percent. */
  progress: number | undefined;
  message: string | undefined;
}

/** A tool call has ended. */
export interface ToolResultEvent extends RunEventBase {
  type: "tool_result";
  toolCallId: string;
  success: boolean;
  output: unknown;
  error: string | undefined;
}

/** The answer is complete; the last event of its run. */
export interface CompleteEvent extends RunEventBase {
  type: "complete";
  /** The whole answer. The pieces add up to it, but for an agent that ends by saying something else. */
  content: string;
  status: NonNullable<ChatComplete["status"]>;
  usage: ChatComplete["usage"];
  error: ChatComplete["error"];
}

/** What happens in a run. */
export type RunEvent =
  | TextEvent
  | ToolStartEvent
  | ToolUpdateEvent
  | ToolResultEvent
  | CompleteEvent;

/** Events that may wait for a consumer; with more it is too slow. */
const MAX_WAITING = 10_000;

/** How much of one run has been given. */
interface Run {
  readonly runId: string;
  readonly agentId: string;
  index: number;
  text: string;
  /** The last event, if it is text that nobody has taken yet. */
  waiting: TextEvent | undefined;
  /** While the answer is told from its beginning again: how far that is. */
  retold: string | undefined;
}

/**
 * The events of the runs of one chat message, in order, each once.
 *
 * Chunks may come twice or joined (after a reconnect the gateway repeats the text so far in one
 * piece): what was given already is cut off, so that the pieces always add up to the text. Text that
 * nobody has taken yet grows in place instead of queueing up.
 */
export class RunEvents {
  readonly #runs = new Map<string, Run>();
  #waiting: RunEvent[] = [];
  #opened = false;
  /** The highest seq that was fed. */
  #seen = 0;
  #error: TrunklineError | undefined;

  /** Whether all runs have ended and all events were taken. */
  get finished(): boolean {
    return this.#opened && this.#runs.size === 0 && this.#waiting.length === 0;
  }

  /** Whether the message is known to be stored. */
  get opened(): boolean {
    return this.#opened;
  }

  /** Whether all runs have ended. */
  get complete(): boolean {
    return this.#opened && this.#runs.size === 0;
  }

  /** The runs that have not ended. */
  get open(): string[] {
    return [...this.#runs.keys()];
  }

  /** Takes the runs that the message opened; saying so twice changes nothing. */
  begin(runs: readonly RunRef[]): void {
    if (this.#opened) return;
    this.#opened = true;
    for (const { runId, agentId } of runs) {
      const run = { runId, agentId, index: -1, text: "", waiting: undefined, retold: undefined };
      this.#runs.set(runId, run);
    }
  }

  /** Takes the open runs of a new attachment: who has no text yet will be told it anew. */
  rejoined(runs: readonly RunState[]): void {
    for (const { runId, index } of runs) {
      const run = this.#runs.get(runId);
      if (run !== undefined && index < 0 && run.index >= 0) {
        run.index = -1;
        run.retold = "";
      }
    }
  }

  /** Ends all runs: how they go on cannot be known. */
  fail(error: TrunklineError): void {
    this.#error ??= error;
  }

  /** Takes the next event, if there is one; throws what `fail` was given once all are taken. */
  take(): RunEvent | undefined {
    const event = this.#waiting.shift();
    if (event !== undefined) {
      const run = this.#runs.get(event.runId);
      if (run?.waiting === event) run.waiting = undefined;
      return event;
    }
    if (this.#error !== undefined && !this.finished) throw this.#error;
    return undefined;
  }

  /** Takes a message of the session; returns whether it brought something new. */
  feed(message: AnyMessage): boolean {
    if (this.#runs.size === 0) return false;
    if (message.seq != null && message.seq <= this.#seen) return false;
    const run = this.#runs.get(String(message.payload.runId));
    if (run === undefined || !this.#apply(run, message)) return false;
    if (message.seq != null) this.#seen = message.seq;
    if (this.#waiting.length > MAX_WAITING) {
      this.fail(new TrunklineError("OVERLOADED", "the events of the run were taken too slowly"));
      this.#runs.clear();
    }
    return true;
  }

  #apply(run: Run, message: AnyMessage): boolean {
    if (isType(message, "chat_stream")) this.#onText(run, message.payload);
    else if (isType(message, "chat_complete")) this.#onComplete(run, message.payload);
    else if (isType(message, "tool_start")) {
      const { toolCallId, tool, args } = message.payload;
      this.#put(run, { type: "tool_start", ...ref(run), toolCallId, tool, args });
    } else if (isType(message, "tool_update")) {
      const { toolCallId, progress, message: text } = message.payload;
      const event = { ...ref(run), toolCallId, progress: progress ?? undefined };
      this.#onUpdate(run, { type: "tool_update", ...event, message: text ?? undefined });
    } else if (isType(message, "tool_result")) {
      const { toolCallId, result } = message.payload;
      const { success, output } = result;
      const event = { ...ref(run), toolCallId, success, output, error: result.error ?? undefined };
      this.#put(run, { type: "tool_result", ...event });
    } else return false;
    return true;
  }

  #put(run: Run, event: RunEvent): void {
    run.waiting = event.type === "text" ? event : undefined;
    this.#waiting.push(event);
  }

  #onText(run: Run, chunk: ChatStream): void {
    const index = chunk.index ?? run.index + 1;
    if (chunk.first != null) this.#retell(run, chunk.content);
    // Seen before, or ahead of chunks that the gateway will join for us.
    else if (index !== run.index + 1) return;
    else if (run.retold !== undefined) this.#retell(run, run.retold + chunk.content);
    else this.#add(run, chunk.content);
    run.index = index;
  }

  /** Takes the answer from its beginning, of which the first part was given already. */
  #retell(run: Run, text: string): void {
    if (run.text.startsWith(text) && run.text !== text) {
      run.retold = text;
      return;
    }
    run.retold = undefined;
    if (text.startsWith(run.text)) return this.#add(run, text.slice(run.text.length));
    run.text = "";
    run.waiting = undefined;
    this.#add(run, text);
  }

  #add(run: Run, text: string): void {
    if (text === "") return;
    if (run.waiting !== undefined) run.waiting.text += text;
    else this.#put(run, { type: "text", ...ref(run), text, offset: run.text.length });
    run.text += text;
  }

  #onUpdate(run: Run, event: ToolUpdateEvent): void {
    const last = this.#waiting.at(-1);
    if (last?.type === "tool_update" && last.toolCallId === event.toolCallId) {
      // Nobody has seen the older progress, and nobody will miss it.
      this.#waiting[this.#waiting.length - 1] = event;
    } else {
      this.#put(run, event);
    }
  }

  #onComplete(run: Run, { content, status, usage, error }: ChatComplete): void {
    if (content.startsWith(run.text)) {
      // What came while nobody listened, or was never sent in pieces.
      this.#add(run, content.slice(run.text.length));
    }
    this.#put(run, {
      type: "complete",
      ...ref(run),
      content,
      status: status ?? "ok",
      usage,
      error,
    });
    this.#runs.delete(run.runId);
  }
}

function ref({ runId, agentId }: Run): RunEventBase {
  return { runId, agentId };
}

/**
 * The answers to one chat message: `for await` gives their events until all have ended.
 *
 * Without an agent in the session there are no events. Leaving the loop early does not stop the
 * agents; `cancel` does. One reader at a time: a loop, or `text`.
 */
export class Answer implements AsyncIterable<RunEvent> {
  /** Where the message is stored, and which runs answer it; rejects as `Session.send` does. */
  readonly ack: Promise<Ack>;
  /** The id of the message. */
  readonly id: string;
  readonly #events: RunEvents;
  readonly #news: Signal;
  readonly #cancelRun: (runId: string) => void;
  readonly #done: () => void;

  /** @internal */
  constructor(id: string, ack: Promise<Ack>, feed: RunFeed) {
    this.id = id;
    this.ack = ack;
    this.#events = feed.events;
    this.#news = feed.news;
    this.#cancelRun = feed.cancelRun;
    this.#done = feed.done;
    ack.catch((error: TrunklineError) => {
      this.#events.fail(error);
      this.#news.notify();
    });
  }

  /** Gives the events of all runs, in the order in which they came. */
  async *[Symbol.asyncIterator](): AsyncGenerator<RunEvent, void, undefined> {
    try {
      while (!this.#events.finished) {
        const news = this.#news.wait();
        const event = this.#events.take();
        if (event !== undefined) yield event;
        else await news;
      }
    } finally {
      this.#done();
    }
  }

  /**
   * Waits for the end of all answers.
   *
   * @returns Their texts, with an empty line between those of several agents.
   * @throws {@link TrunklineError} `RUN_FAILED`: one did not end well; `details` has its `runId`,
   * `agentId`, `status`, `content` and `error`.
   */
  async text(): Promise<string> {
    const texts: string[] = [];
    for await (const event of this) {
      if (event.type !== "complete") continue;
      const { runId, agentId, status, content, error } = event;
      if (status !== "ok") {
        const why = typeof error === "string" ? error : `the answer of ${agentId} ended: ${status}`;
        const details = { runId, agentId, status, content, error };
        throw new TrunklineError("RUN_FAILED", why, { details });
      }
      texts.push(content);
    }
    return texts.join("\n\n");
  }

  /** Stops all runs that have not ended; their `complete` events say how it went. */
  cancel(): void {
    const stop = () => {
      for (const runId of this.#events.open) this.#cancelRun(runId);
    };
    this.ack.then(stop, () => {});
  }
}

/** What an {@link Answer} reads from. */
export interface RunFeed {
  events: RunEvents;
  news: Signal;
  cancelRun: (runId: string) => void;
  done: () => void;
}
