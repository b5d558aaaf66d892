import { rmSync } from "node:fs";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { OutcomeUnknown, type RunEvent } from "../src/index.js";
import {
  chatsUntil,
  client,
  closeAll,
  failure,
  makeAgent,
  reaches,
  serve,
  until,
} from "./support/client.js";
import { GatewayProcess, temporaryFolder } from "./support/gateway.js";
import { Relay } from "./support/relay.js";

let gateway: GatewayProcess;
let relay: Relay;
let count = 0;
let name = "";

beforeAll(async () => {
  gateway = await GatewayProcess.start();
  relay = await Relay.to(gateway.port);
});
afterAll(async () => {
  await relay.close();
  await gateway.kill();
});
afterEach(async () => {
  await closeAll();
  relay.restore();
});

function fresh(): string {
  count += 1;
  name = `r${count}`;
  return name;
}

it("resumes where the socket was cut, with what was said meanwhile", async () => {
  const writer = await (await client(gateway.url)).join(fresh());
  const reader = await client(relay.url);
  const session = await reader.join(name);
  await writer.send("before");
  expect(await chatsUntil(session, "before")).toEqual(["before"]);

  const lost = reaches(reader, "waiting");
  relay.cut({ refuse: true });
  await lost;
  await writer.send("meanwhile");
  relay.restore();
  await writer.send("after");
  expect(await chatsUntil(session, "after")).toEqual(["meanwhile", "after"]);
  expect(session.cursor).toEqual({ epoch: writer.epoch, seq: 3 });
});

it("stores once what it sends again, because the acknowledgement was lost", async () => {
  const watcher = await (await client(gateway.url)).join(fresh());
  const sender = await client(relay.url);
  const session = await sender.join(name);
  relay.swallowAnswers();
  const sending = Promise.all(["1", "2", "3"].map((text) => session.send(text)));
  // The gateway has them; only the sender does not know.
  expect(await chatsUntil(watcher, "3")).toEqual(["1", "2", "3"]);
  relay.restore();
  relay.cut();

  const acks = await sending;
  expect(acks.map((ack) => [ack.seq, ack.duplicate])).toEqual([1, 2, 3].map((n) => [n, true]));
  await session.send("4");
  expect(await chatsUntil(session, "4")).toEqual(["1", "2", "3", "4"]);
  expect((await watcher.history()).messages.length).toBe(4);
});

it("leaves open what was not acknowledged when it is closed", async () => {
  const sender = await client(relay.url);
  const session = await sender.join(fresh());
  relay.swallowAnswers();
  const sending = failure(session.send("was it stored?"));
  await sender.close();
  expect(await sending).toBeInstanceOf(OutcomeUnknown);
});

it("sends what was said without a connection, in order, once there is one", async () => {
  const watcher = await (await client(gateway.url)).join(fresh());
  const sender = await client(relay.url);
  const session = await sender.join(name);
  const lost = reaches(sender, "waiting");
  relay.cut({ refuse: true });
  await lost;
  const sending = Promise.all(["1", "2", "3"].map((text) => session.send(text)));
  relay.restore();
  expect((await sending).map((ack) => ack.seq)).toEqual([1, 2, 3]);
  expect(await chatsUntil(watcher, "3")).toEqual(["1", "2", "3"]);
});

it("keeps the order of what waits, where the gateway takes little at a time", async () => {
  const strict = await GatewayProcess.start({ rate: 400, burst: 10 });
  const before = await Relay.to(strict.port);
  const sender = await client(before.url);
  const session = await sender.join("narrow");
  let refused = 0;
  sender.on("message", ({ type }) => {
    if (type === "error") refused += 1;
  });
  const lost = reaches(sender, "waiting");
  before.cut({ refuse: true });
  await lost;
  const waiting = Array.from({ length: 60 }, (_, n) => session.send(`${n}`));
  before.restore();
  const later = Array.from({ length: 40 }, (_, n) => session.send(`${60 + n}`));
  const acks = await Promise.all([...waiting, ...later]);
  expect(acks.map((ack) => ack.seq)).toEqual(Array.from({ length: 100 }, (_, n) => n + 1));
  expect(refused).toBe(0);
  await closeAll();
  await before.close();
  await strict.kill();
});

it("is the same session for who joins it again while there is no connection", async () => {
  const mine = await client(relay.url);
  const session = await mine.join(fresh());
  const lost = reaches(mine, "waiting");
  relay.cut({ refuse: true });
  await lost;
  const again = mine.join(name);
  relay.restore();
  expect(await again).toBe(session);
  expect(session.attached).toBe(true);
});

it("loses and repeats nothing while the socket is cut again and again", async () => {
  const watcher = await (await client(gateway.url)).join(fresh());
  const sender = await client(relay.url);
  const session = await sender.join(name);
  const total = 60;
  const acks: Promise<unknown>[] = [];
  for (let n = 1; n <= total; n += 1) {
    acks.push(session.send(`${n}`));
    if (n % 10 !== 0) continue;
    const back = reaches(sender, "open");
    relay.cut();
    await back;
  }
  await Promise.all(acks);
  const wanted = Array.from({ length: total }, (_, n) => `${n + 1}`);
  expect(await chatsUntil(watcher, `${total}`)).toEqual(wanted);
  expect(await chatsUntil(session, `${total}`)).toEqual(wanted);
});

it("adds the pieces of an answer up to its text, across a cut", async () => {
  let goOn = () => {};
  const cutAt = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const agent = makeAgent(`teller-${fresh()}`, { sessions: [name] });
  agent.onChat(async function* () {
    yield "one ";
    yield "two ";
    await cutAt;
    yield "three ";
    yield "four";
  });
  await serve(agent, gateway.url);
  const reader = await client(relay.url);
  const session = await reader.join(name);
  const events: RunEvent[] = [];
  for await (const event of session.chat("tell")) {
    events.push(event);
    if (event.type !== "text" || !event.text.includes("two")) continue;
    const lost = reaches(reader, "waiting");
    relay.cut({ refuse: true });
    await lost;
    goOn();
    relay.restore();
  }
  const text = events.flatMap((event) => (event.type === "text" ? [event.text] : [])).join("");
  expect(text).toBe("one two three four");
  expect(events.at(-1)).toMatchObject({ type: "complete", content: text });
});

it("goes on after a restart of a gateway with SQLite: no loss, no duplicate, the same epoch", async () => {
  const dataDir = temporaryFolder();
  let kept = await GatewayProcess.start({ dataDir, history: "sqlite" });
  const before = await Relay.to(kept.port);
  const mine = await client(before.url);
  const session = await mine.join("kept");
  await session.send("1");
  const { epoch } = session;

  before.swallowAnswers();
  const unheard = session.send("2");
  const watcher = await (await client(kept.url)).join("kept", { tail: 10 });
  await chatsUntil(watcher, "2");
  await kept.kill();
  const waiting = session.send("3");
  kept = await GatewayProcess.start({ dataDir, history: "sqlite" });
  before.retarget(kept.port);
  before.restore();
  mine.retry();

  expect(await unheard).toMatchObject({ seq: 2, duplicate: true });
  expect(await waiting).toMatchObject({ seq: 3 });
  expect(await chatsUntil(session, "3")).toEqual(["1", "2", "3"]);
  expect(session.epoch).toBe(epoch);
  await closeAll();
  await before.close();
  await kept.stop();
  rmSync(dataDir, { recursive: true, force: true });
});

it("tells of a reset where the log is gone, and does not repeat what may be stored", async () => {
  let forgetful = await GatewayProcess.start();
  const before = await Relay.to(forgetful.port);
  const mine = await client(before.url);
  const session = await mine.join("lost");
  await session.send("1");
  await chatsUntil(session, "1");
  before.swallowAnswers();
  const unheard = failure(session.send("2"));
  const noticed = reaches(mine, "waiting");
  await forgetful.kill();
  await noticed;
  // Never sent before the reset, so it can still be sent.
  const unsent = session.send("3");
  forgetful = await GatewayProcess.start();
  before.retarget(forgetful.port);
  before.restore();
  mine.retry();

  expect(await unheard).toBeInstanceOf(OutcomeUnknown);
  expect(await unsent).toMatchObject({ seq: 1 });
  const [reset, chat] = await until(session, (event) => event.type === "chat");
  expect(reset).toMatchObject({ type: "reset", payload: { reason: "epoch", next: 1 } });
  expect(chat).toMatchObject({ type: "chat", seq: 1, payload: { message: "3" } });
  await closeAll();
  await before.close();
  await forgetful.kill();
});

it("comes back when a draining gateway says so", async () => {
  const draining = await GatewayProcess.start();
  const before = await Relay.to(draining.port);
  const mine = await client(before.url);
  const told = new Promise<number>((resolve) => {
    mine.on("state", (state, { retryInMs }) => {
      if (state === "waiting") resolve(retryInMs ?? 0);
    });
  });
  await draining.stop();
  expect(await told).toBeGreaterThanOrEqual(500);
  before.retarget(gateway.port);
  const back = reaches(mine, "open");
  mine.retry();
  await back;
  await closeAll();
  await before.close();
});
