import { useState } from "preact/hooks";
import { api } from "../lib/api";
import { ago, fullTime, plural } from "../lib/format";
import type { Json } from "../lib/types";
import { Icon } from "../ui/Icon";
import { copy, Dialog } from "../ui/parts";
import {
  act,
  type Column,
  Confirm,
  Ids,
  PanelHead,
  Problem,
  Refusal,
  Table,
  useResource,
} from "./parts";
import { Rights, type RightsDraft } from "./Rights";

const LIFETIMES: [string, number | null][] = [
  ["1 hour", 3600],
  ["1 day", 86_400],
  ["30 days", 2_592_000],
  ["1 year", 31_536_000],
  ["does not expire", null],
];

function State({ row }: { row: Json }) {
  if (row.revokedAt)
    return (
      <span class="badge danger" title={fullTime(row.revokedAt)}>
        revoked
      </span>
    );
  if (row.expiresAt && row.expiresAt < Date.now()) return <span class="badge">expired</span>;
  return <span class="badge ok">good</span>;
}

/** Tokens: make, list, rotate and revoke. A secret is shown once. */
export function Tokens() {
  const { data, error, reload } = useResource("/tokens", 8000);
  const [creating, setCreating] = useState(false);
  const [secret, setSecret] = useState<Json | null>(null);
  const [ending, setEnding] = useState<{ row: Json; how: "revoke" | "rotate" } | null>(null);
  if (error && !data) return <Refusal error={error} />;
  const columns: Column<Json>[] = [
    {
      name: "Name",
      cell: (row) => (
        <>
          <strong class="break">{row.name}</strong>
          <span class="muted small mono break sub-line">{row.id}</span>
        </>
      ),
    },
    { name: "User", cell: (row) => <span class="break">{row.userId}</span> },
    { name: "Roles", cell: (row) => <Ids ids={row.roles ?? []} /> },
    { name: "Scopes", cell: (row) => <Ids ids={row.scopes ?? []} /> },
    { name: "State", cell: (row) => <State row={row} /> },
    {
      name: "Last used",
      cell: (row) => (
        <span title={fullTime(row.lastUsedAt)}>
          {row.lastUsedAt ? ago(row.lastUsedAt) : "never"}
        </span>
      ),
    },
    {
      name: "Expires",
      cell: (row) => (
        <span>{row.expiresAt ? fullTime(row.expiresAt) : <span class="muted">never</span>}</span>
      ),
    },
    {
      name: "actions",
      class: "right",
      cell: (row) =>
        !row.revokedAt && (
          <span class="row end">
            <button
              type="button"
              class="btn small"
              onClick={() => setEnding({ row, how: "rotate" })}
            >
              Rotate
            </button>
            <button
              type="button"
              class="btn small danger"
              onClick={() => setEnding({ row, how: "revoke" })}
            >
              Revoke
            </button>
          </span>
        ),
    },
  ];
  return (
    <>
      <PanelHead
        title={data ? plural(data.tokens.length, "token") : "Tokens"}
        note="Only their names are kept here; a secret is shown once, when it is made."
      >
        <button type="button" class="btn primary" onClick={() => setCreating(true)}>
          <Icon name="plus" /> New token
        </button>
      </PanelHead>
      <Table
        label="Tokens"
        columns={columns}
        rows={data?.tokens ?? null}
        rowKey={(row) => row.id}
        empty="No tokens are stored."
      />
      {creating && (
        <Create
          onClose={() => setCreating(false)}
          onMade={(made) => {
            setCreating(false);
            setSecret(made);
            reload();
          }}
        />
      )}
      {secret && <Secret made={secret} onClose={() => setSecret(null)} />}
      {ending && (
        <Confirm
          title={`${ending.how === "revoke" ? "Revoke" : "Rotate"} ${ending.row.name}?`}
          action={ending.how === "revoke" ? "Revoke" : "Rotate"}
          onClose={() => setEnding(null)}
          onConfirm={async () => {
            const path = `/tokens/${encodeURIComponent(ending.row.id)}`;
            const good =
              ending.how === "revoke"
                ? await act(() => api("DELETE", path), `${ending.row.name} is revoked`)
                : await act(
                    async () => setSecret(await api("POST", `${path}/rotate`)),
                    `${ending.row.name} has a new secret`,
                  );
            await reload();
            return good;
          }}
        >
          <p>
            {ending.how === "revoke"
              ? "It ends at once, and so does every connection that it opened."
              : "It gets a new secret, which is shown once. The old one ends at once."}
          </p>
        </Confirm>
      )}
    </>
  );
}

function Create({ onClose, onMade }: { onClose: () => void; onMade: (made: Json) => void }) {
  const [name, setName] = useState("");
  const [user, setUser] = useState("");
  const [life, setLife] = useState(2);
  const [rights, setRights] = useState<RightsDraft>({
    roles: ["webchat"],
    scopes: [],
    sessions: "",
    agents: "",
  });
  const [problem, setProblem] = useState<string | null>(null);
  const words = (text: string) => text.split(/[\s,]+/).filter(Boolean);
  const submit = async () => {
    setProblem(null);
    const lifetime = LIFETIMES[life]?.[1];
    try {
      onMade(
        await api("POST", "/tokens", {
          name: name.trim(),
          roles: rights.roles,
          scopes: rights.scopes,
          ...(user.trim() ? { userId: user.trim() } : {}),
          ...(words(rights.sessions).length ? { sessionPatterns: words(rights.sessions) } : {}),
          ...(words(rights.agents).length ? { agentPatterns: words(rights.agents) } : {}),
          ...(lifetime ? { expiresIn: lifetime } : {}),
        }),
      );
    } catch (error) {
      setProblem(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <Dialog
      title="New token"
      onClose={onClose}
      onSubmit={submit}
      foot={
        <>
          <button type="button" class="btn" onClick={onClose}>
            Cancel
          </button>
          <button
            type="submit"
            class="btn primary"
            disabled={!name.trim() || rights.roles.length === 0}
          >
            Make token
          </button>
        </>
      }
    >
      <div class="pair">
        <div class="field">
          <label for="token-name">Name</label>
          <input
            id="token-name"
            class="input"
            placeholder="build agent"
            value={name}
            onInput={(event) => setName(event.currentTarget.value)}
          />
        </div>
        <div class="field">
          <label for="token-user">User</label>
          <input
            id="token-user"
            class="input"
            placeholder="you"
            value={user}
            onInput={(event) => setUser(event.currentTarget.value)}
          />
        </div>
      </div>
      <Rights value={rights} onChange={setRights} />
      <div class="pair">
        <div class="field">
          <label for="token-sessions">Sessions</label>
          <input
            id="token-sessions"
            class="input mono"
            placeholder="all, or team.*"
            value={rights.sessions}
            onInput={(event) => setRights({ ...rights, sessions: event.currentTarget.value })}
          />
        </div>
        <div class="field">
          <label for="token-life">Lifetime</label>
          <select
            id="token-life"
            class="input"
            value={String(life)}
            onChange={(event) => setLife(Number(event.currentTarget.value))}
          >
            {LIFETIMES.map(([label], index) => (
              <option key={label} value={index}>
                {label}
              </option>
            ))}
          </select>
        </div>
      </div>
      {problem && <Problem text={problem} />}
    </Dialog>
  );
}

function Secret({ made, onClose }: { made: Json; onClose: () => void }) {
  return (
    <Dialog
      title={`Token ${made.name}`}
      onClose={onClose}
      foot={
        <button type="button" class="btn primary" onClick={onClose}>
          I have stored it
        </button>
      }
    >
      <p>This is the only time that it is shown.</p>
      <div class="row">
        <input
          class="input mono grow"
          readOnly
          aria-label="The secret"
          value={made.token ?? ""}
          onFocus={(event) => event.currentTarget.select()}
        />
        <button type="button" class="btn" onClick={() => copy(made.token ?? "")}>
          <Icon name="copy" /> Copy
        </button>
      </div>
    </Dialog>
  );
}
