/** Who is in a session, and its settings. */
import { useState } from "preact/hooks";
import { explain, may, me } from "../lib/gateway";
import { forgetRoom, type Room } from "../lib/room";
import { go } from "../lib/router";
import type { Json, Sender } from "../lib/types";
import { Icon } from "../ui/Icon";
import { Avatar, Dialog, nameOf, toast } from "../ui/parts";

async function attempt(action: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await action();
    if (done) toast(done);
    return true;
  } catch (error) {
    toast(explain(error), "danger");
    return false;
  }
}

export function Details({ room, onClose }: { room: Room; onClose: () => void }) {
  const [closing, setClosing] = useState(false);
  return (
    <aside class="details" aria-label="Session">
      <header class="details-head">
        <h2>Session</h2>
        <button type="button" class="btn quiet square" aria-label="Close" onClick={onClose}>
          <Icon name="close" />
        </button>
      </header>
      <Members room={room} />
      <Invite room={room} />
      <Settings room={room} />
      <section class="row wrap">
        <button
          type="button"
          class="btn small"
          onClick={async () => {
            if (await attempt(() => room.leave(), `You left ${room.id}`)) {
              go("chat");
              forgetRoom(room.id);
            }
          }}
        >
          Leave
        </button>
        <button type="button" class="btn small danger" onClick={() => setClosing(true)}>
          Close session…
        </button>
      </section>
      {closing && <CloseDialog room={room} onClose={() => setClosing(false)} />}
    </aside>
  );
}

function Members({ room }: { room: Room }) {
  const groups = new Map<string, { who: Sender; connections: number }>();
  for (const who of room.members.value) {
    const key = `${who.kind}:${nameOf(who)}`;
    const known = groups.get(key);
    groups.set(key, { who: known?.who ?? who, connections: (known?.connections ?? 0) + 1 });
  }
  const all = [...groups.values()].sort(
    (a, b) => a.who.kind.localeCompare(b.who.kind) || nameOf(a.who).localeCompare(nameOf(b.who)),
  );
  return (
    <section>
      <h3>Here now</h3>
      <ul class="members">
        {all.map(({ who, connections }) => (
          <li key={`${who.kind}:${nameOf(who)}`} class="row">
            <Avatar who={who} tiny />
            <span class="grow clip">{nameOf(who)}</span>
            {connections > 1 && <span class="muted small">×{connections}</span>}
            <span class={`badge ${who.kind === "agent" ? "accent" : ""}`}>
              {who.kind === "agent" ? "agent" : who.userId === me.value?.userId ? "you" : "human"}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Invite({ room }: { room: Room }) {
  const [user, setUser] = useState("");
  return (
    <form
      class="stack tight"
      onSubmit={async (event) => {
        event.preventDefault();
        const name = user.trim();
        if (name && (await attempt(() => room.invite(name), `${name} is invited`))) setUser("");
      }}
    >
      <label class="label" for="invite">
        Invite
      </label>
      <div class="row">
        <input
          id="invite"
          class="input grow"
          placeholder="User id"
          value={user}
          onInput={(event) => setUser(event.currentTarget.value)}
        />
        <button type="submit" class="btn" disabled={!user.trim()}>
          Invite
        </button>
      </div>
    </form>
  );
}

function Settings({ room }: { room: Room }) {
  const info = room.info.value;
  const meta: Json = info.metadata ?? {};
  const patch = (changes: Json) => attempt(() => room.patch(changes));
  const admin = may("session:admin");
  return (
    <section class="stack">
      <h3>Settings</h3>
      <Field
        id="s-name"
        label="Name"
        value={info.name ?? ""}
        onSave={(name) => patch({ name: name || null })}
      />
      <Choice
        id="s-activation"
        label="Agents answer"
        value={meta.activation ?? "always"}
        options={[
          ["always", "every message"],
          ["mention", "when mentioned"],
        ]}
        onSave={(activation) => patch({ activation })}
      />
      <Choice
        id="s-visibility"
        label="Who may join"
        value={info.visibility ?? "shared"}
        options={[
          ["shared", "all who know the id"],
          ["private", "by invitation"],
        ]}
        onSave={(visibility) => patch({ visibility })}
      />
      <Field
        id="s-thinking"
        label="Thinking level"
        value={meta.thinkingLevel ?? ""}
        onSave={(thinkingLevel) => patch({ thinkingLevel: thinkingLevel || null })}
      />
      {admin && (
        <>
          <Field
            id="s-model"
            label="Model"
            value={meta.model ?? ""}
            onSave={(model) => patch({ model: model || null })}
          />
          <Choice
            id="s-policy"
            label="Agents may speak"
            value={meta.sendPolicy ?? "inherit"}
            options={[
              ["inherit", "as configured"],
              ["on", "yes"],
              ["off", "no, silence them"],
            ]}
            onSave={(sendPolicy) => patch({ sendPolicy })}
          />
        </>
      )}
    </section>
  );
}

function Field({
  id,
  label,
  value,
  onSave,
}: {
  id: string;
  label: string;
  value: string;
  onSave: (value: string) => void;
}) {
  const [draft, setDraft] = useState<string | null>(null);
  const save = () => {
    if (draft !== null && draft !== value) onSave(draft.trim());
    setDraft(null);
  };
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        class="input"
        value={draft ?? value}
        onInput={(event) => setDraft(event.currentTarget.value)}
        onBlur={save}
        onKeyDown={(event) => {
          if (event.key === "Enter") event.currentTarget.blur();
          if (event.key === "Escape") setDraft(null);
        }}
      />
    </div>
  );
}

function Choice({
  id,
  label,
  value,
  options,
  onSave,
}: {
  id: string;
  label: string;
  value: string;
  options: [string, string][];
  onSave: (value: string) => void;
}) {
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <select
        id={id}
        class="input"
        value={value}
        onChange={(event) => onSave(event.currentTarget.value)}
      >
        {options.map(([key, text]) => (
          <option key={key} value={key}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

function CloseDialog({ room, onClose }: { room: Room; onClose: () => void }) {
  const [remove, setRemove] = useState(false);
  return (
    <Dialog
      title={`Close ${room.id}?`}
      onClose={onClose}
      onSubmit={async () => {
        if (await attempt(() => room.close(remove), `${room.id} is closed`)) {
          onClose();
          go("chat");
          forgetRoom(room.id);
        }
      }}
      foot={
        <>
          <button type="button" class="btn" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="btn danger">
            {remove ? "Close and delete" : "Close"}
          </button>
        </>
      }
    >
      <p>Everybody in it leaves. Without deleting, whoever joins again finds the log.</p>
      <label class="check">
        <input
          type="checkbox"
          checked={remove}
          onChange={(event) => setRemove(event.currentTarget.checked)}
        />
        Delete its record and its log too
      </label>
    </Dialog>
  );
}
