/**
 * Client and agents for a Trunkline gateway, in browsers and in Node 20 and later.
 *
 * @module
 */

export { Agent } from "./agent.js";
export { approvalDigest, canonicalJson } from "./canonical.js";
export type { AskOptions, Decision, RunContext, ToolCall, ToolContext } from "./context.js";
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
