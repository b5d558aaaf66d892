import { describe, expect, it } from "vitest";
import { mentionAt } from "../src/chat/mentions";
import { duration, initials, inline } from "../src/lib/format";
import { takeCode } from "../src/lib/gateway";
import { rateOf } from "../src/operate/stats";

describe("A sign-in link", () => {
  it("loses its code at once", () => {
    history.replaceState(null, "", "/#code=abc-DEF_123");

    expect(takeCode()).toBe("abc-DEF_123");
    expect(location.hash).toBe("");
  });

  it.each(["#code=", "#code=a b", "#code=<x>", `#code=${"a".repeat(600)}`])(
    "of another form is dropped: %s",
    (hash) => {
      history.replaceState(null, "", `/${hash}`);

      expect(takeCode()).toBeNull();
      expect(location.hash).toBe("");
    },
  );

  it("is not mistaken for a view", () => {
    history.replaceState(null, "", "/#/chat/lobby");

    expect(takeCode()).toBeNull();
    expect(location.hash).toBe("#/chat/lobby");
  });
});

describe("A mention", () => {
  it.each([
    ["@de", 3, { start: 0, query: "de" }],
    ["hi @", 4, { start: 3, query: "" }],
    ["hi @demo there", 8, { start: 3, query: "demo" }],
  ])("is found where one writes: %s", (text, caret, found) => {
    expect(mentionAt(text, caret)).toEqual(found);
  });

  it.each([
    ["ada@example", 11],
    ["@demo there", 11],
    ["nothing", 3],
  ])("is not where there is none: %s", (text, caret) => {
    expect(mentionAt(text, caret)).toBeNull();
  });
});

describe("Rates", () => {
  it("are differences by time, and never below zero", () => {
    expect(rateOf([0, 2, 4, 6], [0, 10, 10, 4])).toEqual([null, 5, 0, 0]);
  });
});

describe("Shown", () => {
  it.each([
    [12, "12 ms"],
    [1500, "1.5 s"],
    [90_000, "1 min"],
    [7_200_000, "2 h"],
    [Number.NaN, "–"],
  ])("%s milliseconds as %s", (ms, text) => {
    expect(duration(ms)).toBe(text);
  });

  it("arguments in one line", () => {
    expect(inline({ a: 1, b: "x" })).toBe('a: 1, b: "x"');
    expect(inline({ a: "y".repeat(200) }, 20)).toHaveLength(20);
  });

  it("people by initials", () => {
    expect(initials("ada lovelace")).toBe("AL");
    expect(initials("owner")).toBe("OW");
    expect(initials("👩‍💻x")).not.toBe("");
  });
});
