/** Signing in: a token or a password, typed or pasted, to the gateway that served the page. */
import { useEffect, useRef, useState } from "preact/hooks";
import iconUrl from "./icon.svg";
import { phase, problem, signIn } from "./lib/gateway";
import { Icon } from "./ui/Icon";

const LOOPBACK = /^(localhost|127(\.\d+){3}|\[::1\])$/;

export function SignIn() {
  const [kind, setKind] = useState<"token" | "password">("token");
  const [secret, setSecret] = useState("");
  const [keep, setKeep] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  const busy = phase.value === "signing-in" || phase.value === "starting";
  useEffect(() => {
    if (!busy) input.current?.focus();
  }, [busy]);
  const exposed = location.protocol === "http:" && !LOOPBACK.test(location.hostname);
  return (
    <main class="sign-in" id="main">
      <div class="card">
        <div class="brand">
          <img src={iconUrl} alt="" />
          <div>
            <h1>Trunkline</h1>
            <p class="muted small">{location.host}</p>
          </div>
        </div>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (secret.trim())
              signIn({ kind, secret: kind === "token" ? secret.trim() : secret }, keep);
          }}
        >
          <fieldset class="segments" aria-label="Sign in with">
            {(["token", "password"] as const).map((choice) => (
              <button
                key={choice}
                type="button"
                aria-pressed={kind === choice}
                onClick={() => {
                  setKind(choice);
                  input.current?.focus();
                }}
              >
                {choice === "token" ? "Token" : "Password"}
              </button>
            ))}
          </fieldset>
          <div class="field">
            <label for="secret">{kind === "token" ? "Token" : "Password"}</label>
            <input
              ref={input}
              id="secret"
              class="input"
              type="password"
              autocomplete={kind === "password" ? "current-password" : "off"}
              spellcheck={false}
              placeholder={kind === "token" ? "Paste the token that the gateway showed" : ""}
              value={secret}
              onInput={(event) => setSecret(event.currentTarget.value)}
              aria-describedby="problem"
            />
          </div>
          <label class="check">
            <input
              type="checkbox"
              checked={keep}
              onChange={(event) => setKeep(event.currentTarget.checked)}
            />
            Keep me signed in for this tab
          </label>
          {exposed && (
            <div class="note warn">
              <Icon name="alert" />
              <span>
                This page is not encrypted. Others on the network can read what you enter.
              </span>
            </div>
          )}
          <button type="submit" class="btn primary wide" disabled={busy || !secret.trim()}>
            {busy ? <span class="spinner" /> : "Sign in"}
          </button>
          <div id="problem" class="slot" role="alert">
            {problem.value ? (
              <div class="note danger">
                <Icon name="alert" />
                <span class="break">{problem.value}</span>
              </div>
            ) : (
              <p class="muted small">
                <code>trunkline open</code> on the gateway's machine gives a sign-in link. What you
                enter goes to this gateway only.
              </p>
            )}
          </div>
        </form>
      </div>
    </main>
  );
}
