/** One session: its head, what was said, who is writing, and where one writes oneself. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { agents } from "../lib/gateway";
import { forgetRoom, type Room } from "../lib/room";
import { go, href } from "../lib/router";
import { isOpen } from "../lib/timeline";
import { Icon } from "../ui/Icon";
import { bind } from "../ui/keys";
import { Avatar, Empty, nameOf } from "../ui/parts";
import { Composer } from "./Composer";
import { Details } from "./Details";
import { Log } from "./Log";

const detailsOpen = signal(matchMedia("(min-width: 1240px)").matches);

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
