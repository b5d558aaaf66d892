/** The agents view: who is online, what they can do, calling a tool by hand, and who would be asked. */
import { useEffect, useState } from "preact/hooks";
import { plural } from "../lib/format";
import { agents } from "../lib/gateway";
import { go, href, route } from "../lib/router";
import { type AgentEntry, toolsOf } from "../lib/types";
import { Icon } from "../ui/Icon";
import { bind } from "../ui/keys";
import { Avatar, Empty, roving } from "../ui/parts";
import { Explain } from "./Explain";
import { ToolPanel } from "./ToolPanel";
import "../styles/agents.css";

/** The name under which the list offers the routing decision; no agent's id begins so. */
const ROUTING = "~routing";

const RANK = { online: 0, busy: 1, offline: 2 };

export function Agents() {
  const { id } = route.value;
  const list = agents.value;
  const sorted = [...(list ?? [])].sort(
    (a, b) => RANK[a.status] - RANK[b.status] || a.id.localeCompare(b.id),
  );
  const agent = sorted.find((entry) => entry.id === id);

  useEffect(
    () =>
      bind([
        {
          keys: "/",
          does: "Search the agents",
          group: "Lists",
          run: () => document.getElementById("agent-search")?.focus(),
        },
      ]),
    [],
  );
  const first = sorted[0]?.id;
  useEffect(() => {
    if (!id && first && matchMedia("(min-width: 761px)").matches) go("agents", first, true);
  }, [id, first]);

  return (
    <div class={`view${id ? " detail" : ""}`}>
      <AgentList list={sorted} loaded={list !== null} current={id} />
      <main class="main" id="main" tabIndex={-1}>
        {id === ROUTING ? (
          <Explain />
        ) : agent ? (
          <AgentPage key={agent.id} agent={agent} />
        ) : (
          <Empty icon="agent" title={id ? `${id} is not registered` : "No agent is chosen"}>
            <p>
              {list?.length === 0
                ? "No agent is connected. Start one, and it appears here."
                : "Choose one on the left."}
            </p>
            {id && (
              <a class="btn" href={href("agents")}>
                All agents
              </a>
            )}
          </Empty>
        )}
      </main>
    </div>
  );
}

function AgentList({
  list,
  loaded,
  current,
}: {
  list: AgentEntry[];
  loaded: boolean;
  current: string | null;
}) {
  const [query, setQuery] = useState("");
  const found = list.filter((agent) => {
    const tools = toolsOf(agent).map((tool) => tool.name);
    return [agent.id, agent.name, agent.type, ...tools]
      .join(" ")
      .toLowerCase()
      .includes(query.toLowerCase());
  });
  return (
    <aside class="side" aria-label="Agents">
      <div class="side-head">
        <h1>Agents</h1>
        <a class="btn quiet small" href={href("agents", ROUTING)}>
          <Icon name="route" /> Routing
        </a>
      </div>
      <div class="side-tools">
        <div class="search">
          <Icon name="search" />
          <input
            id="agent-search"
            class="input"
            type="search"
            placeholder="Search names and tools"
            aria-label="Search the agents"
            value={query}
            onInput={(event) => setQuery(event.currentTarget.value)}
          />
        </div>
      </div>
      {/* biome-ignore lint/a11y/noStaticElementInteractions: the keys move the focus among the links inside */}
      <div class="list" onKeyDown={roving}>
        <ul>
          {found.map((agent, index) => (
            <li key={agent.id}>
              <a
                class="entry"
                href={href("agents", agent.id)}
                aria-current={agent.id === current ? "true" : undefined}
                data-item
                tabIndex={agent.id === current || (!current && index === 0) ? 0 : -1}
              >
                <Avatar who={{ kind: "agent", userId: agent.id, agentId: agent.id }} />
                <span class="clip">
                  <span class="title clip">{agent.name || agent.id}</span>
                  <br />
                  <span class="sub">
                    {agent.id} · {plural(toolsOf(agent).length, "tool")}
                  </span>
                </span>
                <Status agent={agent} bare />
              </a>
            </li>
          ))}
        </ul>
        {loaded && found.length === 0 && (
          <p class="muted small list-note">
            {query ? "None of that name." : "No agent is connected."}
          </p>
        )}
      </div>
    </aside>
  );
}

function Status({ agent, bare }: { agent: AgentEntry; bare?: boolean }) {
  return (
    <span class="row small muted">
      <span class={`dot ${agent.status}`} role="img" aria-label={agent.status} />
      {!bare && agent.status}
    </span>
  );
}

function AgentPage({ agent }: { agent: AgentEntry }) {
  const tools = toolsOf(agent);
  const [open, setOpen] = useState<string | null>(tools[0]?.name ?? null);
  const { capabilities } = agent;
  const can = [
    capabilities.chat && "chat",
    capabilities.streaming && "streaming",
    ...(capabilities.modes ?? []).map((mode) => `mode ${mode}`),
    ...Object.keys(capabilities.custom ?? {}),
  ].filter(Boolean);
  const tool = tools.find((entry) => entry.name === open);
  return (
    <div class="page">
      <header class="main-head">
        <a class="btn quiet square back" href={href("agents")} aria-label="All agents">
          <Icon name="back" />
        </a>
        <Avatar who={{ kind: "agent", userId: agent.id, agentId: agent.id }} />
        <div class="grow">
          <h2 class="clip">{agent.name || agent.id}</h2>
          <p class="muted small mono clip">{agent.id}</p>
        </div>
        <Status agent={agent} />
      </header>
      <div class="page-body">
        <dl class="facts">
          <Fact name="Type">{agent.type}</Fact>
          <Fact name="Load">{agent.load == null ? "–" : agent.load.toFixed(2)}</Fact>
          <Fact name="Generation">{agent.generation}</Fact>
          <Fact name="Can">
            <span class="row wrap tags">
              {can.length === 0 && "only its tools"}
              {can.map((word) => (
                <span class="badge" key={String(word)}>
                  {word}
                </span>
              ))}
            </span>
          </Fact>
          {Object.keys(agent.labels ?? {}).length > 0 && (
            <Fact name="Labels">
              <span class="row wrap tags">
                {Object.entries(agent.labels ?? {}).map(([key, value]) => (
                  <span class="badge" key={key}>
                    {key}={value}
                  </span>
                ))}
              </span>
            </Fact>
          )}
        </dl>
        <h3 class="section">Tools</h3>
        {tools.length === 0 && <p class="muted">It offers none.</p>}
        <div class="tools">
          <ul class="tool-list" aria-label="Tools">
            {tools.map((entry) => (
              <li key={entry.name}>
                <button
                  type="button"
                  class="tool-choice"
                  aria-pressed={entry.name === open}
                  onClick={() => setOpen(entry.name)}
                >
                  <span class="mono clip">{entry.name}</span>
                  {entry.description && <span class="muted small clip">{entry.description}</span>}
                </button>
              </li>
            ))}
          </ul>
          {tool && <ToolPanel key={tool.name} agent={agent} tool={tool} />}
        </div>
      </div>
    </div>
  );
}

function Fact({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt class="muted small">{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
