import { render } from "preact";
import { describe, expect, it } from "vitest";
import { decodeEntities, Markdown, safeHref } from "../src/chat/Markdown";

const ALLOWED = new Set(
  "DIV P SPAN STRONG EM DEL CODE PRE BR HR A UL OL LI BLOCKQUOTE TABLE THEAD TBODY TR TH TD BUTTON SVG PATH".split(
    " ",
  ),
);

const shown = (text: string): HTMLElement => {
  const box = document.createElement("div");
  render(<Markdown text={text} />, box);
  return box;
};

/** Text that would do something somewhere, if anything here parsed it. */
const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg/onload=alert(1)>",
  "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
  "<a href='javascript:alert(1)'>x</a>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\tscript:alert(1))",
  "[x](&#106;avascript:alert(1))",
  "[x](javascript&colon;alert(1))",
  "[x](\u0001javascript:alert(1))",
  "[x](data:text/html,<script>alert(1)</script>)",
  "[x](vbscript:msgbox(1))",
  "[x](file:///etc/passwd)",
  "[x](blob:http://127.0.0.1/1)",
  "[x](//evil.example/)",
  "[x](/api/v1/stats)",
  "![x](javascript:alert(1))",
  "![x](https://evil.example/pixel.png)",
  "<javascript:alert(1)>",
  "[x]: javascript:alert(1)\n\n[x]",
  "`<script>alert(1)</script>`",
  '```"><script>alert(1)</script>\n<b>\n```',
  "```<img/src=x/onerror=alert(1)>\nx\n```",
  "| <b>a</b> |\n| --- |\n| <script>alert(1)</script> |",
  "- [x] <input autofocus onfocus=alert(1)>",
  "# <style>*{display:none}</style>",
  "<div style='position:fixed;inset:0'>over</div>",
  "<form action=https://evil.example><input name=token>",
  "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
  "&lt;img src=x onerror=alert(1)&gt;",
  "<!-- --><base href=https://evil.example>",
];

describe("What somebody wrote", () => {
  it.each(HOSTILE)("becomes nothing but text, emphasis, lists and links: %s", (text) => {
    for (const node of shown(text).querySelectorAll("*")) {
      expect(ALLOWED).toContain(node.tagName.toUpperCase());
      for (const { name } of node.attributes) {
        expect(name).not.toMatch(/^on|^style$|^src|^srcdoc|^action|^formaction|^id$|^name$/i);
      }
      const href = node.getAttribute("href");
      if (href !== null) expect(href).toMatch(/^(https?|mailto):/);
    }
  });

  it("is not lost where it looks like HTML", () => {
    expect(shown("a <b>c</b> <script>d</script>").textContent).toBe(
      "a <b>c</b> <script>d</script>",
    );
  });

  it("may nest without end", () => {
    expect(shown(`${">".repeat(3000)} deep`).textContent).toContain("deep");
    expect(shown(`${"[".repeat(3000)}x`).textContent).toContain("x");
    expect(shown(`${"*a ".repeat(2000)}`).textContent).toContain("a");
  });
});

describe("Links", () => {
  it("open elsewhere and give nothing away", () => {
    const link = shown("[docs](https://example.org/a?b=1&amp;c=2)").querySelector("a");

    expect(link?.getAttribute("href")).toBe("https://example.org/a?b=1&c=2");
    expect(link?.getAttribute("rel")).toContain("noopener");
    expect(link?.getAttribute("target")).toBe("_blank");
  });

  it.each([
    "javascript:1",
    " javascript:1",
    "java\nscript:1",
    "\u200bjavascript:1",
    "data:,x",
    "ftp://x",
    "//x",
    "x",
    "",
  ])("to %j are none", (href) => {
    expect(safeHref(href)).toBeNull();
  });

  it("may be mail addresses", () => {
    expect(safeHref("mailto:ada@example.org")).toBe("mailto:ada@example.org");
  });
});

describe("Markdown", () => {
  it("has emphasis, code, lists, quotes and tables", () => {
    const box = shown(
      "**b** _i_ ~~d~~ `c`\n\n- one\n- two\n\n> q\n\n| a |\n| --- |\n| 1 |\n\n```js\nx()\n```",
    );

    for (const tag of [
      "strong",
      "em",
      "del",
      "code",
      "ul li",
      "blockquote",
      "table td",
      "pre code",
    ]) {
      expect(box.querySelector(tag), tag).not.toBeNull();
    }
  });

  it("shows character references as characters, once", () => {
    expect(shown("a &amp; b &#65; &amp;lt;").textContent).toBe("a & b A &lt;");
    expect(decodeEntities("&#0; &#x110000; &unknown;")).toBe("\ufffd \ufffd &unknown;");
  });

  it("draws only the block that changed", () => {
    const box = document.createElement("div");
    render(<Markdown text={"first\n\nsec"} />, box);
    const first = box.querySelector("p")?.firstChild;
    render(<Markdown text={"first\n\nsecond"} />, box);

    expect(box.querySelector("p")?.firstChild).toBe(first);
    expect(box.textContent).toBe("firstsecond");
  });
});
