// Where two texts differ, word by word.

const WORDS = /\s+|[\p{L}\p{N}']+|[^\s\p{L}\p{N}']/gu;
const MOST_CELLS = 4e6;

const asCommon = (text) => ({ text, common: true });
const isWord = ({ text }) => /\S/.test(text);

/** Each text in pieces { text, common }; null where they are too long to compare. */
function compareTexts(...texts) {
  const pieces = texts.map((text) => (text.match(WORDS) ?? []).map(asCommon));
  const [a, b] = pieces.map((list) => list.filter(isWord));
  if (a.length * b.length > MOST_CELLS) return null;
  const wide = b.length + 1;
  const lengths = commonLengths(a, b, wide);
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    const at = i * wide + j;
    const isLeft = j === b.length || (i < a.length && lengths[at + wide] >= lengths[at + 1]);
    if (a[i]?.text === b[j]?.text) [i, j] = [i + 1, j + 1];
    else if (isLeft) a[i++].common = false;
    else b[j++].common = false;
  }
  return pieces;
}

/** Lengths of the longest common subsequences of what follows word i and word j. */
function commonLengths(a, b, wide) {
  const lengths = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const at = i * wide + j;
      lengths[at] = a[i].text === b[j].text
        ? lengths[at + wide + 1] + 1
        : Math.max(lengths[at + wide], lengths[at + 1]);
    }
  }
  return lengths;
}

/**
 * Where two runs on one canvas came apart: the positions that hold another token in the end, the
 * first step at which either decided one of them, and which. The same for both; null: nowhere.
 */
function partingOf(...runs) {
  const commitsAt = (position) => runs.map(({ commits }) => commits.get(position));
  const positions = runs[0].slots.filter((position) => {
    const [own, theirs] = commitsAt(position);
    return own?.id !== theirs?.id;
  });
  const stepAt = (position) =>
    Math.min(...commitsAt(position).map((commit) => commit?.step ?? Infinity));
  const step = Math.min(...positions.map(stepAt));
  const position = positions.find((one) => stepAt(one) === step);
  return positions.length ? { positions: new Set(positions), step, position } : null;
}

/** The positions of a finished run whose tokens have a part in words that are not common. */
function positionsOf(run, words) {
  const first = run.start.infill ? 0 : run.slots[0];
  const found = new Set();
  let [end, at] = [0, 0];
  const ends = words.map(({ text }) => (end += text.length));
  let word = 0;
  const order = run.orders.at(-1);
  for (let column = first; column < order.length; column++) {
    const position = order[column];
    const { length } = run.end.pieces?.[column] ?? "";
    if (!length) continue;
    while (word < words.length && ends[word] <= at) word++;
    for (let i = word; i < words.length && (i === word || ends[i - 1] < at + length); i++) {
      if (!words[i].common && run.tokens[position].masked) found.add(position);
    }
    at += length;
  }
  return found;
}
