/** Light or dark: as the system says, until the person says otherwise. */
import { signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";

const KEY = "trunkline.theme";

export const theme = signal<Theme>("system");

export function loadTheme(): void {
  try {
    const kept = localStorage.getItem(KEY);
    if (kept === "light" || kept === "dark") theme.value = kept;
  } catch {
    // without storage the system decides
  }
  show();
}

export function setTheme(next: Theme): void {
  theme.value = next;
  try {
    if (next === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, next);
  } catch {
    // it lasts as long as the page
  }
  show();
}

/** Change to what is not shown now. */
export function toggleTheme(): void {
  setTheme(isDark() ? "light" : "dark");
}

export const isDark = () =>
  theme.value === "system"
    ? matchMedia("(prefers-color-scheme: dark)").matches
    : theme.value === "dark";

function show(): void {
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
}
