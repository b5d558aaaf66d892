import { TrunklineError } from "./errors.js";

/**
 * Returns the canonical JSON (RFC 8785) of what `JSON.stringify` makes of a value.
 *
 * @throws {@link TrunklineError} `INVALID_PAYLOAD`: there is none, as for integers beyond 2⁵³.
 */
export function canonicalJson(value: unknown): string {
  return write(JSON.parse(JSON.stringify(value) ?? "null"));
}

function write(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(write).join(",")}]`;
  if (value !== null && typeof value === "object") {
    // The default order is that of UTF-16 units, as the RFC asks for.
    const keys = Object.keys(value).sort();
    const object = value as Record<string, unknown>;
    return `{${keys.map((key) => `${JSON.stringify(key)}:${write(object[key])}`).join(",")}}`;
  }
  if (typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value)) {
    // Written with all its digits it would be read as another number elsewhere.
    if (Math.abs(value) < 1e21)
      throw new TrunklineError("INVALID_PAYLOAD", `${value} is too large`);
  }
  return JSON.stringify(value);
}

/** Hashes a tool and its arguments: SHA-256, in hex, of the canonical JSON; what an approval is about. */
export async function approvalDigest(tool: string, args: unknown): Promise<string> {
  const text = new TextEncoder().encode(canonicalJson({ tool, args }));
  if (globalThis.crypto?.subtle === undefined) {
    throw new TrunklineError(
      "INSECURE",
      "a browser computes hashes on https and localhost pages only",
    );
  }
  const hash = await crypto.subtle.digest("SHA-256", text);
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
