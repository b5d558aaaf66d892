const ID = /^[A-Za-z0-9._:-]{1,128}$/;

/** Whether `value` has the grammar of an id; `.` and `..` have not. */
export function isId(value: string): boolean {
  return ID.test(value) && value !== "." && value !== "..";
}

/** Makes an id of `bytes` random bytes in hex; 16 cannot be guessed. */
export function randomId(prefix = "", bytes = 16): string {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return prefix + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const base = randomId("", 8);
let count = 0;

/** Makes a message id, unique to this program's run. */
export function newId(): string {
  count += 1;
  return `${base}.${count}`;
}
