export class Agent {}
export type AgentOptions = object;
export type ChatHandler = object;
export type ServeOptions = object;
export type ToolHandler = object;
export type ToolOptions = object;
