/** UTF-16 units in one chunk; even fully escaped it fits a message. */
const MAX_CHUNK = 64 * 1024;

/**
 * An answer while it is written, and how much of it the gateway has.
 *
 * Text goes out in chunks with an index. After a lost connection the gateway says which chunk it has
 * last; everything behind that goes out again.
 */
export class AnswerText {
  /** By index. */
  readonly #sent: string[] = [];
  #new = "";

  /** Everything that was written; half of a last character is not text yet. */
  get text(): string {
    const all = this.#sent.join("") + this.#new;
    return endsWithin(all) ? all.slice(0, -1) : all;
  }

  /** Adds to the end. */
  write(text: string): void {
    this.#new += text;
  }

  /** Takes the next chunk and its index; undefined if all of it has gone out. */
  take(): { index: number; content: string } | undefined {
    let content = this.#new.slice(0, MAX_CHUNK);
    // A character whose second half is still to come, or is in the next chunk, goes with that.
    if (endsWithin(content)) content = content.slice(0, -1);
    if (content === "") return undefined;
    this.#new = this.#new.slice(content.length);
    this.#sent.push(content);
    return { index: this.#sent.length - 1, content };
  }

  /** The gateway has the chunks up to `index` and no more; -1 is none. */
  rewind(index: number): void {
    this.#new = this.#sent.splice(index + 1).join("") + this.#new;
  }
}

/** Whether a text ends with the first half of a surrogate pair. */
function endsWithin(text: string): boolean {
  const last = text.charCodeAt(text.length - 1);
  return last >= 0xd800 && last <= 0xdbff;
}
