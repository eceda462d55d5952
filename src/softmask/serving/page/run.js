// One run, and what it looked like after each of its events. Index -1 is the canvas before any.
//
// A position is named by where it stood at the start; masks that a growing hole gets later have
// names behind those. `line` has all names from left to right, `orders` those that stand on the
// canvas before the first event and after each.

const FORMAT = "softmask-trace";
const VERSION = 1;

class Run {
  constructor(start) {
    this.start = start;
    this.steps = [];
    this.end = null;
    this.isWhole = true; // until it is closed before its end
    this.texts = new Map(start.tokens.map((token) => [token.id, token.text]));
    this.tokens = [...start.tokens];
    this.line = this.tokens.map((_, position) => position);
    this.orders = [this.line];
    this.moves = false;
    this.slots = this.line.filter((position) => this.tokens[position].masked);
    this.commits = new Map();
    this.rows = [];
  }

  /** A run out of a trace file. */
  static read({ start, steps, end }) {
    const run = new Run(start);
    for (const step of steps) run.add(step);
    run.end = end;
    return run;
  }

  add(step) {
    for (const [id, text] of Object.entries(step.texts)) this.texts.set(Number(id), text);
    const order = step.source ? this.move(step.source) : this.orders.at(-1);
    const { position, id, p, entropy } = step.committed;
    position.forEach((column, i) => {
      const commit = { index: this.steps.length, step: step.step, id: id[i] };
      this.commits.set(order[column], { ...commit, p: p[i], entropy: entropy[i] });
    });
    const rows = new Int32Array(this.tokens.length).fill(-1);
    step.masked.position.forEach((column, row) => (rows[order[column]] = row));
    this.rows.push(rows);
    this.orders.push(order);
    this.steps.push(step);
  }

  /** A hole grew or shrank: `source` says from which column each of its own came, -1: a new mask. */
  move(source) {
    const before = this.orders.at(-1);
    const [first] = this.slots;
    const stop = first + this.slots.length - this.line.length + before.length;
    const hole = source.map((column, i) => {
      const next = source.slice(i).find((one) => one >= 0);
      return column < 0 ? this.insert(before[next] ?? before[stop]) : before[column];
    });
    this.moves = true;
    this.slots = this.line.filter((position) => this.tokens[position].masked);
    return [...before.slice(0, first), ...hole, ...before.slice(stop)];
  }

  /** A new mask before a position, or at the end. */
  insert(next) {
    const position = this.tokens.push({ id: -1, text: "", masked: true }) - 1;
    const at = next === undefined ? this.line.length : this.line.indexOf(next);
    this.line = this.line.toSpliced(at, 0, position);
    return position;
  }

  /** Ends a run that nobody ended, so that it can be kept like any other. */
  close(reason) {
    this.isWhole = false;
    const last = this.steps.at(-1);
    const order = this.orders.at(-1);
    const pieces = order.map((position) => {
      const [token, commit] = [this.tokens[position], this.commits.get(position)];
      const text = token.masked ? (commit ? this.textOf(commit.id) : "") : token.text;
      return SPECIAL.test(text) ? "" : text;
    });
    // An answer is what was decided from the left: behind a gap nothing goes on.
    const isOpen = (position) => this.tokens[position].masked && !this.commits.has(position);
    const gap = order.findIndex(isOpen);
    const [from, to] = this.start.infill ? [0] : [this.slots[0], gap < 0 ? undefined : gap];
    this.end = {
      text: pieces.slice(from, to).join(""),
      finish_reason: reason,
      forwards: last?.forwards ?? 0,
      steps: last?.step ?? 0,
      seconds: last?.seconds ?? 0,
      waited: 0,
      pieces,
    };
  }

  get name() {
    return this.start.name;
  }

  get total() {
    return this.end?.steps || this.steps.at(-1)?.steps || 1;
  }

  get reached() {
    return this.end ? this.total : (this.steps.at(-1)?.step ?? 0);
  }

  /** The last event that was over by this step; steps may be missing or merged. */
  indexAt(step) {
    let low = -1;
    for (let high = this.steps.length - 1; low < high; ) {
      const middle = Math.ceil((low + high) / 2);
      if (this.steps[middle].step <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  textOf(id) {
    return this.texts.get(id) ?? `#${id}`;
  }

  /** The names on the canvas, from left to right. */
  orderAt(index) {
    return this.orders[Math.min(index + 1, this.orders.length - 1)];
  }

  /** How many of them are of masks, or of what stands in their place. */
  writtenAt(index) {
    return this.slots.length - this.line.length + this.orderAt(index).length;
  }

  /** "given", "done", "fresh", "masked" or, before a hole grew so far and where it shrank, "gone". */
  stateAt(index, position) {
    if (!this.tokens[position].masked) return "given";
    if (this.moves && !this.orderAt(index).includes(position)) return "gone";
    const commit = this.commits.get(position);
    if (!commit || commit.index > index) return "masked";
    return commit.index === index ? "fresh" : "done";
  }

  /** What stands at a position that is not masked. */
  textAt(position) {
    const token = this.tokens[position];
    return token.masked ? this.textOf(this.commits.get(position).id) : token.text;
  }

  /** What a token adds to the finished text; the leading candidate where there is none. */
  pieceAt(position) {
    const column = this.moves ? this.orders.at(-1).indexOf(position) : position;
    const piece = this.end.pieces?.[column];
    if (piece) return piece;
    if (this.commits.has(position) || !this.tokens[position].masked) return this.textAt(position);
    return this.leadsAt(this.steps.length - 1, position, 1)?.leads[0].text ?? "   ";
  }

  /** The likeliest candidates of a masked position, and how strongly each is fed back. */
  leadsAt(index, position, count) {
    const row = this.rows[index]?.[position] ?? -1;
    const masked = this.steps[index]?.masked;
    if (row < 0 || !masked.candidates[row].length) return null;
    const lambda = masked.lambda[row];
    const leads = masked.candidates[row].slice(0, count).map((id, i) => {
      return { text: this.textOf(id), share: lambda * masked.w[row][i] };
    });
    return { lambda, leads };
  }

  /** All that was seen at a masked position; null where it is not masked or was not read. */
  sightAt(index, position) {
    const row = this.rows[index]?.[position] ?? -1;
    if (row < 0) return null;
    const { lambda, entropy, candidates, p, w } = this.steps[index].masked;
    const seen = candidates[row].map((id, i) => {
      return { text: this.textOf(id), p: p[row][i], w: w[row][i] };
    });
    return { lambda: lambda[row], entropy: entropy[row], candidates: seen };
  }

  toJSON() {
    return { start: this.start, steps: this.steps, end: this.end };
  }
}

/** What is given before the first mask. */
function promptOf({ start, slots }) {
  const given = start.tokens.slice(0, slots[0]).map((token) => token.text);
  return given.filter((text) => !SPECIAL.test(text)).join("");
}

/** The runs of a trace file; a Refusal where it is none. */
function readTrace(trace) {
  if (trace?.format !== FORMAT) throw new Refusal("This file is no trace of softmask");
  if (trace.version !== VERSION) {
    throw new Refusal(`This trace has version ${trace.version}, and this page reads ${VERSION}`);
  }
  try {
    const runs = trace.runs.map((run) => Run.read(run));
    if (runs.length && runs.every((run) => run.end && run.slots.length)) return runs;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // a field that is not there
  }
  throw new Refusal("This trace is damaged: a run in it is not whole");
}

const traceOf = (runs) => ({ format: FORMAT, version: VERSION, runs });
