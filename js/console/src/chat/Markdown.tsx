/**
 * Markdown as nodes of the page. The library only reads it; nothing is ever parsed as HTML here, so
 * what somebody wrote can become text, emphasis, lists and links, and nothing else.
 *
 * While an answer grows, only the block that changed is drawn again.
 */
import { lexer, type Token, type Tokens } from "marked";
import { type ComponentChildren, Fragment } from "preact";
import { memo } from "../ui/memo";
import { CodeBlock } from "./CodeBlock";

const SCHEMES = /^(https?:|mailto:)/i;

/** The address of a link if it may be followed, else null. */
export function safeHref(href: string): string | null {
  // Control characters and spaces can hide a scheme from this test, but not from a browser.
  const bare = decodeEntities(href).replace(/[\p{Cc}\p{Cf}\p{Z}]/gu, "");
  if (!SCHEMES.test(bare)) return null;
  try {
    const url = new URL(bare);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const NAMED: Record<string, string> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  copy: "©",
  hellip: "…",
  mdash: "—",
  ndash: "–",
};

/** Character references as the characters that they stand for. */
export function decodeEntities(text: string): string {
  if (!text.includes("&")) return text;
  return text.replace(
    /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/gi,
    (whole, dec, hex, name) => {
      if (name) return NAMED[name] ?? whole;
      const code = Number.parseInt(dec ?? hex, dec ? 10 : 16);
      return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff)
        ? String.fromCodePoint(code)
        : "\ufffd";
    },
  );
}

const MAX_DEPTH = 24;

function inline(tokens: Token[] | undefined, depth: number): ComponentChildren {
  if (!tokens) return null;
  if (depth > MAX_DEPTH) return tokens.map((token) => token.raw).join("");
  return tokens.map((token, index) => <Fragment key={index}>{span(token, depth + 1)}</Fragment>);
}

function span(token: Token, depth: number): ComponentChildren {
  switch (token.type) {
    case "text":
      return token.tokens ? inline(token.tokens, depth) : decodeEntities(token.text);
    case "escape":
      return token.text;
    case "strong":
      return <strong>{inline(token.tokens, depth)}</strong>;
    case "em":
      return <em>{inline(token.tokens, depth)}</em>;
    case "del":
      return <del>{inline(token.tokens, depth)}</del>;
    case "codespan":
      return <code>{token.text}</code>;
    case "br":
      return <br />;
    case "checkbox":
      return <Box checked={token.checked} />;
    case "link":
      return <Link href={token.href}>{inline(token.tokens, depth)}</Link>;
    case "image":
      // Nothing is loaded from other hosts; who wants to see it follows the link.
      return <Link href={token.href}>{token.text || "image"}</Link>;
    default:
      return token.raw;
  }
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  const safe = safeHref(href);
  if (!safe) return <>{children}</>;
  return (
    <a href={safe} target="_blank" rel="noopener noreferrer nofollow" title={safe}>
      {children}
    </a>
  );
}

function Box({ checked }: { checked?: boolean }) {
  return (
    <span class="box" role="img" aria-label={checked ? "done" : "to do"}>
      {checked ? "☑" : "☐"}{" "}
    </span>
  );
}

function block(token: Token, depth: number): ComponentChildren {
  if (depth > MAX_DEPTH) return token.raw;
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "heading": {
      // The page's own headings come first; a message starts below them.
      const level = Math.min(6, token.depth + 2);
      return (
        <p class={`h h${token.depth}`} role="heading" aria-level={level}>
          {inline(token.tokens, depth)}
        </p>
      );
    }
    case "paragraph":
      return <p>{inline(token.tokens, depth)}</p>;
    case "text":
      return token.tokens ? inline(token.tokens, depth) : decodeEntities(token.text);
    case "code":
      return <CodeBlock code={token.text} lang={String(token.lang ?? "").split(/\s/)[0] ?? ""} />;
    case "blockquote":
      return <blockquote>{blocks(token.tokens ?? [], depth + 1)}</blockquote>;
    case "hr":
      return <hr />;
    case "list":
      return list(token as Tokens.List, depth);
    case "table":
      return table(token as Tokens.Table, depth);
    case "html":
      return <p>{token.raw}</p>;
    default:
      return span(token, depth);
  }
}

function list(token: Tokens.List, depth: number): ComponentChildren {
  const items = token.items.map((item, index) => (
    <li key={index} class={item.task ? "task" : undefined}>
      {item.task && !hasBox(item) && <Box checked={item.checked} />}
      {blocks(item.tokens, depth + 1)}
    </li>
  ));
  return token.ordered ? <ol start={Number(token.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

const hasBox = (item: Tokens.ListItem) => JSON.stringify(item.tokens).includes('"type":"checkbox"');

function table(token: Tokens.Table, depth: number): ComponentChildren {
  const align = (index: number) => (token.align[index] ? `to-${token.align[index]}` : undefined);
  return (
    <div class="table" tabIndex={0} role="group" aria-label="Table">
      <table>
        <thead>
          <tr>
            {token.header.map((cell, index) => (
              <th key={index} class={align(index)}>
                {inline(cell.tokens, depth)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row, at) => (
            <tr key={at}>
              {row.map((cell, index) => (
                <td key={index} class={align(index)}>
                  {inline(cell.tokens, depth)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

const blocks = (tokens: Token[], depth: number): ComponentChildren =>
  tokens.map((token, index) => <Fragment key={index}>{block(token, depth)}</Fragment>);

const Block = memo(
  ({ token }: { token: Token }) => <>{block(token, 0)}</>,
  (a, b) => a.token.raw === b.token.raw && a.token.type === b.token.type,
);

const MAX_LENGTH = 400_000;

export function Markdown({ text }: { text: string }) {
  if (text.length > MAX_LENGTH) return <pre class="code">{text}</pre>;
  return (
    <div class="md">
      {read(text).map((token, index) => (
        <Block key={index} token={token} />
      ))}
    </div>
  );
}

function read(text: string): Token[] {
  try {
    return lexer(text, { gfm: true, breaks: true });
  } catch {
    return [{ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text }] }];
  }
}
