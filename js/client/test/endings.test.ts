import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { ConnectionLost, SignInFailed } from "../src/index.js";
import { client, closeAll, makeAgent, serve } from "./support/client.js";
import { GatewayProcess } from "./support/gateway.js";

let gateway: GatewayProcess;

beforeAll(async () => {
  const program = fileURLToPath(new URL("support/ending_gateway.py", import.meta.url));
  gateway = await GatewayProcess.start({ program });
});
afterAll(() => gateway.kill());
afterEach(closeAll);

it("does not come back after a kick (4004)", async () => {
  const mine = await client(gateway.url, { token: "long" });
  const states: string[] = [];
  mine.on("state", (state) => states.push(state));
  const lobby = await mine.join("lobby");
  lobby.post("kick_me", {});

  const error = await mine.closed;
  expect(error).toBeInstanceOf(ConnectionLost);
  expect((error as ConnectionLost).closeCode).toBe(4004);
  expect(states).toEqual(["closed"]);
  await expect(lobby.events().next()).rejects.toBe(error);
});

it("does not come back after the credential has ended (4003), and tells before", async () => {
  const mine = await client(gateway.url, { token: "short" });
  const states: string[] = [];
  mine.on("state", (state) => states.push(state));
  const told = new Promise<number>((resolve) => {
    mine.on("expiring", ({ expiresAt }) => resolve(expiresAt));
  });

  const error = await mine.closed;
  expect(error).toBeInstanceOf(SignInFailed);
  expect(error.code).toBe("AUTH_EXPIRED");
  expect(states).toEqual(["closed"]);
  expect(await told).toBeGreaterThan(0);
});

it("gives an agent's id to the newest program, and tells the older one (4009)", async () => {
  const first = await serve(makeAgent("calc"), gateway.url, { token: "long" });
  await serve(makeAgent("calc"), gateway.url, { token: "long" });

  await expect(first.stopped).rejects.toMatchObject({ code: "CONNECTION_LOST", closeCode: 4009 });
});
