import { duration, plural } from "../lib/format";
import type { Json } from "../lib/types";
import { type Column, PanelHead, Refusal, Table, useResource } from "./parts";

const COLUMNS: Column<Json>[] = [
  {
    name: "For",
    cell: (row) => <span class="mono break">{row.capability ?? row.agentId ?? "–"}</span>,
  },
  {
    name: "Agent",
    cell: (row) =>
      row.agent ? <span class="mono break">{row.agent}</span> : <span class="muted">none yet</span>,
  },
  {
    name: "State",
    cell: (row) => (
      <span class={`badge ${row.waiting ? "warn" : "accent"}`}>
        {row.waiting ? "waiting" : "at work"}
      </span>
    ),
  },
  { name: "Asked by", cell: (row) => <span class="break">{row.userId}</span> },
  { name: "Age", class: "num right", cell: (row) => duration(row.age * 1000) },
  { name: "Time limit", class: "num right", cell: (row) => duration(row.timeoutMs) },
  { name: "Id", cell: (row) => <span class="mono small muted break">{row.id}</span> },
];

/** The requests that are not answered yet. */
export function Requests() {
  const { data, error } = useResource("/requests", 2000);
  if (error && !data) return <Refusal error={error} />;
  return (
    <>
      <PanelHead
        title={data ? plural(data.requests.length, "open request") : "Open requests"}
        note="Those that wait for an agent, and those that one works on."
      />
      <Table
        label="Open requests"
        columns={COLUMNS}
        rows={data?.requests ?? null}
        rowKey={(row) => row.id}
        empty="Everything is answered."
      />
    </>
  );
}
