/** Parts of the operator's pages: a list that is read anew, a table, and what is not there. */
import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, api } from "../lib/api";
import type { Json } from "../lib/types";
import { Icon } from "../ui/Icon";
import { Dialog, Empty, toast } from "../ui/parts";

export interface Resource {
  data: Json | null;
  error: ApiError | null;
  reload: () => Promise<void>;
}

/** Read a path of the API, and again every `period` milliseconds while it is looked at. */
export function useResource(path: string, period = 4000): Resource {
  const [data, setData] = useState<Json | null>(null);
  const [error, setError] = useState<ApiError | null>(null);
  const current = useRef(path);
  current.current = path;
  const reload = useCallback(async () => {
    try {
      const found = await api("GET", path);
      if (current.current !== path) return;
      setData(found);
      setError(null);
    } catch (problem) {
      if (problem instanceof ApiError && current.current === path) setError(problem);
    }
  }, [path]);
  useEffect(() => {
    reload();
    const timer = setInterval(() => {
      if (!document.hidden) reload();
    }, period);
    return () => clearInterval(timer);
  }, [reload, period]);
  return { data, error, reload };
}

/** Says plainly what the gateway does not have, or does not let this person see. */
export function Refusal({ error }: { error: ApiError }) {
  if (error.status === 401 || error.status === 403) {
    return (
      <Empty icon="lock" title="Not with this credential">
        <p>{error.message}</p>
      </Empty>
    );
  }
  if (error.status === 404 || error.status === 405 || error.code === "UNKNOWN_TYPE") {
    return (
      <Empty icon="operate" title="This gateway does not offer that">
        <p>
          {error.missing
            ? "It has no such part, or it is switched off in its configuration."
            : error.message}
        </p>
      </Empty>
    );
  }
  return (
    <Empty icon="alert" title="That did not work">
      <p>{error.message}</p>
    </Empty>
  );
}

export interface Column<T> {
  name: string;
  class?: string;
  cell: (row: T) => ComponentChildren;
}

export function Table<T>({
  label,
  columns,
  rows,
  rowKey,
  empty,
}: {
  label: string;
  columns: Column<T>[];
  rows: T[] | null;
  rowKey: (row: T) => string;
  empty: string;
}) {
  return (
    <div class="data" tabIndex={0} role="region" aria-label={label}>
      <table aria-busy={rows === null}>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column.name} class={column.class} scope="col">
                {column.name === "actions" ? <span class="hidden">Actions</span> : column.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {(rows ?? []).map((row) => (
            <tr key={rowKey(row)}>
              {columns.map((column) => (
                <td
                  key={column.name}
                  class={column.class}
                  data-label={column.name === "actions" ? "" : column.name}
                >
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {rows?.length === 0 && <p class="muted none">{empty}</p>}
    </div>
  );
}

/** Do something over the API and say how it went. */
export async function act(action: () => Promise<unknown>, done: string): Promise<boolean> {
  try {
    await action();
    toast(done);
    return true;
  } catch (error) {
    toast(error instanceof Error ? error.message : String(error), "danger");
    return false;
  }
}

export function Confirm({
  title,
  children,
  action,
  onConfirm,
  onClose,
}: {
  title: string;
  children: ComponentChildren;
  action: string;
  onConfirm: () => Promise<boolean>;
  onClose: () => void;
}) {
  const [busy, setBusy] = useState(false);
  return (
    <Dialog
      title={title}
      onClose={onClose}
      onSubmit={async () => {
        setBusy(true);
        if (await onConfirm()) onClose();
        setBusy(false);
      }}
      foot={
        <>
          <button type="button" class="btn" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="btn danger" disabled={busy}>
            {action}
          </button>
        </>
      }
    >
      {children}
    </Dialog>
  );
}

export function Ids({ ids, max = 3 }: { ids: string[]; max?: number }) {
  if (ids.length === 0) return <span class="muted">–</span>;
  return (
    <span class="row wrap tags" title={ids.join(", ")}>
      {ids.slice(0, max).map((id) => (
        <span class="badge mono clip" key={id}>
          {id}
        </span>
      ))}
      {ids.length > max && <span class="muted small">+{ids.length - max}</span>}
    </span>
  );
}

export function PanelHead({
  title,
  note,
  children,
}: {
  title: string;
  note?: string;
  children?: ComponentChildren;
}) {
  return (
    <div class="panel-head">
      <div class="grow">
        <h3>{title}</h3>
        {note && <p class="muted small">{note}</p>}
      </div>
      {children}
    </div>
  );
}

export const Problem = ({ text }: { text: string }) => (
  <div class="note danger" role="alert">
    <Icon name="alert" />
    <span class="break">{text}</span>
  </div>
);
