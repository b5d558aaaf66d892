import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { WebSocket } from "ws";
import { ConnectionLost, connect, SignInFailed } from "../src/index.js";
import { client, closeAll, failure, OPTIONS, reaches } from "./support/client.js";
import { GatewayProcess, TOKEN } from "./support/gateway.js";
import { Relay } from "./support/relay.js";

let gateway: GatewayProcess;

beforeAll(async () => {
  gateway = await GatewayProcess.start();
});
afterAll(() => gateway.kill());
afterEach(closeAll);

describe("signing in", () => {
  it("tells who one is and what the gateway is", async () => {
    const mine = await client(gateway.url, { role: "control", deviceName: "a test" });
    expect(mine.state).toBe("open");
    expect(mine.userId).toBe("owner");
    expect(mine.role).toBe("control");
    expect(mine.scopes.length).toBeGreaterThan(0);
    expect(mine.hello.protocolVersion).toBe(1);
    expect(mine.clientId).toBe(mine.hello.clientId);
    expect(await mine.ping()).toBeGreaterThanOrEqual(0);
  });

  it.each(["webchat", "observer", "node"] as const)("takes the role %s", async (role) => {
    expect((await client(gateway.url, { role })).role).toBe(role);
  });

  it("takes a token from a function, also at later connections", async () => {
    const relay = await Relay.to(gateway.port);
    let asked = 0;
    const token = async () => {
      asked += 1;
      return TOKEN;
    };
    const mine = await client(relay.url, { token });
    const back = reaches(mine, "open");
    relay.cut();
    await back;
    expect(asked).toBe(2);
    await relay.close();
  });

  it("fails with the gateway's code for a wrong token, and does not try again", async () => {
    const error = await failure(connect(gateway.url, { ...OPTIONS, token: "wrong" }));
    expect(error).toBeInstanceOf(SignInFailed);
    expect(error.code).toBe("AUTH_FAILED");
  });

  it("fails with AUTH_REQUIRED without a credential", async () => {
    const error = await failure(connect(gateway.url, { ...OPTIONS, token: undefined }));
    expect(error).toBeInstanceOf(SignInFailed);
    expect(error.code).toBe("AUTH_REQUIRED");
  });

  it("takes the owner's password, or that of a user", async () => {
    const guarded = await GatewayProcess.start({ auth: "password", history: "sqlite" });
    const bare = { token: undefined, password: TOKEN };
    expect((await client(guarded.url, bare)).userId).toBe("owner");
    await guarded.command(["users", "add", "ada", "--role", "webchat"], "of ada's own choice\n");
    const ada = { ...bare, user: "ada", password: "of ada's own choice" };
    expect(await client(guarded.url, ada)).toMatchObject({ userId: "ada", role: "webchat" });
    const wrong = { ...OPTIONS, ...bare, user: "ada" };
    expect((await failure(connect(guarded.url, wrong))).code).toBe("AUTH_FAILED");
    await closeAll();
    await guarded.kill();
  });

  it("takes a sign-in code once, and a token in its place after that", async () => {
    const own = await GatewayProcess.start();
    const relay = await Relay.to(own.port);
    const link = await own.command(["open", "--print", "--url", own.url]);
    const code = new URLSearchParams(new URL(link.trim()).hash.slice(1)).get("code") ?? "";
    const byCode = { token: undefined, code };
    const mine = await client(relay.url, byCode);
    expect(mine).toMatchObject({ userId: "owner", role: "control" });
    expect(mine.token).toMatch(/^tl_s_/);
    const back = reaches(mine, "open");
    relay.cut();
    await back;
    expect(mine.userId).toBe("owner");
    expect((await failure(connect(own.url, { ...OPTIONS, ...byCode }))).code).toBe("AUTH_FAILED");
    await closeAll();
    await relay.close();
    await own.kill();
  });

  it("refreshes the credential of the same user", async () => {
    const mine = await client(gateway.url);
    const identity = await mine.refresh(TOKEN);
    expect(identity.userId).toBe("owner");
    expect((await failure(mine.refresh("wrong"))).code).toBe("AUTH_FAILED");
    expect(mine.state).toBe("open");
  });
});

describe("where a credential goes", () => {
  it.each([
    ["ws://example.com/ws", "INSECURE"],
    ["http://192.168.1.5:8080", "INSECURE"],
    ["ws://127.0.0.1.example.com", "INSECURE"],
    ["ws://127.0.0.1/ws?token=abc", "INVALID_URL"],
    ["ws://user:secret@127.0.0.1/ws", "INVALID_URL"],
    ["ftp://127.0.0.1/", "INVALID_URL"],
    ["not an address", "INVALID_URL"],
  ])("%s is refused with %s before anything is sent", async (url, code) => {
    let opened = 0;
    class Counted extends WebSocket {
      constructor(url: string, protocols?: string[]) {
        super(url, protocols);
        opened += 1;
      }
    }
    expect((await failure(connect(url, { ...OPTIONS, WebSocket: Counted }))).code).toBe(code);
    expect(opened).toBe(0);
  });

  it("is never the address", async () => {
    const addresses: string[] = [];
    class Watched extends WebSocket {
      constructor(url: string, protocols?: string[]) {
        super(url, protocols);
        addresses.push(url);
      }
    }
    await client(gateway.url.replace("ws:", "http:"), { WebSocket: Watched });
    expect(addresses).toEqual([`ws://127.0.0.1:${gateway.port}/ws`]);
  });
});

describe("a connection", () => {
  it("is given up after the time that was allowed for the first", async () => {
    const relay = await Relay.to(gateway.port);
    relay.cut({ refuse: true });
    const policy = { initialDelay: 5, openTimeout: 50 };
    const error = await failure(connect(relay.url, { ...OPTIONS, policy }));
    expect(error).toBeInstanceOf(ConnectionLost);
    await relay.close();
  });

  it("is aborted by its signal, before and after it is open", async () => {
    const relay = await Relay.to(gateway.port);
    relay.cut({ refuse: true });
    const early = new AbortController();
    const connecting = failure(connect(relay.url, { ...OPTIONS, signal: early.signal }));
    early.abort();
    expect((await connecting).name).toBe("AbortError");
    await relay.close();

    const late = new AbortController();
    const mine = await client(gateway.url, { signal: late.signal });
    late.abort();
    expect(await mine.closed).toBeInstanceOf(ConnectionLost);
    expect(mine.state).toBe("closed");
  });

  it("tells its states, and why", async () => {
    const relay = await Relay.to(gateway.port);
    const mine = await client(relay.url);
    const seen: string[] = [];
    mine.on("state", (state, detail) => seen.push(`${state} ${detail.error?.code ?? ""}`.trim()));
    const back = reaches(mine, "open");
    relay.cut();
    await back;
    await mine.close();
    const lost = "CONNECTION_LOST";
    expect(seen).toEqual([`waiting ${lost}`, `connecting ${lost}`, "open", `closed ${lost}`]);
    await relay.close();
  });

  it("goes on when a callback of the application throws", async () => {
    const mine = await client(gateway.url);
    const forget = mine.on("message", () => {
      throw new Error("a bug of the application");
    });
    await mine.ping();
    forget();
    expect(mine.state).toBe("open");
  });

  it("refuses every request once it is closed", async () => {
    const mine = await client(gateway.url);
    await mine.close();
    expect(await failure(mine.sessions())).toBeInstanceOf(ConnectionLost);
    expect(await failure(mine.join("lobby"))).toBeInstanceOf(ConnectionLost);
    await mine.close();
  });

  it("needs no credential where the gateway asks for none", async () => {
    const open = await GatewayProcess.start({ auth: "none" });
    const mine = await client(open.url, { token: undefined });
    await mine.join("lobby");
    expect(mine.userId).toBe("local");
    await closeAll();
    await open.kill();
  });
});
