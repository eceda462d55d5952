// One run as a figure: counters, tokens or puzzle, text, strip.

const COUNTERS = ["step", "forwards", "tokens / forward", "masks left", "mean lambda", "time"];
const LETTER = 8; // pixels
const SPARE_LINES = 3; // that may stay empty below a text, so that nothing moves when it ends
const ENDINGS = { cancelled: "stopped", deadline: "out of time", shutdown: "the server went away" };

class Panel {
  constructor() {
    this.root = byId("panel").content.firstElementChild.cloneNode(true);
    const part = (selector) => this.root.querySelector(selector);
    this.title = part("h2");
    this.alternative = part(".alternative");
    this.outcome = part(".outcome");
    this.summary = part(".summary");
    this.canvas = new Canvas(part(".canvas"));
    this.strip = new Strip(part(".strip canvas"));
    this.counters = new Map();
    for (const name of COUNTERS) {
      const pair = element("div");
      const value = element("dd", "", "\u2013");
      pair.append(element("dt", "", name), value);
      part(".counters").append(pair);
      this.counters.set(name, value);
    }
  }

  show(run, layout, scale) {
    this.run = run;
    this.puzzle = puzzleOf(run);
    this.differs = null;
    this.title.textContent = run.name;
    this.canvas.host.ariaLabel = `${run.name}: ${this.puzzle ? "Sudoku" : "tokens"}`;
    this.strip.canvas.ariaLabel = `${run.name}: heat map of positions over steps; see the slider`;
    this.setLayout(layout);
    this.strip.scale = scale;
    this.strip.show(run);
    this.outcome.style.minHeight = `${this.lines()}lh`;
    this.told = 0;
    this.tell([asCommon(run.end?.text ?? "")]);
  }

  /** The layout that was asked for, or the nearest that this run has. */
  setLayout(wanted) {
    const { run, canvas } = this;
    const isThere = { grid: this.puzzle !== null, prose: run.end !== null, cells: true };
    const layout = isThere[wanted] ? wanted : "cells";
    // A run's text is there once: as the canvas, as a puzzle, or below the cells.
    this.outcome.hidden = layout !== "cells";
    const isShown = canvas.run === run && canvas.layout === layout;
    if (!isShown || canvas.isOver !== (run.end !== null)) canvas.show(run, layout, this.puzzle);
  }

  draw(step, isLive) {
    const { run } = this;
    const index = run.indexAt(step);
    const settled = run.end !== null && step >= run.total;
    this.canvas.draw(index, settled, this.differs);
    this.strip.draw(Math.min(step, run.total), this.chosen ?? null);
    this.count(index, settled);
    if (!run.end) this.tellDecided();
    this.summary.classList.toggle("later", run.end !== null && !settled);
    if (!isLive) this.alternative.textContent = this.canvas.words(index);
    return index;
  }

  choose(position) {
    this.chosen = position;
    this.canvas.mark(position);
  }

  count(index, settled) {
    const { run } = this;
    const event = run.steps[index];
    const masks = run.writtenAt(index);
    const decided = masks - (event?.left ?? masks);
    const forwards = settled ? run.end.forwards : (event?.forwards ?? 0);
    const seconds = settled ? run.end.seconds : event?.seconds;
    const values = {
      step: `${settled ? run.total : (event?.step ?? 0)} / ${run.total}`,
      forwards: String(forwards),
      "tokens / forward": forwards ? fixed(decided / forwards) : "\u2013",
      "masks left": String(masks - decided),
      "mean lambda": fixed(event?.lambda ?? NaN),
      time: Number.isFinite(seconds) ? `${fixed(seconds)} s` : "\u2013",
    };
    for (const [name, node] of this.counters) {
      if (node.textContent !== values[name]) node.textContent = values[name];
    }
  }

  /** Writes the final text; words that only this run has are marked. */
  tell(words, summary = "") {
    const { start, end } = this.run;
    const opening = element("span", "opening", start.infill ? "" : openingOf(this.run));
    const nodes = words.map(({ text, common }) => (common ? text : element("mark", "", text)));
    this.outcome.replaceChildren(opening, ...nodes);
    const verdict = end && this.verdict();
    const told = [ENDINGS[end?.finish_reason], summary].filter(Boolean).join("; ");
    this.summary.replaceChildren(verdict && told ? `; ${told}` : told);
    if (verdict) {
      this.summary.prepend(element("strong", verdict.right ? "right" : "wrong", verdict.text));
    }
  }

  verdict() {
    return this.puzzle ? sudokuVerdict(this.run, this.puzzle) : countdownVerdict(this.run);
  }

  /** While it runs: the text up to the first mask, which does not change any more. */
  tellDecided() {
    const { run } = this;
    const final = run.steps.at(-1)?.final ?? 0;
    if (final === this.told) return;
    this.told = final;
    const texts = [];
    const order = run.orders.at(-1);
    for (let column = run.start.infill ? 0 : run.slots[0]; column < final; column++) {
      texts.push(run.textAt(order[column]));
    }
    this.tell([asCommon(texts.filter((text) => !SPECIAL.test(text)).join(""))]);
  }

  /** How many lines to keep free for the final text, so that nothing moves when it comes. */
  lines() {
    const { tokens, infill } = this.run.start;
    const given = infill ? tokens.map((token) => token.text).join("") : openingOf(this.run);
    const masks = this.run.slots.length * (cellWidth(tokens) > 2 ? 4.8 : 1);
    const width = this.outcome.clientWidth || this.root.clientWidth || 300;
    const lines = Math.ceil(((given.length + masks) * LETTER) / width);
    return Math.max(lines + given.split("\n").length - 1, this.puzzle?.side ?? 1);
  }
}

/** The last line of a prompt, which the text goes on from; nothing of a conversation. */
function openingOf(run) {
  const given = run.start.tokens.slice(0, run.slots[0]);
  if (given.some((token) => SPECIAL.test(token.text))) return "";
  return promptOf(run).split("\n").at(-1);
}

/** Tells of two finished runs where they came apart, and marks what each has of its own. */
function tellDifference(panels) {
  const runs = panels.map((panel) => panel.run);
  const texts = runs.map((run) => run.end.text);
  const words = panels.length === 2 && compareTexts(...texts);
  panels.forEach((panel, i) => {
    if (!words) return panel.tell([asCommon(texts[i])]);
    const parting = partingOf(panel.run, runs[1 - i]);
    panel.differs = panel.puzzle ? parting?.positions : positionsOf(panel.run, words[i]);
    const same = `the same text as ${runs[1 - i].name}`;
    panel.tell(words[i], parting ? apart(panel, parting, words[i], runs[1 - i]) : same);
  });
  level(panels);
}

/** Gives back the room that was kept for much longer texts; strips side by side stay level. */
function level(panels) {
  const outcomes = panels.map((panel) => panel.outcome);
  const tallest = () => Math.max(...outcomes.map((outcome) => outcome.offsetHeight));
  const kept = tallest();
  for (const outcome of outcomes) outcome.style.minHeight = "";
  const needed = tallest();
  const isMuch = kept - needed > SPARE_LINES * parseFloat(getComputedStyle(outcomes[0]).lineHeight);
  for (const outcome of outcomes) outcome.style.minHeight = `${isMuch ? needed : kept}px`;
}

function apart({ run, puzzle }, parting, words, other) {
  const { step, position } = parting;
  const at = `first decides differently at step ${step}`;
  if (puzzle) {
    const place = placeIn(puzzle, position);
    const [own, theirs] = [run, other].map((one) =>
      one.commits.has(position) ? quoted(one.textAt(position)) : "none",
    );
    const where = place ? ` (${place}: ${own}, ${other.name} ${theirs})` : "";
    return `${at}${where}; ${parting.positions.size} of ${plural(run.slots.length, "cell")} differ`;
  }
  const all = words.filter(({ text }) => /[\p{L}\p{N}]/u.test(text));
  const own = all.filter((word) => !word.common).length;
  return `${at}; ${own} of ${plural(all.length, "word")} not in ${other.name}`;
}
