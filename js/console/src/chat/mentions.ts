/** The mention that is being written at a place of the text, if there is one. */
export function mentionAt(text: string, caret: number): { start: number; query: string } | null {
  const before = text.slice(0, caret);
  const found = /(^|[\s([{,;])@([A-Za-z0-9._:-]{0,128})$/.exec(before);
  if (!found) return null;
  const query = found[2] ?? "";
  return { start: caret - query.length - 1, query };
}
