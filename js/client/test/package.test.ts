import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { client } from "./support/client.js";
import { GatewayProcess, TOKEN, temporaryFolder } from "./support/gateway.js";

const HERE = fileURLToPath(new URL("..", import.meta.url));
const EXAMPLES = join(HERE, "../../examples/js");
const run = promisify(execFile);

let folder: string;
let packed: { filename: string; files: { path: string }[] };

beforeAll(async () => {
  folder = temporaryFolder();
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", folder], {
    cwd: HERE,
  });
  const said = JSON.parse(stdout.slice(stdout.search(/^[[{]/m)));
  packed = Array.isArray(said) ? said[0] : Object.values(said)[0];
  mkdirSync(join(folder, "app"));
  const tarball = join(folder, packed.filename);
  await run("npm", ["install", "--offline", "--no-audit", "--no-fund", "--no-save", tarball], {
    cwd: join(folder, "app"),
  });
}, 60_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it("packs what is needed and nothing else", () => {
  const paths = packed.files.map((file) => file.path);
  expect(paths).toContain("dist/index.js");
  expect(paths).toContain("dist/index.d.ts");
  expect(paths).toContain("LICENSE");
  const others = paths.filter((path) => !/^dist\/[a-z]+(\.d\.ts|\.js)$/.test(path));
  expect(others.sort()).toEqual(["LICENSE", "README.md", "package.json"]);
});

it("needs nothing at run time", () => {
  const installed = readdirSync(join(folder, "app/node_modules")).filter((n) => !n.startsWith("."));
  expect(installed).toEqual(["trunkline-client"]);
  const dist = join(HERE, "dist");
  for (const file of readdirSync(dist).filter((each) => each.endsWith(".js"))) {
    const text = readFileSync(join(dist, file), "utf8");
    const others = [...text.matchAll(/(?:from|import)\s*\(?"([^"]+)"/g)].map(([, from]) => from);
    expect(others.filter((from) => !from?.startsWith("./"))).toEqual([]);
    expect(text).not.toMatch(/\b(?:process\.|Buffer\b|require\()/);
  }
});

it("has types that hold without those of Node, and tell messages apart", async () => {
  const program = `
    import { Agent, connect, type SessionEvent } from "trunkline-client";
    const gateway = await connect("wss://example.com", { token: async () => "t", WebSocket });
    const session = await gateway.join("lobby");
    for await (const event of session.events()) handle(event);
    function handle(event: SessionEvent): string | number {
      if (event.type === "chat") return event.payload.message;
      return event.type === "reset" ? event.payload.next : 0;
    }
    new Agent("a").tool("add", {}, ({ a, b }: { a: number; b: number }) => a + b)
      .onChat(async function* (ctx) { yield ctx.text; });
    // @ts-expect-error: an approval is allowed or denied
    await session.approve({} as never, "perhaps");
  `;
  writeFileSync(join(folder, "app/use.mts"), program);
  const strict = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"];
  const args = [...strict, "--lib", "es2022,dom", "--types", "", "use.mts"];
  await run(join(HERE, "node_modules/.bin/tsc"), args, { cwd: join(folder, "app") });
});

it("lets the examples talk to each other", async () => {
  const app = join(folder, "app");
  for (const name of ["agent.mjs", "client.mjs"])
    copyFileSync(join(EXAMPLES, name), join(app, name));
  symlinkSync(join(HERE, "node_modules/ws"), join(app, "node_modules/ws"));
  const gateway = await GatewayProcess.start();
  const env = { ...process.env, TRUNKLINE_TOKEN: TOKEN };
  const agent = spawn(process.execPath, ["agent.mjs", gateway.url], { cwd: app, env });
  const ended = once(agent, "exit");
  try {
    const mine = await client(gateway.url);
    while ((await mine.agents({ capability: "add" })).length === 0) await mine.ping();
    const lobby = await mine.join("lobby");
    while (!lobby.members.some((member) => member.agentId === "js-demo")) await mine.ping();
    await mine.close();
    const args = ["client.mjs", "what is 2 and 3?", gateway.url];
    const { stdout } = await run(process.execPath, args, { cwd: app, env });
    expect(stdout).toBe('(add {"a":2,"b":3})\n2 + 3 = 5\n20 + 22 = 42\n');
  } finally {
    agent.kill("SIGTERM");
    expect(await ended).toEqual([0, null]);
    await gateway.kill();
  }
});
