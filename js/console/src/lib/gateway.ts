/**
 * The console's one connection, and who it is signed in as.
 *
 * It goes to the origin that served the page and nowhere else: no part of the address, no message
 * from another window and nothing stored chooses a server. The credential lives in memory; in
 * session storage only if the person asked for it.
 */
import { signal } from "@preact/signals";
import { connect, TrunklineError } from "trunkline-client";
import type { AgentEntry, SessionEntry } from "./types";

export type Client = Awaited<ReturnType<typeof connect>>;

export interface Credential {
  kind: "token" | "password" | "code" | "none";
  secret: string;
}

export interface Me {
  userId: string;
  clientId: string;
  role: string;
  scopes: string[];
}

/** `waiting`: the connection is lost and will be tried again. */
export type Link = "connecting" | "open" | "waiting" | "closed";

export const phase = signal<"starting" | "signed-out" | "signing-in" | "ready">("starting");
export const problem = signal<string | null>(null);
export const link = signal<Link>("connecting");
export const me = signal<Me | null>(null);
export const client = signal<Client | null>(null);
export const serverVersion = signal<string>("");
export const sessions = signal<SessionEntry[] | null>(null);
export const agents = signal<AgentEntry[] | null>(null);
export const remembered = signal(false);

const STORE = "trunkline.credential";
const REFRESH = 10_000;

let credential: Credential | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;

export const socketUrl = () =>
  `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}/ws`;

/** What HTTP requests carry, or null where there is nothing to show. */
export function bearer(): string | null {
  const token = client.value?.token;
  if (credential?.kind === "code") return token ?? null;
  return credential?.secret || token || null;
}

/** Sign in with what is at hand: a sign-in link, what this tab keeps, or nothing at all. */
export async function start(): Promise<void> {
  const code = takeCode();
  const kept = recall();
  if (code) return signIn({ kind: "code", secret: code });
  if (kept) {
    remembered.value = true;
    return signIn(kept, true);
  }
  const asked = await asksForCredential();
  if (asked === false) return signIn({ kind: "none", secret: "" });
  if (asked === null) problem.value = "The gateway does not answer. Is it running?";
  phase.value = "signed-out";
}

/** Take the single-use code out of the address, before anything else can see it. */
export function takeCode(): string | null {
  const found = /^#code=([A-Za-z0-9._~-]{1,512})$/.exec(location.hash);
  if (location.hash.startsWith("#code=")) {
    history.replaceState(null, "", location.pathname);
  }
  return found?.[1] ?? null;
}

/** Sign in; what goes wrong is told in `problem`. */
export async function signIn(given: Credential, keep = false): Promise<void> {
  phase.value = "signing-in";
  problem.value = null;
  try {
    const gateway = await connect(socketUrl(), {
      ...(given.kind === "none" ? {} : { [given.kind]: given.secret }),
      deviceName: "console",
      clientType: "web",
      // The page itself came this way; the sign-in form warns where that is not encrypted.
      insecure: true,
      policy: { maxDelay: 5000 },
    });
    credential = given;
    opened(gateway);
    remember(keep);
  } catch (error) {
    forget();
    phase.value = "signed-out";
    problem.value = explain(error, given.kind);
  }
}

function opened(gateway: Client): void {
  client.value = gateway;
  read(gateway);
  link.value = "open";
  gateway.on("state", (state, detail) => {
    if (client.value !== gateway) return;
    link.value = state;
    if (state === "open") {
      read(gateway);
      refresh();
    }
    if (state === "closed") lost(detail.error);
  });
  gateway.on("message", (message) => {
    if (message.type === "session_info" || message.type === "presence") soon();
  });
  phase.value = "ready";
  refresh();
}

function read(gateway: Client): void {
  // A gateway that asks for no credential names nobody and allows everything.
  const open = credential?.kind === "none";
  me.value = {
    userId: gateway.userId || "local",
    clientId: gateway.clientId,
    role: gateway.role || (open ? "control" : ""),
    scopes: open ? ["admin"] : [...gateway.scopes],
  };
  serverVersion.value = gateway.hello.serverVersion;
}

function lost(error: unknown): void {
  if (phase.value !== "ready") return;
  const reason = error ? explain(error, credential?.kind) : null;
  forget();
  clear();
  problem.value = reason ?? "The gateway closed the connection.";
}

/** Sign out and forget the credential. */
export async function signOut(): Promise<void> {
  const gateway = client.value;
  forget();
  clear();
  problem.value = null;
  await gateway?.close();
}

function clear(): void {
  clearTimeout(timer);
  client.value = null;
  credential = null;
  me.value = null;
  sessions.value = agents.value = null;
  phase.value = "signed-out";
}

/** Whether this identity may do what the scope stands for. */
export function may(scope: string): boolean {
  const scopes = me.value?.scopes ?? [];
  return scopes.includes(scope) || scopes.includes("admin");
}

/** Read the lists of sessions and agents again. */
export async function refresh(): Promise<void> {
  clearTimeout(timer);
  const gateway = client.value;
  if (gateway?.state !== "open") return;
  try {
    const [listed, known] = await Promise.all([gateway.sessions(), gateway.agents()]);
    if (client.value !== gateway) return;
    sessions.value = listed as SessionEntry[];
    agents.value = known as AgentEntry[];
  } catch {
    // The lists stay as they were; the connection itself says what is wrong.
  }
  clearTimeout(timer);
  timer = setTimeout(() => (document.hidden ? soon(REFRESH) : refresh()), REFRESH);
}

function soon(ms = 300): void {
  clearTimeout(timer);
  timer = setTimeout(refresh, ms);
}

/** Keep the credential in this tab's session storage, or take it out again. */
export function remember(keep: boolean): void {
  remembered.value = false;
  try {
    sessionStorage.removeItem(STORE);
    const kept: Credential | null =
      credential?.kind === "code" ? { kind: "token", secret: bearer() ?? "" } : credential;
    if (!keep || !kept?.secret) return;
    sessionStorage.setItem(STORE, JSON.stringify(kept));
    remembered.value = true;
  } catch {
    // Storage may be switched off; the credential then lives as long as the page.
  }
}

function recall(): Credential | null {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE) ?? "null");
    const good = kept && ["token", "password"].includes(kept.kind) && kept.secret;
    return good ? { kind: kept.kind, secret: String(kept.secret) } : null;
  } catch {
    return null;
  }
}

function forget(): void {
  remembered.value = false;
  try {
    sessionStorage.removeItem(STORE);
  } catch {
    // as in `remember`
  }
}

/** Ask the gateway's greeting whether it wants a credential; null where it does not answer. */
function asksForCredential(): Promise<boolean | null> {
  return new Promise((resolve) => {
    const socket = new WebSocket(socketUrl());
    const end = (answer: boolean | null) => {
      clearTimeout(patience);
      resolve(answer);
      socket.close();
    };
    const patience = setTimeout(end, 5000, null);
    socket.onerror = () => end(null);
    socket.onmessage = (event) => {
      try {
        end(JSON.parse(event.data).payload.authRequired !== false);
      } catch {
        end(null);
      }
    };
  });
}

/** A sentence for people about what went wrong. */
export function explain(error: unknown, kind: Credential["kind"] = "token"): string {
  if (!(error instanceof TrunklineError)) {
    return error instanceof Error ? error.message : String(error);
  }
  switch (error.code) {
    case "AUTH_FAILED":
      return kind === "code"
        ? "This sign-in link was used before, or is older than two minutes. Ask for a new one, or paste a token."
        : `The gateway does not know this ${kind === "password" ? "password" : "token"}.`;
    case "AUTH_LOCKED":
      return "Too many attempts. The gateway takes none from here for some minutes.";
    case "UNKNOWN_TYPE":
      return "This gateway does not offer that.";
    case "FORBIDDEN":
      return error.message || "You may not do that.";
    default:
      return error.message || error.code;
  }
}
