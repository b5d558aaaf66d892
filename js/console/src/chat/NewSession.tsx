import { useState } from "preact/hooks";
import { agents, client, explain, refresh } from "../lib/gateway";
import { enter } from "../lib/room";
import { go } from "../lib/router";
import { Icon } from "../ui/Icon";
import { Dialog } from "../ui/parts";

/** Make a session, or join one whose id is in use. */
export function NewSession({ onClose }: { onClose: () => void }) {
  const [id, setId] = useState("");
  const [name, setName] = useState("");
  const [agent, setAgent] = useState("");
  const [visibility, setVisibility] = useState<"shared" | "private">("shared");
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const talkers = (agents.value ?? []).filter((entry) => entry.capabilities.chat);

  const submit = async () => {
    const gateway = client.value;
    if (!gateway) return;
    setBusy(true);
    setProblem(null);
    try {
      const session = await gateway.createSession({
        ...(id.trim() ? { sessionId: id.trim(), joinIfExists: true } : {}),
        ...(name.trim() ? { name: name.trim() } : {}),
        ...(agent ? { agentId: agent } : {}),
        visibility,
      });
      refresh();
      enter(session.id);
      onClose();
      go("chat", session.id);
    } catch (error) {
      setProblem(explain(error));
      setBusy(false);
    }
  };

  return (
    <Dialog
      title="New session"
      onClose={onClose}
      onSubmit={submit}
      foot={
        <>
          <button type="button" class="btn" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="btn primary" disabled={busy}>
            Create
          </button>
        </>
      }
    >
      <div class="field">
        <label for="new-name">Name</label>
        <input
          id="new-name"
          class="input"
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
          placeholder="What it is about"
        />
      </div>
      <div class="field">
        <label for="new-id">Id</label>
        <input
          id="new-id"
          class="input mono"
          value={id}
          pattern="[A-Za-z0-9._:\-]{1,128}"
          title="Letters, digits and . _ : -"
          spellcheck={false}
          autocomplete="off"
          onInput={(event) => setId(event.currentTarget.value)}
          placeholder="chosen for you"
          aria-describedby="new-id-hint"
        />
        <span class="hint" id="new-id-hint">
          Others join by it. If it is in use, you join that session.
        </span>
      </div>
      <div class="field">
        <label for="new-agent">Agent</label>
        <select
          id="new-agent"
          class="input"
          value={agent}
          onChange={(event) => setAgent(event.currentTarget.value)}
        >
          <option value="">None for now</option>
          {talkers.map((entry) => (
            <option key={entry.id} value={entry.id}>
              {entry.name || entry.id}
            </option>
          ))}
        </select>
      </div>
      <fieldset class="segments" aria-label="Who may join">
        {(["shared", "private"] as const).map((choice) => (
          <button
            key={choice}
            type="button"
            aria-pressed={visibility === choice}
            onClick={() => setVisibility(choice)}
          >
            {choice === "shared" ? "Open to all who know the id" : "By invitation"}
          </button>
        ))}
      </fieldset>
      {problem && (
        <div class="note danger" role="alert">
          <Icon name="alert" />
          <span class="break">{problem}</span>
        </div>
      )}
    </Dialog>
  );
}
