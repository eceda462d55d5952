// An answer while it is denoised: what is decided as text, and in between what the masks lean to,
// amber as strong as it is fed back. The end's own tokens are nothing to read.

class Draft {
  /** `parts`: what is written and, in every second place, how many masks stand between. */
  constructor(host, run, parts) {
    this.run = run;
    this.places = [];
    parts = withoutSpaces(run, parts);
    const masks = (count) => Array.from({ length: count }, () => this.place());
    host.replaceChildren(...parts.flatMap((part, i) => (i % 2 ? masks(Number(part)) : [part])));
  }

  place() {
    const place = { root: element("span"), drawn: "" };
    this.places.push(place);
    return place.root;
  }

  draw() {
    const { run } = this;
    const index = run.steps.length - 1;
    run.slots.forEach((position, i) => {
      const state = run.stateAt(index, position);
      const isMasked = state === "masked";
      const lead = isMasked ? run.leadsAt(index, position, 1)?.leads[0] : null;
      const text = isMasked ? (lead?.text ?? "") : run.textAt(position);
      this.write(this.places[i], SPECIAL.test(text) ? "" : text, state, lead?.share ?? 0);
    });
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
  parts.forEach((part, i) => {
    const from = text.length;
    const slots = i % 2 ? run.slots.slice(slot, slot + Number(part)) : [];
    slot += slots.length;
    text += i % 2 ? slots.map((position) => run.end.pieces[position]).join("") : part;
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
