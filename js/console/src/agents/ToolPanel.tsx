/** Calling one tool by hand: a form or JSON, and what came of it. */
import { useMemo, useRef, useState } from "preact/hooks";
import { TrunklineError } from "trunkline-client";
import { duration, pretty } from "../lib/format";
import { client, explain } from "../lib/gateway";
import { argumentsOf, type Draft, draftOf, fieldsOf, type Problem } from "../lib/schema";
import type { AgentEntry, Json, ToolSpec } from "../lib/types";
import { Icon } from "../ui/Icon";
import { copy } from "../ui/parts";
import { SchemaForm } from "./SchemaForm";

interface Outcome {
  state: "running" | "ok" | "failed";
  chunks: Json[];
  result?: Json;
  error?: string;
  code?: string;
  took?: number;
}

export function ToolPanel({ agent, tool }: { agent: AgentEntry; tool: ToolSpec }) {
  const fields = useMemo(
    () => (tool.inputSchema ? fieldsOf(tool.inputSchema) : null),
    [tool.inputSchema],
  );
  const [raw, setRaw] = useState(fields === null);
  const [draft, setDraft] = useState<Draft>(() => draftOf(fields ?? []));
  const [json, setJson] = useState("{}");
  const [problems, setProblems] = useState<Problem[]>([]);
  const [outcome, setOutcome] = useState<Outcome | null>(null);
  const running = useRef<AbortController | null>(null);

  const showRaw = (next: boolean) => {
    if (next && fields) setJson(pretty(argumentsOf(fields, draft).value));
    setProblems([]);
    setRaw(next);
  };

  const args = (): Json | undefined => {
    if (!raw && fields) {
      const read = argumentsOf(fields, draft);
      setProblems(read.problems);
      return read.problems.length > 0 ? undefined : read.value;
    }
    try {
      const value = JSON.parse(json);
      setProblems([]);
      return value;
    } catch {
      setProblems([{ path: "", message: "These arguments are not JSON." }]);
    }
  };

  const call = async () => {
    const gateway = client.value;
    const params = args();
    if (!gateway || params === undefined) return;
    const began = performance.now();
    const abort = new AbortController();
    running.current = abort;
    const chunks: Json[] = [];
    setOutcome({ state: "running", chunks });
    try {
      const pieces = gateway.requestStream({
        agentId: agent.id,
        method: tool.name,
        params,
        signal: abort.signal,
      });
      for await (const piece of pieces) {
        chunks.push(piece);
        setOutcome({ state: "running", chunks: [...chunks] });
      }
      setOutcome({ state: "ok", chunks: [...chunks], took: performance.now() - began });
    } catch (error) {
      setOutcome({
        state: "failed",
        chunks: [...chunks],
        error: abort.signal.aborted ? "You stopped it." : explain(error),
        code: error instanceof TrunklineError ? error.code : undefined,
        took: performance.now() - began,
      });
    }
    running.current = null;
  };

  const busy = outcome?.state === "running";
  return (
    <section class="tool-panel" aria-label={`Tool ${tool.name}`}>
      <header class="row wrap">
        <h4 class="mono grow break">{tool.name}</h4>
        {fields !== null && (
          <div class="segments">
            <button type="button" aria-pressed={!raw} onClick={() => showRaw(false)}>
              Form
            </button>
            <button type="button" aria-pressed={raw} onClick={() => showRaw(true)}>
              JSON
            </button>
          </div>
        )}
      </header>
      {tool.description && <p class="muted break">{tool.description}</p>}
      <form
        class="stack"
        noValidate
        onSubmit={(event) => {
          event.preventDefault();
          call();
        }}
      >
        {raw || fields === null ? (
          <div class="field">
            <label for="raw-args">Arguments</label>
            <textarea
              id="raw-args"
              class="input mono"
              rows={8}
              spellcheck={false}
              value={json}
              onInput={(event) => setJson(event.currentTarget.value)}
            />
            {problems[0] && <span class="hint wrong">{problems[0].message}</span>}
          </div>
        ) : (
          <>
            {fields.length === 0 && <p class="muted small">It takes no arguments.</p>}
            <SchemaForm fields={fields} draft={draft} problems={problems} onChange={setDraft} />
          </>
        )}
        <div class="row">
          <button type="submit" class="btn primary" disabled={busy || agent.status === "offline"}>
            <Icon name="play" /> Call
          </button>
          {busy && (
            <button type="button" class="btn" onClick={() => running.current?.abort()}>
              Cancel
            </button>
          )}
          {agent.status === "offline" && <span class="muted small">The agent is offline.</span>}
        </div>
      </form>
      {outcome && <Result outcome={outcome} />}
      {tool.inputSchema && (
        <details class="schema">
          <summary class="small muted">Schema</summary>
          <pre class="code">{pretty(tool.inputSchema)}</pre>
        </details>
      )}
    </section>
  );
}

function Result({ outcome }: { outcome: Outcome }) {
  const { state, chunks, error, code, took } = outcome;
  const shown = pretty(chunks.length === 1 ? chunks[0] : chunks);
  return (
    <div class={`outcome ${state}`} aria-live="polite">
      <div class="row">
        {state === "running" ? (
          <span class="spinner" />
        ) : (
          <Icon name={state === "ok" ? "check" : "alert"} />
        )}
        <strong class="grow">
          {state === "running" ? "Running…" : state === "ok" ? "Result" : (code ?? "Failed")}
        </strong>
        {took !== undefined && <span class="muted small num">{duration(took)}</span>}
        {state === "ok" && (
          <button
            type="button"
            class="btn quiet small square"
            aria-label="Copy the result"
            onClick={() => copy(shown)}
          >
            <Icon name="copy" />
          </button>
        )}
      </div>
      {error && <p class="break">{error}</p>}
      {chunks.length > 0 && <pre class="code">{shown}</pre>}
    </div>
  );
}
