/** Which view is open: `#/chat/lobby`. The address chooses what is shown, never whom to talk to. */
import { computed, signal } from "@preact/signals";

export type View = "chat" | "agents" | "operate";

const VIEWS: View[] = ["chat", "agents", "operate"];

const hash = signal("");

export const route = computed((): { view: View; id: string | null } => {
  const [, view = "", id = ""] = hash.value.replace(/^#/, "").split("/");
  const known = VIEWS.includes(view as View) ? (view as View) : "chat";
  return { view: known, id: decode(id) };
});

function decode(part: string): string | null {
  try {
    return decodeURIComponent(part) || null;
  } catch {
    return null;
  }
}

export const href = (view: View, id?: string | null) =>
  `#/${view}${id ? `/${encodeURIComponent(id)}` : ""}`;

export function go(view: View, id?: string | null, replace = false): void {
  if (replace) history.replaceState(null, "", href(view, id));
  else history.pushState(null, "", href(view, id));
  hash.value = location.hash;
}

export function listen(): void {
  hash.value = location.hash;
  addEventListener("hashchange", () => {
    hash.value = location.hash;
  });
  addEventListener("popstate", () => {
    hash.value = location.hash;
  });
}
