/** The whole page: signing in, or the rail and one of the three views. */
import { signal } from "@preact/signals";
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { Help, Palette } from "./Help";
import iconUrl from "./icon.svg";
import {
  client,
  link,
  me,
  phase,
  remember,
  remembered,
  serverVersion,
  signOut,
} from "./lib/gateway";
import { go, href, route, type View } from "./lib/router";
import { isDark, theme, toggleTheme } from "./lib/theme";
import { SignIn } from "./SignIn";
import { Icon, type IconName } from "./ui/Icon";
import { bind, helpOpen, paletteOpen } from "./ui/keys";
import { Avatar, Empty, Toasts } from "./ui/parts";

const VIEWS: { view: View; label: string; icon: IconName }[] = [
  { view: "chat", label: "Chat", icon: "chat" },
  { view: "agents", label: "Agents", icon: "agent" },
  { view: "operate", label: "Operate", icon: "operate" },
];

/** Each view is loaded when it is first opened. */
const loaders: Record<View, () => Promise<ComponentType>> = {
  chat: async () => (await import("./chat/Chat")).Chat,
  agents: async () => (await import("./agents/Agents")).Agents,
  operate: async () => (await import("./operate/Operate")).Operate,
};

const loaded = signal<Partial<Record<View, ComponentType>>>({});
const failed = signal(false);

async function load(view: View): Promise<void> {
  if (loaded.peek()[view]) return;
  try {
    const component = await loaders[view]();
    loaded.value = { ...loaded.peek(), [view]: component };
    failed.value = false;
  } catch {
    failed.value = true;
  }
}

export function App() {
  useEffect(
    () =>
      bind([
        {
          keys: "?",
          does: "Show the shortcuts",
          group: "Anywhere",
          run: () => (helpOpen.value = true),
        },
        {
          keys: "Mod+k",
          does: "Go to a session, agent or view",
          group: "Anywhere",
          run: () => (paletteOpen.value = !paletteOpen.value),
        },
        { keys: "g c", does: "Chat", group: "Anywhere", run: () => go("chat") },
        { keys: "g a", does: "Agents", group: "Anywhere", run: () => go("agents") },
        { keys: "g o", does: "Operate", group: "Anywhere", run: () => go("operate") },
        { keys: "t", does: "Light or dark", group: "Anywhere", run: toggleTheme },
      ]),
    [],
  );
  return (
    <>
      {phase.value === "ready" ? <Shell /> : <SignIn />}
      {phase.value === "ready" && helpOpen.value && <Help />}
      {phase.value === "ready" && paletteOpen.value && <Palette />}
      <Toasts />
    </>
  );
}

function Shell() {
  const { view, id } = route.value;
  useEffect(() => {
    load(view);
  }, [view]);
  useEffect(() => {
    const label = VIEWS.find((entry) => entry.view === view)?.label;
    document.title = id ? `${id} · ${label} · Trunkline` : `${label} · Trunkline`;
  }, [view, id]);
  const Current = loaded.value[view];
  return (
    <div class="shell">
      <button type="button" class="btn skip" onClick={skip}>
        Skip to content
      </button>
      <Banner />
      <Rail current={view} />
      {Current ? (
        <Current />
      ) : (
        <main class="view-loading" id="main" tabIndex={-1}>
          {failed.value && (
            <Empty icon="alert" title="This part did not load">
              <button type="button" class="btn" onClick={() => load(view)}>
                Try again
              </button>
            </Empty>
          )}
        </main>
      )}
    </div>
  );
}

function skip(): void {
  document.getElementById("main")?.focus();
}

function Banner() {
  const state = link.value;
  const shown = state === "waiting" || state === "connecting";
  return (
    <div class="banner-slot" role="status" aria-live="polite">
      {shown && (
        <div class="banner">
          <span class="spinner" />
          Reconnecting…
          <button type="button" class="banner-action" onClick={() => client.value?.retry()}>
            Try now
          </button>
        </div>
      )}
    </div>
  );
}

const menuOpen = signal(false);

function Rail({ current }: { current: View }) {
  return (
    <nav class="rail" aria-label="Views">
      <img class="mark" src={iconUrl} alt="Trunkline" />
      {VIEWS.map(({ view, label, icon }) => (
        <a
          key={view}
          href={href(view)}
          aria-current={view === current ? "page" : undefined}
          onMouseEnter={() => load(view)}
        >
          <Icon name={icon} />
          {label}
        </a>
      ))}
      <span class="space" />
      <button
        type="button"
        class="plain wide-only"
        aria-label="Shortcuts"
        title="Shortcuts (?)"
        onClick={() => (helpOpen.value = true)}
      >
        <Icon name="help" />
      </button>
      <button
        type="button"
        class="plain wide-only"
        aria-label="Light or dark"
        title="Light or dark (t)"
        onClick={toggleTheme}
      >
        <Icon name={theme.value !== "system" || isDark() ? (isDark() ? "sun" : "moon") : "moon"} />
      </button>
      <button
        type="button"
        class="plain"
        aria-label={`You: ${me.value?.userId}`}
        aria-expanded={menuOpen.value}
        onClick={() => (menuOpen.value = !menuOpen.value)}
      >
        <Avatar who={{ kind: "user", userId: me.value?.userId ?? "?" }} />
      </button>
      {menuOpen.value && <Menu />}
    </nav>
  );
}

function Menu() {
  useEffect(() => {
    const close = (event: Event) => {
      if (event instanceof KeyboardEvent && event.key !== "Escape") return;
      const inside =
        event.target instanceof Element && event.target.closest(".menu, [aria-expanded]");
      if (event instanceof KeyboardEvent || !inside) menuOpen.value = false;
    };
    addEventListener("pointerdown", close);
    addEventListener("keydown", close);
    return () => {
      removeEventListener("pointerdown", close);
      removeEventListener("keydown", close);
    };
  }, []);
  const identity = me.value;
  return (
    <div class="menu from-rail">
      <div class="who">
        <div class="break">
          <strong>{identity?.userId}</strong>
        </div>
        <div class="muted small">
          {identity?.role}
          {serverVersion.value && ` · gateway ${serverVersion.value}`}
        </div>
      </div>
      <button type="button" class="item" onClick={toggleTheme}>
        <Icon name={isDark() ? "sun" : "moon"} />
        {isDark() ? "Light" : "Dark"}
      </button>
      <button
        type="button"
        class="item"
        onClick={() => {
          menuOpen.value = false;
          helpOpen.value = true;
        }}
      >
        <Icon name="help" />
        Shortcuts
      </button>
      <label class="item">
        <input
          type="checkbox"
          checked={remembered.value}
          onChange={(event) => remember(event.currentTarget.checked)}
        />
        Keep me signed in for this tab
      </label>
      <button
        type="button"
        class="item"
        onClick={() => {
          menuOpen.value = false;
          if (client.value) signOut();
        }}
      >
        <Icon name="out" />
        Sign out
      </button>
    </div>
  );
}
