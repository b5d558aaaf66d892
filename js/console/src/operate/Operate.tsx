/** The operator's view: what goes on, and what to do about it. */
import type { ComponentType } from "preact";
import { useEffect } from "preact/hooks";
import { me } from "../lib/gateway";
import { go, href, route } from "../lib/router";
import { Icon, type IconName } from "../ui/Icon";
import { Empty, roving } from "../ui/parts";
import { Audit } from "./Audit";
import { Connections } from "./Connections";
import { Devices } from "./Devices";
import { Overview } from "./Overview";
import { Requests } from "./Requests";
import { SessionsTable } from "./SessionsTable";
import { Tokens } from "./Tokens";
import "../styles/agents.css";
import "../styles/operate.css";

const SECTIONS: { id: string; label: string; icon: IconName; show: ComponentType }[] = [
  { id: "overview", label: "Overview", icon: "operate", show: Overview },
  { id: "connections", label: "Connections", icon: "link", show: Connections },
  { id: "sessions", label: "Sessions", icon: "hash", show: SessionsTable },
  { id: "requests", label: "Requests", icon: "route", show: Requests },
  { id: "devices", label: "Devices", icon: "device", show: Devices },
  { id: "tokens", label: "Tokens", icon: "key", show: Tokens },
  { id: "audit", label: "Audit log", icon: "log", show: Audit },
];

export function Operate() {
  const { id } = route.value;
  const section = SECTIONS.find((entry) => entry.id === id) ?? SECTIONS[0];
  useEffect(() => {
    if (!id && matchMedia("(min-width: 761px)").matches) go("operate", "overview", true);
  }, [id]);
  const Shown = section?.show;
  return (
    <div class={`view${id ? " detail" : ""}`}>
      <aside class="side" aria-label="Sections">
        <div class="side-head">
          <h1>Operate</h1>
        </div>
        {/* biome-ignore lint/a11y/noStaticElementInteractions: the keys move the focus among the links inside */}
        <div class="list" onKeyDown={roving}>
          <ul>
            {SECTIONS.map((entry) => (
              <li key={entry.id}>
                <a
                  class="entry slim"
                  href={href("operate", entry.id)}
                  aria-current={entry.id === (id ?? "overview") ? "true" : undefined}
                  data-item
                  tabIndex={entry.id === (id ?? "overview") ? 0 : -1}
                >
                  <Icon name={entry.icon} />
                  <span class="title">{entry.label}</span>
                </a>
              </li>
            ))}
          </ul>
        </div>
      </aside>
      <main class="main" id="main" tabIndex={-1}>
        <div class="page">
          <header class="main-head">
            <a class="btn quiet square back" href={href("operate")} aria-label="All sections">
              <Icon name="back" />
            </a>
            <h2 class="grow">{section?.label}</h2>
          </header>
          <div class="page-body" tabIndex={0}>
            {me.value && me.value.role !== "control" ? (
              <Empty icon="lock" title="For operators">
                <p>
                  You are signed in as {me.value.role}. This needs a credential with the role
                  control.
                </p>
              </Empty>
            ) : (
              Shown && <Shown key={section?.id} />
            )}
          </div>
        </div>
      </main>
    </div>
  );
}
