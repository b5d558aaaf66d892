// Generates src/messages.ts from the protocol's JSON Schema; with --check only says whether it is up to date.
import { readFile, writeFile } from "node:fs/promises";
import { compile } from "json-schema-to-typescript";

const SCHEMA = new URL("../../../docs/reference/protocol.schema.json", import.meta.url);
const TARGET = new URL("../src/messages.ts", import.meta.url);

const HEAD = `/**
 * The messages of the wire protocol, version 1.
 *
 * Generated from docs/reference/protocol.schema.json by \`npm run messages\`; do not edit.
 *
 * @module
 */

`;

/** Adds what the compiler needs to be told: an object without properties holds anything. */
function open(schema) {
  if (Array.isArray(schema)) return schema.map(open);
  if (schema === null || typeof schema !== "object") return schema;
  const copy = {};
  for (const [key, value] of Object.entries(schema)) {
    // Defaults and patterns say nothing to the type checker.
    if (key !== "default" && key !== "pattern") copy[key] = open(value);
  }
  if (copy.type === "object" && !copy.properties && copy.additionalProperties === undefined) {
    copy.additionalProperties = true;
  }
  return copy;
}

/** Maps each message type of one direction to its payload's name. */
function payloads(union) {
  return union.anyOf
    .filter((message) => message.properties.type.const !== undefined)
    .map((message) => [
      message.properties.type.const,
      message.properties.payload.$ref.split("/").pop(),
    ]);
}

function map(name, text, pairs) {
  const lines = pairs.map(([type, payload]) => `  ${type}: ${payload};`);
  return `\n/** ${text} */\nexport interface ${name} {\n${lines.join("\n")}\n}`;
}

/** Drops the outer type, which the schema has no name for, and remarks on where types are used. */
function tidy(types) {
  return types
    .replace(/export interface Unused \{[^}]*\}\n/, "")
    .replace(/\n \*\n \* This interface was referenced by `Unused`'s JSON-Schema\n[^\n]*/g, "")
    .replace(
      /\/\*\*\n \* This interface was referenced by `Unused`'s JSON-Schema\n[^\n]*\n \*\/\n/g,
      "",
    )
    .trim();
}

async function generate() {
  const schema = JSON.parse(await readFile(SCHEMA, "utf8"));
  const { ClientMessage, GatewayFrame, GatewayMessage, ...definitions } = schema.$defs;
  const types = await compile({ $defs: open({ GatewayMessage, ...definitions }) }, "Unused", {
    additionalProperties: false,
    bannerComment: "",
    style: { printWidth: 100 },
    unreachableDefinitions: true,
  });
  return [
    HEAD + tidy(types),
    map(
      "ClientPayloads",
      "What a client sends: the payload of each type.",
      payloads(ClientMessage),
    ),
    map(
      "GatewayPayloads",
      "What the gateway sends: the payload of each type.",
      payloads(GatewayFrame),
    ),
    "",
  ].join("\n");
}

const text = await generate();
if (process.argv.includes("--check")) {
  const present = await readFile(TARGET, "utf8").catch(() => "");
  if (present !== text) {
    console.error("src/messages.ts does not fit the schema any more; run: npm run messages");
    process.exit(1);
  }
} else {
  await writeFile(TARGET, text);
}
