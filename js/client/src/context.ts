export type Decision = object;
export type RunContext = object;
export type ToolCall = object;
export type ToolContext = object;
