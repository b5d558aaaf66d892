/**
 * Client and agents for a Trunkline gateway, in browsers and in Node 20 and later.
 *
 * @module
 */

export type { AgentOptions, ServeOptions } from "./agent.js";
export { Agent } from "./agent.js";
export { approvalDigest, canonicalJson } from "./canonical.js";
export type { Secret, State, StateDetail } from "./connection.js";
export type { AskOptions, Decision, RunContext, ToolCall, ToolContext } from "./context.js";
export type { AnyMessage, Incoming } from "./envelope.js";
export { isType } from "./envelope.js";
export {
  ConnectionLost,
  OutcomeUnknown,
  SignInFailed,
  TimedOut,
  ToolError,
  TrunklineError,
} from "./errors.js";
export type { ConnectOptions, GatewayEvents } from "./gateway.js";
export { connect, Gateway } from "./gateway.js";
export type * from "./messages.js";
export type { ReconnectPolicy } from "./policy.js";
export type { RequestOptions } from "./requests.js";
export type {
  Answer,
  CompleteEvent,
  RunEvent,
  TextEvent,
  ToolResultEvent,
  ToolStartEvent,
  ToolUpdateEvent,
} from "./runs.js";
export type { Serving } from "./serving.js";
export type {
  ChatOptions,
  HistoryOptions,
  JoinOptions,
  Page,
  ResetEvent,
  Session,
  SessionEvent,
} from "./session.js";
export type { WebSocketConstructor, WebSocketLike } from "./socket.js";
export type { ChatHandler, ChatOutcome, ToolHandler, ToolOptions } from "./tools.js";
