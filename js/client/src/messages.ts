/**
 * The messages of the wire protocol, version 1.
 *
 * Generated from docs/reference/protocol.schema.json by `npm run messages`; do not edit.
 *
 * @module
 */

/**
 * One message, in either direction.
 */
export interface GatewayMessage {
  /**
   * What the payload is.
   */
  type: string;
  /**
   * Unique per sender; a reply carries it in `replyTo`.
   */
  id: string;
  /**
   * The session that the message belongs to.
   */
  sessionId?: string | null;
  /**
   * The typed content, as unread JSON.
   */
  payload?: {
    [k: string]: unknown;
  };
  /**
   * Milliseconds since the Unix epoch.
   */
  timestamp?: number;
  /**
   * The `id` of the message that this one answers.
   */
  replyTo?: string | null;
  /**
   * Control messages: the client or agent that sends.
   */
  source?: string | null;
  /**
   * Control messages: the agent that is meant.
   */
  target?: string | null;
  /**
   * The proven sender; set by the gateway only.
   */
  from?: Sender | null;
  /**
   * Place in the session's log, from 1; set by the gateway only.
   */
  seq?: number | null;
  /**
   * On a stored `chat`: the agents that are to answer; set by the gateway only.
   */
  addressed?: string[] | null;
  /**
   * W3C traceparent, passed on untouched.
   */
  trace?: string | null;
}
/**
 * The proven sender of a relayed message; only the gateway writes it.
 */
export interface Sender {
  /**
   * The connection.
   */
  clientId: string;
  /**
   * The user, from the credential.
   */
  userId: string;
  /**
   * The connection's role.
   */
  role: string;
  /**
   * `agent` when the connection has a registered agent.
   */
  kind: "agent" | "gateway" | "user";
  /**
   * The device, as `connect` named it.
   */
  deviceId?: string | null;
  /**
   * The device's name for people.
   */
  deviceName?: string | null;
  /**
   * The agent that speaks, when `kind` is `agent`.
   */
  agentId?: string | null;
}
/**
 * Make a session and join it; the creator owns it.
 */
export interface SessionCreate {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  name?: string | null;
  /**
   * Assign an online agent of this type.
   */
  agentType?: ("channel" | "cli" | "companion" | "custom" | "pi" | "webchat") | null;
  /**
   * Assign this agent.
   */
  agentId?: string | null;
  /**
   * Assign an online agent that can do this.
   */
  capability?: string | null;
  metadata?: {
    [k: string]: unknown;
  } | null;
  visibility?: "private" | "shared";
  /**
   * An id in use is then a join, not an error.
   */
  joinIfExists?: boolean;
}
/**
 * Join a session, and replay what was missed.
 */
export interface SessionJoin {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * Replay everything after this place.
   */
  since?: Cursor | null;
  /**
   * Without `since`, or where it is void: replay the last so many messages.
   */
  tail?: number | null;
}
/**
 * A place in a session's log: everything up to `seq` is known.
 */
export interface Cursor {
  epoch: string;
  seq: number;
}
/**
 * Leave a session.
 */
export interface SessionLeave {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
}
/**
 * Change a session's settings.
 */
export interface SessionPatch {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  patch: Patch;
}
/**
 * What may be changed of a session; null clears.
 */
export interface Patch {
  thinkingLevel?: string | null;
  verbose?: boolean | string | null;
  model?: string | null;
  elevated?: boolean | null;
  /**
   * When agents answer: only when mentioned, or always.
   */
  activation?: "always" | "mention";
  /**
   * `off` silences the session's agents.
   */
  sendPolicy?: "inherit" | "off" | "on";
  name?: string | null;
  /**
   * Merged one level deep; null deletes a key.
   */
  metadata?: {
    [k: string]: unknown;
  };
  visibility?: "private" | "shared";
}
/**
 * Let a user into a private session.
 */
export interface SessionInvite {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  userId: string;
}
/**
 * Take a user's invitation back and remove their connections.
 */
export interface SessionRemove {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  userId: string;
}
/**
 * End a session.
 */
export interface SessionClose {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * Remove the record and the log too.
   */
  delete?: boolean;
}
/**
 * Read a page of the log without joining anew.
 */
export interface SessionHistory {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * Read forward from the message after this `seq`.
   */
  after?: number | null;
  /**
   * Read the page that ends before this `seq`.
   */
  before?: number | null;
  limit?: number;
}
/**
 * Tell the session's other members how one is.
 */
export interface Presence {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  deviceId?: string | null;
  status: "away" | "offline" | "online" | "typing";
}
/**
 * Say something in a session.
 */
export interface Chat {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  message: string;
  context?: {
    [k: string]: unknown;
  } | null;
  /**
   * Whether the answer should come in chunks.
   */
  stream?: boolean | null;
  /**
   * The agents that are to answer; absent: as the session's `activation` says. An agent without the capability `chat` is passed over, named or not.
   */
  mentions?: string[] | null;
}
/**
 * One chunk of an answer.
 */
export interface ChatStream {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  content: string;
  done?: boolean;
  /**
   * The chunk's number, from 0, without gaps; absent: the next one.
   */
  index?: number | null;
  /**
   * On a joined chunk: the first index that it holds.
   */
  first?: number | null;
}
/**
 * The whole answer; it ends the run and replaces the chunks.
 */
export interface ChatComplete {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  content: string;
  status?: "cancelled" | "error" | "lost" | "ok";
  usage?: {
    [k: string]: unknown;
  } | null;
  error?:
    | string
    | {
        [k: string]: unknown;
      }
    | null;
}
/**
 * A tool call begins.
 */
export interface ToolStart {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  tool: string;
  toolCallId: string;
  args?: unknown;
}
/**
 * A tool call goes on.
 */
export interface ToolUpdate {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  tool?: string | null;
  toolCallId: string;
  /**
   * Percent.
   */
  progress?: number | null;
  message?: string | null;
}
/**
 * A tool call has ended.
 */
export interface ToolResult {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  tool?: string | null;
  toolCallId: string;
  result: ToolResultData;
}
/**
 * How a tool call ended.
 */
export interface ToolResultData {
  success: boolean;
  output?: unknown;
  error?: string | null;
}
/**
 * An agent asks whether it may run a tool.
 */
export interface ApprovalRequest {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  /**
   * The run; absent: the one that `replyTo` names, or the only open one.
   */
  runId?: string | null;
  approvalId: string;
  tool: string;
  args?: unknown;
  /**
   * SHA-256 of the canonical JSON (RFC 8785) of `{tool, args}`, in hex.
   */
  digest: string;
  expiresAt: number;
}
/**
 * Stop a run.
 */
export interface RunCancel {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  runId: string;
}
/**
 * A member answers an approval request.
 */
export interface ApprovalResponse {
  /**
   * The session, if the envelope does not name it.
   */
  sessionId?: string | null;
  /**
   * Another spelling of `sessionId`.
   */
  sessionKey?: string | null;
  approvalId: string;
  decision: "allow" | "deny";
  digest: string;
  reason?: string | null;
}
/**
 * A client says what it is; answered by `hello_ok`.
 */
export interface Connect {
  /**
   * The device, chosen by the client and stable across connections.
   */
  deviceId: string;
  /**
   * The device's name for people.
   */
  deviceName?: string | null;
  /**
   * Which of the credential's roles this connection takes; absent: the first granted.
   */
  role?: ("control" | "node" | "observer" | "webchat") | null;
  /**
   * The version that the client speaks; absent: 1.
   */
  protocolVersion?: number | null;
  /**
   * Ed25519 public key of a paired device, base64url.
   */
  publicKey?: string | null;
  /**
   * Signature over the challenge, base64url.
   */
  challengeResponse?: string | null;
}
/**
 * The gateway's answer to `connect`.
 */
export interface HelloOk {
  /**
   * Whether this device proved a paired key.
   */
  paired: boolean;
  /**
   * What a device signs to prove its key.
   */
  challengeNonce?: string | null;
  /**
   * Milliseconds since the gateway started.
   */
  uptime: number;
  /**
   * Changes of the public state so far.
   */
  stateVersion: number;
  /**
   * Who is signed in; empty until this connection is.
   */
  presence: PresenceEntry[];
  health: Health;
  /**
   * Whether this connection still has to sign in.
   */
  authRequired: boolean;
  protocolVersion: number;
  serverVersion: string;
  /**
   * The gateway's name for this connection.
   */
  clientId: string;
  features: string[];
  /**
   * The limits that a client should know; sizes in bytes, rates per second, times in milliseconds.
   */
  limits: {
    [k: string]: number;
  };
  heartbeatIntervalMs: number;
  pairing?: Pairing | null;
  /**
   * The role that this connection has, once it is signed in.
   */
  role?: string | null;
  /**
   * The scopes that this connection was granted, once it is signed in.
   */
  scopes?: string[] | null;
}
/**
 * One device that is signed in.
 */
export interface PresenceEntry {
  deviceId: string | null;
  role: string;
  connectedAt: number;
}
/**
 * How the gateway does.
 */
export interface Health {
  status: "degraded" | "draining" | "ok";
  checkedAt: number;
}
/**
 * A pairing request that waits for approval.
 */
export interface Pairing {
  requestId: string;
  expiresAt: number;
}
/**
 * A client signs in; answered by `auth_success` or `error`.
 */
export interface Auth {
  token?: string | null;
  password?: string | null;
  /**
   * Whose password it is; absent: the owner's.
   */
  user?: string | null;
  /**
   * A single-use sign-in code.
   */
  code?: string | null;
  /**
   * A name that the client gives itself; kept as metadata, never believed.
   */
  clientId?: string | null;
  clientType?: ("api" | "ide" | "node" | "terminal" | "web") | null;
}
/**
 * The credential is good.
 */
export interface AuthSuccess {
  clientId: string;
  userId: string;
  role: string;
  scopes: string[];
  /**
   * When the credential ends, milliseconds since the epoch.
   */
  expiresAt?: number | null;
  /**
   * A short-lived token, in exchange for a `code`.
   */
  token?: string | null;
  /**
   * Patterns of the sessions that the credential may know of; absent: all.
   */
  sessionPatterns?: string[] | null;
  /**
   * Patterns of the agents that the credential may know of; absent: all.
   */
  agentPatterns?: string[] | null;
}
/**
 * What older gateways send instead of `error`; ours never sends it.
 */
export interface AuthError {
  code?: string;
  message?: string;
}
/**
 * The credential ends within a minute; sign in again with a fresh one.
 */
export interface AuthExpiring {
  expiresAt: number;
}
/**
 * The pairing was approved; sent once.
 */
export interface DeviceApproved {
  deviceToken: string;
  scopes: string[];
}
/**
 * Are you there? Answered by `pong`, before sign-in too.
 */
export interface Ping {}
/**
 * The answer to `ping`.
 */
export interface Pong {
  clientId: string;
}
/**
 * How does the gateway do?
 */
export interface HealthRequest {}
/**
 * The answer to `health`.
 */
export interface HealthReport {
  status: "degraded" | "draining" | "ok";
  checkedAt: number;
  /**
   * Milliseconds since the gateway started.
   */
  uptime: number;
}
/**
 * The gateway is about to close this connection; come back.
 */
export interface GoingAway {
  reconnectInMs: number;
}
/**
 * A request was refused.
 */
export interface ErrorPayload {
  /**
   * One of the error codes.
   */
  code: string;
  /**
   * A sentence for people.
   */
  message: string;
  /**
   * Facts for programs.
   */
  details?: {
    [k: string]: unknown;
  } | null;
  /**
   * Whether the same request may succeed later.
   */
  retryable?: boolean | null;
  retryAfterMs?: number | null;
}
/**
 * Which sessions are there for me?
 */
export interface SessionList {
  /**
   * Go on after this session id.
   */
  after?: string | null;
  limit?: number;
}
/**
 * The answer to `session_list`, in the order of the ids.
 */
export interface SessionListing {
  sessions: SessionEntry[];
  more: boolean;
}
/**
 * One session in a list.
 */
export interface SessionEntry {
  sessionId: string;
  name: string | null;
  memberCount: number;
  head: number;
  createdAt: number;
}
/**
 * The answer to `session_history`, oldest first.
 */
export interface HistoryPage {
  /**
   * The stored frames, as they were delivered.
   */
  messages: unknown[];
  /**
   * The oldest `seq` that the log still has.
   */
  first: number;
  head: number;
  epoch: string;
  /**
   * Whether there is more in the direction of reading.
   */
  more: boolean;
}
/**
 * What became of a connection or of a session; the answer to most `session_*` requests.
 */
export interface SessionInfo {
  /**
   * The session; in the welcome, the connection's own id.
   */
  sessionId: string;
  status:
    | "assigned"
    | "closed"
    | "connected"
    | "created"
    | "invited"
    | "joined"
    | "left"
    | "patched"
    | "removed"
    | "unassigned";
  authRequired?: boolean | null;
  protocolVersion?: number | null;
  challengeNonce?: string | null;
  limits?: {
    [k: string]: number;
  } | null;
  name?: string | null;
  metadata?: {
    [k: string]: unknown;
  } | null;
  visibility?: ("private" | "shared") | null;
  epoch?: string | null;
  /**
   * The last `seq` in the log; 0 in an empty one.
   */
  head?: number | null;
  /**
   * The first `seq` to come; what is not above `head` is replay.
   */
  next?: number | null;
  /**
   * At most 100 of the members.
   */
  members?: Sender[] | null;
  /**
   * Connections, not users.
   */
  memberCount?: number | null;
  runs?: RunState[] | null;
  /**
   * Open approval requests, as they were delivered.
   */
  approvals?: unknown[] | null;
  recovery?: ("fresh" | "reset" | "resumed") | null;
  /**
   * Why the recovery is a reset: `epoch`, `trimmed` or `ahead`.
   */
  reason?: string | null;
  /**
   * Whom an invitation or removal concerns.
   */
  userId?: string | null;
  /**
   * Which agent was assigned or unassigned.
   */
  agentId?: string | null;
}
/**
 * An open run, as `session_info` lists it.
 */
export interface RunState {
  runId: string;
  agentId: string;
  /**
   * The index of the last chunk; -1 before the first.
   */
  index: number;
}
/**
 * A durable message is stored; or: a broadcast went out.
 */
export interface Ack {
  sessionId?: string | null;
  seq?: number | null;
  epoch?: string | null;
  durability?: ("disk" | "memory" | "process" | "replicated") | null;
  /**
   * The message was stored before; `seq` is where.
   */
  duplicate?: boolean | null;
  /**
   * On a `chat`: who will answer.
   */
  runs?: RunRef[] | null;
  /**
   * On a `broadcast`: to how many connections.
   */
  delivered?: number | null;
}
/**
 * A run that a message opened.
 */
export interface RunRef {
  runId: string;
  agentId: string;
}
/**
 * Where a quiet session's log ends, so that a lost tail is noticed.
 */
export interface Head {
  sessionId: string;
  epoch: string;
  head: number;
  memberCount?: number | null;
}
/**
 * An agent announces itself; again on the same connection is an update.
 */
export interface AgentRegister {
  id: string;
  type?: "channel" | "cli" | "companion" | "custom" | "pi" | "webchat";
  name?: string;
  capabilities?: AgentCapabilities;
  metadata?: {
    [k: string]: unknown;
  } | null;
  /**
   * Requests at a time; 0 is unlimited.
   */
  maxConcurrent?: number;
  labels?: {
    [k: string]: string;
  } | null;
  /**
   * How long runs and requests outlive a lost connection.
   */
  graceMs?: number;
  /**
   * `{generation}` of the registration to take over.
   */
  resume?: {
    [k: string]: number;
  } | null;
}
/**
 * What an agent can do.
 */
export interface AgentCapabilities {
  chat?: boolean;
  tools?: (string | ToolSpec)[];
  streaming?: boolean;
  modes?: string[];
  custom?: {
    [k: string]: unknown;
  } | null;
}
/**
 * A tool that an agent offers.
 */
export interface ToolSpec {
  name: string;
  description?: string | null;
  /**
   * JSON Schema of the arguments.
   */
  inputSchema?: {
    [k: string]: unknown;
  } | null;
}
/**
 * The registration stands.
 */
export interface AgentRegistered {
  agentId: string;
  /**
   * Grows with every registration; a fencing token.
   */
  generation: number;
  leaseMs: number;
  runs: ResumedRun[];
  /**
   * Open requests of this agent, by the gateway's ids.
   */
  requests: string[];
  /**
   * How many `route_response` of these requests have arrived, where any have: the next is due.
   */
  received?: {
    [k: string]: number;
  } | null;
}
/**
 * A run that an agent takes over again.
 */
export interface ResumedRun {
  /**
   * The session; a run's id is unique only there.
   */
  sessionId?: string | null;
  runId: string;
  index: number;
}
/**
 * An agent is alive, and this busy.
 */
export interface AgentHeartbeat {
  id: string;
  status?: ("busy" | "online") | null;
  load?: number | null;
}
/**
 * The lease is renewed.
 */
export interface AgentHeartbeatOk {
  leaseMs: number;
}
/**
 * An agent goes.
 */
export interface AgentUnregister {
  id: string;
}
/**
 * The agent is gone.
 */
export interface AgentUnregistered {
  agentId: string;
}
/**
 * Which agents are there?
 */
export interface AgentList {
  capability?: string | null;
  type?: ("channel" | "cli" | "companion" | "custom" | "pi" | "webchat") | null;
  status?: ("busy" | "offline" | "online") | null;
}
/**
 * The answer to `agent_list`.
 */
export interface AgentListing {
  agents: AgentEntry[];
}
/**
 * One agent in a list.
 */
export interface AgentEntry {
  id: string;
  type: string;
  name: string;
  capabilities: AgentCapabilities;
  status: "busy" | "offline" | "online";
  generation: number;
  load?: number | null;
  labels?: {
    [k: string]: string;
  } | null;
  metadata?: {
    [k: string]: unknown;
  } | null;
}
/**
 * Ask an agent; answered by `route_response` messages or one `error`.
 */
export interface RouteRequest {
  capability?: string | null;
  agentId?: string | null;
  method?: string | null;
  params?: unknown;
  timeoutMs?: number;
  stream?: boolean;
  /**
   * The request may be given to another agent if nothing has been answered yet.
   */
  idempotent?: boolean;
  policy?: ("least_busy" | "round_robin") | null;
  /**
   * The agent must have all of these.
   */
  labels?: {
    [k: string]: string;
  } | null;
  /**
   * The request or run that the asker is serving.
   */
  parentId?: string | null;
}
/**
 * Whom would this request reach, and why?
 */
export interface RouteExplain {
  capability?: string | null;
  agentId?: string | null;
  method?: string | null;
  params?: unknown;
  timeoutMs?: number;
  stream?: boolean;
  /**
   * The request may be given to another agent if nothing has been answered yet.
   */
  idempotent?: boolean;
  policy?: ("least_busy" | "round_robin") | null;
  /**
   * The agent must have all of these.
   */
  labels?: {
    [k: string]: string;
  } | null;
  /**
   * The request or run that the asker is serving.
   */
  parentId?: string | null;
}
/**
 * A request, as the agent gets it.
 */
export interface RouteDelivery {
  /**
   * The gateway's own id; the answer must name it.
   */
  requestId: string;
  capability: string | null;
  method: string | null;
  params: unknown;
  stream: boolean;
  /**
   * Milliseconds since the epoch.
   */
  deadline: number;
  /**
   * The agents that this request has passed through.
   */
  chain: string[];
}
/**
 * An agent's answer, or a chunk of it.
 */
export interface RouteResponse {
  /**
   * The gateway's id of the request.
   */
  requestId: string;
  /**
   * Whether the agent could do it.
   */
  ok?: boolean;
  result?: unknown;
  error?: RouteError | null;
  chunk?: unknown;
  /**
   * Whether this is the request's end.
   */
  done?: boolean;
}
/**
 * Why the agent could not do it.
 */
export interface RouteError {
  code: string;
  message: string;
}
/**
 * An agent's answer, as the asker gets it; the envelope's `replyTo` names the request.
 */
export interface RouteAnswer {
  requestId: string;
  ok: boolean;
  result?: unknown;
  error?: RouteError | null;
  chunk?: unknown;
  done: boolean;
  agentId: string;
}
/**
 * Stop a request; the request's own end says how it went.
 */
export interface RouteCancel {
  requestId: string;
}
/**
 * The answer to `route_explain`.
 */
export interface RouteExplained {
  candidates: RouteCandidate[];
}
/**
 * One agent in a routing decision.
 */
export interface RouteCandidate {
  agentId: string;
  chosen: boolean;
  reason: string;
}
/**
 * Tell many connections at once; nothing is stored.
 */
export interface Broadcast {
  message: unknown;
  to?: "agents" | "clients" | "session";
  /**
   * With `to: agents`: only agents that can do this.
   */
  capability?: string | null;
  sessionId?: string | null;
}
/**
 * A broadcast, as its targets get it.
 */
export interface BroadcastDelivery {
  message: unknown;
  to: "agents" | "clients" | "session";
}
/**
 * Tell me the public state.
 */
export interface SyncState {}
/**
 * The answer to `sync_state`, filtered to what one may see.
 */
export interface StateSnapshot {
  stateVersion: number;
  sessions: SessionEntry[];
  agents: AgentEntry[];
  presence: PresenceEntry[];
}

/** What a client sends: the payload of each type. */
export interface ClientPayloads {
  agent_heartbeat: AgentHeartbeat;
  agent_list: AgentList;
  agent_register: AgentRegister;
  agent_unregister: AgentUnregister;
  approval_request: ApprovalRequest;
  approval_response: ApprovalResponse;
  auth: Auth;
  broadcast: Broadcast;
  chat: Chat;
  chat_complete: ChatComplete;
  chat_stream: ChatStream;
  connect: Connect;
  health: HealthRequest;
  ping: Ping;
  presence: Presence;
  route_cancel: RouteCancel;
  route_explain: RouteExplain;
  route_request: RouteRequest;
  route_response: RouteResponse;
  run_cancel: RunCancel;
  session_close: SessionClose;
  session_create: SessionCreate;
  session_history: SessionHistory;
  session_invite: SessionInvite;
  session_join: SessionJoin;
  session_leave: SessionLeave;
  session_list: SessionList;
  session_patch: SessionPatch;
  session_remove: SessionRemove;
  sync_state: SyncState;
  tool_result: ToolResult;
  tool_start: ToolStart;
  tool_update: ToolUpdate;
}

/** What the gateway sends: the payload of each type. */
export interface GatewayPayloads {
  ack: Ack;
  agent_heartbeat_ok: AgentHeartbeatOk;
  agent_list: AgentListing;
  agent_registered: AgentRegistered;
  agent_unregistered: AgentUnregistered;
  approval_request: ApprovalRequest;
  approval_response: ApprovalResponse;
  auth_error: AuthError;
  auth_expiring: AuthExpiring;
  auth_success: AuthSuccess;
  broadcast: BroadcastDelivery;
  chat: Chat;
  chat_complete: ChatComplete;
  chat_stream: ChatStream;
  device_approved: DeviceApproved;
  error: ErrorPayload;
  going_away: GoingAway;
  head: Head;
  health: HealthReport;
  hello_ok: HelloOk;
  pong: Pong;
  presence: Presence;
  route_cancel: RouteCancel;
  route_explain: RouteExplained;
  route_request: RouteDelivery;
  route_response: RouteAnswer;
  run_cancel: RunCancel;
  session_history: HistoryPage;
  session_info: SessionInfo;
  session_list: SessionListing;
  sync_state: StateSnapshot;
  tool_result: ToolResult;
  tool_start: ToolStart;
  tool_update: ToolUpdate;
}
