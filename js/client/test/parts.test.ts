import { afterEach, describe, expect, it, vi } from "vitest";
import { WebSocket } from "ws";
import { LogCursor } from "../src/cursor.js";
import type { AnyMessage } from "../src/envelope.js";
import { connect } from "../src/index.js";
import { Outbox, Pace } from "../src/outbox.js";
import { afterClose, afterRefusal, Backoff, endpoint } from "../src/policy.js";
import { RunEvents } from "../src/runs.js";
import { Socket, type WebSocketLike } from "../src/socket.js";
import { AnswerText } from "../src/text.js";
import { Throttle } from "../src/throttle.js";
import { failure } from "./support/client.js";

afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("the address", () => {
  it.each([
    ["http://localhost:18789", "ws://localhost:18789/ws"],
    ["https://example.com", "wss://example.com/ws"],
    ["wss://example.com/team/ws?x=1#part", "wss://example.com/team/ws?x=1"],
    ["ws://[::1]:1", "ws://[::1]:1/ws"],
    ["ws://127.0.0.1", "ws://127.0.0.1/ws"],
  ])("%s is reached at %s", (given, wanted) => {
    expect(endpoint(given, true)).toBe(wanted);
  });

  it("may be unencrypted and elsewhere without a credential, or where that is allowed", () => {
    expect(endpoint("ws://10.0.0.1", false)).toBe("ws://10.0.0.1/ws");
    expect(endpoint("ws://10.0.0.1", true, true)).toBe("ws://10.0.0.1/ws");
  });

  it("is reached by the global WebSocket, or by the one that was passed", async () => {
    vi.stubGlobal("WebSocket", undefined);
    expect((await failure(connect("ws://127.0.0.1:1"))).code).toBe("NO_WEBSOCKET");
    vi.stubGlobal("WebSocket", WebSocket);
    const policy = { openTimeout: 0 };
    expect((await failure(connect("ws://127.0.0.1:1", { policy }))).code).toBe("CONNECTION_LOST");
  });
});

describe("the end of a connection", () => {
  it.each([
    [1001, "", true],
    [1006, "", true],
    [1008, "reconnect=no;flood", false],
    [1011, "", true],
    [4001, "reconnect=no", false],
    [4003, "", false],
    [4004, "reconnect=no;kicked", false],
    [4008, "reconnect=yes", true],
    [4009, "", false],
    [4029, "", true],
    [4999, "reconnect=yes;text", true],
    [1011, "reconnect=no", false],
  ])("%i with %j: again is %s", (code, reason, again) => {
    expect(afterClose(code, reason).again).toBe(again);
  });

  it("says how long to wait; what the close says goes before what was announced", () => {
    expect(afterClose(1001, "", 700).afterMs).toBe(700);
    expect(afterClose(4029, "reconnect=yes;afterMs=1500", 700).afterMs).toBe(1500);
    expect(afterClose(4029, "reconnect=yes;afterMs=-1").afterMs).toBeUndefined();
  });

  it.each([
    ["Unexpected server response: 503", true],
    ["Unexpected server response: 429", true],
    ["Unexpected server response: 403", false],
    ["it could not be opened", true],
  ])("before it began, with %j: again is %s", (text, again) => {
    expect(afterRefusal(text).again).toBe(again);
  });

  it("is waited after longer each time, up to a bound, with jitter", () => {
    const backoff = new Backoff(100, 1_000, () => 1);
    expect([1, 2, 3, 4, 5].map(() => backoff.next())).toEqual([100, 200, 400, 800, 1_000]);
    backoff.reset();
    expect(backoff.next()).toBe(100);
    expect(new Backoff(100, 1_000, () => 0.25).next()).toBe(25);
  });
});

describe("a gateway that falls silent", () => {
  class Quiet implements WebSocketLike {
    static made: Quiet;
    readonly bufferedAmount = 0;
    readyState = 1;
    sent: string[] = [];
    closed = false;
    onopen: WebSocketLike["onopen"] = null;
    onmessage: WebSocketLike["onmessage"] = null;
    onclose: WebSocketLike["onclose"] = null;
    onerror: WebSocketLike["onerror"] = null;
    constructor() {
      Quiet.made = this;
      queueMicrotask(() => this.onopen?.({}));
    }
    send(frame: string): void {
      this.sent.push(JSON.parse(frame).type);
    }
    close(): void {
      this.closed = true;
    }
  }

  it("is asked whether it is there, and left when it does not answer", async () => {
    vi.useFakeTimers();
    const socket = await Socket.open(Quiet, "ws://127.0.0.1");
    const { made } = Quiet;
    vi.advanceTimersByTime(24_000);
    expect(made.sent).toEqual(["ping"]);
    const pong = socket.next();
    made.onmessage?.({ data: '{"type":"pong","id":"1","payload":{}}' });
    expect((await pong).type).toBe("pong");
    vi.advanceTimersByTime(23_000);
    expect(made.sent).toEqual(["ping"]);
    vi.advanceTimersByTime(8_000);
    expect(made.sent).toEqual(["ping", "ping"]);
    const lost = failure(socket.next());
    vi.advanceTimersByTime(9_000);
    expect(made.closed).toBe(true);
    expect(await lost).toMatchObject({ code: 1006 });
  });
});

describe("the cursor", () => {
  const info = { sessionId: "s", status: "joined" as const };

  it("takes each number once, and sees what is missing", () => {
    const cursor = new LogCursor();
    expect(cursor.position).toBeUndefined();
    cursor.joined({ ...info, epoch: "e", head: 2, next: 3, recovery: "fresh" });
    expect(cursor.place(3)).toBe("next");
    cursor.advance();
    expect(cursor.place(3)).toBe("seen");
    expect(cursor.place(5)).toBe("ahead");
    expect(cursor.behind).toBe(true);
    expect(cursor.position).toEqual({ epoch: "e", seq: 3 });
  });

  it("begins anew where the log is another, and only there", () => {
    const cursor = new LogCursor({ epoch: "e", seq: 7 });
    const joined = { ...info, epoch: "e", head: 9, next: 8, recovery: "resumed" as const };
    expect(cursor.joined(joined)).toBeUndefined();
    expect(cursor.last).toBe(7);
    expect(cursor.joined({ ...joined, recovery: "reset", reason: "trimmed", next: 9 })).toBe(
      "trimmed",
    );
    expect(cursor.last).toBe(8);
    expect(cursor.joined({ ...joined, epoch: "f", recovery: "reset", next: 1 })).toBe("epoch");
    expect(cursor.position).toEqual({ epoch: "f", seq: 0 });
  });
});

describe("a run's events", () => {
  function message(type: string, payload: object, seq?: number): AnyMessage {
    return { type, id: "m", seq, payload: { runId: "1.a", ...payload } };
  }
  function feed(events: RunEvents, ...messages: AnyMessage[]): string {
    for (const each of messages) events.feed(each);
    let text = "";
    for (let event = events.take(); event !== undefined; event = events.take()) {
      if (event.type === "text") text = text.slice(0, event.offset) + event.text;
    }
    return text;
  }
  function begun(): RunEvents {
    const events = new RunEvents();
    events.begin([{ runId: "1.a", agentId: "a" }]);
    return events;
  }
  const chunk = (index: number, content: string, first?: number) =>
    message("chat_stream", { index, content, first, done: false });

  it("leave out chunks that come twice, joined or ahead of a hole", () => {
    const events = begun();
    const told = [chunk(0, "a"), chunk(1, "b"), chunk(1, "b"), chunk(2, "abc", 0), chunk(2, "c")];
    expect(feed(events, ...told)).toBe("abc");
    expect(feed(events, chunk(4, "e"), chunk(3, "d")).endsWith("d")).toBe(true);
  });

  it("begin at 0 again where the agent says something else after all", () => {
    const events = begun();
    feed(events, chunk(0, "hello"));
    events.rejoined([{ runId: "1.a", agentId: "a", index: -1 }]);
    expect(feed(events, chunk(0, "goodbye"))).toBe("goodbye");
  });

  it("end with the whole text, and once", () => {
    const events = begun();
    expect(feed(events, message("chat_complete", { content: "all of it" }, 2))).toBe("all of it");
    expect(events.finished).toBe(true);
    expect(events.feed(message("chat_complete", { content: "again" }, 3))).toBe(false);
  });
});

describe("the text of an answer", () => {
  it("goes out again from where the gateway has it", () => {
    const text = new AnswerText();
    for (const word of ["a", "b", "c"]) {
      text.write(word);
      text.take();
    }
    text.rewind(0);
    expect(text.take()).toEqual({ index: 1, content: "bc" });
    text.rewind(-1);
    expect(text.take()).toEqual({ index: 0, content: "abc" });
    expect(text.take()).toBeUndefined();
  });
});

describe("durable messages", () => {
  it("go out at the gateway's pace", () => {
    const pace = new Pace(10, 2);
    expect([pace.take(0), pace.take(0), pace.take(0)]).toEqual([0, 0, 100]);
    expect(pace.take(100)).toBe(0);
    expect(new Pace().take(0)).toBe(0);
    // A gateway that rounds tells 0, and takes something all the same.
    const slow = new Pace(0, 1);
    expect(slow.take(0)).toBe(0);
    expect(slow.take(0)).toBeGreaterThan(0);
    expect(slow.take(0)).toBeLessThan(Number.POSITIVE_INFINITY);
  });

  it("keep their order where one is refused after all, and go out one by one then", () => {
    vi.useFakeTimers();
    const outbox = new Outbox();
    const posted: string[] = [];
    const throttle = new Throttle(outbox, (frame) => posted.push(frame));
    const entries = ["1", "2", "3"].map((id) => outbox.add(id, "s", id));
    for (const entry of entries) throttle.send(entry);
    expect(posted).toEqual(["1", "2", "3"]);
    for (const entry of [...entries].reverse()) throttle.refused(entry, 1_000);
    expect(posted.length).toBe(3);
    vi.advanceTimersByTime(1_000);
    expect(posted.slice(3)).toEqual(["1"]);
    outbox.settle("1");
    throttle.settled("1");
    expect(posted.slice(3)).toEqual(["1", "2"]);
  });

  it("that never left can be taken back; the others are unknown after a reset", () => {
    const outbox = new Outbox();
    const sent = outbox.add("sent", "s", "…");
    sent.sent = true;
    outbox.add("new", "s", "…");
    outbox.add("other", "t", "…");
    expect(outbox.withdraw("sent")).toBe(false);
    expect(outbox.forgetSent("s").map((entry) => entry.id)).toEqual(["sent"]);
    expect(outbox.withdraw("new")).toBe(true);
    expect(outbox.of("t").length).toBe(1);
  });
});
