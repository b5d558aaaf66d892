import { useState } from "preact/hooks";
import { api } from "../lib/api";
import { ago, bytes, fullTime, plural } from "../lib/format";
import { me } from "../lib/gateway";
import type { Json } from "../lib/types";
import { act, type Column, Confirm, Ids, PanelHead, Refusal, Table, useResource } from "./parts";

/** The live connections; one of them can be closed. */
export function Connections() {
  const { data, error, reload } = useResource("/clients?limit=300");
  const [kicking, setKicking] = useState<Json | null>(null);
  if (error && !data) return <Refusal error={error} />;
  const columns: Column<Json>[] = [
    {
      name: "User",
      cell: (row) => (
        <span class="row">
          <strong class="break">{row.userId}</strong>
          {row.id === me.value?.clientId && <span class="badge">you</span>}
        </span>
      ),
    },
    { name: "Role", cell: (row) => row.role ?? <span class="muted">not signed in</span> },
    {
      name: "Client",
      cell: (row) => (
        <>
          <span class="break">{row.deviceName ?? row.clientType ?? "–"}</span>
          <span class="muted small mono break sub-line">{row.id}</span>
        </>
      ),
    },
    { name: "Agents", cell: (row) => <Ids ids={row.agents ?? []} /> },
    { name: "Sessions", cell: (row) => <Ids ids={row.sessions ?? []} /> },
    { name: "From", cell: (row) => <span class="mono small">{row.address}</span> },
    {
      name: "Since",
      cell: (row) => <span title={fullTime(row.connectedAt)}>{ago(row.connectedAt)}</span>,
    },
    {
      name: "Queue",
      class: "num right",
      cell: (row) => (
        <span class={row.lagging ? "badge warn" : ""}>
          {bytes(row.buffered ?? 0)}
          {row.lagging && " · slow"}
        </span>
      ),
    },
    {
      name: "actions",
      class: "right",
      cell: (row) => (
        <button type="button" class="btn small danger" onClick={() => setKicking(row)}>
          Kick
        </button>
      ),
    },
  ];
  return (
    <>
      <PanelHead
        title={
          data
            ? `${plural(data.clients.length, "connection")}${data.more ? " and more" : ""}`
            : "Connections"
        }
        note="The oldest first. A kicked client does not come back by itself."
      />
      <Table
        label="Connections"
        columns={columns}
        rows={data?.clients ?? null}
        rowKey={(row) => row.id}
        empty="Nobody is connected."
      />
      {kicking && (
        <Confirm
          title={`Kick ${kicking.userId}?`}
          action="Kick"
          onClose={() => setKicking(null)}
          onConfirm={async () => {
            const done = await act(
              () => api("DELETE", `/clients/${encodeURIComponent(kicking.id)}`),
              `${kicking.userId} is disconnected`,
            );
            await reload();
            return done;
          }}
        >
          <p>
            The connection <code class="break">{kicking.id}</code> from {kicking.address} is closed.
            {kicking.agents?.length > 0 && ` Its agents end too: ${kicking.agents.join(", ")}.`}
          </p>
        </Confirm>
      )}
    </>
  );
}
