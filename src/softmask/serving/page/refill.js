// A selected stretch of a text, and the bar that has it refilled: what stands before and behind it
// stays, and the model fills in between. Selected by pointer, or in a field by keyboard.

class Refill {
  /** `isFree`: whether something may be run now. */
  constructor(isFree) {
    this.isFree = isFree;
    this.bar = byId("refill");
    this.quote = this.bar.querySelector("q");
    this.count = this.bar.querySelector("input");
    this.hosts = new Map();
    document.addEventListener("selectionchange", () => this.look());
    // A field that is entered again still has its selection; older browsers tell of it otherwise.
    for (const type of ["focusin", "select", "keyup", "pointerup"]) {
      document.addEventListener(type, () => this.look());
    }
    this.bar.addEventListener("submit", (event) => {
      event.preventDefault();
      this.go();
    });
    this.bar.addEventListener("keydown", (event) => event.key === "Escape" && this.hide());
  }

  /**
   * Watches an element or a field. `read()` gives its text, `act(text, { from, to }, count)`
   * refills a stretch of it.
   */
  watch(host, read, act) {
    for (const known of this.hosts.keys()) if (!known.isConnected) this.hosts.delete(known);
    this.hosts.set(host, { host, read, act });
  }

  look() {
    if (this.bar.contains(document.activeElement)) return;
    const [subject, stretch] = this.find();
    if (!stretch || !this.isFree()) return this.hide();
    const { from, to } = this.stretch ?? {};
    if (this.subject === subject && from === stretch.from && to === stretch.to) return;
    Object.assign(this, { subject, stretch });
    const text = subject.read().slice(stretch.from, stretch.to);
    this.quote.textContent = text.length > 40 ? `${text.slice(0, 38)}\u2026` : text;
    this.count.value = tokensIn(text);
    if (this.bar.previousElementSibling !== subject.host) subject.host.after(this.bar);
    this.bar.hidden = false;
  }

  find() {
    const field = this.hosts.get(document.activeElement);
    if (field && "selectionStart" in field.host) {
      const { selectionStart: from, selectionEnd: to } = field.host;
      return [field, from < to ? { from, to } : null];
    }
    const selection = getSelection();
    if (!selection.rangeCount || selection.isCollapsed) return [null, null];
    const range = selection.getRangeAt(0);
    const begins = ({ host }) => host.contains(range.startContainer);
    const subject = [...this.hosts.values()].find(begins);
    return subject ? [subject, stretchOf(subject.host, range)] : [null, null];
  }

  go() {
    const count = Number(this.count.value);
    if (!this.count.validity.valid || count < 1) return this.count.focus();
    const { subject, stretch } = this;
    this.hide();
    getSelection().removeAllRanges();
    subject.act(subject.read(), stretch, count);
  }

  hide() {
    this.bar.hidden = true;
    this.subject = null;
    // Its host may go away with it.
    document.body.append(this.bar);
  }
}

/** What is written in a text with holes and, in every second place, how large a hole is. */
const partsOf = (text) => text?.split(/\[\[(\d+)\]\]/);

/** A text with a hole in place of a stretch; null, and a warning, where more of it is like a hole. */
function withHole(page, text, { from, to }, count) {
  const [before, behind] = [text.slice(0, from), text.slice(to)];
  if (partsOf(before).length === 1 && partsOf(behind).length === 1) {
    return `${before}[[${count}]]${behind}`;
  }
  page.warn(new Refusal("Other [[n]] of this text would be filled in too", "Change it by hand."));
  return null;
}

/** What a range that begins in an element takes of its text; null where that is nothing. */
function stretchOf(host, range) {
  const part = range.cloneRange();
  // Three clicks select up to the next element.
  if (!host.contains(range.endContainer)) part.setEnd(host, host.childNodes.length);
  const before = document.createRange();
  before.selectNodeContents(host);
  before.setEnd(part.startContainer, part.startOffset);
  const from = before.toString().length;
  const to = from + part.toString().length;
  return from < to ? { from, to } : null;
}

/** About how many tokens a text has: a digit or a line break is one, and four letters of a word. */
function tokensIn(text) {
  const parts = text.match(/\d|\n|[^\s\d]+/g) ?? [" "];
  return parts.reduce((sum, part) => sum + Math.ceil(part.length / 4), 0);
}
