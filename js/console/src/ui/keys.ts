/** The keyboard shortcuts, in one table, so that the help shows what is really there. */
import { signal } from "@preact/signals";

export interface Shortcut {
  keys: string;
  does: string;
  group: "Anywhere" | "Chat" | "Lists";
  run?: () => void;
}

export const helpOpen = signal(false);
export const paletteOpen = signal(false);

const shortcuts = new Map<string, Shortcut>();

/** Add shortcuts; the returned function takes them away. Two keys in a row are written "g c". */
export function bind(list: Shortcut[]): () => void {
  for (const shortcut of list) shortcuts.set(shortcut.keys, shortcut);
  return () => {
    for (const shortcut of list) {
      if (shortcuts.get(shortcut.keys) === shortcut) shortcuts.delete(shortcut.keys);
    }
  };
}

export const allShortcuts = () => [...shortcuts.values()];

/** `Mod` is Ctrl, or Command on a Mac. */
export const isMac = /mac|iphone|ipad/i.test(navigator.userAgent);

const TYPED = new Set(["INPUT", "TEXTAREA", "SELECT"]);

const isTyping = (target: EventTarget | null) =>
  target instanceof HTMLElement && (TYPED.has(target.tagName) || target.isContentEditable);

let prefix = "";
let timer: ReturnType<typeof setTimeout> | undefined;

function name(event: KeyboardEvent): string {
  const parts = [
    event.ctrlKey || event.metaKey ? "Mod" : "",
    event.altKey ? "Alt" : "",
    event.key.length === 1 ? event.key.toLowerCase() : event.key,
  ];
  return parts.filter(Boolean).join("+");
}

export function listenToKeys(): void {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing) return;
    const pressed = name(event);
    const modified = pressed.startsWith("Mod+") || pressed.startsWith("Alt+");
    if (isTyping(event.target) && !modified) return;
    if (document.querySelector("dialog[open]") && pressed !== "Mod+k") return;
    const found =
      shortcuts.get(prefix ? `${prefix} ${pressed}` : pressed) ?? shortcuts.get(pressed);
    clearTimeout(timer);
    prefix = "";
    if (found?.run) {
      event.preventDefault();
      found.run();
    } else if (pressed === "g") {
      prefix = "g";
      timer = setTimeout(() => {
        prefix = "";
      }, 1200);
    }
  });
}
