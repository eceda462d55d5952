// A Sudoku of 4 or 9 digits a side as a grid, where the text is one and tokens are single
// characters: filled in where it stands, or answered behind "Solution".

const IN_PLACE = /^Sudoku\n((?:[0-9?]{4}\n){4}|(?:[0-9?]{9}\n){9})$/;
const ANSWERED = /(?:^|\n)Sudoku\n((?:[0-4]{4}\n){4}|(?:[0-9]{9}\n){9})Solution\n$/;

/**
 * The puzzle of a run: { side, box, cells: [{ given, position }], ends }; null where the run is
 * about something else. A given is "" where the cell is to be filled in; `ends` are the positions
 * of the line breaks.
 */
function puzzleOf(run) {
  const { tokens } = run.start;
  const whole = tokens.map((token) => (token.masked ? "?" : token.text)).join("");
  const inPlace = IN_PLACE.exec(whole)?.[1];
  const puzzle = inPlace ?? ANSWERED.exec(promptOf(run))?.[1];
  if (!puzzle) return null;
  const rows = puzzle.trimEnd().split("\n");
  const side = rows.length;
  const length = side * (side + 1);
  const first = inPlace ? tokens.length - length : run.slots[0];
  const isSingle = [...run.texts.values()].every((text) => !/^\d{2,}$/.test(text));
  // The last line break of an answer may be missing.
  if (!isSingle || first + length - 1 > tokens.length) return null;
  const cells = rows.flatMap((row, r) =>
    [...row].map((sign, c) => {
      return { given: /[0?]/.test(sign) ? "" : sign, position: first + r * (side + 1) + c };
    }),
  );
  const ends = rows.slice(1).map((_, r) => first + r * (side + 1) + side);
  return { side, box: Math.sqrt(side), cells, ends };
}

/** "row 2, column 5" of a position. */
function placeIn({ side, cells }, position) {
  const i = cells.findIndex((cell) => cell.position === position);
  return i < 0 ? null : `row ${Math.floor(i / side) + 1}, column ${(i % side) + 1}`;
}

/** Whether a finished run solved its puzzle: { right, text }. */
function sudokuVerdict(run, puzzle) {
  const textOf = (position) =>
    run.stateAt(Infinity, position) === "masked" ? "" : run.textAt(position);
  const fault = puzzle.ends.some((position) => textOf(position) !== "\n")
    ? "the rows are not lines of their own"
    : faultOf(puzzle, puzzle.cells.map(({ position }) => textOf(position)));
  return { right: !fault, text: fault ? `not solved: ${fault}` : "solved" };
}

/** What is wrong with a full grid, or null. */
function faultOf({ side, box, cells }, digits) {
  const isDigit = (text) => /^[1-9]$/.test(text) && Number(text) <= side;
  if (!digits.every(isDigit)) return `not ${side * side} digits`;
  const isChanged = ({ given }, i) => given && given !== digits[i];
  if (cells.some(isChanged)) return "a given digit was changed";
  const groups = {
    row: (i) => Math.floor(i / side),
    column: (i) => i % side,
    box: (i) => Math.floor(i / (box * side)) * box + (Math.floor(i / box) % box),
  };
  const places = [...digits.keys()];
  for (const [name, groupOf] of Object.entries(groups)) {
    for (let group = 0; group < side; group++) {
      const found = new Set(places.filter((i) => groupOf(i) === group).map((i) => digits[i]));
      if (found.size < side) return `a digit comes twice in ${name} ${group + 1}`;
    }
  }
  return null;
}
