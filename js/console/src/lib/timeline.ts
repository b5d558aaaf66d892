/**
 * What a conversation shows, made of the frames of a session. No I/O here.
 *
 * Frames may come twice (a replay overlaps what was live), joined (the text so far of an answer)
 * or from the middle (a page of history): the same log always gives the same list. An answer stands
 * below the message that it answers, so its place never changes while it grows.
 *
 * Items are replaced, never changed, so that a row is drawn again only when its item is another one.
 */
import type { Envelope, Json, Sender } from "./types";

export interface ChatItem {
  kind: "chat";
  key: string;
  order: number;
  seq: number | null;
  from: Sender | null;
  at: number;
  text: string;
  /** `sending` until the gateway has stored it. */
  state: "sent" | "sending" | "failed";
  error?: string;
}

export interface ToolCall {
  callId: string;
  tool: string;
  args: Json;
  state: "running" | "ok" | "failed";
  /** Percent; null while the agent has told none. */
  progress: number | null;
  message: string | null;
  output: Json;
  error: string | null;
  startedAt: number;
  endedAt: number | null;
}

export interface Approval {
  approvalId: string;
  tool: string;
  args: Json;
  digest: string;
  expiresAt: number;
  request: Envelope;
  decision: "allow" | "deny" | null;
  by: Sender | null;
  reason: string | null;
}

export type Step =
  | { kind: "tool"; offset: number; call: ToolCall }
  | { kind: "approval"; offset: number; approval: Approval };

export type RunState = "waiting" | "running" | "ok" | "error" | "cancelled" | "lost";

export interface RunItem {
  kind: "run";
  key: string;
  order: number;
  runId: string;
  agentId: string;
  from: Sender | null;
  at: number;
  text: string;
  /** The index of the next chunk. */
  next: number;
  state: RunState;
  error: string | null;
  /** Tool calls and approvals, each with the length of the text that stood before it. */
  steps: Step[];
}

export interface NoticeItem {
  kind: "notice";
  key: string;
  order: number;
  seq: number;
  from: Sender | null;
  at: number;
  status: string;
  payload: Json;
}

export type Item = ChatItem | RunItem | NoticeItem;

/** Order of what has no place in the log yet: below everything that has. */
const TAIL = 1e15;

const NOTICES = new Set(["patched", "invited", "removed", "assigned", "unassigned", "closed"]);

export const isOpen = (run: RunItem) => run.state === "waiting" || run.state === "running";

const isWaiting = (step: Step) =>
  step.kind === "tool" ? step.call.state === "running" : step.approval.decision === null;

export class Timeline {
  /** The lowest and highest `seq` seen; 0 where there is none. */
  first = 0;
  head = 0;
  private list: Item[] = [];
  private byKey = new Map<string, Item>();
  private approvals = new Map<string, string>();
  private seen = new Set<number>();
  private counter = 0;

  /** What is shown, in order; another array after every change. */
  get items(): readonly Item[] {
    return this.list;
  }

  /** Runs that have not ended. */
  get open(): RunItem[] {
    return this.list.filter((item): item is RunItem => item.kind === "run" && isOpen(item));
  }

  /** Forget the log, but not what still waits to be stored. */
  reset(): void {
    const waiting = this.list.filter((item) => item.kind === "chat" && item.state !== "sent");
    this.first = this.head = 0;
    this.seen.clear();
    this.approvals.clear();
    this.byKey = new Map(waiting.map((item) => [item.key, item]));
    this.list = waiting;
  }

  /** Show a message of one's own before it is stored. */
  sending(id: string, text: string, from: Sender, at: number): void {
    const order = TAIL + this.counter++;
    this.put({ kind: "chat", key: id, order, seq: null, from, at, text, state: "sending" });
  }

  /** A message of one's own is stored. */
  stored(id: string, seq: number, runs: { runId: string; agentId: string }[]): void {
    const item = this.byKey.get(id);
    if (item?.kind === "chat") {
      if (this.seen.has(seq) && item.seq !== seq) this.drop(id);
      else this.put({ ...item, seq, order: seq, state: "sent", error: undefined });
    }
    this.saw(seq);
    for (const run of runs) this.run(run.runId, run.agentId, item?.at ?? 0);
  }

  /** A message of one's own was refused. */
  failed(id: string, error: string): void {
    const item = this.byKey.get(id);
    if (item?.kind === "chat" && item.state !== "sent") {
      this.put({ ...item, state: "failed", error });
    }
  }

  /** Take a message away that was never stored. */
  discard(id: string): void {
    const item = this.byKey.get(id);
    if (item?.kind === "chat" && item.state !== "sent") this.drop(id);
  }

  /** What was open at a join: runs without output yet, and approvals that wait. */
  joined(runs: { runId: string; agentId: string }[], approvals: Envelope[], at: number): void {
    for (const run of runs) this.run(run.runId, run.agentId, at);
    for (const request of approvals) this.approval(request);
  }

  /** Take one frame. */
  apply(frame: Envelope): void {
    const seq = frame.seq ?? null;
    if (seq !== null) {
      if (this.seen.has(seq)) return;
      this.saw(seq);
    }
    switch (frame.type) {
      case "chat":
        this.chat(frame);
        break;
      case "chat_stream":
        this.chunk(frame);
        break;
      case "chat_complete":
        this.complete(frame);
        break;
      case "tool_start":
        this.toolStart(frame);
        break;
      case "tool_update":
        this.toolUpdate(frame);
        break;
      case "tool_result":
        this.toolResult(frame);
        break;
      case "approval_request":
        this.approval(frame);
        break;
      case "approval_response":
        this.decision(frame);
        break;
      case "session_info":
        this.notice(frame);
        break;
    }
  }

  private saw(seq: number): void {
    this.seen.add(seq);
    this.first = this.first === 0 ? seq : Math.min(this.first, seq);
    this.head = Math.max(this.head, seq);
  }

  private chat(frame: Envelope): void {
    const seq = frame.seq ?? null;
    const mine = frame.id ? this.byKey.get(frame.id) : undefined;
    const waited = mine?.kind === "chat" && mine.state !== "sent";
    this.put({
      kind: "chat",
      key: waited ? mine.key : `m${seq ?? `x${this.counter}`}`,
      order: seq ?? TAIL + this.counter++,
      seq,
      from: frame.from ?? (waited ? mine.from : null),
      at: frame.timestamp || (waited ? mine.at : 0),
      text: text(frame.payload.message),
      state: "sent",
    });
    for (const agentId of frame.addressed ?? []) {
      this.run(`${seq}.${agentId}`, agentId, frame.timestamp ?? 0);
    }
  }

  private chunk(frame: Envelope): void {
    const { runId, content, index, first } = frame.payload;
    const run = this.runOf(frame, runId);
    if (!run || (!isOpen(run) && run.state !== "lost")) return;
    const piece = text(content);
    const from = typeof first === "number" ? first : index;
    if (typeof index !== "number" || (typeof first !== "number" && index === run.next)) {
      const next = (typeof index === "number" ? index : run.next) + 1;
      this.put({ ...run, text: run.text + piece, next, state: "running" });
    } else if (from === run.next && from > 0) {
      this.put({ ...run, text: run.text + piece, next: index + 1, state: "running" });
    } else if (from === 0 && index >= run.next - 1) {
      // The text so far, after a join. What is still at work began after it.
      const steps = run.steps.map((step) =>
        isWaiting(step) ? { ...step, offset: piece.length } : step,
      );
      this.put({ ...run, text: piece, next: index + 1, state: "running", steps });
    }
  }

  private complete(frame: Envelope): void {
    const { runId, content, status, error } = frame.payload;
    const run = this.runOf(frame, runId);
    if (!run) return;
    const state: RunState = ["error", "cancelled", "lost"].includes(status) ? status : "ok";
    this.put({
      ...run,
      state,
      text: text(content),
      at: run.at || frame.timestamp || 0,
      error:
        error == null ? null : typeof error === "string" ? error : text(error.message ?? error),
      steps: run.steps.map((step) =>
        step.kind === "tool" && step.call.state === "running"
          ? { ...step, call: { ...step.call, state: "failed", error: "no result" } as ToolCall }
          : step,
      ),
    });
  }

  private toolStart(frame: Envelope): void {
    const { runId, tool, toolCallId, args } = frame.payload;
    const run = this.runOf(frame, runId);
    if (!run) return;
    const begun = this.callOf(run, toolCallId);
    const call: ToolCall = {
      callId: text(toolCallId),
      tool: text(tool),
      args,
      state: "running",
      progress: null,
      message: null,
      output: undefined,
      error: null,
      endedAt: null,
      ...begun,
      ...(begun ? { args, tool: text(tool) } : {}),
      startedAt: frame.timestamp ?? 0,
    };
    this.putCall(run, call);
  }

  private toolUpdate(frame: Envelope): void {
    const { runId, tool, toolCallId, progress, message } = frame.payload;
    const run = this.runOf(frame, runId);
    const call = run && this.callOf(run, toolCallId);
    if (!run || !isOpen(run)) return;
    if (call?.state === "ok" || call?.state === "failed") return;
    this.putCall(run, {
      ...(call ?? newCall(toolCallId, tool, frame.timestamp ?? 0)),
      progress: typeof progress === "number" ? progress : (call?.progress ?? null),
      message: message == null ? (call?.message ?? null) : text(message),
    });
  }

  private toolResult(frame: Envelope): void {
    const { runId, tool, toolCallId, result } = frame.payload;
    const run = this.runOf(frame, runId);
    if (!run) return;
    const call = this.callOf(run, toolCallId) ?? newCall(toolCallId, tool, 0);
    this.putCall(run, {
      ...call,
      state: result?.success ? "ok" : "failed",
      output: result?.output,
      error: result?.error == null ? null : text(result.error),
      endedAt: frame.timestamp ?? null,
    });
  }

  private approval(frame: Envelope): void {
    const { runId, approvalId, tool, args, digest, expiresAt } = frame.payload;
    const run = this.runOf(frame, runId);
    if (!run || this.approvals.has(approvalId)) return;
    this.approvals.set(approvalId, run.key);
    const approval: Approval = {
      approvalId,
      tool: text(tool),
      args,
      digest: text(digest),
      expiresAt: Number(expiresAt) || 0,
      request: frame,
      decision: null,
      by: null,
      reason: null,
    };
    const step: Step = { kind: "approval", offset: run.text.length, approval };
    this.put({
      ...run,
      state: run.state === "waiting" ? "running" : run.state,
      steps: [...run.steps, step],
    });
  }

  private decision(frame: Envelope): void {
    const { approvalId, decision, reason } = frame.payload;
    const run = this.byKey.get(this.approvals.get(approvalId) ?? "");
    if (run?.kind !== "run") return;
    const steps = run.steps.map(
      (step): Step =>
        step.kind === "approval" && step.approval.approvalId === approvalId
          ? {
              ...step,
              approval: {
                ...step.approval,
                decision: decision === "allow" ? "allow" : "deny",
                by: frame.from ?? null,
                reason: reason == null ? null : text(reason),
              },
            }
          : step,
    );
    this.put({ ...run, steps });
  }

  private notice(frame: Envelope): void {
    const status = text(frame.payload.status);
    if (frame.seq == null || !NOTICES.has(status)) return;
    this.put({
      kind: "notice",
      key: `n${frame.seq}`,
      order: frame.seq,
      seq: frame.seq,
      from: frame.from ?? null,
      at: frame.timestamp ?? 0,
      status,
      payload: frame.payload,
    });
  }

  private runOf(frame: Envelope, runId: unknown): RunItem | null {
    if (typeof runId !== "string") return null;
    const agentId = frame.from?.agentId ?? runId.slice(runId.indexOf(".") + 1);
    const run = this.run(runId, agentId, frame.timestamp ?? 0, frame.seq ?? null);
    // A run that no message opened stands where its first stored frame does.
    const order = frame.seq != null && run.order >= TAIL ? frame.seq : run.order;
    return { ...run, order, from: frame.from?.agentId ? frame.from : run.from };
  }

  private run(runId: string, agentId: string, at: number, seq: number | null = null): RunItem {
    const key = `r${runId}`;
    const found = this.byKey.get(key);
    if (found?.kind === "run") return found;
    const asked = /^(\d+)\./.exec(runId);
    const run: RunItem = {
      kind: "run",
      key,
      order: asked ? Number(asked[1]) + 0.5 : (seq ?? TAIL + this.counter++),
      runId,
      agentId,
      from: null,
      at,
      text: "",
      next: 0,
      state: "waiting",
      error: null,
      steps: [],
    };
    this.put(run);
    return run;
  }

  private callOf(run: RunItem, callId: string): ToolCall | undefined {
    for (const step of run.steps) {
      if (step.kind === "tool" && step.call.callId === callId) return step.call;
    }
  }

  private putCall(run: RunItem, call: ToolCall): void {
    const known = this.callOf(run, call.callId);
    const steps = known
      ? run.steps.map((step) =>
          step.kind === "tool" && step.call === known ? { ...step, call } : step,
        )
      : [...run.steps, { kind: "tool" as const, offset: run.text.length, call }];
    this.put({ ...run, steps, state: run.state === "waiting" ? "running" : run.state });
  }

  /** Insert an item, or replace the one with its key. */
  private put(item: Item): void {
    const old = this.byKey.get(item.key);
    this.byKey.set(item.key, item);
    if (old && old.order === item.order) {
      this.list = this.list.with(this.find(old), item);
      return;
    }
    const list = old ? this.list.toSpliced(this.find(old), 1) : this.list;
    let at = list.length;
    while (at > 0 && (list[at - 1] as Item).order > item.order) at--;
    this.list = list.toSpliced(at, 0, item);
  }

  private drop(key: string): void {
    const old = this.byKey.get(key);
    if (!old) return;
    this.byKey.delete(key);
    this.list = this.list.toSpliced(this.find(old), 1);
  }

  private find(item: Item): number {
    // Nearly everything happens at the end.
    return this.list.lastIndexOf(item);
  }
}

function newCall(callId: unknown, tool: unknown, at: number): ToolCall {
  return {
    callId: text(callId),
    tool: tool == null ? "tool" : text(tool),
    args: undefined,
    state: "running",
    progress: null,
    message: null,
    output: undefined,
    error: null,
    startedAt: at,
    endedAt: null,
  };
}

/** Whatever it is, as text. */
export function text(value: unknown): string {
  if (typeof value === "string") return value;
  return value === undefined ? "" : JSON.stringify(value);
}

/** How many numbers of the log stand together in a block. */
const BLOCK = 40;

/**
 * Items in blocks by their places in the log, so that a block stays what it is when others come
 * before or after it. What has no place yet is in the last one.
 */
export function blocksOf(items: readonly Item[]): { id: number; items: Item[] }[] {
  const blocks: { id: number; items: Item[] }[] = [];
  for (const item of items) {
    const last = blocks.at(-1);
    const id = item.order >= TAIL ? (last?.id ?? 0) : Math.floor(item.order / BLOCK);
    if (last?.id === id) last.items.push(item);
    else blocks.push({ id, items: [item] });
  }
  return blocks;
}
