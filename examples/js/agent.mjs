// An agent that chats and can add: node agent.mjs [address], with TRUNKLINE_TOKEN in the environment.
import { Agent, ToolError } from "trunkline-client";
import { WebSocket } from "ws";

const agent = new Agent("js-demo", { name: "JavaScript demo", sessions: ["lobby"] });

agent.tool(
  "add",
  {
    description: "Add two numbers.",
    inputSchema: {
      type: "object",
      properties: { a: { type: "number" }, b: { type: "number" } },
      required: ["a", "b"],
    },
  },
  ({ a, b }) => {
    const sum = a + b;
    if (!Number.isFinite(sum)) throw new ToolError("the sum is too large");
    return sum;
  },
);

agent.onChat(async function* (ctx) {
  const numbers = ctx.text.match(/-?\d+(\.\d+)?/g)?.map(Number) ?? [];
  if (numbers.length !== 2) {
    yield "Give me two numbers. ";
    yield `You said: ${ctx.text}`;
    return;
  }
  const [a, b] = numbers;
  // Everybody in the session sees this call.
  yield `${a} + ${b} = ${await ctx.tool("add", { a, b })}`;
});

const stop = new AbortController();
process.once("SIGINT", () => stop.abort());
process.once("SIGTERM", () => stop.abort());

await agent.run(process.argv[2] ?? "ws://127.0.0.1:18789", {
  token: process.env.TRUNKLINE_TOKEN,
  WebSocket,
  signal: stop.signal,
});
