/** Small parts that several views use. */
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef } from "preact/hooks";
import { hue, initials } from "../lib/format";
import type { Sender } from "../lib/types";
import { Icon, type IconName } from "./Icon";

/** The name of who speaks, as people know them. */
export const nameOf = (who: Sender | null | undefined): string => {
  if (!who) return "gateway";
  if (who.kind === "agent") return who.agentId ?? who.userId;
  return who.kind === "gateway" ? "gateway" : who.userId;
};

/** People are round, agents are square. */
export function Avatar({
  who,
  tiny,
}: {
  who: Pick<Sender, "kind" | "userId" | "agentId"> | null;
  tiny?: boolean;
}) {
  const size = tiny ? " tiny" : "";
  if (who?.kind === "agent") {
    return (
      <span
        class={`avatar agent${size}`}
        style={{ "--hue": String(hue(nameOf(who as Sender))) }}
        aria-hidden="true"
      >
        <Icon name="agent" />
      </span>
    );
  }
  const name = who?.userId ?? "?";
  return (
    <span
      class={`avatar${size}`}
      style={{ "--hue": String(hue(name)) }}
      data-initials={initials(name)}
      aria-hidden="true"
    />
  );
}

export function Empty({
  icon,
  title,
  children,
}: {
  icon: IconName;
  title: string;
  children?: ComponentChildren;
}) {
  return (
    <div class="empty">
      <Icon name={icon} />
      <h2>{title}</h2>
      {children}
    </div>
  );
}

/** A modal dialog: the browser keeps the focus in it and gives it back. */
export function Dialog({
  title,
  onClose,
  children,
  foot,
  onSubmit,
  wide,
}: {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  foot?: ComponentChildren;
  onSubmit?: () => void;
  wide?: boolean;
}) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useLayoutEffect(() => {
    const dialog = ref.current;
    if (dialog && !dialog.open) dialog.showModal();
  }, []);
  const body = (
    <>
      <div class="dialog-body">{children}</div>
      {foot && <div class="dialog-foot">{foot}</div>}
    </>
  );
  return (
    <dialog
      ref={ref}
      class={wide ? "wide" : ""}
      aria-labelledby={id}
      onClose={onClose}
      onMouseDown={(event) => event.target === ref.current && onClose()}
    >
      <div class="dialog-head">
        <h2 id={id}>{title}</h2>
        <button type="button" class="btn quiet square" aria-label="Close" onClick={onClose}>
          <Icon name="close" />
        </button>
      </div>
      {onSubmit ? (
        <form
          class="contents"
          onSubmit={(event) => {
            event.preventDefault();
            onSubmit();
          }}
        >
          {body}
        </form>
      ) : (
        body
      )}
    </dialog>
  );
}

interface Toast {
  id: number;
  tone: "ok" | "danger";
  text: string;
}

const toasts = signal<Toast[]>([]);
let counter = 0;

/** Say something in the corner for a few seconds. */
export function toast(text: string, tone: Toast["tone"] = "ok"): void {
  const id = counter++;
  toasts.value = [...toasts.value.slice(-3), { id, tone, text }];
  setTimeout(
    () => {
      toasts.value = toasts.value.filter((entry) => entry.id !== id);
    },
    tone === "danger" ? 8000 : 4000,
  );
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map(({ id, tone, text }) => (
        <div key={id} class={`toast ${tone}`}>
          <Icon name={tone === "ok" ? "check" : "alert"} />
          <span class="break">{text}</span>
        </div>
      ))}
    </div>
  );
}

export async function copy(text: string, what = "Copied"): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    toast(what);
  } catch {
    toast("The browser did not allow to copy.", "danger");
  }
}

/** Arrow keys, Home and End move the focus among the items of a list; one of them is in the tab order. */
export function roving(event: KeyboardEvent, selector = "[data-item]"): void {
  const list = event.currentTarget as HTMLElement;
  const items = [...list.querySelectorAll<HTMLElement>(selector)];
  const at = items.indexOf(document.activeElement as HTMLElement);
  const to = {
    ArrowDown: at + 1,
    j: at + 1,
    ArrowUp: at - 1,
    k: at - 1,
    Home: 0,
    End: items.length - 1,
  }[event.key];
  if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  items[Math.max(0, Math.min(items.length - 1, to))]?.focus();
}
