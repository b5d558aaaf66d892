// @vitest-environment node
/** Promises about the built files; without a build (`npm run build`) there is nothing to look at. */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const folder = fileURLToPath(new URL("../../../src/trunkline/http/console/", import.meta.url));
const built = existsSync(`${folder}manifest.json`);

interface Chunk {
  file: string;
  imports?: string[];
  css?: string[];
}

/** The scripts that must be there before a view is shown. */
function scripts(entry: string): Set<string> {
  const manifest: Record<string, Chunk> = JSON.parse(
    readFileSync(`${folder}manifest.json`, "utf8"),
  );
  const found = new Set<string>();
  const add = (name: string) => {
    const chunk = manifest[name];
    if (!chunk || found.has(chunk.file)) return;
    found.add(chunk.file);
    chunk.imports?.forEach(add);
  };
  add(entry);
  return found;
}

const size = (files: Iterable<string>) =>
  [...files].reduce((sum, file) => sum + readFileSync(folder + file).length, 0);

describe.skipIf(!built)("The build", () => {
  it("paints first with less than 100 kB of JavaScript, uncompressed", () => {
    expect(size(scripts("index.html"))).toBeLessThan(100_000);
  });

  it("reads the charts and the markdown later", () => {
    const first = scripts("index.html");
    for (const late of ["src/chat/Markdown.tsx", "src/operate/Chart.tsx", "src/chat/Chat.tsx"]) {
      for (const file of scripts(late)) {
        if (/Markdown|Chart|Chat/.test(file)) expect(first).not.toContain(file);
      }
    }
  });

  it("has nothing inline and nothing from elsewhere", () => {
    const page = readFileSync(`${folder}index.html`, "utf8");

    expect(page).not.toMatch(/<script(?![^>]*\bsrc=)/);
    expect(page).not.toMatch(/<style|\sstyle=|\son\w+=/);
    expect(page).not.toMatch(/(?:src|href)="(?:https?:)?\/\//);
  });
});
