/** The HTTP API of the gateway that served the page; see docs/reference. */
import { bearer } from "./gateway";
import type { Json } from "./types";

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }

  /** Whether the gateway does not have this part at all. */
  get missing(): boolean {
    return this.status === 404 && this.code === "";
  }
}

export async function api(
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: Json,
  signal?: AbortSignal,
): Promise<Json> {
  const token = bearer();
  let answer: Response;
  try {
    answer = await fetch(`/api/v1${path}`, {
      method,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      signal: signal ?? null,
      headers: {
        ...(token ? { authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "", "The gateway does not answer.");
  }
  if (answer.status === 204) return null;
  const content = await answer.json().catch(() => null);
  if (answer.ok) return content;
  const error = content?.error ?? {};
  throw new ApiError(
    answer.status,
    typeof error.code === "string" ? error.code : "",
    typeof error.message === "string" ? error.message : `The gateway answered ${answer.status}.`,
  );
}
