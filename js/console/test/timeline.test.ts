import { describe, expect, it } from "vitest";
import { blocksOf, type ChatItem, type RunItem, Timeline } from "../src/lib/timeline";
import type { Envelope, Sender } from "../src/lib/types";

const ada: Sender = { clientId: "c1", userId: "ada", kind: "user" };
const demo: Sender = { clientId: "c2", userId: "owner", kind: "agent", agentId: "demo" };

const frame = (type: string, payload: object, more: Partial<Envelope> = {}): Envelope => ({
  type,
  payload,
  timestamp: 1000,
  ...more,
});

const chat = (seq: number, message = `m${seq}`, addressed: string[] = []) =>
  frame("chat", { message }, { id: `id${seq}`, seq, from: ada, addressed });

const chunk = (runId: string, index: number, content: string, first?: number) =>
  frame("chat_stream", { runId, index, content, done: false, first }, { from: demo });

const complete = (seq: number, runId: string, content: string, status = "ok") =>
  frame("chat_complete", { runId, content, status }, { seq, from: demo });

const run = (timeline: Timeline) =>
  timeline.items.find((item) => item.kind === "run") as RunItem | undefined;

const keys = (timeline: Timeline) => timeline.items.map((item) => item.key);

describe("Order", () => {
  it("is that of the log, in whatever order pages come", () => {
    const late = new Timeline();
    for (const seq of [5, 6, 1, 2, 4, 3]) late.apply(chat(seq));

    expect(keys(late)).toEqual(["m1", "m2", "m3", "m4", "m5", "m6"]);
  });

  it("puts an answer below its question, however late it comes", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "question", ["demo"]));
    timeline.apply(chat(2, "somebody else"));
    timeline.apply(complete(3, "1.demo", "answer"));

    expect(keys(timeline)).toEqual(["m1", "r1.demo", "m2"]);
  });

  it("is the same live and replayed", () => {
    const live = new Timeline();
    const frames = [chat(1, "q", ["demo"]), chat(2), complete(4, "1.demo", "hello"), chat(5)];
    live.apply(frames[0] as Envelope);
    live.apply(chunk("1.demo", 0, "hel"));
    live.apply(frames[1] as Envelope);
    live.apply(chunk("1.demo", 1, "lo"));
    live.apply(frames[2] as Envelope);
    live.apply(frames[3] as Envelope);
    const replayed = new Timeline();
    for (const one of frames) replayed.apply(one);

    expect(keys(live)).toEqual(keys(replayed));
    expect(run(live)?.text).toBe(run(replayed)?.text);
  });

  it("shows a message once, though it is replayed", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1));
    const before = timeline.items;
    timeline.apply(chat(1));

    expect(timeline.items).toBe(before);
  });
});

describe("One's own messages", () => {
  it("stand at the end until they are stored, then in their place", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1));
    timeline.sending("mine", "hello", ada, 1000);
    timeline.apply(chat(2));
    expect(keys(timeline)).toEqual(["m1", "m2", "mine"]);

    timeline.stored("mine", 3, [{ runId: "3.demo", agentId: "demo" }]);
    timeline.apply(chat(4));

    expect(keys(timeline)).toEqual(["m1", "m2", "mine", "r3.demo", "m4"]);
    expect((timeline.items[2] as ChatItem).state).toBe("sent");
  });

  it("are not shown twice when the log brings them before the acknowledgement", () => {
    const timeline = new Timeline();
    timeline.sending("id7", "hello", ada, 1000);
    timeline.apply(chat(7, "hello"));
    timeline.stored("id7", 7, []);

    expect(timeline.items).toHaveLength(1);
    expect((timeline.items[0] as ChatItem).seq).toBe(7);
  });

  it("stay, marked, when they are refused, and outlive a reset", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1));
    timeline.sending("mine", "hello", ada, 1000);
    timeline.failed("mine", "no");
    timeline.reset();

    expect(timeline.items).toMatchObject([{ key: "mine", state: "failed", error: "no" }]);
  });
});

describe("A streamed answer", () => {
  it("grows by its chunks and ignores those it has", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    for (const [index, text] of ["a", "b"].entries()) timeline.apply(chunk("1.demo", index, text));
    timeline.apply(chunk("1.demo", 0, "a"));
    timeline.apply(chunk("1.demo", 2, "c"));

    expect(run(timeline)).toMatchObject({ text: "abc", state: "running" });
  });

  it("is replaced by the text so far after a reconnect", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(chunk("1.demo", 0, "a"));
    timeline.apply(chunk("1.demo", 3, "abcd", 0));
    timeline.apply(chunk("1.demo", 4, "e"));

    expect(run(timeline)?.text).toBe("abcde");
  });

  it("does not show a hole as if it were none", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(chunk("1.demo", 0, "a"));
    timeline.apply(chunk("1.demo", 2, "c"));

    expect(run(timeline)?.text).toBe("a");
  });

  it("ends with the text that the agent calls whole", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(chunk("1.demo", 0, "half"));
    timeline.apply(complete(2, "1.demo", "whole", "cancelled"));
    timeline.apply(chunk("1.demo", 1, "late"));

    expect(run(timeline)).toMatchObject({ text: "whole", state: "cancelled" });
    expect(timeline.open).toEqual([]);
  });

  it("waits from the moment that somebody is to answer", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));

    expect(run(timeline)).toMatchObject({ agentId: "demo", state: "waiting" });
  });
});

describe("Tool calls and approvals", () => {
  const start = frame(
    "tool_start",
    { runId: "1.demo", tool: "add", toolCallId: "t1", args: { a: 1 } },
    { seq: 2, from: demo },
  );
  const result = frame(
    "tool_result",
    { runId: "1.demo", toolCallId: "t1", result: { success: true, output: 3 } },
    { seq: 3, from: demo, timestamp: 1500 },
  );

  it("go from running to done, with progress on the way", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(start);
    timeline.apply(
      frame("tool_update", { runId: "1.demo", toolCallId: "t1", progress: 40, message: "half" }),
    );
    expect(run(timeline)?.steps[0]).toMatchObject({ call: { progress: 40, state: "running" } });

    timeline.apply(result);

    expect(run(timeline)?.steps).toMatchObject([
      { call: { state: "ok", output: 3, tool: "add", startedAt: 1000, endedAt: 1500 } },
    ]);
  });

  it("are whole though a page of history begins in their middle", () => {
    const timeline = new Timeline();
    timeline.apply(result);
    timeline.apply(start);

    expect(run(timeline)?.steps).toMatchObject([{ call: { state: "ok", tool: "add" } }]);
  });

  it("stand where the text was when they began", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(chunk("1.demo", 0, "four"));
    timeline.apply(start);

    expect(run(timeline)?.steps[0]?.offset).toBe(4);
  });

  it("that are at work stand below the text so far, for who joins late", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    timeline.apply(start);
    timeline.apply(chunk("1.demo", 0, "four", 0));
    timeline.apply(chunk("1.demo", 1, "more"));

    expect(run(timeline)).toMatchObject({ text: "fourmore", steps: [{ offset: 4 }] });
  });

  it("are decided by the first answer", () => {
    const timeline = new Timeline();
    timeline.apply(chat(1, "q", ["demo"]));
    const asked = {
      runId: "1.demo",
      approvalId: "a1",
      tool: "rm",
      args: {},
      digest: "d",
      expiresAt: 9,
    };
    timeline.apply(frame("approval_request", asked, { seq: 2, from: demo }));
    timeline.joined([], [frame("approval_request", asked, { seq: 2, from: demo })], 0);
    timeline.apply(
      frame(
        "approval_response",
        { approvalId: "a1", decision: "deny", digest: "d" },
        { seq: 3, from: ada },
      ),
    );

    expect(run(timeline)?.steps).toMatchObject([
      { approval: { decision: "deny", by: { userId: "ada" } } },
    ]);
  });
});

it("costs little for each message of a long session", () => {
  const timeline = new Timeline();
  for (let seq = 1; seq <= 5000; seq++) timeline.apply(chat(seq));

  expect(timeline.items).toHaveLength(5000);
  expect([timeline.first, timeline.head]).toEqual([1, 5000]);
});

describe("Blocks", () => {
  it("stay what they are when others come before and after", () => {
    const timeline = new Timeline();
    for (let seq = 100; seq <= 160; seq++) timeline.apply(chat(seq));
    const before = blocksOf(timeline.items).find((block) => block.id === 3);
    for (let seq = 40; seq < 100; seq++) timeline.apply(chat(seq));
    for (let seq = 161; seq < 200; seq++) timeline.apply(chat(seq));
    timeline.sending("mine", "hello", ada, 1);
    const blocks = blocksOf(timeline.items);

    expect(blocks.find((block) => block.id === 3)).toEqual(before);
    expect(blocks.map((block) => block.id)).toEqual([1, 2, 3, 4]);
    expect(blocks.at(-1)?.items.at(-1)?.key).toBe("mine");
    expect(blocks.flatMap((block) => block.items)).toEqual(timeline.items);
  });
});
