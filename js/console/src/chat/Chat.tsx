/** The chat view: sessions on the left, one conversation beside them. */
import { computed, signal } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import { plural } from "../lib/format";
import { client, sessions } from "../lib/gateway";
import { enter, rooms } from "../lib/room";
import { go, href, route } from "../lib/router";
import type { SessionEntry } from "../lib/types";
import { Icon } from "../ui/Icon";
import { bind } from "../ui/keys";
import { Empty, roving } from "../ui/parts";
import { Conversation } from "./Conversation";
import { NewSession } from "./NewSession";
import "../styles/chat.css";

/** Up to where each session was when its number was last looked at. */
const seen = signal<Record<string, number>>({});
const creating = signal(false);

const sorted = computed(() =>
  [...(sessions.value ?? [])].sort((a, b) => label(a).localeCompare(label(b))),
);

const label = (session: SessionEntry) => session.name || session.sessionId;

function unread(session: SessionEntry): number {
  const at = seen.value[session.sessionId];
  return at === undefined ? 0 : Math.max(0, session.head - at);
}

function step(by: number): void {
  const list = sorted.value;
  const at = list.findIndex((session) => session.sessionId === route.value.id);
  const next = list[(at + by + list.length) % list.length];
  if (next) go("chat", next.sessionId);
}

export function Chat() {
  const { id } = route.value;
  const room = useMemo(() => (id ? enter(id) : null), [id, client.value, rooms.value]);

  useEffect(
    () =>
      bind([
        { keys: "n", does: "New session", group: "Chat", run: () => (creating.value = true) },
        {
          keys: "/",
          does: "Search the sessions",
          group: "Chat",
          run: () => document.getElementById("session-search")?.focus(),
        },
        {
          keys: "c",
          does: "Write a message",
          group: "Chat",
          run: () => document.getElementById("composer")?.focus(),
        },
        { keys: "Alt+ArrowDown", does: "Next session", group: "Chat", run: () => step(1) },
        { keys: "Alt+ArrowUp", does: "Previous session", group: "Chat", run: () => step(-1) },
      ]),
    [],
  );

  // On a wide screen there is always a conversation to look at.
  const list = sessions.value;
  useEffect(() => {
    if (!list || id || !matchMedia("(min-width: 761px)").matches) return;
    const first = list.find((session) => session.sessionId === "lobby") ?? sorted.value[0];
    if (first) go("chat", first.sessionId, true);
  }, [list, id]);

  useEffect(() => {
    if (!list) return;
    const next = { ...seen.peek() };
    for (const session of list) {
      if (next[session.sessionId] === undefined || session.sessionId === id) {
        next[session.sessionId] = session.head;
      }
    }
    seen.value = next;
  }, [list, id]);

  return (
    <div class={`view${id ? " detail" : ""}`}>
      <Sessions current={id} />
      <main class="main" id="main" tabIndex={-1}>
        {room ? (
          <Conversation key={room.id} room={room} />
        ) : (
          <Empty icon="chat" title="No session is open">
            <p>Choose one on the left, or make a new one.</p>
          </Empty>
        )}
      </main>
      {creating.value && <NewSession onClose={() => (creating.value = false)} />}
    </div>
  );
}

function Sessions({ current }: { current: string | null }) {
  const [query, setQuery] = useState("");
  const found = sorted.value.filter((session) =>
    `${label(session)} ${session.sessionId}`.toLowerCase().includes(query.toLowerCase()),
  );
  return (
    <aside class="side" aria-label="Sessions">
      <div class="side-head">
        <h1>Sessions</h1>
        <button
          type="button"
          class="btn quiet square"
          aria-label="New session"
          title="New session (n)"
          onClick={() => (creating.value = true)}
        >
          <Icon name="plus" />
        </button>
      </div>
      <div class="side-tools">
        <div class="search">
          <Icon name="search" />
          <input
            id="session-search"
            class="input"
            type="search"
            placeholder="Search, or join by id"
            aria-label="Search the sessions, or join one by its id"
            value={query}
            onInput={(event) => setQuery(event.currentTarget.value)}
            onKeyDown={(event) => {
              const first = found[0]?.sessionId ?? query.trim();
              if (event.key === "Enter" && first) {
                setQuery("");
                go("chat", first);
              }
            }}
          />
        </div>
      </div>
      {/* biome-ignore lint/a11y/noStaticElementInteractions: the keys move the focus among the links inside */}
      <div class="list" onKeyDown={roving}>
        <ul>
          {found.map((session, index) => {
            const chosen = session.sessionId === current;
            const head = Math.max(
              session.head,
              rooms.value.get(session.sessionId)?.head.value ?? 0,
            );
            const fresh = chosen ? 0 : unread(session);
            return (
              <li key={session.sessionId}>
                <a
                  class={`entry${fresh ? " unread" : ""}`}
                  href={href("chat", session.sessionId)}
                  aria-current={chosen ? "true" : undefined}
                  data-item
                  tabIndex={chosen || (!current && index === 0) ? 0 : -1}
                >
                  <span class="lead">
                    <Icon name="hash" />
                  </span>
                  <span class="clip">
                    <span class="title clip">{label(session)}</span>
                    <br />
                    <span class="sub">
                      {session.memberCount} here · {plural(head, "message")}
                    </span>
                  </span>
                  {fresh > 0 && (
                    <span class="count" title={`${fresh} new`}>
                      {fresh > 99 ? "99+" : fresh}
                    </span>
                  )}
                </a>
              </li>
            );
          })}
        </ul>
        {sessions.value?.length === 0 && (
          <Empty icon="hash" title="No sessions yet">
            <p>Make the first one.</p>
          </Empty>
        )}
        {query && found.length === 0 && (
          <p class="muted small list-note">
            Press Enter to join <code>{query.trim()}</code>.
          </p>
        )}
      </div>
    </aside>
  );
}
