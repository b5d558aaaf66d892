import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** A TCP proxy before a gateway, whose connections a test can cut. */
export class Relay {
  readonly #pairs = new Set<[Socket, Socket]>();
  #refusing = false;
  #swallowing = false;
  #deaf = false;
  #target: number;

  private constructor(
    readonly server: Server,
    target: number,
  ) {
    this.#target = target;
    server.on("connection", (near) => this.#accept(near));
  }

  static async to(port: number): Promise<Relay> {
    const server = createServer();
    const relay = new Relay(server, port);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return relay;
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** From now on connections go to another port. */
  retarget(port: number): void {
    this.#target = port;
  }

  /** Cuts all connections; without an argument new ones are let through. */
  cut({ refuse = false } = {}): void {
    this.#refusing = refuse;
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy();
  }

  /** Lets new connections through again. */
  restore(): void {
    this.#refusing = this.#swallowing = this.#deaf = false;
  }

  /** Nothing that the gateway says arrives any more, until the connections are cut. */
  swallowAnswers(): void {
    this.#swallowing = true;
  }

  /** Nothing that clients say arrives any more, until the connections are cut. */
  swallowQuestions(): void {
    this.#deaf = true;
  }

  async close(): Promise<void> {
    this.cut({ refuse: true });
    this.server.close();
    await once(this.server, "close");
  }

  #accept(near: Socket): void {
    if (this.#refusing) return void near.destroy();
    const far = connect(this.#target, "127.0.0.1");
    const pair: [Socket, Socket] = [near, far];
    this.#pairs.add(pair);
    const end = () => {
      this.#pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    near.on("data", (data) => this.#deaf || far.write(data));
    far.on("data", (data) => this.#swallowing || near.write(data));
    for (const socket of pair) socket.on("close", end).on("error", end);
  }
}
