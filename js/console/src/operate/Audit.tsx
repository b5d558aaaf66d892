import { useState } from "preact/hooks";
import { fullTime, shortTime } from "../lib/format";
import type { Json } from "../lib/types";
import { type Column, PanelHead, Refusal, Table, useResource } from "./parts";

const COLUMNS: Column<Json>[] = [
  {
    name: "When",
    class: "num",
    cell: (row) => (
      <time dateTime={new Date(row.at).toISOString()} title={fullTime(row.at)}>
        {shortTime(row.at)}
      </time>
    ),
  },
  { name: "Who", cell: (row) => <span class="break">{row.actor || "–"}</span> },
  { name: "What", cell: (row) => <span class="mono break">{row.action}</span> },
  { name: "To", cell: (row) => <span class="mono small break">{row.target || "–"}</span> },
  {
    name: "Outcome",
    cell: (row) => (
      <span class={`badge ${row.outcome === "ok" ? "ok" : "danger"}`}>{row.outcome}</span>
    ),
  },
  { name: "From", cell: (row) => <span class="mono small break">{row.address || "–"}</span> },
  {
    name: "Detail",
    cell: (row) => (
      <span class="muted small break">
        {Object.entries(row.detail ?? {})
          .map(([key, value]) => `${key}: ${value}`)
          .join(" · ")}
      </span>
    ),
  },
];

/** Who did what to what, the newest first. */
export function Audit() {
  const [user, setUser] = useState("");
  const [action, setAction] = useState("");
  const [before, setBefore] = useState<number | null>(null);
  const query = new URLSearchParams({ limit: "100" });
  if (user.trim()) query.set("user", user.trim());
  if (action.trim()) query.set("action", action.trim());
  if (before !== null) query.set("before", String(before));
  const { data, error } = useResource(`/audit?${query}`, 5000);
  if (error && !data) return <Refusal error={error} />;
  return (
    <>
      <PanelHead title="Audit log" note="The newest first. Entries cannot be changed.">
        <div class="row wrap filters">
          <input
            class="input"
            placeholder="User"
            aria-label="Only this user"
            value={user}
            onInput={(event) => {
              setUser(event.currentTarget.value);
              setBefore(null);
            }}
          />
          <input
            class="input mono"
            placeholder="Action, auth.*"
            aria-label="Only this action"
            value={action}
            onInput={(event) => {
              setAction(event.currentTarget.value);
              setBefore(null);
            }}
          />
        </div>
      </PanelHead>
      {error && <p class="muted small">{error.message}</p>}
      <Table
        label="Audit log"
        columns={COLUMNS}
        rows={data?.entries ?? null}
        rowKey={(row) => String(row.seq)}
        empty={data?.more ? "Nothing like that so far back." : "Nothing like that is recorded."}
      />
      <div class="row">
        {before !== null && (
          <button type="button" class="btn" onClick={() => setBefore(null)}>
            Newest
          </button>
        )}
        {data?.more && (
          <button type="button" class="btn" onClick={() => setBefore(data.next)}>
            Older
          </button>
        )}
      </div>
    </>
  );
}
