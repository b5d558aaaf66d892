import { rmSync } from "node:fs";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import {
  approvalDigest,
  ConnectionLost,
  canonicalJson,
  type Decision,
  type RunEvent,
} from "../src/index.js";
import {
  client,
  closeAll,
  failure,
  makeAgent,
  OPTIONS,
  reaches,
  serve,
  until,
} from "./support/client.js";
import { GatewayProcess, TOKEN, temporaryFolder } from "./support/gateway.js";
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
  name = `a${count}`;
  return name;
}

/** Something to wait for, and what ends the wait. */
function gate(): { passed: Promise<void>; open: () => void } {
  let open = () => {};
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { passed, open };
}

async function decide(decision: "allow" | "deny", reason?: string): Promise<Decision> {
  let decided: Decision | undefined;
  const agent = makeAgent(`asks-${fresh()}`, { sessions: [name] });
  agent.onChat(async (ctx) => {
    decided = await ctx.approve("delete", { path: "/tmp/ä", n: 1.5e300, deep: { b: 1, a: [] } });
    return decided.allowed ? "deleted" : "kept";
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  const answer = session.chat("delete it");
  const events = await until(session, (event) => event.type === "approval_request");
  const request = events.at(-1);
  if (request?.type !== "approval_request") throw new Error("unreachable");
  await session.approve(request, decision, reason);
  expect(await answer.text()).toBe(decision === "allow" ? "deleted" : "kept");
  expect((await failure(session.approve(request, "allow"))).code).toBe("ALREADY_DECIDED");
  return decided as Decision;
}

it("asks before it acts, and does it when it is allowed", async () => {
  expect(await decide("allow")).toEqual({ allowed: true, reason: undefined, by: "owner" });
});

it("asks before it acts, and leaves it when that is denied", async () => {
  const denied = { allowed: false, reason: "too risky", by: "owner" };
  expect(await decide("deny", "too risky")).toEqual(denied);
});

it("takes no answer in time for a no", async () => {
  const agent = makeAgent(`waits-${fresh()}`, { sessions: [name] });
  let decision: Decision | undefined;
  agent.onChat(async (ctx) => {
    decision = await ctx.approve("delete", {}, { timeoutMs: 100 });
    return "";
  });
  await serve(agent, gateway.url);
  const session = await (await client(gateway.url)).join(name);
  await session.chat("go").text();
  expect(decision?.allowed).toBe(false);
});

it("writes canonical JSON as RFC 8785 wants it", async () => {
  const value = {
    "€": 1,
    "\r": 2,
    "1": [-0, 1e21, 1e-7, 0.1, null],
    b: { z: 1, a: "\u0007\ud83d\ude00" },
  };
  expect(canonicalJson(value)).toBe(
    '{"\\r":2,"1":[0,1e+21,1e-7,0.1,null],"b":{"a":"\\u0007😀","z":1},"€":1}',
  );
  expect(await failure(approvalDigest("t", { n: 2 ** 60 }))).toMatchObject({
    code: "INVALID_PAYLOAD",
  });
});

it("keeps its work over a lost connection, and answers afterwards", async () => {
  const [reached, asked, goOn] = [gate(), gate(), gate()];
  const agent = makeAgent(`keeps-${fresh()}`, { sessions: [name], graceMs: 10_000 });
  agent.onChat(async function* () {
    yield "one ";
    reached.open();
    await goOn.passed;
    yield "two ";
    yield "three";
  });
  agent.tool("slow", {}, async () => {
    asked.open();
    await goOn.passed;
    return "done";
  });
  const serving = await serve(agent, relay.url);
  const mine = await client(gateway.url);
  const session = await mine.join(name);
  const events: RunEvent[] = [];
  const chatting = (async () => {
    for await (const event of session.chat("tell")) events.push(event);
  })();
  await reached.passed;
  const asking = mine.request({ agentId: agent.id, method: "slow" });
  await asked.passed;
  const lost = reaches(serving.gateway, "waiting");
  relay.cut({ refuse: true });
  await lost;
  goOn.open();
  relay.restore();
  await chatting;
  expect(events.at(-1)).toMatchObject({ status: "ok", content: "one two three" });
  const text = events.flatMap((event) => (event.type === "text" ? [event.text] : [])).join("");
  expect(text).toBe("one two three");
  expect(await asking).toBe("done");
});

it("sends again the pieces of an answer that a lost connection has swallowed", async () => {
  const [begun, goOn, swallowed, last] = [gate(), gate(), gate(), gate()];
  const agent = makeAgent(`streams-${fresh()}`, { graceMs: 10_000 });
  agent.tool("parts", {}, async function* () {
    yield 1;
    begun.open();
    await goOn.passed;
    yield 2;
    yield 3;
    swallowed.open();
    await last.passed;
    yield 4;
  });
  const serving = await serve(agent, relay.url);
  const mine = await client(gateway.url);
  const pieces: unknown[] = [];
  const reading = (async () => {
    const request = { agentId: agent.id, method: "parts" };
    for await (const piece of mine.requestStream(request)) pieces.push(piece);
  })();
  await begun.passed;
  relay.swallowQuestions();
  goOn.open();
  await swallowed.passed;
  const lost = reaches(serving.gateway, "waiting");
  relay.cut({ refuse: true });
  await lost;
  relay.restore();
  last.open();
  await reading;
  expect(pieces).toEqual([1, 2, 3, 4]);
});

it("sends the end of an answer again that a lost connection has swallowed", async () => {
  const [begun, goOn, ended] = [gate(), gate(), gate()];
  const agent = makeAgent(`ends-${fresh()}`, { graceMs: 10_000 });
  agent.tool("parts", {}, async function* () {
    begun.open();
    await goOn.passed;
    yield 1;
    yield 2;
    setImmediate(ended.open);
  });
  const serving = await serve(agent, relay.url);
  const mine = await client(gateway.url);
  const request = { agentId: agent.id, method: "parts" };
  const streamed = (async () => {
    const pieces: unknown[] = [];
    for await (const piece of mine.requestStream(request)) pieces.push(piece);
    return pieces;
  })();
  await begun.passed;
  relay.swallowQuestions();
  goOn.open();
  await ended.passed;
  const lost = reaches(serving.gateway, "waiting");
  relay.cut({ refuse: true });
  await lost;
  relay.restore();
  expect(await streamed).toEqual([1, 2]);
});

it("says all of an answer that is told faster than the gateway takes it", async () => {
  const agent = makeAgent(`hurries-${fresh()}`, { sessions: [name] });
  const words = Array.from({ length: 150 }, (_, n) => `${n} `);
  agent.onChat(async function* () {
    yield* words;
  });
  const serving = await serve(agent, gateway.url);
  let refused = 0;
  serving.gateway.on("message", ({ type }) => {
    if (type === "error") refused += 1;
  });
  const session = await (await client(gateway.url)).join(name);
  let text = "";
  for await (const event of session.chat("go")) {
    if (event.type === "text") text = text.slice(0, event.offset) + event.text;
    if (event.type === "complete") expect(event.content).toBe(words.join(""));
  }
  expect(text).toBe(words.join(""));
  await serving.gateway.ping(); // what was refused, the agent has heard by then
  expect(refused).toBeGreaterThan(0);
});

it("answers what was asked before a restart of the gateway, from its beginning", async () => {
  const dataDir = temporaryFolder();
  let kept = await GatewayProcess.start({ dataDir, history: "sqlite" });
  const before = await Relay.to(kept.port);
  const [begun, goOn] = [gate(), gate()];
  const agent = makeAgent("teller", { sessions: ["kept"], graceMs: 20_000 });
  agent.onChat(async function* () {
    yield "one ";
    begun.open();
    await goOn.passed;
    yield "two";
  });
  const serving = await serve(agent, before.url);
  const mine = await client(before.url);
  const session = await mine.join("kept");
  const answer = session.chat("tell");
  await Promise.all([begun.passed, answer.ack]);
  await kept.kill();
  kept = await GatewayProcess.start({ dataDir, history: "sqlite" });
  before.retarget(kept.port);
  mine.retry();
  serving.gateway.retry();
  goOn.open();
  expect(await answer.text()).toBe("one two");
  await closeAll();
  await before.close();
  await kept.stop();
  rmSync(dataDir, { recursive: true, force: true });
});

it("is assigned to a session that asks for what it can do", async () => {
  const agent = makeAgent(`poet-${fresh()}`, { modes: [`poems-${name}`] });
  agent.onChat((ctx) => Promise.resolve(`a poem about ${ctx.text}`));
  await serve(agent, gateway.url);
  const mine = await client(gateway.url);
  const session = await mine.createSession({ sessionId: name, capability: `poems-${name}` });
  expect(await session.chat("rain", { mentions: [agent.id] }).text()).toBe("a poem about rain");
});

it("does no more at a time than it was told", async () => {
  const agent = makeAgent(`one-${fresh()}`, { maxConcurrent: 1 });
  const log: string[] = [];
  agent.tool("step", {}, async ({ n }: { n: number }, ctx) => {
    log.push(`+${n}`);
    await ctx.gateway.ping();
    log.push(`-${n}`);
  });
  await serve(agent, gateway.url);
  const mine = await client(gateway.url);
  const ask = (n: number) => mine.request({ agentId: agent.id, method: "step", params: { n } });
  await Promise.all([1, 2, 3].map(ask));
  expect(log).toEqual(["+1", "-1", "+2", "-2", "+3", "-3"]);
});

it("tells the gateway when what it offers changes", async () => {
  const agent = makeAgent(`grows-${fresh()}`);
  const serving = await serve(agent, gateway.url);
  agent.tool(`late-${name}`, {}, () => "here");
  await serving.gateway.ping();
  const mine = await client(gateway.url);
  expect(await mine.request({ capability: `late-${name}` })).toBe("here");
  agent.removeTool(`late-${name}`);
  await serving.gateway.ping();
  expect((await failure(mine.request({ capability: `late-${name}` }))).code).toBe(
    "AGENT_NOT_FOUND",
  );
});

it("finishes what it is at when it stops, and run returns", async () => {
  const agent = makeAgent(`stops-${fresh()}`, { drainTimeoutMs: 10_000 });
  const [begun, goOn] = [gate(), gate()];
  agent.tool("slow", {}, async () => {
    begun.open();
    await goOn.passed;
    return "done";
  });
  const control = new AbortController();
  const running = agent.run(gateway.url, { ...OPTIONS, signal: control.signal });
  const mine = await client(gateway.url);
  while ((await mine.agents()).every((each) => each.id !== agent.id)) await mine.ping();
  const asking = mine.request({ agentId: agent.id, method: "slow" });
  await begun.passed;
  control.abort();
  goOn.open();
  expect(await asking).toBe("done");
  await running;
  const left = (await mine.agents({ status: "online" })).map((each) => each.id);
  expect(left).not.toContain(agent.id);
});

it("fails to run where another credential is needed", async () => {
  const agent = makeAgent(`stranger-${fresh()}`);
  const error = await failure(agent.run(gateway.url, { ...OPTIONS, token: `not-${TOKEN}` }));
  expect(error.code).toBe("AUTH_FAILED");
  expect(error).not.toBeInstanceOf(ConnectionLost);
});
