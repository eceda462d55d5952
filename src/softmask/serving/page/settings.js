// The settings of a request: a field for each, with the sentence that explains it.

const SOFT = "softmask.soft_mask.";
const FEEDBACK = `${SOFT}feedback`; // A preset, which the other fields of SOFT change.
const TYPICAL = { seed: "new each time", "softmask.steps": "= masks" };

class Settings {
  constructor({ model, settings, feedback }) {
    this.model = model;
    this.presets = feedback;
    this.preset = "";
    this.kind = this.kindOf("");
    this.defaults = this.readDefaults();
    this.fields = [];
    const groups = settings.map(({ name, fields }) => {
      const group = element("fieldset");
      group.append(element("legend", "", name), ...fields.map((field) => this.row(field)));
      return group;
    });
    document.querySelector("#settings .settings").append(...groups);
    this.clear();
    this.original = this.softValues();
  }

  row({ name, kind, help, choices }) {
    const row = element("label");
    const title = element("span", "name", name.split(".").at(-1).replaceAll("_", " "));
    const field = choices ? element("select") : element("input");
    if (choices) {
      const options = ["", ...choices].map((choice) => element("option", "", choice));
      options[0].value = "";
      field.append(...options);
    } else {
      field.type = "number";
      field.step = kind === "int" ? 1 : "any";
      if (name === "max_tokens") field.min = 1;
    }
    field.name = name;
    this.hint(field);
    if (name === FEEDBACK) field.addEventListener("change", () => this.choose(field.value));
    const sentence = element("small", "", help);
    sentence.id = `help-${name}`;
    field.setAttribute("aria-describedby", sentence.id);
    this.fields.push(field);
    row.append(title, field);
    const all = element("div", "setting");
    all.append(row, sentence);
    return all;
  }

  /** Shows the defaults for a text; what was filled in for one of another kind goes with it. */
  suit(text) {
    const kind = this.kindOf(text);
    if (kind === this.kind) return;
    this.kind = kind;
    this.defaults = this.readDefaults();
    for (const field of this.fields) {
      this.hint(field);
      // Another value is the user's own.
      if (field.value === this.filled.get(field)) field.value = this.usual(field);
    }
    this.filled.clear();
  }

  /** A model may bring other defaults for texts that begin in some way; its own: undefined. */
  kindOf(text) {
    const isOf = (kind) => kind.prompt_starts_with.some((start) => text.startsWith(start));
    return this.model.prompt_kinds?.find(isOf);
  }

  /** What it is by that a text is of its kind; undefined: of none. */
  startOf(text) {
    return this.kindOf(text)?.prompt_starts_with.find((start) => text.startsWith(start));
  }

  /** Shows what a preset of the feedback is; "" is what the model brings. */
  choose(preset) {
    this.preset = preset;
    this.defaults = this.readDefaults();
    for (const field of this.softFields()) field.value = this.usual(field);
  }

  hint(field) {
    const isSoft = field.name.startsWith(SOFT);
    const value = isSoft ? undefined : this.defaults.get(field.name);
    if (field instanceof HTMLSelectElement) {
      field.options[0].textContent = value === undefined ? "default" : `default: ${value}`;
    } else field.placeholder = isSoft ? "" : (value ?? TYPICAL[field.name] ?? "");
  }

  /** What the model takes where a field is empty, by the field's name. */
  readDefaults() {
    const { soft_mask: own, max_tokens: usual } = this.model;
    const soft = this.presets[this.preset] ?? own;
    const { sampling, max_new_tokens: tokens } = this.kind ?? this.model;
    const values = new Map([["max_tokens", tokens ?? usual]]);
    for (const [name, value] of Object.entries(sampling)) {
      values.set(["temperature", "top_p"].includes(name) ? name : `softmask.${name}`, value);
    }
    for (const [name, value] of Object.entries(soft ?? {})) values.set(SOFT + name, value);
    return values;
  }

  /**
   * Puts in the settings that come with the text that is there, by their names with or without
   * "softmask.". Returns the names that are none, or whose value is none.
   */
  fill(values) {
    this.clear();
    // First the preset, which decides what the others change.
    const isPreset = (name) => name.endsWith("soft_mask.feedback");
    const names = Object.keys(values).sort((a, b) => isPreset(b) - isPreset(a));
    return names.filter((name) => {
      const isNamed = (field) => [field.name, field.name.replace("softmask.", "")].includes(name);
      const field = this.fields.find(isNamed);
      if (!field) return true;
      field.value = values[name]; // A field takes no value that is none of its kind.
      const isTaken = field.value === String(values[name]);
      if (isTaken && field.name === FEEDBACK) this.choose(field.value);
      if (isTaken) this.filled.set(field, field.value);
      else field.value = this.usual(field);
      return !isTaken;
    });
  }

  clear() {
    this.filled = new Map();
    this.choose("");
    for (const field of this.fields) field.value = this.usual(field);
  }

  usual(field) {
    return field.name.startsWith(SOFT) ? String(this.defaults.get(field.name) ?? "") : "";
  }

  /** The fields that a preset has values of. */
  softFields() {
    return this.fields.filter(({ name }) => name.startsWith(SOFT) && name !== FEEDBACK);
  }

  softValues() {
    const fields = this.softFields();
    return fields.map((field) => field.value).join();
  }

  /** Throws an Error about the first field that holds no number, and shows it. */
  check() {
    for (const field of this.fields) field.ariaInvalid = null;
    const wrong = this.fields.find((field) => !field.validity.valid);
    if (!wrong) return;
    this.point(wrong);
    const least = wrong.min ? ` of at least ${wrong.min}` : "";
    const kind = wrong.step === "1" ? `a whole number${least}` : "a number";
    const name = wrong.name.split(".").at(-1);
    throw new Refusal(`${name} must be ${kind}`, "Change it, and run again.");
  }

  /** Leads to the field that an error names first. */
  pointAt(message) {
    const nameOf = (field) => field.name.split(".").at(-1);
    const places = this.fields.map((field) => message.search(`\\b${nameOf(field)}\\b`));
    const first = Math.min(...places.filter((place) => place >= 0));
    const field = this.fields[places.indexOf(first)];
    if (field && field.value !== this.usual(field)) this.point(field);
  }

  point(field) {
    byId("settings").open = true;
    field.ariaInvalid = "true";
    field.focus();
  }

  /** The part of a body that the settings are. */
  body(isInfill) {
    const body = { softmask: {} };
    const { preset } = this;
    if (preset) body.softmask.soft_mask = preset === "off" ? null : { feedback: preset };
    // Numbers that were left as they are: the checkpoint's own, whatever has no field here too.
    else if (this.softValues() !== this.original) body.softmask.soft_mask = { ...this.model.soft_mask };
    for (const field of this.fields) {
      const isFixed = isInfill && !this.model.grows_holes;
      if (field.value === "" || (field.name === "max_tokens" && isFixed)) continue;
      // What a preset has itself.
      if (preset && field.name.startsWith(SOFT) && field.value === this.usual(field)) continue;
      const path = field.name.split(".");
      const name = path.pop();
      const place = path.reduce((object, part) => object?.[part], body);
      if (place) place[name] = valueIn(field);
    }
    body.seed ??= Math.floor(Math.random() * 2 ** 31);
    return body;
  }

  /** What differs from the defaults: pairs for a link. */
  changes() {
    const changed = this.fields.filter((field) => field.value !== this.usual(field));
    return changed.map((field) => [field.name, field.value]);
  }
}

function valueIn(field) {
  if (field instanceof HTMLSelectElement) return field.value;
  if (field.name === "softmask.block_length" && Number(field.value) === 0) return null;
  return Number(field.value);
}
