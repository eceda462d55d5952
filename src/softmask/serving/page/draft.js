// An answer while it is denoised: what is decided as text, and in between what the masks lean to,
// amber as strong as it is fed back. The end's own tokens are nothing to read.

class Draft {
  /** `parts`: what is written and, in every second place, how many masks stand between. */
  constructor(host, run, parts) {
    this.run = run;
    this.host = host;
    this.places = new Map(); // of positions
    parts = withoutSpaces(run, parts);
    const slots = [...run.slots];
    const masks = (count) => slots.splice(0, count).map((position) => this.place(position));
    host.replaceChildren(...parts.flatMap((part, i) => (i % 2 ? masks(Number(part)) : [part])));
  }

  place(position) {
    this.places.set(position, { root: element("span"), drawn: "" });
    return this.places.get(position).root;
  }

  draw() {
    const { run } = this;
    const index = run.steps.length - 1;
    let before = null;
    for (const position of run.slots) {
      if (!this.places.has(position)) before.after(this.place(position));
      before = this.places.get(position).root;
      const state = run.stateAt(index, position);
      const isMasked = state === "masked";
      const lead = isMasked ? run.leadsAt(index, position, 1)?.leads[0] : null;
      const isThere = state !== "gone";
      const text = isMasked ? (lead?.text ?? "") : isThere ? run.textAt(position) : "";
      const place = this.places.get(position);
      this.write(place, SPECIAL.test(text) ? "" : text, state, lead?.share ?? 0);
    }
  }

  write(place, text, state, share) {
    const drawn = `${state} ${share} ${text}`;
    if (place.drawn === drawn) return;
    place.drawn = drawn;
    place.root.className = state;
    // Of a character that takes several tokens each is half a one.
    place.root.textContent = text.replaceAll("\ufffd", SIGNS["\ufffd"]);
    place.root.style.setProperty("--share", share);
  }
}

/** What a finished run makes of such parts: the text, and where its last stretch lies in it. */
function fillIn(run, parts) {
  parts = withoutSpaces(run, parts);
  let [text, slot, stretch] = ["", 0, null];
  const order = run.orders.at(-1);
  const pieceOf = (position) => run.end.pieces[order.indexOf(position)] ?? "";
  parts.forEach((part, i) => {
    const from = text.length;
    // A hole that grows is the only one.
    const stop = run.moves ? run.slots.length : slot + Number(part);
    const slots = i % 2 ? run.slots.slice(slot, stop) : [];
    slot += slots.length;
    text += i % 2 ? slots.map((position) => pieceOf(position)).join("") : part;
    if (i % 2) stretch = { from, to: text.length };
  });
  return { text, stretch };
}

/** Such parts without the space before a hole, where the hole's own text begins with it. */
function withoutSpaces({ start: { tokens }, slots }, parts) {
  const spacesOf = (text) => / *$/.exec(text)[0].length;
  let slot = 0;
  return parts.map((part, i) => {
    if (i % 2) slot += Number(part);
    if (i % 2 || i === parts.length - 1) return part;
    const before = tokens.slice(0, slots[slot]).findLastIndex((token) => token.masked);
    const written = tokens.slice(before + 1, slots[slot]);
    const missing = spacesOf(part) > spacesOf(written.map(({ text }) => text).join(""));
    return missing ? part.slice(0, -1) : part;
  });
}
