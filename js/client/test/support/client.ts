import { WebSocket } from "ws";
import {
  Agent,
  type AgentOptions,
  type ConnectOptions,
  connect,
  type Gateway,
  type Session,
  type SessionEvent,
} from "../../src/index.js";
import { TOKEN } from "./gateway.js";

/** Comes back at once: tests cut connections often. */
export const OPTIONS: ConnectOptions = {
  token: TOKEN,
  WebSocket,
  policy: { initialDelay: 20, maxDelay: 100 },
};

const opened = new Set<{ close(): Promise<void> }>();

/** Connects; closed after the test by `closeAll`. */
export async function client(url: string, options: ConnectOptions = {}): Promise<Gateway> {
  const gateway = await connect(url, { ...OPTIONS, ...options });
  opened.add(gateway);
  return gateway;
}

/** Makes an agent, to be put to work by `serve`. */
export function makeAgent(id: string, options: AgentOptions = {}): Agent {
  return new Agent(id, { drainTimeoutMs: 500, ...options });
}

/** Puts an agent to work; closed after the test by `closeAll`. */
export async function serve(agent: Agent, url: string, options: ConnectOptions = {}) {
  const serving = await agent.start(url, { ...OPTIONS, ...options });
  serving.stopped.catch(() => {});
  opened.add(serving);
  return serving;
}

/** Closes whatever a test has opened. */
export async function closeAll(): Promise<void> {
  const all = [...opened];
  opened.clear();
  await Promise.all(all.map((each) => each.close()));
}

/** Resolves at the next time that a gateway's connection is in a state. */
export function reaches(gateway: Gateway, wanted: string): Promise<void> {
  return new Promise((resolve) => {
    const forget = gateway.on("state", (state) => {
      if (state !== wanted) return;
      forget();
      resolve();
    });
  });
}

/** Reads events up to the first that fits, and returns all of them. */
export async function until(
  session: Session,
  fits: (event: SessionEvent) => boolean,
): Promise<SessionEvent[]> {
  const seen: SessionEvent[] = [];
  for await (const event of session.events()) {
    seen.push(event);
    if (fits(event)) break;
  }
  return seen;
}

/** Reads events up to the chat with a text, and returns the texts of all chats. */
export async function chatsUntil(session: Session, last: string): Promise<string[]> {
  const seen = await until(session, (e) => e.type === "chat" && e.payload.message === last);
  return seen.flatMap((event) => (event.type === "chat" ? [event.payload.message] : []));
}

/** Returns what a promise is rejected with. */
export async function failure(promise: Promise<unknown>): Promise<Error & { code?: string }> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("this should have failed");
}
