import { render } from "preact";
import { App } from "./App";
import { start } from "./lib/gateway";
import { listen } from "./lib/router";
import { loadTheme } from "./lib/theme";
import { listenToKeys } from "./ui/keys";
import "./styles/base.css";
import "./styles/shell.css";

loadTheme();
// First of all: a sign-in link's code leaves the address before anything is drawn.
const started = start();
listen();
listenToKeys();
const root = document.getElementById("app");
if (root) render(<App />, root);
await started;
