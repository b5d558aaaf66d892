import { useState } from "preact/hooks";
import { api } from "../lib/api";
import { ago, fullTime } from "../lib/format";
import type { Json } from "../lib/types";
import { Icon } from "../ui/Icon";
import { Dialog } from "../ui/parts";
import { act, type Column, Confirm, Ids, PanelHead, Refusal, Table, useResource } from "./parts";
import { Rights, type RightsDraft } from "./Rights";

const idOf = (row: Json): string => row.deviceId ?? row.id;

/** Devices that wait to be let in, and those that are paired. */
export function Devices() {
  const { data, error, reload } = useResource("/devices", 3000);
  const [approving, setApproving] = useState<Json | null>(null);
  const [removing, setRemoving] = useState<Json | null>(null);
  if (error && !data) return <Refusal error={error} />;
  const call = async (method: "POST" | "DELETE", path: string, done: string, body?: Json) => {
    const good = await act(() => api(method, path, body), done);
    await reload();
    return good;
  };
  const columns: Column<Json>[] = [
    {
      name: "Device",
      cell: (row) => (
        <>
          <strong class="break">{row.name ?? idOf(row)}</strong>
          <span class="muted small mono break sub-line">{idOf(row)}</span>
        </>
      ),
    },
    { name: "User", cell: (row) => <span class="break">{row.userId}</span> },
    {
      name: "Key",
      cell: (row) => <span class="mono small break">{row.fingerprint ?? "–"}</span>,
    },
    { name: "Roles", cell: (row) => <Ids ids={row.roles ?? []} /> },
    { name: "Scopes", cell: (row) => <Ids ids={row.scopes ?? []} /> },
    {
      name: "Approved",
      cell: (row) => (
        <span title={fullTime(row.approvedAt)}>
          {ago(row.approvedAt)} by {row.approvedBy}
        </span>
      ),
    },
    {
      name: "actions",
      class: "right",
      cell: (row) => (
        <span class="row end">
          <button
            type="button"
            class="btn small"
            title="End its token; it gets another when it proves its key again"
            onClick={() =>
              call("POST", `/devices/${encodeURIComponent(idOf(row))}/rotate`, "Rotated")
            }
          >
            Rotate
          </button>
          <button type="button" class="btn small danger" onClick={() => setRemoving(row)}>
            Remove
          </button>
        </span>
      ),
    },
  ];
  const pending: Json[] = data?.pending ?? [];
  return (
    <>
      <PanelHead
        title="Waiting for approval"
        note="A device that proved its key and waits for somebody to let it in."
      />
      <ul class="pending">
        {pending.map((row) => (
          <li key={row.requestId ?? idOf(row)}>
            <Icon name="device" />
            <div class="grow">
              <strong class="break">{row.name ?? idOf(row)}</strong>
              <p class="muted small break">
                <span class="mono">{idOf(row)}</span> from {row.address}, asks for{" "}
                {row.role ?? "any role"}, {ago(row.createdAt)}
              </p>
              {row.fingerprint && (
                <p class="mono small break" title="Compare it with what the device shows">
                  {row.fingerprint}
                </p>
              )}
              {row.replaces && (
                <p class="small break warn-text">
                  Another key is paired under this name; approving replaces it.
                </p>
              )}
            </div>
            <button
              type="button"
              class="btn small"
              onClick={() =>
                call(
                  "POST",
                  `/devices/${encodeURIComponent(row.requestId ?? idOf(row))}/reject`,
                  "Rejected",
                )
              }
            >
              Reject
            </button>
            <button type="button" class="btn small primary" onClick={() => setApproving(row)}>
              Approve…
            </button>
          </li>
        ))}
        {data && pending.length === 0 && <li class="muted none">No device waits.</li>}
      </ul>
      <PanelHead title="Paired devices" />
      <Table
        label="Paired devices"
        columns={columns}
        rows={data?.devices ?? null}
        rowKey={idOf}
        empty="No device is paired."
      />
      {approving && (
        <Approve
          row={approving}
          onClose={() => setApproving(null)}
          onApprove={(rights) =>
            call(
              "POST",
              `/devices/${encodeURIComponent(approving.requestId ?? idOf(approving))}/approve`,
              "Approved",
              rights,
            )
          }
        />
      )}
      {removing && (
        <Confirm
          title={`Remove ${removing.name ?? idOf(removing)}?`}
          action="Remove"
          onClose={() => setRemoving(null)}
          onConfirm={() =>
            call("DELETE", `/devices/${encodeURIComponent(idOf(removing))}`, "Removed")
          }
        >
          <p>Its key and its token end at once, and so do its connections.</p>
        </Confirm>
      )}
    </>
  );
}

function Approve({
  row,
  onClose,
  onApprove,
}: {
  row: Json;
  onClose: () => void;
  onApprove: (rights: Json) => Promise<boolean>;
}) {
  const [rights, setRights] = useState<RightsDraft>({
    roles: [row.role ?? "webchat"],
    scopes: [],
    sessions: "",
    agents: "",
  });
  return (
    <Dialog
      title={`Approve ${row.name ?? idOf(row)}`}
      onClose={onClose}
      onSubmit={async () => {
        const { roles, scopes } = rights;
        if (await onApprove({ roles, scopes })) onClose();
      }}
      foot={
        <>
          <button type="button" class="btn" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="btn primary" disabled={rights.roles.length === 0}>
            Approve
          </button>
        </>
      }
    >
      <p class="muted">
        From {row.address}. Approve only what you or somebody you know has just started, and whose
        key is the one that it shows.
      </p>
      {row.fingerprint && <pre class="code">{row.fingerprint}</pre>}
      <Rights value={rights} onChange={setRights} />
    </Dialog>
  );
}
