/** One session: its head, what was said, who is writing, and where one writes oneself. */
import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { dayOf, sameDay } from "../lib/format";
import { agents } from "../lib/gateway";
import { forgetRoom, type Room } from "../lib/room";
import { go, href } from "../lib/router";
import { type Item, isOpen } from "../lib/timeline";
import { Icon } from "../ui/Icon";
import { bind } from "../ui/keys";
import { Avatar, Empty, nameOf } from "../ui/parts";
import { Composer } from "./Composer";
import { Details } from "./Details";
import { ChatRow, NoticeRow, RunRow } from "./rows";

const detailsOpen = signal(matchMedia("(min-width: 1240px)").matches);

/** Pixels from the end within which one is "at the end" and stays there. */
const AT_END = 60;
/** Pixels from the beginning within which older messages are read. */
const NEAR_TOP = 900;
/** Messages of one person within this time stand together, in milliseconds. */
const TOGETHER = 5 * 60_000;

export function Conversation({ room }: { room: Room }) {
  useEffect(
    () =>
      bind([
        { keys: "Mod+.", does: "Stop the answers", group: "Chat", run: () => room.cancelAll() },
        {
          keys: "i",
          does: "Who is here, and settings",
          group: "Chat",
          run: () => (detailsOpen.value = !detailsOpen.value),
        },
      ]),
    [room],
  );
  const info = room.info.value;
  const state = room.state.value;
  if (state === "failed") return <Failed room={room} />;
  return (
    <div class={`conversation${detailsOpen.value ? " with-details" : ""}`}>
      <section class="talk" aria-label={`Conversation ${info.name || room.id}`}>
        <header class="main-head">
          <a class="btn quiet square back" href={href("chat")} aria-label="All sessions">
            <Icon name="back" />
          </a>
          <div class="grow">
            <h2 class="clip">{info.name || room.id}</h2>
            <p class="muted small clip head-sub">
              {info.visibility === "private" && <Icon name="lock" />}
              {info.name ? (
                <span class="mono">{room.id}</span>
              ) : (
                `${room.members.value.length} here`
              )}
            </p>
          </div>
          <Faces room={room} />
          <button
            type="button"
            class="btn quiet square"
            aria-label="Who is here, and settings"
            title="Who is here, and settings (i)"
            aria-expanded={detailsOpen.value}
            onClick={() => (detailsOpen.value = !detailsOpen.value)}
          >
            <Icon name="settings" />
          </button>
        </header>
        <Log room={room} />
        <Typing room={room} />
        {state === "closed" ? (
          <p class="over muted">This session is closed.</p>
        ) : (
          <Composer room={room} />
        )}
      </section>
      {detailsOpen.value && <Details room={room} onClose={() => (detailsOpen.value = false)} />}
    </div>
  );
}

function Failed({ room }: { room: Room }) {
  return (
    <Empty icon="alert" title={`${room.id} is not open`}>
      <p>{room.error.value}</p>
      <div class="row">
        <button type="button" class="btn" onClick={() => forgetRoom(room.id)}>
          Try again
        </button>
        <button
          type="button"
          class="btn quiet"
          onClick={() => {
            go("chat");
            forgetRoom(room.id);
          }}
        >
          All sessions
        </button>
      </div>
    </Empty>
  );
}

function Faces({ room }: { room: Room }) {
  const unique = new Map(room.members.value.map((who) => [`${who.kind}:${nameOf(who)}`, who]));
  const faces = [...unique.values()].slice(0, 4);
  return (
    <span class="faces" title={[...unique.values()].map(nameOf).join(", ")}>
      {faces.map((who) => (
        <Avatar key={who.clientId} who={who} />
      ))}
      {unique.size > faces.length && <span class="muted small">+{unique.size - faces.length}</span>}
    </span>
  );
}

/**
 * What was said. At the end it stays at the end; anywhere else what one reads does not move,
 * whatever is added above or below.
 */
function Log({ room }: { room: Room }) {
  const items = room.items.value;
  const box = useRef<HTMLDivElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const anchor = useRef<{ key: string; top: number } | null>(null);
  const [missed, setMissed] = useState(0);
  const lastCount = useRef(items.length);

  const remember = () => {
    const node = box.current;
    if (!node) return;
    atEnd.current = node.scrollHeight - node.scrollTop - node.clientHeight < AT_END;
    if (atEnd.current) setMissed(0);
    anchor.current = firstVisible(node);
    if (node.scrollTop < NEAR_TOP) room.loadOlder();
  };

  const settle = () => {
    const node = box.current;
    if (!node) return;
    if (atEnd.current) {
      node.scrollTop = node.scrollHeight;
      return;
    }
    const held = anchor.current;
    const row = held && node.querySelector<HTMLElement>(`[data-key="${CSS.escape(held.key)}"]`);
    if (row) node.scrollTop += row.offsetTop - node.scrollTop - held.top;
  };

  useLayoutEffect(() => {
    settle();
    const more = items.length - lastCount.current;
    lastCount.current = items.length;
    if (more > 0 && !atEnd.current && room.older.peek() !== "loading") setMissed((n) => n + 1);
  }, [items]);

  useEffect(() => {
    const observer = new ResizeObserver(settle);
    if (inner.current) observer.observe(inner.current);
    if (box.current) observer.observe(box.current);
    return () => observer.disconnect();
  }, [room]);

  // A short page does not scroll, so nothing would ever ask for more.
  useEffect(() => {
    const node = box.current;
    if (node && node.scrollHeight <= node.clientHeight + NEAR_TOP && items.length > 0) {
      if (!atEnd.current || node.scrollHeight <= node.clientHeight) room.loadOlder();
    }
  }, [items, room.older.value]);

  const toEnd = () => {
    atEnd.current = true;
    setMissed(0);
    settle();
  };

  return (
    <div class="log-frame">
      <div
        class="log"
        ref={box}
        onScroll={remember}
        tabIndex={0}
        role="log"
        aria-label="Messages"
        aria-live="off"
      >
        <div class="log-inner" ref={inner}>
          <div class="log-top muted small">
            {room.older.value === "no" ? (
              items.length > 0 && room.state.value === "live" && "The beginning of this session"
            ) : (
              <span class="spinner" />
            )}
          </div>
          {items.length === 0 && room.state.value === "live" && (
            <Empty icon="chat" title="Nothing said yet">
              <p>Write below. Agents in this session answer here, and everybody in it sees that.</p>
            </Empty>
          )}
          {items.map((item, index) => (
            <Row key={item.key} item={item} before={items[index - 1]} room={room} />
          ))}
        </div>
      </div>
      {missed > 0 && (
        <button type="button" class="btn small to-end" onClick={toEnd}>
          <Icon name="down" /> New messages
        </button>
      )}
    </div>
  );
}

function firstVisible(box: HTMLElement): { key: string; top: number } | null {
  const rows = box.querySelectorAll<HTMLElement>("[data-key]");
  // By halves: a long session has thousands of rows.
  let low = 0;
  let high = rows.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    const row = rows[middle] as HTMLElement;
    if (row.offsetTop + row.offsetHeight <= box.scrollTop) low = middle + 1;
    else high = middle;
  }
  const row = rows[low];
  return row ? { key: row.dataset.key ?? "", top: row.offsetTop - box.scrollTop } : null;
}

function Row({ item, before, room }: { item: Item; before: Item | undefined; room: Room }) {
  const newDay = item.at > 0 && (!before || (before.at > 0 && !sameDay(item.at, before.at)));
  const joined =
    !newDay &&
    item.kind === "chat" &&
    before?.kind === "chat" &&
    nameOf(item.from) === nameOf(before.from) &&
    item.from?.kind === before.from?.kind &&
    item.at - before.at < TOGETHER;
  return (
    <div class="log-row" data-key={item.key}>
      {newDay && (
        <div class="day">
          <span>{dayOf(item.at)}</span>
        </div>
      )}
      {item.kind === "chat" && <ChatRow item={item} joined={joined} room={room} />}
      {item.kind === "run" && <RunRow item={item} room={room} />}
      {item.kind === "notice" && <NoticeRow item={item} />}
    </div>
  );
}

function Typing({ room }: { room: Room }) {
  const names = [...new Set(room.typing.value.map(nameOf))];
  const busy = room.items.value.filter((item) => item.kind === "run" && isOpen(item));
  const known = agents.value ?? [];
  const working = busy.map((run) => {
    const id = run.kind === "run" ? run.agentId : "";
    return known.find((agent) => agent.id === id)?.name || id;
  });
  let said = "";
  if (names.length > 0) {
    said = `${names.slice(0, 3).join(", ")} ${names.length === 1 ? "is" : "are"} writing…`;
  } else if (working.length > 0) {
    const unique = [...new Set(working)];
    said = `${unique.slice(0, 3).join(", ")} ${unique.length === 1 ? "is" : "are"} answering`;
  }
  return (
    <div class="typing muted small" aria-live="polite">
      {said}
    </div>
  );
}
