import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const path = (relative: string) => fileURLToPath(new URL(relative, import.meta.url));

/** The gateway that `npm run dev` talks to; see README.md. */
const gateway = process.env.TRUNKLINE_URL ?? "http://127.0.0.1:18789";

/** The gateway lets a page in that comes from its own origin; a proxied one must look like it. */
const proxied = { target: gateway, changeOrigin: true, headers: { origin: gateway } };

export default defineConfig({
  resolve: {
    alias: { "trunkline-client": path("../client/src/index.ts") },
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  define: {
    __VERSION__: JSON.stringify(
      (JSON.parse(readFileSync(path("package.json"), "utf8")) as { version: string }).version,
    ),
  },
  build: {
    outDir: path("../../src/trunkline/http/console"),
    emptyOutDir: true,
    target: "es2022",
    // Inlined files would be data: URLs, which the policy allows for images only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    manifest: "manifest.json",
    reportCompressedSize: false,
  },
  server: {
    port: 5173,
    proxy: {
      "/ws": { ...proxied, ws: true },
      "/api": proxied,
    },
  },
  test: {
    environment: "happy-dom",
    include: ["test/**/*.test.{ts,tsx}"],
  },
});
