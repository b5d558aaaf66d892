import { Icon } from "../ui/Icon";
import { copy } from "../ui/parts";

export function CodeBlock({ code, lang }: { code: string; lang?: string }) {
  return (
    <div class="code-block">
      <div class="code-head">
        <span>{lang || "text"}</span>
        <button
          type="button"
          class="btn quiet small square"
          aria-label="Copy the code"
          onClick={() => copy(code)}
        >
          <Icon name="copy" />
        </button>
      </div>
      <pre tabIndex={0}>
        <code>{code}</code>
      </pre>
    </div>
  );
}
