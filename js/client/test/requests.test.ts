import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { type Agent, type Gateway, OutcomeUnknown, type Serving, ToolError } from "../src/index.js";
import { Pace } from "../src/outbox.js";
import { client, closeAll, failure, makeAgent, serve } from "./support/client.js";
import { GatewayProcess } from "./support/gateway.js";
import { Relay } from "./support/relay.js";

const NUMBERS = {
  type: "object",
  properties: { a: { type: "number" }, b: { type: "number" } },
  required: ["a", "b"],
};

let gateway: GatewayProcess;
let asker: Gateway;
let calls: string[];
let agent: Agent;
let serving: Serving;

beforeAll(async () => {
  gateway = await GatewayProcess.start();
});
afterAll(() => gateway.kill());
afterEach(closeAll);

beforeEach(async () => {
  calls = [];
  agent = makeAgent("calc", { labels: { zone: "eu" } });
  agent
    .tool<{ a: number; b: number }>(
      "add",
      { description: "Adds.", inputSchema: NUMBERS },
      (args) => {
        calls.push("add");
        return args.a + args.b;
      },
    )
    .tool("count", {}, async function* ({ to }: { to: number }) {
      for (let n = 1; n <= to; n += 1) yield n;
    })
    .tool("wait", {}, async (_, ctx) => {
      calls.push("wait");
      await new Promise((end) => ctx.signal.addEventListener("abort", end));
      calls.push("stopped");
    })
    .tool("fail", {}, ({ aloud }: { aloud: boolean }) => {
      if (aloud) throw new ToolError("there is no such city", "UNKNOWN_CITY");
      throw new Error("a secret");
    });
  serving = await serve(agent, gateway.url);
  asker = await client(gateway.url);
});

it("asks the agent that has the tool, and returns its result", async () => {
  expect(await asker.request({ capability: "add", params: { a: 2, b: 3 } })).toBe(5);
  expect(await asker.request({ agentId: "calc", method: "add", params: { a: 1, b: 1 } })).toBe(2);
  const [entry] = await asker.agents({ capability: "add" });
  expect(entry).toMatchObject({ id: "calc", status: "online", labels: { zone: "eu" } });
});

it("has arguments that do not fit the schema refused before the agent is bothered", async () => {
  const error = await failure(asker.request({ capability: "add", params: { a: "two" } }));
  expect(error.code).toBe("INVALID_PAYLOAD");
  expect(calls).toEqual([]);
});

it("streams, and gives the pieces as a list to who does not", async () => {
  const pieces: unknown[] = [];
  for await (const piece of asker.requestStream({ capability: "count", params: { to: 3 } })) {
    pieces.push(piece);
  }
  expect(pieces).toEqual([1, 2, 3]);
  expect(await asker.request({ capability: "count", params: { to: 3 } })).toEqual([1, 2, 3]);
});

it("streams no faster than the gateway takes it", async () => {
  let refused = 0;
  const forget = serving.gateway.on("message", ({ type }) => {
    if (type === "error") refused += 1;
  });
  const pieces: unknown[] = [];
  const request = { capability: "count", params: { to: 80 } };
  for await (const piece of asker.requestStream(request)) pieces.push(piece);
  forget();
  expect(pieces).toEqual(Array.from({ length: 80 }, (_, n) => n + 1));
  expect(refused).toBe(0);
});

it("fails rather than leaves out pieces, where some were refused", async () => {
  const told = serving.gateway.wire.streamPace;
  serving.gateway.wire.streamPace = new Pace(); // as if the gateway had not told its limits
  const pieces: unknown[] = [];
  const reading = async () => {
    const request = { capability: "count", params: { to: 1_000 } };
    for await (const piece of asker.requestStream(request)) pieces.push(piece);
  };
  expect((await failure(reading())).code).toBe("AGENT_LOST");
  expect(pieces.length).toBeGreaterThan(0);
  serving.gateway.wire.streamPace = told;
});

it("takes a falsy result for what it is", async () => {
  expect(await asker.request({ capability: "add", params: { a: 1, b: -1 } })).toBe(0);
});

it("fails with the tool's own words, and with nothing that is internal", async () => {
  const told = await failure(asker.request({ capability: "fail", params: { aloud: true } }));
  expect(told).toMatchObject({ code: "UNKNOWN_CITY", message: "there is no such city" });
  const hidden = await failure(asker.request({ capability: "fail", params: { aloud: false } }));
  expect(hidden).toMatchObject({ code: "HANDLER_ERROR", message: "the tool failed" });
});

it("fails where no agent fits", async () => {
  const error = await failure(asker.request({ capability: "fly" }));
  expect(error).toMatchObject({ code: "AGENT_NOT_FOUND", retryable: true });
  const labels = { zone: "us" };
  const elsewhere = await failure(asker.request({ capability: "add", labels }));
  expect(elsewhere.code).toBe("AGENT_NOT_FOUND");
});

it("ends at its deadline, of which the agent hears; the outcome is unknown then", async () => {
  const stopped = new Promise<void>((resolve) => {
    agent.tool("hang", {}, async (_, ctx) => {
      ctx.signal.addEventListener("abort", () => resolve());
      await new Promise(() => {});
    });
  });
  const error = await failure(asker.request({ agentId: "calc", method: "hang", timeoutMs: 50 }));
  expect(error).toBeInstanceOf(OutcomeUnknown);
  expect((error as OutcomeUnknown).details).toMatchObject({ code: "TIMEOUT", delivered: true });
  await stopped;
});

it("is cancelled by its signal, and the agent stops", async () => {
  const control = new AbortController();
  const begun = new Promise<void>((resolve) => {
    agent.tool("long", {}, async (_, ctx) => {
      resolve();
      await new Promise((end) => ctx.signal.addEventListener("abort", end));
      calls.push("stopped");
      ended();
    });
  });
  let ended = () => {};
  const stopped = new Promise<void>((resolve) => {
    ended = resolve;
  });
  const asking = failure(
    asker.request({ agentId: "calc", method: "long", signal: control.signal }),
  );
  await begun;
  control.abort();
  expect((await asking).name).toBe("AbortError");
  await stopped;
  expect(calls).toEqual(["stopped"]);
});

it("is not sent when its signal was aborted before", async () => {
  const error = await failure(asker.request({ capability: "wait", signal: AbortSignal.abort() }));
  expect(error.name).toBe("AbortError");
  expect(calls).toEqual([]);
});

it("is cancelled by leaving the loop over a stream", async () => {
  const stopped = new Promise<void>((resolve) => {
    agent.tool("endless", {}, async function* (_, ctx) {
      try {
        for (let n = 0; ; n += 1) {
          yield n;
          await new Promise((next) => setImmediate(next));
          if (ctx.signal.aborted) return;
        }
      } finally {
        resolve();
      }
    });
  });
  for await (const n of asker.requestStream({ agentId: "calc", method: "endless" })) {
    if (n === 3) break;
  }
  await stopped;
});

it("lets a tool ask another agent, as part of the same request", async () => {
  const plus = makeAgent("plus");
  plus.tool("plus", {}, (args: { a: number; b: number }) => args.a + args.b);
  await serve(plus, gateway.url);
  agent.tool("both", {}, (_, ctx) => ctx.ask({ capability: "plus", params: { a: 20, b: 22 } }));
  expect(await asker.request({ agentId: "calc", method: "both" })).toBe(42);
});

it("explains which agents would be asked", async () => {
  const candidates = await asker.explain({ capability: "add" });
  expect(candidates).toMatchObject([{ agentId: "calc", chosen: true }]);
});

it("leaves open what happened when the connection is lost, and asks again only where it may", async () => {
  const relay = await Relay.to(gateway.port);
  const far = await client(relay.url);
  let times = 0;
  let reached = () => {};
  agent.tool("slow", {}, async () => {
    times += 1;
    reached();
    if (times < 3) await new Promise(() => {});
    return "done";
  });
  const arrival = () =>
    new Promise<void>((resolve) => {
      reached = resolve;
    });

  let arrived = arrival();
  const once = failure(far.request({ agentId: "calc", method: "slow" }));
  await arrived;
  relay.cut();
  expect(await once).toBeInstanceOf(OutcomeUnknown);

  arrived = arrival();
  const again = far.request({ agentId: "calc", method: "slow", idempotent: true });
  await arrived;
  relay.cut();
  expect(await again).toBe("done");
  expect(times).toBe(3);
  await relay.close();
});
