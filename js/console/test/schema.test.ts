import { describe, expect, it } from "vitest";
import { argumentsOf, draftOf, fieldsOf } from "../src/lib/schema";

const object = (properties: object, required: string[] = []) => ({
  type: "object",
  properties,
  required,
});

describe("A form made of a schema", () => {
  it("has a control for each common type", () => {
    const fields = fieldsOf(
      object({
        name: { type: "string" },
        count: { type: "integer", minimum: 1 },
        dry: { type: "boolean" },
        level: { enum: ["low", "high"] },
        tags: { type: "array", items: { type: "string" } },
        where: object({ city: { type: "string" } }),
        any: {},
      }),
    );

    expect(fields?.map((field) => field.control.kind)).toEqual([
      "text",
      "number",
      "boolean",
      "choice",
      "list",
      "object",
      "json",
    ]);
  });

  it("takes what generators write for optional values", () => {
    const fields = fieldsOf({
      ...object({
        a: { anyOf: [{ type: "string" }, { type: "null" }], default: null },
        b: { type: ["integer", "null"] },
        c: { $ref: "#/$defs/Color" },
      }),
      $defs: { Color: { enum: ["red", "blue"] } },
    });

    expect(fields?.map((field) => field.control.kind)).toEqual(["text", "number", "choice"]);
  });

  it.each([
    ["not an object", { type: "string" }],
    ["alternatives", { oneOf: [object({}), object({})] }],
    ["nothing", null],
    ["a reference to elsewhere", { $ref: "https://example.org/schema.json" }],
    ["a reference to itself", { $ref: "#" }],
  ])("is not made of %s", (_, schema) => {
    expect(fieldsOf(schema)).toBeNull();
  });

  it("does not follow a schema that contains itself for ever", () => {
    const schema = {
      ...object({ child: { $ref: "#/$defs/Node" } }),
      $defs: { Node: object({ child: { $ref: "#/$defs/Node" } }) },
    };

    expect(fieldsOf(schema)).not.toBeNull();
  });
});

describe("The arguments", () => {
  const fields =
    fieldsOf(
      object(
        {
          name: { type: "string" },
          count: { type: "integer" },
          dry: { type: "boolean", default: true },
          loud: { type: "boolean" },
          level: { enum: [1, "high"] },
          tags: { type: "array", items: { type: "string" } },
          where: object({ city: { type: "string" } }),
          any: {},
        },
        ["name"],
      ),
    ) ?? [];
  const draft = draftOf(fields);

  it("start with the defaults and leave out what is empty", () => {
    expect(argumentsOf(fields, { ...draft, name: "x" })).toEqual({
      value: { name: "x", dry: true },
      problems: [],
    });
  });

  it("have the types that the schema asks for", () => {
    const { value, problems } = argumentsOf(fields, {
      name: "x",
      count: "3",
      dry: false,
      loud: true,
      level: "1",
      tags: "a\n\n b ",
      where: { city: "Oslo" },
      any: '{"k": [1]}',
    });

    expect(problems).toEqual([]);
    expect(value).toEqual({
      name: "x",
      count: 3,
      dry: false,
      loud: true,
      level: 1,
      tags: ["a", "b"],
      where: { city: "Oslo" },
      any: { k: [1] },
    });
  });

  it.each([
    ["count", "1.5", "is not a whole number"],
    ["count", "many", "is not a number"],
    ["any", "{", "is not JSON"],
  ])("say what is wrong with %s %s", (name, entered, message) => {
    const { problems } = argumentsOf(fields, { ...draft, name: "x", [name]: entered });

    expect(problems).toEqual([{ path: name, message }]);
  });
});
