// Says something in a session and shows the answers: node client.mjs TEXT [address], with TRUNKLINE_TOKEN
// in the environment.
import { connect } from "trunkline-client";
import { WebSocket } from "ws";

const [text = "what is 2 and 2?", url = "ws://127.0.0.1:18789"] = process.argv.slice(2);

const gateway = await connect(url, { token: process.env.TRUNKLINE_TOKEN, WebSocket });
gateway.on("state", (state, { error }) => console.error(state, error?.message ?? ""));

const session = await gateway.join("lobby");
for await (const event of session.chat(text)) {
  if (event.type === "text") process.stdout.write(event.text);
  if (event.type === "tool_start") console.log(`(${event.tool} ${JSON.stringify(event.args)})`);
  if (event.type === "complete") console.log();
}

const sum = await gateway.request({ capability: "add", params: { a: 20, b: 22 } });
console.log(`20 + 22 = ${sum}`);

await gateway.close();
