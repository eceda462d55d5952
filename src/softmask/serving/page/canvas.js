// The tokens of a run. Elements are made once for a run and a layout and then changed position by
// position, only where something changed; no change moves another token.
//
// "cells": what is written during the run has a cell of fixed width, as nobody knows how long it
// will be. "prose": each position has the room of its final token, so the text reads as text.

class Canvas {
  constructor(host) {
    this.host = host;
    this.run = null;
  }

  show(run, layout) {
    const kept = this.run && this.places.length === run.start.tokens.length ? this.current : 0;
    this.run = run;
    this.prose = layout === "prose" && run.end !== null;
    this.width = cellWidth(run.start.tokens);
    this.host.className = `canvas ${this.prose ? "prose" : "cells"}`;
    this.host.style.setProperty("--cell", this.width);
    this.places = run.start.tokens.map((_, position) => this.place(position));
    this.current = kept;
    this.places[kept].root.tabIndex = 0;
    this.host.replaceChildren(...this.places.map((place) => place.root));
  }

  place(position) {
    const root = element("span", "token");
    root.role = "option";
    root.tabIndex = -1;
    root.dataset.position = position;
    const parts = ["lead", "face", "own", "lean", "ghost"].map((name) => element("span", name));
    const [lead, face, own, lean, ghost] = parts;
    lean.ariaHidden = ghost.ariaHidden = "true";
    face.append(own, lean, ghost);
    root.append(lead, face);
    return { root, lead, own, lean, ghost, drawn: "", text: null };
  }

  /** Draws the state after an event; `settled`: nothing is fresh any more. */
  draw(index, settled) {
    this.places.forEach((place, position) => {
      let state = this.run.stateAt(index, position);
      if (settled && state === "fresh") state = "done";
      if (state === "masked") this.drawMask(place, index, position);
      else this.drawToken(place, state, position);
    });
  }

  drawToken(place, state, position) {
    if (place.drawn === state) return;
    place.drawn = state;
    this.write(place, this.prose ? this.run.pieceAt(position) : this.run.textAt(position), state);
    if (place.ghost.textContent) place.ghost.textContent = place.lean.textContent = "";
  }

  drawMask(place, index, position) {
    const lead = this.run.leadAt(index, position);
    const drawn = lead ? `${lead.text}\n${lead.lambda}\n${lead.share}` : "masked";
    if (place.drawn === drawn) return;
    place.drawn = drawn;
    this.write(place, this.prose ? this.run.pieceAt(position) : "", "masked");
    const core = lead ? face(lead.text).core : "";
    // The same word twice: grey for what it leans to, amber over it as strong as it is fed back.
    if (place.ghost.textContent !== core) place.ghost.textContent = place.lean.textContent = core;
    fit(place.root, core, this.prose ? place.own.textContent.length : this.width);
    place.ghost.style.opacity = lead ? lead.share : 0;
    place.root.style.setProperty("--lambda", lead ? lead.lambda : 0);
  }

  write(place, text, state) {
    const { spaced, core, breaks, special } = face(text);
    const slot = state === "given" ? "" : " slot";
    const marks = Object.entries({ spaced, breaks, special }).filter(([, is]) => is);
    place.root.className = `token ${state}${slot} ${marks.map(([mark]) => mark).join(" ")}`;
    name(place.root);
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
    return this.run.start.tokens.map((_, position) => text(position)).join("");
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
    const { root, own, ghost } = this.places[position];
    root.tabIndex = 0;
    const state = this.run.stateAt(index, position);
    const text = (state === "masked" ? ghost : own).textContent;
    root.ariaLabel = `position ${position}, ${state}: ${text}`;
    root.setAttribute("aria-describedby", "popover");
  }

  leave(position) {
    const { root } = this.places[position];
    root.removeAttribute("aria-describedby");
    name(root);
  }

  /** The token that a key leads to, or null where the key means nothing here. */
  neighbour(key) {
    const last = this.places.length - 1;
    const at = this.current;
    switch (key) {
      case "ArrowRight": return Math.min(at + 1, last);
      case "ArrowLeft": return Math.max(at - 1, 0);
      case "Home": return 0;
      case "End": return last;
      case "ArrowDown": return this.acrossLines(1);
      case "ArrowUp": return this.acrossLines(-1);
      default: return null;
    }
  }

  acrossLines(direction) {
    const rects = this.places.map((place) => place.root.getBoundingClientRect());
    const from = rects[this.current];
    const lines = rects.map((rect) => (rect.top - from.top) * direction).filter((gap) => gap > 8);
    const next = Math.min(...lines);
    const distances = rects.map((rect) =>
      (rect.top - from.top) * direction === next ? Math.abs(rect.left - from.left) : Infinity,
    );
    return lines.length ? distances.indexOf(Math.min(...distances)) : this.current;
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
