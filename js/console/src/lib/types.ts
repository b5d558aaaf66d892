/** What travels, as the console reads it: the protocol's frames, with only the fields it uses. */

export interface Sender {
  clientId: string;
  userId: string;
  role?: string | null;
  kind: "user" | "agent" | "gateway";
  deviceId?: string | null;
  deviceName?: string | null;
  agentId?: string | null;
}

// biome-ignore lint/suspicious/noExplicitAny: payloads are read defensively, field by field
export type Json = any;

export interface Envelope {
  type: string;
  id?: string;
  sessionId?: string | null;
  payload: Json;
  timestamp?: number;
  replyTo?: string | null;
  from?: Sender | null;
  seq?: number | null;
  addressed?: string[] | null;
}

export interface SessionEntry {
  sessionId: string;
  name: string | null;
  memberCount: number;
  head: number;
  createdAt: number;
}

export interface ToolSpec {
  name: string;
  description?: string | null;
  inputSchema?: Json;
}

export interface AgentEntry {
  id: string;
  type: string;
  name: string;
  capabilities: {
    chat?: boolean;
    streaming?: boolean;
    tools?: (string | ToolSpec)[];
    modes?: string[];
    custom?: Record<string, Json> | null;
  };
  status: "online" | "busy" | "offline";
  generation: number;
  load?: number | null;
  labels?: Record<string, string> | null;
  metadata?: Record<string, Json> | null;
}

/** The tools of an agent, whichever way it wrote them. */
export function toolsOf(agent: AgentEntry): ToolSpec[] {
  return (agent.capabilities.tools ?? []).map((tool) =>
    typeof tool === "string" ? { name: tool } : tool,
  );
}
