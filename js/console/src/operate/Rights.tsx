/** Which roles and scopes a credential gets. */
import { me } from "../lib/gateway";

export interface RightsDraft {
  roles: string[];
  scopes: string[];
  sessions: string;
  agents: string;
}

const ROLES = [
  ["webchat", "talks in sessions"],
  ["node", "is an agent"],
  ["observer", "reads only"],
  ["control", "operates the gateway"],
] as const;

const SCOPES = ["approve", "session:admin", "agent:admin", "credential:admin", "metrics"];

export function Rights({
  value,
  onChange,
}: {
  value: RightsDraft;
  onChange: (next: RightsDraft) => void;
}) {
  const toggle = (list: string[], word: string) =>
    list.includes(word) ? list.filter((entry) => entry !== word) : [...list, word];
  const own = me.value?.scopes ?? [];
  const offered = own.includes("admin") ? SCOPES : SCOPES.filter((scope) => own.includes(scope));
  return (
    <>
      <fieldset class="group">
        <legend>Roles</legend>
        {ROLES.map(([role, does]) => (
          <label class="check" key={role}>
            <input
              type="checkbox"
              checked={value.roles.includes(role)}
              onChange={() => onChange({ ...value, roles: toggle(value.roles, role) })}
            />
            {role} <span class="muted small">{does}</span>
          </label>
        ))}
      </fieldset>
      {offered.length > 0 && (
        <fieldset class="group">
          <legend>Scopes</legend>
          {offered.map((scope) => (
            <label class="check" key={scope}>
              <input
                type="checkbox"
                checked={value.scopes.includes(scope)}
                onChange={() => onChange({ ...value, scopes: toggle(value.scopes, scope) })}
              />
              <span class="mono small">{scope}</span>
            </label>
          ))}
        </fieldset>
      )}
    </>
  );
}
