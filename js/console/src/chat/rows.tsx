/** The rows of a conversation: what people say, what agents answer, and what happened. */

import { signal } from "@preact/signals";
import { type ComponentType, Fragment } from "preact";
import { useEffect, useState } from "preact/hooks";
import { duration, fullTime, inline, pretty, timeOf } from "../lib/format";
import { agents, explain, may, me } from "../lib/gateway";
import type { Room } from "../lib/room";
import {
  type Approval,
  type ChatItem,
  isOpen,
  type NoticeItem,
  type RunItem,
  type Step,
  type ToolCall,
} from "../lib/timeline";
import { Icon } from "../ui/Icon";
import { memo } from "../ui/memo";
import { Avatar, nameOf, toast } from "../ui/parts";

/** Markdown is loaded beside the first messages; until then they are plain text. */
const markdown = signal<ComponentType<{ text: string }> | null>(null);
import("./Markdown").then(
  (module) => {
    markdown.value = module.Markdown;
  },
  () => {},
);

function Text({ text }: { text: string }) {
  const Markdown = markdown.value;
  return Markdown ? <Markdown text={text} /> : <div class="md plain">{text}</div>;
}

function Time({ at }: { at: number }) {
  if (!at) return null;
  return (
    <time class="muted time num" dateTime={new Date(at).toISOString()} title={fullTime(at)}>
      {timeOf(at)}
    </time>
  );
}

export const ChatRow = memo(
  ({ item, joined, room }: { item: ChatItem; joined: boolean; room: Room }) => {
    const mine = item.from?.kind === "user" && item.from.userId === me.value?.userId;
    return (
      <article class={`msg ${item.state}${joined ? " joined" : ""}`}>
        {joined ? <span class="gutter" aria-hidden="true" /> : <Avatar who={item.from} />}
        <div class="msg-body">
          {!joined && (
            <header class="msg-head">
              <strong class="break">{nameOf(item.from)}</strong>
              {item.from?.kind === "agent" && <span class="badge accent">agent</span>}
              {mine && <span class="badge">you</span>}
              <Time at={item.at} />
            </header>
          )}
          <Text text={item.text} />
          {item.state === "failed" && (
            <div class="row wrap small failed-note" role="alert">
              <Icon name="alert" />
              <span class="break">Not sent: {item.error}</span>
              <button type="button" class="btn small" onClick={() => room.again(item)}>
                Send again
              </button>
              <button type="button" class="btn small quiet" onClick={() => room.discard(item)}>
                Discard
              </button>
            </div>
          )}
        </div>
      </article>
    );
  },
);

const ENDED: Partial<Record<RunItem["state"], string>> = {
  error: "failed",
  cancelled: "stopped",
  lost: "lost",
};

export const RunRow = memo(({ item, room }: { item: RunItem; room: Room }) => {
  const agent = (agents.value ?? []).find((entry) => entry.id === item.agentId);
  const open = isOpen(item);
  const ended = ENDED[item.state];
  const stoppable =
    open && (me.value?.role === "control" || may("session:admin") || me.value?.role === "webchat");
  return (
    <article class={`msg run ${item.state}`} aria-busy={open}>
      <Avatar who={{ kind: "agent", userId: item.agentId, agentId: item.agentId }} />
      <div class="msg-body">
        <header class="msg-head">
          <strong class="break">{agent?.name || item.agentId}</strong>
          <span class="badge accent">agent</span>
          <Time at={item.at} />
          {ended && (
            <span class={`badge ${item.state === "cancelled" ? "" : "danger"}`}>{ended}</span>
          )}
          {stoppable && (
            <button
              type="button"
              class="btn quiet small stop"
              onClick={() => room.cancel(item.runId)}
            >
              <Icon name="stop" /> Stop
            </button>
          )}
        </header>
        <Body item={item} room={room} />
        {item.error && (
          <p class="small run-error break">
            <Icon name="alert" /> {item.error}
          </p>
        )}
        {item.state === "waiting" && (
          <span class="dots" role="img" aria-label="thinking">
            <i />
            <i />
            <i />
          </span>
        )}
      </div>
    </article>
  );
});

/** The answer's text, with each tool call where it happened. */
function Body({ item, room }: { item: RunItem; room: Room }) {
  const pieces: (string | Step)[] = [];
  let at = 0;
  for (const step of item.steps) {
    const until = Math.min(step.offset, item.text.length);
    if (until > at) pieces.push(item.text.slice(at, until));
    at = Math.max(at, until);
    pieces.push(step);
  }
  if (at < item.text.length) pieces.push(item.text.slice(at));
  return (
    <>
      {pieces.map((piece, index) => (
        <Fragment key={typeof piece === "string" ? `t${index}` : stepKey(piece)}>
          {typeof piece === "string" ? (
            piece.trim() && <Text text={piece} />
          ) : piece.kind === "tool" ? (
            <ToolCard call={piece.call} />
          ) : (
            <ApprovalCard approval={piece.approval} room={room} open={isOpen(item)} />
          )}
        </Fragment>
      ))}
    </>
  );
}

const stepKey = (step: Step) =>
  step.kind === "tool" ? `c${step.call.callId}` : `a${step.approval.approvalId}`;

const ToolCard = memo(({ call }: { call: ToolCall }) => {
  const took = call.endedAt && call.startedAt ? call.endedAt - call.startedAt : null;
  const running = call.state === "running";
  return (
    <details class={`tool ${call.state}`}>
      <summary>
        <span class="tool-state">
          {running ? (
            <span class="spinner" />
          ) : (
            <Icon name={call.state === "ok" ? "check" : "alert"} />
          )}
        </span>
        <span class="mono tool-name">{call.tool}</span>
        <span class="mono muted clip grow tool-args">{inline(call.args)}</span>
        <span class="hidden">{running ? "running" : call.state === "ok" ? "done" : "failed"}</span>
        <span class="muted small num tool-note clip">
          {running ? (call.message ?? "") : took !== null ? duration(took) : ""}
        </span>
        <Icon name="chevron" class="turn" />
      </summary>
      <div class="tool-body">
        {call.args !== undefined && call.args !== null && (
          <>
            <h4 class="muted small">Arguments</h4>
            <pre class="code">{pretty(call.args)}</pre>
          </>
        )}
        {call.state === "ok" && (
          <>
            <h4 class="muted small">Result</h4>
            <pre class="code">{pretty(call.output ?? null)}</pre>
          </>
        )}
        {call.error && (
          <>
            <h4 class="muted small">Error</h4>
            <pre class="code error">{call.error}</pre>
          </>
        )}
      </div>
      <span class="bar" aria-hidden="true">
        <span style={{ transform: `scaleX(${running ? (call.progress ?? 0) / 100 : 0})` }} />
      </span>
    </details>
  );
});

function ApprovalCard({ approval, room, open }: { approval: Approval; room: Room; open: boolean }) {
  const [busy, setBusy] = useState(false);
  const [reason, setReason] = useState("");
  const [left, setLeft] = useState(() => approval.expiresAt - Date.now());
  const pending = approval.decision === null && open;
  useEffect(() => {
    if (!pending) return;
    const timer = setInterval(() => setLeft(approval.expiresAt - Date.now()), 1000);
    return () => clearInterval(timer);
  }, [pending, approval.expiresAt]);
  const allowed = may("approve");
  const decide = async (decision: "allow" | "deny") => {
    setBusy(true);
    try {
      await room.decide(approval, decision, reason.trim() || undefined);
    } catch (error) {
      toast(explain(error), "danger");
    }
    setBusy(false);
  };
  return (
    <section
      class={`approval ${approval.decision ?? (pending ? "pending" : "void")}`}
      aria-label={`Approval of ${approval.tool}`}
    >
      <div class="row wrap">
        <Icon name="shield" />
        <span class="grow break">
          {pending ? "May it run " : "Asked to run "}
          <code>{approval.tool}</code>
          {pending && "?"}
        </span>
        {pending && left > 0 && <span class="small num approval-left">{duration(left)} left</span>}
        {approval.decision && (
          <span class={`badge ${approval.decision === "allow" ? "ok" : "danger"}`}>
            {approval.decision === "allow" ? "allowed" : "denied"} by {nameOf(approval.by)}
          </span>
        )}
        {!approval.decision && !open && <span class="badge">not decided</span>}
      </div>
      <pre class="code">{pretty(approval.args ?? null)}</pre>
      {approval.reason && <p class="small break">“{approval.reason}”</p>}
      {pending && allowed && (
        <div class="row wrap">
          <input
            class="input grow approval-reason"
            placeholder="Reason (optional)"
            aria-label="Reason"
            maxLength={500}
            value={reason}
            onInput={(event) => setReason(event.currentTarget.value)}
          />
          <button type="button" class="btn" disabled={busy} onClick={() => decide("deny")}>
            Deny
          </button>
          <button type="button" class="btn primary" disabled={busy} onClick={() => decide("allow")}>
            Allow
          </button>
        </div>
      )}
      {pending && !allowed && <p class="muted small">Your credential may not decide this.</p>}
    </section>
  );
}

export const NoticeRow = memo(({ item }: { item: NoticeItem }) => (
  <p class="notice muted small break" title={fullTime(item.at)}>
    {notice(item)}
  </p>
));

function notice({ status, payload, from }: NoticeItem): string {
  const who = nameOf(from);
  switch (status) {
    case "patched":
      return `${who} changed the settings`;
    case "invited":
      return `${who} invited ${payload.userId ?? "somebody"}`;
    case "removed":
      return `${who} removed ${payload.userId ?? "somebody"}`;
    case "assigned":
      return `${payload.agentId ?? "An agent"} was assigned`;
    case "unassigned":
      return `${payload.agentId ?? "An agent"} was taken off`;
    default:
      return `${who} closed the session`;
  }
}
