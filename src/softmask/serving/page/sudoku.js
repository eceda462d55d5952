// A 4x4 Sudoku as a grid, where the prompt is one and tokens are single characters.

const PUZZLE = /(?:^|\n)Sudoku\n((?:[0-4]{4}\n){4})Solution\n$/;
const SIDE = 4;
const GHOSTS = 3;

class Sudoku {
  constructor(root) {
    this.root = root;
    this.grid = root.querySelector(".grid");
    this.verdict = root.querySelector(".verdict");
  }

  show(run) {
    this.run = run;
    this.givens = givensOf(run);
    this.root.hidden = this.givens === null;
    if (this.root.hidden) return;
    this.cells = [...this.givens].map((given, i) => this.cell(given, positionOf(run, i)));
    this.grid.replaceChildren(...this.cells.map((cell) => cell.root));
  }

  cell(given, position) {
    const root = element("span", "digit");
    const own = element("span", "own");
    const lean = element("span", "lean");
    const ghosts = Array.from({ length: GHOSTS }, () => element("span", "ghost"));
    root.append(own, lean, ...ghosts);
    return { root, own, lean, ghosts, given, position };
  }

  draw(index, settled) {
    if (this.givens === null) return;
    const shown = this.cells.map((cell) => this.drawCell(cell, index, settled));
    const lines = [0, 1, 2, 3].map((r) => shown.slice(r * SIDE, r * SIDE + SIDE).join(" "));
    this.grid.ariaLabel = `Sudoku: ${lines.join("; ")}`;
    const isDone = shown.every((digit) => digit !== "blank");
    const fault = isDone ? this.faultOf(shown) : null;
    this.verdict.textContent = isDone ? (fault ? `not solved: ${fault}` : "solved") : "";
    this.verdict.className = `verdict ${fault ? "wrong" : "right"}`;
  }

  faultOf(digits) {
    const breaks = [0, 1, 2].map((r) => positionOf(this.run, r * SIDE + SIDE - 1) + 1);
    const isLaidOut = breaks.every((position) => textOrNull(this.run, position) === "\n");
    return isLaidOut ? faultOf(this.givens, digits) : "the rows are not lines of their own";
  }

  /** Returns the digit, or "blank". */
  drawCell(cell, index, settled) {
    const { position } = cell;
    const state = this.run.stateAt(index, position);
    const isMasked = state === "masked";
    const digit = isMasked ? "blank" : this.run.textAt(position);
    const given = cell.given !== "0";
    const kind = given ? "given" : isMasked ? "masked" : settled ? "done" : state;
    const isWrong = given && !isMasked && digit !== cell.given;
    cell.root.className = `digit ${kind}${isWrong ? " wrong" : ""}`;
    cell.own.textContent = given && isMasked ? cell.given : isMasked ? "" : face(digit).core;
    const sight = isMasked && !given ? this.run.sightAt(index, position) : null;
    cell.ghosts.forEach((ghost, i) => {
      const candidate = sight?.candidates[i];
      ghost.textContent = candidate ? face(candidate.text).core : "";
      ghost.style.opacity = candidate ? candidate.w * sight.lambda : 0;
    });
    cell.lean.textContent = cell.ghosts[0].textContent;
    cell.root.style.setProperty("--lambda", sight?.lambda ?? 0);
    return digit;
  }
}

/** The 16 digits of the puzzle, 0 where blank; null where the run is about something else. */
function givensOf(run) {
  const puzzle = PUZZLE.exec(promptOf(run))?.[1];
  const isAnswered = (SIDE + 1) * SIDE - 1 <= run.slots.length;
  const isSingle = [...run.texts.values()].every((text) => !/^\d{2,}$/.test(text));
  return puzzle && isAnswered && isSingle ? puzzle.replaceAll("\n", "") : null;
}

/** The answer repeats the grid: four digits and a line break, four times. */
const positionOf = (run, i) => run.slots[0] + Math.floor(i / SIDE) * (SIDE + 1) + (i % SIDE);

const textOrNull = (run, position) => (run.commits.has(position) ? run.textAt(position) : null);

/** What is wrong with a full grid, or null. */
function faultOf(givens, digits) {
  if (digits.some((digit) => !/^[1-4]$/.test(digit))) return "not sixteen digits";
  const isChanged = (given, i) => given !== "0" && given !== digits[i];
  if ([...givens].some(isChanged)) return "a given digit was changed";
  const places = [...digits.keys()];
  const box = (i) => Math.floor(i / (2 * SIDE)) * 2 + (Math.floor(i / 2) % 2);
  const groups = { row: (i) => Math.floor(i / SIDE), column: (i) => i % SIDE, box };
  for (const [name, groupOf] of Object.entries(groups)) {
    for (let group = 0; group < SIDE; group++) {
      const found = new Set(places.filter((i) => groupOf(i) === group).map((i) => digits[i]));
      if (found.size < SIDE) return `a digit comes twice in ${name} ${group + 1}`;
    }
  }
  return null;
}
