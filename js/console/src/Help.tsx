/** The list of shortcuts, and the palette to go anywhere by typing. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { agents, sessions } from "./lib/gateway";
import { go } from "./lib/router";
import { toggleTheme } from "./lib/theme";
import { Icon, type IconName } from "./ui/Icon";
import { allShortcuts, helpOpen, isMac, paletteOpen } from "./ui/keys";
import { Dialog } from "./ui/parts";

const GROUPS = ["Anywhere", "Chat", "Lists"] as const;

const FIXED = [
  { keys: "ArrowDown", does: "Next entry", group: "Lists" },
  { keys: "ArrowUp", does: "Previous entry", group: "Lists" },
  { keys: "Enter", does: "Send the message", group: "Chat" },
  { keys: "Shift+Enter", does: "New line", group: "Chat" },
  { keys: "@", does: "Mention an agent", group: "Chat" },
] as const;

const SHOWN: Record<string, string> = {
  ArrowDown: "↓",
  ArrowUp: "↑",
  Mod: isMac ? "⌘" : "Ctrl",
  Enter: "Enter",
};

export function Keys({ keys }: { keys: string }) {
  return (
    <span class="row">
      {keys.split(/[+ ]/).map((key) => (
        <kbd key={key}>{SHOWN[key] ?? (key.length === 1 ? key.toUpperCase() : key)}</kbd>
      ))}
    </span>
  );
}

export function Help() {
  const all = [...allShortcuts(), ...FIXED];
  return (
    <Dialog title="Shortcuts" onClose={() => (helpOpen.value = false)}>
      {GROUPS.map((group) => (
        <section key={group} class="stack">
          <h3 class="muted small">{group}</h3>
          <dl class="shortcuts">
            {all
              .filter((shortcut) => shortcut.group === group)
              .map(({ keys, does }) => (
                <>
                  <dt key={keys}>{does}</dt>
                  <dd>
                    <Keys keys={keys} />
                  </dd>
                </>
              ))}
          </dl>
        </section>
      ))}
    </Dialog>
  );
}

interface Place {
  key: string;
  icon: IconName;
  title: string;
  sub: string;
  go: () => void;
}

function places(): Place[] {
  return [
    ...(sessions.value ?? []).map((session) => ({
      key: `s:${session.sessionId}`,
      icon: "hash" as const,
      title: session.name || session.sessionId,
      sub: "session",
      go: () => go("chat", session.sessionId),
    })),
    ...(agents.value ?? []).map((agent) => ({
      key: `a:${agent.id}`,
      icon: "agent" as const,
      title: agent.name || agent.id,
      sub: "agent",
      go: () => go("agents", agent.id),
    })),
    { key: "v:chat", icon: "chat", title: "Chat", sub: "view", go: () => go("chat") },
    { key: "v:agents", icon: "agent", title: "Agents", sub: "view", go: () => go("agents") },
    { key: "v:operate", icon: "operate", title: "Operate", sub: "view", go: () => go("operate") },
    { key: "x:theme", icon: "moon", title: "Light or dark", sub: "action", go: toggleTheme },
    {
      key: "x:help",
      icon: "help",
      title: "Shortcuts",
      sub: "action",
      go: () => (helpOpen.value = true),
    },
  ];
}

export function Palette() {
  const [query, setQuery] = useState("");
  const [at, setAt] = useState(0);
  const ref = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    ref.current?.showModal();
  }, []);
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = places()
    .filter(({ title, sub }) =>
      words.every((word) => `${title} ${sub}`.toLowerCase().includes(word)),
    )
    .slice(0, 50);
  const chosen = Math.min(at, found.length - 1);
  const close = () => (paletteOpen.value = false);
  const take = (place: Place | undefined) => {
    if (!place) return;
    close();
    place.go();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      setAt((chosen + step + found.length) % Math.max(1, found.length));
    } else if (event.key === "Enter") {
      event.preventDefault();
      take(found[chosen]);
    }
  };
  return (
    <dialog
      ref={ref}
      class="palette"
      aria-label="Go to"
      onClose={close}
      onMouseDown={(event) => event.target === ref.current && close()}
    >
      <input
        class="palette-input"
        placeholder="Go to a session, an agent, a view…"
        role="combobox"
        aria-label="Go to"
        aria-expanded="true"
        aria-controls="palette-list"
        aria-activedescendant={found[chosen] ? `place-${chosen}` : undefined}
        value={query}
        onInput={(event) => {
          setQuery(event.currentTarget.value);
          setAt(0);
        }}
        onKeyDown={onKeyDown}
      />
      <div class="palette-list" id="palette-list" role="listbox" aria-label="Places">
        {found.map((place, index) => (
          // biome-ignore lint/a11y/useFocusableInteractive: the input keeps the focus, see aria-activedescendant
          // biome-ignore lint/a11y/useKeyWithClickEvents: as above
          <div
            key={place.key}
            id={`place-${index}`}
            role="option"
            aria-selected={index === chosen}
            ref={
              index === chosen ? (node) => node?.scrollIntoView({ block: "nearest" }) : undefined
            }
            onMouseMove={() => setAt(index)}
            onClick={() => take(place)}
          >
            <Icon name={place.icon} />
            <span class="grow clip">{place.title}</span>
            <span class="muted small">{place.sub}</span>
          </div>
        ))}
        {found.length === 0 && <p class="muted empty">Nothing of that name.</p>}
      </div>
    </dialog>
  );
}
