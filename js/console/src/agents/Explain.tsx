/** Which agent a request would reach, and why. */
import { useState } from "preact/hooks";
import { agents, client, explain } from "../lib/gateway";
import { href } from "../lib/router";
import { toolsOf } from "../lib/types";
import { Icon } from "../ui/Icon";
import { Avatar } from "../ui/parts";

interface Candidate {
  agentId: string;
  chosen: boolean;
  reason: string;
}

export function Explain() {
  const [by, setBy] = useState<"capability" | "agentId">("capability");
  const [wanted, setWanted] = useState("");
  const [labels, setLabels] = useState("");
  const [policy, setPolicy] = useState<"" | "least_busy" | "round_robin">("");
  const [found, setFound] = useState<Candidate[] | null>(null);
  const [problem, setProblem] = useState<string | null>(null);

  const known = agents.value ?? [];
  const words =
    by === "agentId"
      ? known.map((agent) => agent.id)
      : [
          ...new Set(
            known.flatMap((agent) => [
              ...toolsOf(agent).map((tool) => tool.name),
              ...(agent.capabilities.chat ? ["chat"] : []),
            ]),
          ),
        ];

  const ask = async () => {
    const gateway = client.value;
    if (!gateway || !wanted.trim()) return;
    setProblem(null);
    try {
      const pairs = labels
        .split(/[\s,]+/)
        .filter(Boolean)
        .map((pair) => pair.split("=", 2) as [string, string]);
      const candidates = await gateway.explain({
        [by]: wanted.trim(),
        ...(pairs.length > 0 ? { labels: Object.fromEntries(pairs) } : {}),
        ...(policy ? { policy } : {}),
      } as Parameters<typeof gateway.explain>[0]);
      setFound(candidates as Candidate[]);
    } catch (error) {
      setFound(null);
      setProblem(explain(error));
    }
  };

  return (
    <div class="page">
      <header class="main-head">
        <a class="btn quiet square back" href={href("agents")} aria-label="All agents">
          <Icon name="back" />
        </a>
        <div class="grow">
          <h2>Routing</h2>
          <p class="muted small">Whom a request would reach, and why. Nobody is asked.</p>
        </div>
      </header>
      <div class="page-body narrow">
        <form
          class="stack"
          onSubmit={(event) => {
            event.preventDefault();
            ask();
          }}
        >
          <div class="segments">
            <button
              type="button"
              aria-pressed={by === "capability"}
              onClick={() => setBy("capability")}
            >
              By capability
            </button>
            <button type="button" aria-pressed={by === "agentId"} onClick={() => setBy("agentId")}>
              By agent
            </button>
          </div>
          <div class="field">
            <label for="wanted">{by === "capability" ? "Capability or tool" : "Agent"}</label>
            <input
              id="wanted"
              class="input mono"
              list="wanted-list"
              autocomplete="off"
              spellcheck={false}
              value={wanted}
              onInput={(event) => setWanted(event.currentTarget.value)}
            />
            <datalist id="wanted-list">
              {words.map((word) => (
                <option key={word} value={word} />
              ))}
            </datalist>
          </div>
          <div class="pair">
            <div class="field">
              <label for="labels">Labels</label>
              <input
                id="labels"
                class="input mono"
                placeholder="region=eu team=ops"
                value={labels}
                onInput={(event) => setLabels(event.currentTarget.value)}
              />
            </div>
            <div class="field">
              <label for="policy">Policy</label>
              <select
                id="policy"
                class="input"
                value={policy}
                onChange={(event) => setPolicy(event.currentTarget.value as typeof policy)}
              >
                <option value="">the default</option>
                <option value="least_busy">least busy</option>
                <option value="round_robin">round robin</option>
              </select>
            </div>
          </div>
          <div>
            <button type="submit" class="btn primary" disabled={!wanted.trim()}>
              Explain
            </button>
          </div>
        </form>
        {problem && (
          <div class="note danger" role="alert">
            <Icon name="alert" />
            <span class="break">{problem}</span>
          </div>
        )}
        <div aria-live="polite">
          {found?.length === 0 && <p class="muted">No agent has that.</p>}
          {found && found.length > 0 && (
            <ol class="candidates">
              {found.map((candidate) => (
                <li key={candidate.agentId} class={candidate.chosen ? "chosen" : ""}>
                  <Avatar
                    who={{ kind: "agent", userId: candidate.agentId, agentId: candidate.agentId }}
                  />
                  <div class="grow">
                    <strong class="break">{candidate.agentId}</strong>
                    <p class="muted small break">{candidate.reason}</p>
                  </div>
                  {candidate.chosen && (
                    <span class="badge ok">
                      <Icon name="check" /> chosen
                    </span>
                  )}
                </li>
              ))}
            </ol>
          )}
        </div>
      </div>
    </div>
  );
}
