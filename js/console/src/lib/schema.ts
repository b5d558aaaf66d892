/**
 * JSON Schema to a form and back, for the common part of it: objects of strings, numbers, booleans,
 * choices and lists. Whatever else a schema says, the person writes as JSON; the gateway checks the
 * arguments against the whole schema in any case.
 */
import type { Json } from "./types";

export type Control =
  | { kind: "text"; long: boolean; password: boolean; pattern?: string; min?: number; max?: number }
  | { kind: "number"; integer: boolean; min?: number; max?: number }
  | { kind: "boolean" }
  | { kind: "choice"; options: Json[] }
  | { kind: "list"; item: "string" | "number" }
  | { kind: "object"; fields: Field[] }
  | { kind: "json" };

export interface Field {
  name: string;
  label: string;
  description: string;
  required: boolean;
  initial: Json;
  control: Control;
}

/** What a person entered for one field: text, a tick, or for objects a record of those. */
export type Draft = { [name: string]: string | boolean | Draft };

const MAX_DEPTH = 3;

/** The fields of an object schema, or null where only JSON will do. */
export function fieldsOf(schema: Json, depth = 0, root: Json = schema): Field[] | null {
  const resolved = resolve(schema, root);
  if (!resolved || typeof resolved !== "object" || depth > MAX_DEPTH) return null;
  const types = [resolved.type].flat();
  if (resolved.type !== undefined && !types.includes("object")) return null;
  if (resolved.oneOf || resolved.allOf || resolved.anyOf || resolved.patternProperties) return null;
  const properties = resolved.properties ?? {};
  if (typeof properties !== "object") return null;
  const required: string[] = Array.isArray(resolved.required) ? resolved.required : [];
  return Object.entries(properties).map(([name, property]) =>
    field(name, property, required.includes(name), depth, root),
  );
}

function field(name: string, raw: Json, required: boolean, depth: number, root: Json): Field {
  const schema = resolve(raw, root) ?? {};
  return {
    name,
    label: typeof schema.title === "string" && schema.title ? schema.title : name,
    description: typeof schema.description === "string" ? schema.description : "",
    required,
    initial: schema.default ?? schema.const,
    control: controlOf(schema, depth, root),
  };
}

function controlOf(given: Json, depth: number, root: Json): Control {
  const schema = optional(given, root);
  if (schema.const !== undefined) return { kind: "choice", options: [schema.const] };
  if (Array.isArray(schema.enum) && schema.enum.length > 0 && schema.enum.length <= 100) {
    return { kind: "choice", options: schema.enum };
  }
  const types = [schema.type].flat().filter((type) => type !== "null" && type !== undefined);
  if (types.length !== 1) return { kind: "json" };
  switch (types[0]) {
    case "string":
      return {
        kind: "text",
        long: schema.maxLength > 200 || schema.format === "textarea",
        password: schema.format === "password",
        pattern: typeof schema.pattern === "string" ? schema.pattern : undefined,
        min: number(schema.minLength),
        max: number(schema.maxLength),
      };
    case "integer":
    case "number":
      return {
        kind: "number",
        integer: types[0] === "integer",
        min: number(schema.minimum),
        max: number(schema.maximum),
      };
    case "boolean":
      return { kind: "boolean" };
    case "array": {
      const item = resolve(schema.items, root)?.type;
      if (item === "string") return { kind: "list", item: "string" };
      if (item === "number" || item === "integer") return { kind: "list", item: "number" };
      return { kind: "json" };
    }
    case "object": {
      const fields = schema.properties ? fieldsOf(schema, depth + 1, root) : null;
      return fields && fields.length > 0 ? { kind: "object", fields } : { kind: "json" };
    }
    default:
      return { kind: "json" };
  }
}

/** `anyOf: [X, null]`, as many generators write what may be left out, is X. */
function optional(schema: Json, root: Json): Json {
  const choices = schema.anyOf ?? schema.oneOf;
  if (!Array.isArray(choices)) return schema;
  const real = choices.map((choice) => resolve(choice, root)).filter((c) => c?.type !== "null");
  return real.length === 1 ? { ...schema, anyOf: undefined, oneOf: undefined, ...real[0] } : {};
}

/** Follow references within the schema itself; nothing is ever loaded. */
function resolve(schema: Json, root: Json, hops = 0): Json {
  const ref = schema?.$ref;
  if (typeof ref !== "string") return schema;
  if (!ref.startsWith("#/") || hops > 8) return null;
  let target = root;
  for (const part of ref.slice(2).split("/")) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    target = Object.hasOwn(target ?? {}, key) ? target[key] : undefined;
  }
  return target === undefined ? null : resolve(target, root, hops + 1);
}

const number = (value: Json) => (typeof value === "number" ? value : undefined);

/** What a form shows before anything is entered. */
export function draftOf(fields: Field[]): Draft {
  return Object.fromEntries(
    fields.map((entry) => {
      const { control, initial } = entry;
      if (control.kind === "object") {
        const draft = draftOf(control.fields);
        return [entry.name, initial && typeof initial === "object" ? fill(draft, initial) : draft];
      }
      return [entry.name, shown(control, initial)];
    }),
  );
}

function fill(draft: Draft, values: Json): Draft {
  return Object.fromEntries(
    Object.entries(draft).map(([name, value]) => [
      name,
      name in values && typeof value === "string" ? String(values[name]) : value,
    ]),
  );
}

function shown(control: Control, initial: Json): string | boolean {
  switch (control.kind) {
    case "boolean":
      return initial === true;
    case "choice":
      return initial === undefined ? "" : JSON.stringify(initial);
    case "list":
      return Array.isArray(initial) ? initial.join("\n") : "";
    case "json":
      return initial === undefined ? "" : JSON.stringify(initial, null, 2);
    default:
      return initial == null ? "" : String(initial);
  }
}

export interface Problem {
  path: string;
  message: string;
}

/** The arguments that a form stands for, and what is wrong with it. What is empty is left out. */
export function argumentsOf(
  fields: Field[],
  draft: Draft,
  at = "",
): { value: Json; problems: Problem[] } {
  const value: Json = {};
  const problems: Problem[] = [];
  for (const entry of fields) {
    const path = at ? `${at}.${entry.name}` : entry.name;
    const entered = draft[entry.name];
    if (entry.control.kind === "object") {
      const inner = argumentsOf(entry.control.fields, (entered ?? {}) as Draft, path);
      const empty = Object.keys(inner.value).length === 0;
      if (empty && !entry.required) continue;
      value[entry.name] = inner.value;
      problems.push(...inner.problems);
      continue;
    }
    const read = readOne(entry.control, entered as string | boolean | undefined, entry);
    if (read.problem) problems.push({ path, message: read.problem });
    else if (read.value !== undefined) value[entry.name] = read.value;
    else if (entry.required) problems.push({ path, message: "is needed" });
  }
  return { value, problems };
}

function readOne(
  control: Control,
  entered: string | boolean | undefined,
  entry: Field,
): { value?: Json; problem?: string } {
  if (control.kind === "boolean") {
    // An unticked box that has no default and is not needed says nothing.
    const silent = entered !== true && !entry.required && entry.initial === undefined;
    return silent ? {} : { value: entered === true };
  }
  const text = String(entered ?? "");
  if (control.kind === "text") {
    return text === "" ? {} : { value: text };
  }
  if (text.trim() === "") return {};
  switch (control.kind) {
    case "number":
      return readNumber(text, control.integer);
    case "list": {
      const parts = text
        .split("\n")
        .map((part) => part.trim())
        .filter(Boolean);
      if (control.item === "string") return { value: parts };
      const numbers = parts.map(Number);
      return numbers.some(Number.isNaN)
        ? { problem: "has a line that is no number" }
        : { value: numbers };
    }
    default:
      try {
        return { value: JSON.parse(text) };
      } catch {
        return { problem: "is not JSON" };
      }
  }
}

function readNumber(text: string, integer: boolean): { value?: Json; problem?: string } {
  const value = Number(text);
  if (!Number.isFinite(value)) return { problem: "is not a number" };
  if (integer && !Number.isInteger(value)) return { problem: "is not a whole number" };
  return { value };
}
