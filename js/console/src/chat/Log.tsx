/** What was said in a session, of which only what is near the screen is part of the page. */
import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { dayOf, sameDay } from "../lib/format";
import type { Room } from "../lib/room";
import { blocksOf, type Item } from "../lib/timeline";
import { Icon } from "../ui/Icon";
import { memo } from "../ui/memo";
import { Empty, nameOf } from "../ui/parts";
import { ChatRow, NoticeRow, RunRow } from "./rows";

/** Pixels from the end within which one is "at the end" and stays there. */
const AT_END = 60;
/** Pixels from the beginning within which older messages are read. */
const NEAR_TOP = 900;
/** Messages of one person within this time stand together, in milliseconds. */
const TOGETHER = 5 * 60_000;

/** How far from the screen rows are kept ready. */
const MARGIN = "1600px 0px";

/**
 * What was said. At the end it stays at the end; anywhere else what one reads does not move,
 * whatever is added above or below.
 */
export function Log({ room }: { room: Room }) {
  const items = room.items.value;
  const blocks = blocksOf(items);
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
          {blocks.map((block, index) => (
            <Block
              key={block.id}
              items={block.items}
              before={blocks[index - 1]?.items.at(-1)}
              room={room}
              box={box}
              last={index === blocks.length - 1}
            />
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

interface BlockProps {
  items: readonly Item[];
  before: Item | undefined;
  room: Room;
  box: RefObject<HTMLElement | null>;
  last: boolean;
}

/**
 * Some rows that stand together. Far from the screen they are replaced by an empty box of exactly
 * their height, so that a session of thousands of messages costs no more than one of a hundred.
 */
const Block = memo(
  ({ items, before, room, box, last }: BlockProps) => {
    const node = useRef<HTMLDivElement>(null);
    const [height, setHeight] = useState<number | null>(null);
    useEffect(() => {
      const element = node.current;
      if (!element || last) return;
      const observer = new IntersectionObserver(
        ([entry]) => entry && setHeight(entry.isIntersecting ? null : element.offsetHeight),
        { root: box.current, rootMargin: MARGIN },
      );
      observer.observe(element);
      return () => observer.disconnect();
    }, [last, box]);
    const away = height !== null && !last;
    return (
      <div ref={node} class="block" style={{ height: away ? `${height}px` : "" }}>
        {!away &&
          items.map((item, index) => (
            <Row key={item.key} item={item} before={items[index - 1] ?? before} room={room} />
          ))}
      </div>
    );
  },
  (a, b) =>
    a.last === b.last &&
    a.room === b.room &&
    a.before === b.before &&
    a.items.length === b.items.length &&
    a.items.every((item, index) => item === b.items[index]),
);

const Row = memo(({ item, before, room }: { item: Item; before: Item | undefined; room: Room }) => {
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
});
