import { TrunklineError } from "./errors.js";
import { newId } from "./ids.js";
import type { ClientPayloads, GatewayMessage, GatewayPayloads, Sender } from "./messages.js";

/** A message of type `T` as it was received: the envelope, with its payload typed. */
export type Incoming<T extends keyof GatewayPayloads = keyof GatewayPayloads> = {
  [K in T]: Omit<GatewayMessage, "type" | "payload"> & { type: K; payload: GatewayPayloads[K] };
}[T];

/** Any message as it was received, custom types included. */
export type AnyMessage = GatewayMessage & { payload: Record<string, unknown> };

/** A message to be sent. */
export interface Outgoing {
  type: string;
  id: string;
  sessionId?: string | undefined;
  replyTo?: string | undefined;
  payload: object;
  timestamp: number;
}

/** What may be said of a message that is sent, besides type and payload. */
export interface Addressing {
  id?: string | undefined;
  replyTo?: string | undefined;
}

type PayloadOf<T extends string> = T extends keyof ClientPayloads ? ClientPayloads[T] : object;

/** Makes a message. */
export function makeMessage<T extends string>(
  type: T,
  payload: PayloadOf<T>,
  sessionId?: string,
  { id, replyTo }: Addressing = {},
): Outgoing {
  return { type, id: id ?? newId(), sessionId, replyTo, payload, timestamp: Date.now() };
}

/** Half of a surrogate pair, as `JSON.stringify` writes it; the gateway takes no such text. */
const HALF_CHARACTER = /(?:^|[^\\])(?:\\\\)*\\ud[89a-f]/;

/**
 * Encodes a message.
 *
 * @throws {@link TrunklineError} `INVALID_MESSAGE`: it has no JSON, or its text ends within a character.
 */
export function encode(message: Outgoing): string {
  let frame: string;
  try {
    frame = JSON.stringify(message);
  } catch (error) {
    throw new TrunklineError("INVALID_MESSAGE", `the message has no JSON: ${error}`);
  }
  if (HALF_CHARACTER.test(frame)) {
    throw new TrunklineError("INVALID_MESSAGE", "the message holds half of a surrogate pair");
  }
  return frame;
}

/** Decodes a frame of the gateway; undefined if it makes no sense. */
export function decode(frame: unknown): AnyMessage | undefined {
  if (typeof frame !== "string") return undefined;
  try {
    const message = JSON.parse(frame);
    if (typeof message?.type !== "string" || typeof message.id !== "string") return undefined;
    message.payload ??= {};
    return message;
  } catch {
    return undefined;
  }
}

/** Whether a message is of a type; its payload is that type's then. */
export function isType<T extends keyof GatewayPayloads>(
  message: { type: string },
  type: T,
): message is Incoming<T> {
  return message.type === type;
}

/** Makes what others receive from what was sent and acknowledged. */
export function ownMessage(frame: string, seq: number, from: Sender | undefined): AnyMessage {
  const message: AnyMessage = JSON.parse(frame);
  return from === undefined ? { ...message, seq } : { ...message, seq, from };
}
