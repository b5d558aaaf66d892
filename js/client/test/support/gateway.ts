import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));

/** The token of every gateway here. */
export const TOKEN = "a-token-for-the-tests-of-the-client";

/** Tests reach it through a relay, on a port that it does not know; and they have little time. */
const settingsFile = (rate: number, burst: number) => `
[origins]
allowed_hosts = ["127.0.0.1:*"]
[limits]
publish_rate = ${rate}
publish_burst = ${burst}
stream_rate = 100
stream_burst = 50
`;

function python(): string {
  const own = join(ROOT, ".venv", "bin", "python");
  if (!existsSync(own)) throw new Error("run `make setup` first: the tests start a real gateway");
  return own;
}

/** How a gateway is started. */
export interface Settings {
  /** Where its data is; absent: a folder that goes with it. */
  dataDir?: string;
  history?: "memory" | "sqlite";
  auth?: "token" | "none" | "password";
  port?: number;
  /** A Python program that stands in the command's place. */
  program?: string;
  /** Messages per second that it takes of a connection, and at once. */
  rate?: number;
  burst?: number;
}

/** A gateway process. */
export class GatewayProcess {
  private constructor(
    readonly process: ChildProcess,
    readonly url: string,
    readonly dataDir: string,
    private readonly ownsData: boolean,
  ) {}

  get port(): number {
    return Number(new URL(this.url).port);
  }

  /** Starts one, and waits until it listens. */
  static async start(settings: Settings = {}): Promise<GatewayProcess> {
    const { history = "memory", auth = "token", port = 0, program } = settings;
    const { rate = 4_000, burst = 400 } = settings;
    const dataDir = settings.dataDir ?? temporaryFolder();
    const config = join(dataDir, "settings.toml");
    writeFileSync(config, settingsFile(rate, burst));
    const options = ["--port", String(port), "--data-dir", dataDir, "--history", history];
    const credential = { token: ["--token", TOKEN], password: ["--password", TOKEN], none: [] }[
      auth
    ];
    const serve = ["-m", "trunkline", "serve", ...options, "--config", config, "--auth", auth];
    const args = program === undefined ? [...serve, ...credential] : [program];
    const child = spawn(python(), args, {
      cwd: ROOT,
      env: { PATH: process.env.PATH, HOME: dataDir },
      stdio: ["ignore", "pipe", "pipe"],
    });
    // A test that failed may have left it.
    process.once("exit", () => child.kill("SIGKILL"));
    const url = await listening(child);
    return new GatewayProcess(child, url, dataDir, settings.dataDir === undefined);
  }

  /** Runs a command on its data folder, with a text as its input; returns what it prints. */
  async command(args: string[], input = ""): Promise<string> {
    const where = ["--data-dir", this.dataDir];
    const child = spawn(python(), ["-m", "trunkline", ...args, ...where], { cwd: ROOT });
    let said = "";
    child.stdout.on("data", (text) => {
      said += text;
    });
    child.stdin.end(input);
    const [code] = await once(child, "close");
    if (code !== 0) throw new Error(`the command ended with ${code}`);
    return said;
  }

  /** Ends it at once, as a crash would. */
  async kill(): Promise<void> {
    await this.end("SIGKILL");
  }

  /** Drains and ends it. */
  async stop(): Promise<void> {
    await this.end("SIGTERM");
  }

  private async end(signal: NodeJS.Signals): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      const ended = once(this.process, "exit");
      this.process.kill(signal);
      await ended;
    }
    if (this.ownsData) rmSync(this.dataDir, { recursive: true, force: true });
  }
}

/** Makes a folder; whoever asks for one removes it. */
export function temporaryFolder(): string {
  return mkdtempSync(join(tmpdir(), "trunkline-js-"));
}

async function listening(child: ChildProcess): Promise<string> {
  let said = "";
  child.stderr?.on("data", (text) => {
    said += text;
  });
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    const found = /listening on (\S+)/.exec(line);
    if (found?.[1] !== undefined) return found[1];
  }
  throw new Error(`the gateway ended: ${said}`);
}
