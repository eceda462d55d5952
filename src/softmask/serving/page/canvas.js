// The tokens of a run. Elements are made once for a run and a layout and then changed position by
// position, only where something changed; no change moves another token, but where a hole grows or
// shrinks.
//
// "cells": what is written during the run has a cell of fixed width, as nobody knows how long it
// will be. "prose": each position has the room of its final token, so the text reads as text.
// "grid": the cells of a puzzle, and nothing else.

const GHOSTS = 3;

class Canvas {
  constructor(host) {
    this.host = host;
    this.run = null;
    this.current = 0;
  }

  /** `puzzle`: of the run, or null. */
  show(run, layout, puzzle) {
    this.run = run;
    this.isOver = run.end !== null;
    this.layout = layout;
    this.width = layout === "grid" ? 1 : cellWidth(run.start.tokens);
    this.host.className = `canvas ${layout}`;
    this.host.style.setProperty("--cell", this.width);
    const cells = layout === "grid" ? puzzle.cells : [];
    this.places = run.tokens.map((_, position) => this.place(position));
    if (layout === "grid") {
      this.host.style.setProperty("--side", puzzle.side);
      for (const place of this.places) place.root.hidden = true;
      cells.forEach((cell, i) => this.placeInGrid(cell, i, puzzle));
    } else if (this.isOver) this.fold();
    this.list();
    this.places[this.current].root.tabIndex = 0;
    this.host.replaceChildren(...run.line.map((position) => this.places[position].root));
  }

  /** What keys can reach. */
  list() {
    this.shown = this.run.line.filter((position) => !this.places[position].root.hidden);
    if (!this.shown.includes(this.current)) [this.current] = this.shown;
  }

  /** Makes places of new masks, and hides what is not on the canvas after an event. */
  move(index) {
    const { line, tokens } = this.run;
    while (this.places.length < tokens.length) this.places.push(this.place(this.places.length));
    for (let i = line.length - 1; i >= 0; i--) {
      const { root } = this.places[line[i]];
      if (!root.parentNode) this.host.insertBefore(root, this.places[line[i + 1]]?.root ?? null);
    }
    const there = new Set(this.run.orderAt(index));
    for (const position of line) this.places[position].root.hidden = !there.has(position);
    this.list();
  }

  place(position) {
    const root = element("span", "token");
    root.role = "option";
    root.tabIndex = -1;
    root.dataset.position = position;
    const [lead, own, lean] = ["lead", "own", "lean"].map((name) => element("span", name));
    const count = this.layout === "grid" ? GHOSTS : 1;
    const ghosts = Array.from({ length: count }, () => element("span", "ghost"));
    const shell = element("span", "face");
    for (const part of [lean, ...ghosts]) part.ariaHidden = "true";
    shell.append(own, lean, ...ghosts);
    root.append(lead, shell);
    return { root, lead, own, lean, ghosts, drawn: "", text: null, mark: "", given: "" };
  }

  placeInGrid({ given, position }, i, { side, box }) {
    const place = this.places[position];
    const [row, column] = [Math.floor(i / side), i % side];
    const isEdge = (at) => at % box === box - 1 && at < side - 1;
    const edges = [isEdge(column) && "east", isEdge(row) && "south"].filter(Boolean);
    Object.assign(place, { given, mark: edges.join(" ") });
    place.root.hidden = false;
  }

  /** A run of the same end token is one sign, with how many there are. */
  fold() {
    const { run } = this;
    const endAt = (position) => {
      if (!run.commits.has(position)) return null;
      const text = run.textAt(position);
      return isEnd(text) ? text : null;
    };
    for (let first = 0, next; first < this.places.length; first = next) {
      const text = endAt(first);
      for (next = first + 1; text && endAt(next) === text; next++) {
        this.places[next].root.hidden = true;
      }
      if (next > first + 1) this.places[first].root.dataset.count = ` \u00d7 ${next - first}`;
    }
  }

  /** Draws the state after an event; `settled`: nothing is fresh any more. */
  draw(index, settled, differs) {
    if (this.run.moves) this.move(index);
    for (const [position, place] of this.places.entries()) {
      if ((this.layout === "grid" || this.run.moves) && place.root.hidden) continue;
      let state = this.run.stateAt(index, position);
      if (settled && state === "fresh") state = "done";
      if (state !== "masked") this.drawToken(place, state, position, differs?.has(position));
      else if (place.given) this.write(place, place.given, "given", "");
      else this.drawMask(place, index, position);
    }
  }

  drawToken(place, state, position, differs) {
    const text = this.layout === "prose" ? this.run.pieceAt(position) : this.run.textAt(position);
    const isWrong = place.given && text !== place.given;
    const marks = `${differs ? "differs" : ""}${isWrong ? " wrong" : ""}`;
    this.write(place, text, place.given ? "given" : state, marks);
  }

  drawMask(place, index, position) {
    const sight = this.run.leadsAt(index, position, place.ghosts.length);
    const drawn = sight ? JSON.stringify(sight) : "masked";
    if (place.drawn === drawn) return;
    this.write(place, this.layout === "prose" ? this.run.pieceAt(position) : "", "masked", "");
    place.drawn = drawn;
    place.ghosts.forEach((ghost, i) => {
      const lead = sight?.leads[i];
      const core = lead ? face(lead.text).core : "";
      if (ghost.textContent !== core) ghost.textContent = core;
      ghost.style.opacity = lead ? lead.share : 0;
    });
    // The same word twice: grey for what it leans to, amber over it as strong as it is fed back.
    const core = place.ghosts[0].textContent;
    if (place.lean.textContent !== core) place.lean.textContent = core;
    fit(place.root, core, this.layout === "prose" ? place.own.textContent.length : this.width);
    // The wash says which positions hear most: of the largest feedback that there can be.
    const most = this.run.start.settings.soft_mask?.scale || 1;
    place.root.style.setProperty("--lambda", (sight?.lambda ?? 0) / most);
  }

  write(place, text, state, more) {
    const drawn = `${state} ${more}`;
    if (place.drawn === drawn && place.text === text) return;
    place.drawn = drawn;
    const { spaced, core, breaks, special } = face(text);
    const slot = state === "given" && this.layout !== "grid" ? "" : "slot";
    const signs = Object.entries({ spaced, breaks, special }).filter(([, is]) => is);
    const names = ["token", state, slot, place.mark, more, ...signs.map(([sign]) => sign)];
    place.root.className = names.filter(Boolean).join(" ");
    name(place.root);
    if (state !== "masked") {
      for (const ghost of place.ghosts) if (ghost.textContent) ghost.textContent = "";
      if (place.lean.textContent) place.lean.textContent = "";
    }
    if (place.text === text) return;
    place.text = text;
    place.lead.textContent = spaced ? " " : "";
    place.own.textContent = core;
    if (slot && state !== "masked") fit(place.root, core, this.width);
  }

  /** The canvas in words, for who cannot see it. */
  words(index) {
    const text = (position) =>
      this.run.stateAt(index, position) === "masked" ? " [mask]" : this.run.textAt(position);
    return this.run.orderAt(index).map(text).join("");
  }

  positionOf(target) {
    const root = target instanceof Element ? target.closest(".token") : null;
    return root && this.host.contains(root) ? Number(root.dataset.position) : null;
  }

  focus(position) {
    this.places[position].root.focus();
  }

  /** The focused token is the one that Tab comes back to. */
  enter(position, index) {
    this.places[this.current].root.tabIndex = -1;
    this.current = position;
    const { root, own, ghosts } = this.places[position];
    root.tabIndex = 0;
    const state = this.run.stateAt(index, position);
    const text = (state === "masked" ? ghosts[0] : own).textContent;
    root.ariaLabel = `position ${this.run.orderAt(index).indexOf(position)}, ${state}: ${text}`;
    root.setAttribute("aria-describedby", "popover");
  }

  leave(position) {
    const { root } = this.places[position];
    root.removeAttribute("aria-describedby");
    name(root);
  }

  /** The token that a key leads to, or null where the key means nothing here. */
  neighbour(key) {
    const at = this.shown.indexOf(this.current);
    switch (key) {
      case "ArrowRight": return this.shown[Math.min(at + 1, this.shown.length - 1)];
      case "ArrowLeft": return this.shown[Math.max(at - 1, 0)];
      case "Home": return this.shown[0];
      case "End": return this.shown.at(-1);
      case "ArrowDown": return this.acrossLines(1);
      case "ArrowUp": return this.acrossLines(-1);
      default: return null;
    }
  }

  acrossLines(direction) {
    const rectOf = (position) => this.places[position].root.getBoundingClientRect();
    const from = rectOf(this.current);
    const rects = this.shown.map(rectOf);
    const lines = rects.map((rect) => (rect.top - from.top) * direction).filter((gap) => gap > 8);
    const next = Math.min(...lines);
    const distances = rects.map((rect) =>
      (rect.top - from.top) * direction === next ? Math.abs(rect.left - from.left) : Infinity,
    );
    return lines.length ? this.shown[distances.indexOf(Math.min(...distances))] : this.current;
  }

  mark(position) {
    const before = this.host.querySelector("[aria-selected]");
    if (before) before.ariaSelected = null;
    if (this.places[position]) this.places[position].root.ariaSelected = "true";
  }
}

/** A mask shows nothing that could be its name. */
function name(root) {
  root.ariaLabel = root.classList.contains("masked") ? "masked" : null;
}

/** A long token is written smaller rather than let it widen its cell. */
function fit(root, core, width) {
  root.style.setProperty("--squeeze", Math.min(Math.max(width / core.length, 0.6), 1));
}

/** Narrow cells where the prompt is made of single characters, as puzzles are. */
function cellWidth(tokens) {
  const given = tokens.filter((token) => !token.masked).map((token) => face(token.text).core);
  const single = given.filter((core) => core.length === 1).length;
  return given.length && single >= 0.6 * given.length ? 2 : 6;
}
