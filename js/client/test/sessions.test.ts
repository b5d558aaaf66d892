import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { type RunEvent, type SessionEvent, TrunklineError } from "../src/index.js";
import {
  chatsUntil,
  client,
  closeAll,
  failure,
  makeAgent,
  serve,
  until,
} from "./support/client.js";
import { GatewayProcess } from "./support/gateway.js";

let gateway: GatewayProcess;
let count = 0;
let name = "";

beforeAll(async () => {
  gateway = await GatewayProcess.start();
});
afterAll(() => gateway.kill());
afterEach(closeAll);

function fresh(): string {
  count += 1;
  name = `s${count}`;
  return name;
}

it("stores what is sent, and acknowledges it in order", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  const acks = await Promise.all(["a", "b", "c"].map((text) => session.send(text)));
  expect(acks.map((ack) => ack.seq)).toEqual([1, 2, 3]);
  expect(acks[0]).toMatchObject({ epoch: session.epoch, durability: "memory", runs: [] });
  expect(session.head).toBe(3);
});

it("gives two clients the same log, own messages included", async () => {
  const [ada, bob] = [await client(gateway.url), await client(gateway.url)];
  const [a, b] = [await ada.join(fresh()), await bob.join(name)];
  await a.send("from a");
  await b.send("from b");
  await a.send("the end");

  const texts = ["from a", "from b", "the end"];
  expect(await chatsUntil(a, "the end")).toEqual(texts);
  expect(await chatsUntil(b, "the end")).toEqual(texts);
  expect(a.members.map((member) => member.clientId).sort()).toEqual(
    [ada.clientId, bob.clientId].sort(),
  );
});

it("says who sent a message, with its type", async () => {
  const [ada, bob] = [await client(gateway.url), await client(gateway.url)];
  const [a, b] = [await ada.join(fresh()), await bob.join(name)];
  await a.send("hi", { context: { page: 3 } });
  const chat = (await until(b, (event) => event.type === "chat")).at(-1);
  expect(chat).toMatchObject({
    type: "chat",
    seq: 1,
    from: { clientId: ada.clientId, userId: "owner", kind: "user" },
    payload: { message: "hi", context: { page: 3 } },
  });
});

it("stores the same id once", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  const first = await session.send("once", { id: "mine-1" });
  const again = await session.send("once", { id: "mine-1" });
  expect(again).toMatchObject({ seq: first.seq, duplicate: true });
  expect((await failure(session.send("other", { id: "mine-1" }))).code).toBe("ID_CONFLICT");
});

it("tells presence, of those who come and of those who type", async () => {
  const [ada, bob] = [await client(gateway.url), await client(gateway.url)];
  const a = await ada.join(fresh());
  const b = await bob.join(name);
  b.presence("typing");
  const seen = await until(a, (e) => e.type === "presence" && e.payload.status === "typing");
  const statuses = seen.flatMap((e) => (e.type === "presence" ? [e.payload.status] : []));
  expect(statuses).toEqual(["online", "typing"]);
  await b.leave();
  await until(a, (e) => e.type === "presence" && e.payload.status === "offline");
  expect(a.members.map((member) => member.clientId)).toEqual([ada.clientId]);
});

it("pages through the history without moving the reader", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  for (let n = 1; n <= 7; n += 1) await session.send(`m${n}`);
  const last = await session.history({ limit: 3 });
  expect(last.messages.map((message) => message.seq)).toEqual([5, 6, 7]);
  const before = await session.history({ before: 5, limit: 3 });
  expect(before.messages.map((message) => message.seq)).toEqual([2, 3, 4]);
  expect(before.more).toBe(true);
  const rest = await session.history({ before: 2 });
  expect(rest).toMatchObject({ first: 1, head: 7, more: false });
  const forward = await session.history({ after: 5 });
  expect(forward.messages.map((message) => message.seq)).toEqual([6, 7]);
});

it("replays a tail, or what came after a place", async () => {
  const writer = await (await client(gateway.url)).join(fresh());
  for (const text of ["one", "two", "three"]) await writer.send(text);
  const tail = await (await client(gateway.url)).join(name, { tail: 2 });
  expect(await chatsUntil(tail, "three")).toEqual(["two", "three"]);
  const since = { epoch: writer.epoch, seq: 1 };
  const later = await (await client(gateway.url)).join(name, { since });
  expect(await chatsUntil(later, "three")).toEqual(["two", "three"]);
  expect(later.cursor).toEqual({ epoch: writer.epoch, seq: 3 });
});

it("tells a reader whose place is unknown that reading begins anew", async () => {
  const writer = await (await client(gateway.url)).join(fresh());
  await writer.send("one");
  const since = { epoch: "another", seq: 41 };
  const reader = await (await client(gateway.url)).join(name, { since });
  const [first] = await until(reader, (event) => event.type === "chat");
  expect(first).toMatchObject({ type: "reset", payload: { reason: "epoch", next: 1 } });
});

it("keeps what came between two loops, and takes one reader at a time", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  await session.send("one");
  await session.send("two");
  expect(await chatsUntil(session, "one")).toEqual(["one"]);
  expect(session.cursor?.seq).toBe(1);
  const loop = session.events();
  expect(() => session.events()).toThrow(TrunklineError);
  await loop.return?.();
  expect(await chatsUntil(session, "two")).toEqual(["two"]);
});

it("reads a log that is longer than what it keeps waiting, without a hole", async () => {
  const writer = await (await client(gateway.url)).join(fresh());
  const total = 5_000;
  for (let from = 1; from <= total; from += 500) {
    const batch = Array.from({ length: 500 }, (_, n) => writer.send(`${from + n}`));
    await Promise.all(batch);
  }
  const bob = await client(gateway.url);
  const arrived = new Promise<void>((resolve) => {
    bob.on("message", ({ seq }) => seq === total && resolve());
  });
  const reader = await bob.join(name, { since: { epoch: writer.epoch, seq: 0 } });
  await arrived;
  const texts = await chatsUntil(reader, `${total}`);
  expect(texts).toEqual(Array.from({ length: total }, (_, n) => `${n + 1}`));
});

it("makes sessions, changes and lists them, and ends them for everybody", async () => {
  const ada = await client(gateway.url, { role: "control" });
  const made = await ada.createSession({ name: "Plans", visibility: "private" });
  const other = await (await client(gateway.url)).join(made.id, { create: false });
  const info = await made.patch({ name: "Better plans", metadata: { colour: "blue" } });
  expect(info).toMatchObject({ name: "Better plans", metadata: { colour: "blue" } });
  await until(other, (e) => e.type === "session_info" && e.payload.status === "patched");
  expect(other.info?.name).toBe("Better plans");
  await made.invite("bob");
  await made.remove("bob");
  const listed = (await ada.sessions()).find((session) => session.sessionId === made.id);
  expect(listed).toMatchObject({ name: "Better plans", memberCount: 2 });

  await made.close({ delete: true });
  const rest: SessionEvent[] = [];
  for await (const event of other.events()) rest.push(event);
  expect(rest.at(-1)).toMatchObject({ type: "session_info", payload: { status: "closed" } });
  expect((await failure(ada.join(made.id, { create: false }))).code).toBe("SESSION_NOT_FOUND");
});

it("can leave a session and join it again", async () => {
  const ada = await client(gateway.url);
  const session = await ada.join(fresh());
  await session.send("one");
  await session.leave();
  const again = await ada.join(name, { tail: 1 });
  expect(again).not.toBe(session);
  expect(await chatsUntil(again, "one")).toEqual(["one"]);
});

it("joins once, whoever asks at the same time", async () => {
  const ada = await client(gateway.url);
  const [one, two] = await Promise.all([ada.join(fresh()), ada.join(name)]);
  expect(one).toBe(two);
  expect(await ada.join(name)).toBe(one);
});

it("streams the answers of agents written with it", async () => {
  fresh();
  const agent = makeAgent(`echo-${name}`, { sessions: [name] });
  agent.onChat(async function* (ctx, message) {
    const out = await ctx.toolCall("shout", { text: ctx.text }, async (call) => {
      call.progress(50, "half");
      return ctx.text.toUpperCase();
    });
    yield `${out} `;
    yield message.payload.message;
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  const events: RunEvent[] = [];
  for await (const event of session.chat("hi 🌍")) events.push(event);

  const types = events.map((event) => event.type);
  expect(types[0]).toBe("tool_start");
  expect(types).toContain("tool_update");
  expect(events.find((event) => event.type === "tool_result")).toMatchObject({
    success: true,
    output: "HI 🌍",
  });
  const text = events.flatMap((event) => (event.type === "text" ? [event.text] : [])).join("");
  expect(text).toBe("HI 🌍 hi 🌍");
  expect(events.at(-1)).toMatchObject({ type: "complete", content: text, status: "ok" });
  expect(await session.chat("again").text()).toBe("AGAIN again");
});

it("splits no character between two chunks", async () => {
  fresh();
  const agent = makeAgent(`halves-${name}`, { sessions: [name] });
  agent.onChat(async function* () {
    yield "a\ud83c";
    yield "\udf0db";
    yield "x".repeat(65_533);
    yield "\ud83c\udf0d!";
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  expect(await session.chat("go").text()).toBe(`a🌍b${"x".repeat(65_533)}🌍!`);
});

it("says why an answer failed, and nothing that is internal", async () => {
  fresh();
  const agent = makeAgent(`bad-${name}`, { sessions: [name] });
  agent.onChat(async () => {
    throw new Error("the password of the database is 123");
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  const error = (await failure(session.chat("hi").text())) as TrunklineError;
  expect(error.code).toBe("RUN_FAILED");
  expect(error.details).toMatchObject({ status: "error", agentId: `bad-${name}` });
  expect(JSON.stringify(error.details) + error.message).not.toContain("123");
});

it("stops an answer that is cancelled", async () => {
  fresh();
  const agent = makeAgent(`slow-${name}`, { sessions: [name] });
  const stopped = new Promise<void>((resolve) => {
    agent.onChat(async function* (ctx) {
      yield "begun";
      await new Promise((end) => ctx.signal.addEventListener("abort", end));
      resolve();
    });
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  const answer = session.chat("go");
  const events: RunEvent[] = [];
  for await (const event of answer) {
    events.push(event);
    if (event.type === "text") answer.cancel();
  }
  await stopped;
  expect(events.at(-1)).toMatchObject({ type: "complete", status: "cancelled", content: "begun" });
});

it("has no events where nobody answers", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  expect(await session.chat("anybody?").text()).toBe("");
});

it("refuses what the gateway would not take, before it is sent", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  expect((await failure(session.send("x".repeat(1_100_000)))).code).toBe("MESSAGE_TOO_LARGE");
  expect((await failure(session.send("half \ud83c"))).code).toBe("INVALID_MESSAGE");
  expect(await session.send("a backslash: \\ud83c")).toMatchObject({ seq: 1 });
});

it("keeps the order of more messages than the gateway takes at once", async () => {
  const session = await (await client(gateway.url)).join(fresh());
  const acks = await Promise.all(Array.from({ length: 1_000 }, (_, n) => session.send(`${n}`)));
  expect(acks.map((ack) => ack.seq)).toEqual(Array.from({ length: 1_000 }, (_, n) => n + 1));
});
