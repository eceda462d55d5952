// What is known of a position at a step: beside the token, by pointer, focus or tap.

class Popover {
  constructor(root) {
    this.root = root;
    this.subject = null;
    root.addEventListener("pointerenter", () => clearTimeout(this.closing));
    root.addEventListener("pointerleave", () => this.hideSoon());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
  }

  /** `anchor` is an element, or a rectangle under a pointer. */
  show(anchor, run, index, position) {
    clearTimeout(this.closing);
    this.subject = { anchor, run, index, position };
    this.root.replaceChildren(...describe(run, index, position));
    this.root.hidden = false;
    this.place(anchor instanceof Element ? anchor.getBoundingClientRect() : anchor);
  }

  /** Follows the run while it is open. */
  update(run, index) {
    const { subject } = this;
    if (!subject || subject.run !== run || subject.index === index) return;
    if (subject.anchor instanceof Element) this.show(subject.anchor, run, index, subject.position);
  }

  place(rect) {
    const { offsetWidth, offsetHeight } = this.root;
    const below = rect.bottom + 6;
    const fits = below + offsetHeight < innerHeight || rect.top < offsetHeight + 12;
    const room = document.documentElement.clientWidth - offsetWidth - 8;
    this.root.style.left = `${Math.max(Math.min(rect.left - 8, room), 8)}px`;
    this.root.style.top = `${fits ? below : rect.top - offsetHeight - 6}px`;
  }

  hide() {
    clearTimeout(this.closing);
    this.subject = null;
    this.root.hidden = true;
  }

  hideSoon() {
    clearTimeout(this.closing);
    this.closing = setTimeout(() => this.hide(), 120);
  }
}

function describe(run, index, position) {
  const state = run.stateAt(index, position);
  const commit = run.commits.get(position);
  const column = run.orderAt(index).indexOf(position);
  if (column < 0) return [element("p", "", "not on the canvas at this step")];
  const title = (text) => element("p", "", `position ${column}: ${text}`);
  if (state === "given") return [title("given"), token(run.textAt(position))];
  if (state === "masked") {
    const future = commit ? `, decided at step ${commit.step}` : "";
    return [title(`masked${future}`), ...sight(run.sightAt(index, position))];
  }
  const chance = `p ${fixed(commit.p)}, entropy ${fixed(commit.entropy)} nats`;
  return [
    title(`decided at step ${commit.step}`),
    token(run.textAt(position)),
    element("p", "", commit.p === null ? "filled in behind the end, not predicted" : chance),
    ...before(run, commit.index - 1, position),
  ];
}

const token = (text) => element("p", "token-text", quoted(text));

function before(run, index, position) {
  const sighted = run.sightAt(index, position);
  if (!sighted?.candidates.length) return [];
  return [element("p", "rule", `before, at step ${run.steps[index].step}`), ...sight(sighted)];
}

function sight(sighted) {
  if (!sighted?.candidates.length) return [element("p", "", "not read yet: the bare mask")];
  const { lambda, entropy, candidates } = sighted;
  const table = element("table");
  table.append(row("th", "token", "p", "share"));
  for (const { text, p, w } of candidates) {
    table.append(row("td", quoted(text), fixed(p), w ? fixed(w) : ""));
  }
  const numbers = `lambda ${fixed(lambda)}, entropy ${fixed(entropy)} nats`;
  return [table, element("p", "", numbers)];
}

function row(kind, ...texts) {
  const made = element("tr");
  made.append(...texts.map((text) => element(kind, "", text)));
  return made;
}
