/** A session that the console is in: its conversation, who is there, and what one can do. */
import { type Signal, signal } from "@preact/signals";
import { TrunklineError } from "trunkline-client";
import { type Client, client, explain, link, me, refresh } from "./gateway";
import { type Approval, type ChatItem, type Item, Timeline } from "./timeline";
import type { Envelope, Json, Sender } from "./types";

type ClientSession = Awaited<ReturnType<Client["join"]>>;

const TAIL = 60;
const PAGE = 100;
const TYPING_SHOWN = 5000;
const TYPING_TOLD = 3000;

export class Room {
  readonly items: Signal<readonly Item[]> = signal([]);
  readonly state: Signal<"joining" | "live" | "closed" | "failed"> = signal("joining");
  readonly error: Signal<string | null> = signal(null);
  readonly info: Signal<Json> = signal({});
  readonly members: Signal<Sender[]> = signal([]);
  readonly typing: Signal<Sender[]> = signal([]);
  /** Whether the log has messages older than those shown. */
  readonly older: Signal<"yes" | "loading" | "no"> = signal("no");
  /** The last `seq` that was shown to the person. */
  readonly head: Signal<number> = signal(0);

  private timeline = new Timeline();
  private session: ClientSession | null = null;
  private waiting: Envelope[] = [];
  private scheduled = false;
  private people = new Map<string, Sender>();
  private typists = new Map<string, { who: Sender; timer: ReturnType<typeof setTimeout> }>();
  private toldTyping = 0;
  private counter = 0;
  private left = false;

  constructor(
    readonly id: string,
    private gateway: Client,
  ) {}

  /** Join, and follow the session until it ends. */
  async open(create?: Json): Promise<void> {
    try {
      const session = await this.gateway.join(this.id, { tail: TAIL, create: create ?? false });
      this.session = session;
      this.state.value = "live";
      this.learn(session.info);
      // Whoever comes back after a lost connection is told anew who is there and what is open.
      session.joined.add((info) => this.learn(info));
      this.setMembers(session.members as readonly Sender[]);
      this.follow(session);
    } catch (error) {
      this.state.value = "failed";
      this.error.value =
        error instanceof TrunklineError && error.code === "SESSION_NOT_FOUND"
          ? "There is no such session, or it is not open to you."
          : explain(error);
    }
  }

  private async follow(session: ClientSession): Promise<void> {
    try {
      for await (const event of session.events()) {
        this.waiting.push(event as unknown as Envelope);
        this.schedule();
      }
      if (!this.left) this.state.value = "closed";
    } catch (error) {
      if (this.left) return;
      this.state.value = "failed";
      this.error.value = explain(error);
    }
  }

  /** However many frames come, the page is drawn once a frame of the screen. */
  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    if (document.hidden) setTimeout(() => this.flush(), 200);
    else requestAnimationFrame(() => this.flush());
  }

  private flush(): void {
    this.scheduled = false;
    const frames = this.waiting;
    this.waiting = [];
    for (const frame of frames) this.take(frame);
    this.publish();
  }

  private take(frame: Envelope): void {
    const { payload } = frame;
    if (frame.type === "reset") {
      this.timeline.reset();
      this.exhausted = false;
      const { runs = [], approvals = [] } = this.session ?? {};
      this.timeline.joined(runs, approvals as Json, Date.now());
      return;
    }
    if (frame.type === "presence") {
      this.present(frame);
      return;
    }
    if (frame.type === "session_info") {
      this.learn(payload);
      if (payload.runs || payload.approvals) {
        this.timeline.joined(payload.runs ?? [], payload.approvals ?? [], frame.timestamp ?? 0);
      }
      if (payload.status === "closed") this.state.value = "closed";
      refresh();
    }
    if (frame.type === "chat" && frame.from) this.stopTyping(frame.from.clientId);
    this.timeline.apply(frame);
  }

  private publish(): void {
    const { timeline } = this;
    this.items.value = timeline.items;
    this.head.value = timeline.head;
    if (this.older.value !== "loading") {
      this.older.value = timeline.first > 1 && !this.exhausted ? "yes" : "no";
    }
  }

  private exhausted = false;

  private learn(info: Json): void {
    if (!info) return;
    const known = this.info.value;
    this.info.value = {
      ...known,
      ...Object.fromEntries(Object.entries(info).filter(([, value]) => value != null)),
    };
    if (Array.isArray(info.members)) this.setMembers(info.members);
    if (info.status === "joined" || info.status === "created") {
      this.timeline.joined(info.runs ?? [], info.approvals ?? [], Date.now());
      this.publish();
    }
  }

  private setMembers(members: readonly Sender[]): void {
    this.people = new Map(members.map((who) => [who.clientId, who]));
    this.members.value = [...this.people.values()];
  }

  private present(frame: Envelope): void {
    const who = frame.from;
    if (!who) return;
    const status = frame.payload.status;
    if (status === "typing") {
      clearTimeout(this.typists.get(who.clientId)?.timer);
      const timer = setTimeout(() => this.stopTyping(who.clientId), TYPING_SHOWN);
      this.typists.set(who.clientId, { who, timer });
      this.typing.value = [...this.typists.values()].map((entry) => entry.who);
      return;
    }
    if (status === "offline") {
      this.people.delete(who.clientId);
      this.stopTyping(who.clientId);
    } else {
      this.people.set(who.clientId, who);
    }
    this.members.value = [...this.people.values()];
  }

  private stopTyping(clientId: string): void {
    clearTimeout(this.typists.get(clientId)?.timer);
    if (this.typists.delete(clientId)) {
      this.typing.value = [...this.typists.values()].map((entry) => entry.who);
    }
  }

  /** Read a page of what is older than what is shown. */
  async loadOlder(): Promise<void> {
    if (!this.session || this.older.value !== "yes") return;
    this.older.value = "loading";
    try {
      const page = await this.session.history({ before: this.timeline.first, limit: PAGE });
      for (const frame of page.messages as unknown as Envelope[]) this.timeline.apply(frame);
      if (!page.more || page.messages.length === 0) this.exhausted = true;
    } catch (error) {
      this.error.value = explain(error);
    }
    this.older.value = "no";
    this.publish();
  }

  /** Say something; it is shown at once and marked until it is stored. */
  async say(text: string): Promise<void> {
    const { userId = "", clientId = "" } = me.value ?? {};
    const id = `c${Date.now().toString(36)}-${crypto.randomUUID().slice(0, 8)}-${this.counter++}`;
    this.timeline.sending(id, text, { userId, clientId, kind: "user" }, Date.now());
    this.publish();
    this.toldTyping = 0;
    await this.deliver(id, text);
  }

  private async deliver(id: string, text: string): Promise<void> {
    try {
      const ack = await this.session?.send(text, { id });
      if (ack?.seq != null) this.timeline.stored(id, ack.seq, (ack.runs ?? []) as Json);
    } catch (error) {
      this.timeline.failed(id, explain(error));
    }
    this.publish();
  }

  /** Send a message again that was refused. */
  async again(item: ChatItem): Promise<void> {
    this.timeline.discard(item.key);
    await this.say(item.text);
  }

  /** Take away a message that was refused. */
  discard(item: ChatItem): void {
    this.timeline.discard(item.key);
    this.publish();
  }

  /** Tell the others that one is writing, now and then. */
  tellTyping(): void {
    const now = Date.now();
    if (now - this.toldTyping < TYPING_TOLD || link.value !== "open") return;
    this.toldTyping = now;
    this.session?.presence("typing");
  }

  async decide(approval: Approval, decision: "allow" | "deny", reason?: string): Promise<void> {
    await this.session?.approve(approval.request as Json, decision, reason);
  }

  cancel(runId: string): void {
    this.session?.cancelRun(runId);
  }

  /** Stop every answer that is still being written. */
  cancelAll(): void {
    for (const run of this.timeline.open) this.cancel(run.runId);
  }

  async patch(changes: Json): Promise<void> {
    const info = await this.session?.patch(changes);
    this.learn(info);
    refresh();
  }

  async invite(userId: string): Promise<void> {
    await this.session?.invite(userId);
  }

  async remove(userId: string): Promise<void> {
    await this.session?.remove(userId);
  }

  async leave(): Promise<void> {
    this.left = true;
    await this.session?.leave();
    refresh();
  }

  async close(remove: boolean): Promise<void> {
    this.left = true;
    await this.session?.close({ delete: remove });
    refresh();
  }
}

/** The rooms of this connection, each joined when it is first opened. */
export const rooms: Signal<ReadonlyMap<string, Room>> = signal(new Map());
let owner: Client | null = null;

export function enter(id: string, create?: Json): Room | null {
  const gateway = client.value;
  if (!gateway) return null;
  const known = owner === gateway ? rooms.peek() : new Map<string, Room>();
  owner = gateway;
  const found = known.get(id);
  if (found && found.state.peek() !== "failed") return found;
  const room = new Room(id, gateway);
  rooms.value = new Map(known).set(id, room);
  room.open(create);
  return room;
}

export function forgetRoom(id: string): void {
  const left = new Map(rooms.peek());
  left.delete(id);
  rooms.value = left;
}
