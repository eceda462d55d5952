// The form: its examples, its settings, the requests it stands for, and its link.

const HOLES = /\[\[\d+\]\]/;
const SOFT = "softmask.soft_mask.";

class Controls {
  constructor(data) {
    this.model = data.model;
    this.form = byId("form");
    this.fields = [...this.form.querySelectorAll("#settings [name]")];
    this.defaults = this.readDefaults();
    for (const field of this.fields) {
      const value = this.defaults.get(field.name);
      if (field.name.startsWith(SOFT)) field.value = value ?? "";
      else if (value !== undefined) this.hint(field, value);
    }
    this.original = this.softValues();
    byId("compare").checked = this.model.soft_mask !== null;
    byId("examples").hidden = !data.examples.length;
    for (const example of data.examples) {
      const button = element("button", "example", example.name);
      button.type = "button";
      button.addEventListener("click", () => this.load(example));
      byId("examples").append(button);
    }
  }

  /** What the model takes where a field is empty, by the field's name. */
  readDefaults() {
    const { sampling, soft_mask: soft, max_tokens: tokens } = this.model;
    const values = new Map([["max_tokens", tokens]]);
    for (const [name, value] of Object.entries(sampling)) {
      values.set(["temperature", "top_p"].includes(name) ? name : `softmask.${name}`, value);
    }
    for (const [name, value] of Object.entries(soft ?? {})) values.set(SOFT + name, value);
    return values;
  }

  hint(field, value) {
    if (field instanceof HTMLSelectElement) field.options[0].textContent = `default: ${value}`;
    else field.placeholder = value;
  }

  load({ text, settings }) {
    this.clear();
    byId("text").value = text;
    for (const field of this.fields) {
      const name = field.name.replace("softmask.", "");
      if (name in settings) field.value = settings[name];
    }
  }

  clear() {
    for (const field of this.fields) {
      field.value = field.name.startsWith(SOFT) ? (this.defaults.get(field.name) ?? "") : "";
    }
  }

  softValues() {
    const fields = this.fields.filter((field) => field.name.startsWith(SOFT));
    return fields.map((field) => field.value).join();
  }

  /** Whether everything is in its range; else shows what is not. */
  check() {
    const invalid = this.form.querySelector("#settings :invalid");
    if (invalid) byId("settings").open = true;
    return this.form.reportValidity();
  }

  /** The bodies to post: soft-masked, and plain of the same seed where that is wanted. */
  requests() {
    const body = this.body();
    body.seed ??= Math.floor(Math.random() * 2 ** 31);
    this.seed = body.seed;
    const hasSoft = this.model.soft_mask || "soft_mask" in body.softmask;
    if (!hasSoft || !byId("compare").checked) return [body];
    return [body, { ...body, softmask: { ...body.softmask, soft_mask: null } }];
  }

  body() {
    const body = { ...this.ask(byId("text").value), softmask: {} };
    // Numbers that were left as they are: the checkpoint's own, whatever has no field here too.
    if (this.softValues() !== this.original) body.softmask.soft_mask = { ...this.model.soft_mask };
    for (const field of this.fields) {
      if (field.value === "" || (field.name === "max_tokens" && body.infill)) continue;
      const path = field.name.split(".");
      const name = path.pop();
      const place = path.reduce((object, part) => object?.[part], body);
      if (place) place[name] = valueIn(field);
    }
    return body;
  }

  ask(text) {
    if (HOLES.test(text)) return { infill: text };
    return this.model.chat ? { messages: [{ role: "user", content: text }] } : { prompt: text };
  }

  /** A stand-in for the canvas that is about to come, so that its place is kept. */
  expect(body, name) {
    const token = (text) => ({ id: -1, text, masked: text === "" });
    const given = (text) => (text.match(/\d|\n|[^\d\n]+/g) ?? []).map(token);
    const masks = (count) => Array(Math.min(count, this.model.context)).fill("").map(token);
    const tokens = body.infill
      ? body.infill.split(/\[\[(\d+)\]\]/).flatMap((part, i) => (i % 2 ? masks(part) : given(part)))
      : [...given(byId("text").value), ...masks(body.max_tokens ?? this.model.max_tokens)];
    return new Run({ name, tokens, infill: Boolean(body.infill), settings: {} });
  }

  // The link: only what differs from the defaults, behind the #, which no server is sent.

  get link() {
    const values = new URLSearchParams({ text: byId("text").value });
    values.set("compare", Number(byId("compare").checked));
    for (const field of this.fields) {
      const usual = field.name.startsWith(SOFT) ? String(this.defaults.get(field.name) ?? "") : "";
      if (field.value !== usual) values.set(field.name, field.value);
    }
    if (this.seed !== undefined && !values.has("seed")) values.set("seed", this.seed);
    return `${location.href.split("#")[0]}#${values}`;
  }

  /** Takes over what a link says; returns whether it said anything. */
  follow(hash) {
    const values = new URLSearchParams(hash.slice(1));
    if (!values.has("text")) return false;
    this.clear();
    byId("text").value = values.get("text");
    byId("compare").checked = values.get("compare") === "1";
    for (const field of this.fields) field.value = values.get(field.name) ?? field.value;
    return true;
  }
}

function valueIn(field) {
  if (field instanceof HTMLSelectElement) return field.value;
  if (field.name === "softmask.block_length" && Number(field.value) === 0) return null;
  return Number(field.value);
}
