import { useState } from "preact/hooks";
import { api } from "../lib/api";
import { ago, count, fullTime, plural } from "../lib/format";
import { client, explain, refresh, sessions } from "../lib/gateway";
import { enter } from "../lib/room";
import { href } from "../lib/router";
import type { SessionEntry } from "../lib/types";
import { toast } from "../ui/parts";
import { type Column, Confirm, PanelHead, Table } from "./parts";

/** All sessions; one of them can be closed. */
export function SessionsTable() {
  const [closing, setClosing] = useState<SessionEntry | null>(null);
  const [remove, setRemove] = useState(false);
  const rows = sessions.value;
  const columns: Column<SessionEntry>[] = [
    {
      name: "Session",
      cell: (row) => (
        <>
          <a class="break" href={href("chat", row.sessionId)}>
            {row.name || row.sessionId}
          </a>
          {row.name && <span class="muted small mono break sub-line">{row.sessionId}</span>}
        </>
      ),
    },
    { name: "Here", class: "num right", cell: (row) => count(row.memberCount) },
    { name: "Messages", class: "num right", cell: (row) => count(row.head) },
    {
      name: "Created",
      cell: (row) => <span title={fullTime(row.createdAt)}>{ago(row.createdAt)}</span>,
    },
    {
      name: "actions",
      class: "right",
      cell: (row) => (
        <button
          type="button"
          class="btn small danger"
          onClick={() => {
            setRemove(false);
            setClosing(row);
          }}
        >
          Close…
        </button>
      ),
    },
  ];
  return (
    <>
      <PanelHead title={rows ? plural(rows.length, "session") : "Sessions"} />
      <Table
        label="Sessions"
        columns={columns}
        rows={rows}
        rowKey={(row) => row.sessionId}
        empty="There are no sessions."
      />
      {closing && (
        <Confirm
          title={`Close ${closing.name || closing.sessionId}?`}
          action={remove ? "Close and delete" : "Close"}
          onClose={() => setClosing(null)}
          onConfirm={() => close(closing.sessionId, remove)}
        >
          <p>
            {count(closing.memberCount)} connections leave it. Without deleting, whoever joins again
            finds the log.
          </p>
          <label class="check">
            <input
              type="checkbox"
              checked={remove}
              onChange={(event) => setRemove(event.currentTarget.checked)}
            />
            Delete its record and its {count(closing.head)} messages too
          </label>
        </Confirm>
      )}
    </>
  );
}

async function close(id: string, remove: boolean): Promise<boolean> {
  try {
    await api("DELETE", `/sessions/${encodeURIComponent(id)}${remove ? "?delete=true" : ""}`);
  } catch (error) {
    if (!client.value || !(error instanceof Error)) return false;
    // A gateway without the HTTP API closes it over the connection that is there anyway.
    try {
      const room = enter(id);
      await room?.close(remove);
    } catch (second) {
      toast(explain(second), "danger");
      return false;
    }
  }
  toast(`${id} is closed`);
  await refresh();
  return true;
}
