/** Where one writes, with completion of the agents' names. */
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { agents, link } from "../lib/gateway";
import type { Room } from "../lib/room";
import { isOpen } from "../lib/timeline";
import { Icon } from "../ui/Icon";
import { Avatar } from "../ui/parts";
import { mentionAt } from "./mentions";

/** What was written in each session and not sent yet. */
const drafts = new Map<string, string>();

export function Composer({ room }: { room: Room }) {
  const [draft, setDraft] = useState(drafts.get(room.id) ?? "");
  const [caret, setCaret] = useState(0);
  const [choice, setChoice] = useState(0);
  const [dismissed, setDismissed] = useState(false);
  const [asked, setAsked] = useState(false);
  const box = useRef<HTMLTextAreaElement>(null);
  const nextCaret = useRef<number | null>(null);

  useEffect(() => {
    if (matchMedia("(hover: hover)").matches) box.current?.focus({ preventScroll: true });
  }, []);

  useLayoutEffect(() => {
    const node = box.current;
    if (!node) return;
    node.style.height = "auto";
    node.style.height = `${Math.min(node.scrollHeight, 240)}px`;
    if (nextCaret.current !== null) {
      node.setSelectionRange(nextCaret.current, nextCaret.current);
      nextCaret.current = null;
    }
  }, [draft]);

  const write = (text: string, at: number) => {
    drafts.set(room.id, text);
    setDraft(text);
    setCaret(at);
    setChoice(0);
  };

  const mention = dismissed ? null : mentionAt(draft, caret);
  const offered = mention === null ? [] : candidates(room, mention.query);
  const chosen = Math.min(choice, offered.length - 1);

  const complete = (id: string | undefined) => {
    if (!mention || id === undefined) return;
    const text = `${draft.slice(0, mention.start)}@${id} ${draft.slice(caret).replace(/^ /, "")}`;
    nextCaret.current = mention.start + id.length + 2;
    write(text, nextCaret.current);
    box.current?.focus();
  };

  const joining = room.state.value === "joining";
  const send = () => {
    const text = draft.trim();
    setAsked(Boolean(text) && joining);
    if (!text || room.state.value !== "live") return;
    write("", 0);
    room.say(text);
    box.current?.focus();
  };

  useEffect(() => {
    // Enter was pressed before the session had answered.
    if (asked && !joining) send();
  }, [joining]);

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (offered.length > 0) {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        setChoice((chosen + step + offered.length) % offered.length);
        return;
      }
      if (event.key === "Enter" || event.key === "Tab") {
        event.preventDefault();
        complete(offered[chosen]?.id);
        return;
      }
      if (event.key === "Escape") {
        event.preventDefault();
        setDismissed(true);
        return;
      }
    }
    if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      box.current?.blur();
    }
  };

  const working = room.items.value.some((item) => item.kind === "run" && isOpen(item));
  return (
    <div class="composer">
      {offered.length > 0 && (
        <div class="mentions" id="mentions" role="listbox" aria-label="Agents">
          {offered.map((agent, index) => (
            // biome-ignore lint/a11y/useFocusableInteractive: the text field keeps the focus
            // biome-ignore lint/a11y/useKeyWithClickEvents: as above
            <div
              key={agent.id}
              id={`mention-${index}`}
              role="option"
              aria-selected={index === chosen}
              onMouseDown={(event) => event.preventDefault()}
              onClick={() => complete(agent.id)}
            >
              <Avatar tiny who={{ kind: "agent", userId: agent.id, agentId: agent.id }} />
              <span class="clip">@{agent.id}</span>
              <span class="muted small clip">{agent.name}</span>
            </div>
          ))}
        </div>
      )}
      <div class="composer-box">
        <textarea
          ref={box}
          id="composer"
          rows={1}
          placeholder={
            link.value === "open" ? "Message, @ for an agent" : "Sent when the connection is back"
          }
          aria-label="Message"
          aria-autocomplete="list"
          aria-controls={offered.length > 0 ? "mentions" : undefined}
          aria-activedescendant={offered.length > 0 ? `mention-${chosen}` : undefined}
          value={draft}
          onInput={(event) => {
            const { value, selectionStart } = event.currentTarget;
            setDismissed(false);
            write(value, selectionStart);
            if (value) room.tellTyping();
          }}
          onSelect={(event) => setCaret(event.currentTarget.selectionStart)}
          onKeyDown={onKeyDown}
        />
        {working && (
          <button
            type="button"
            class="btn square"
            aria-label="Stop the answers"
            title="Stop the answers (Ctrl .)"
            onClick={() => room.cancelAll()}
          >
            <Icon name="stop" />
          </button>
        )}
        <button
          type="button"
          class="btn primary square"
          aria-label="Send"
          disabled={!draft.trim()}
          onClick={send}
        >
          <Icon name="send" />
        </button>
      </div>
    </div>
  );
}

function candidates(room: Room, query: string): { id: string; name: string }[] {
  const here = room.members.value
    .map((member) => member.agentId)
    .filter((id): id is string => Boolean(id));
  const known = new Map((agents.value ?? []).map((agent) => [agent.id, agent.name]));
  const ids = [...new Set([...here, ...known.keys()])];
  return ids
    .map((id) => ({ id, name: known.get(id) ?? "" }))
    .filter(({ id, name }) => `${id} ${name}`.toLowerCase().includes(query.toLowerCase()))
    .slice(0, 6);
}
