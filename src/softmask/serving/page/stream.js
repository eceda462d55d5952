// POST /v1/denoise and its events.

/** What went wrong, and what one can do about it. */
class Refusal extends Error {
  constructor(message, advice = "", { status = 0, ending = "cancelled" } = {}) {
    super(message);
    Object.assign(this, { advice, status, ending });
  }

  /** Of an event in place of the end. */
  static inStream({ message, code }) {
    const status = { deadline: 504, shutdown: 503 }[code];
    const ending = status ? code : "cancelled";
    return new Refusal(sentence(message), ADVICE[status] ?? AGAIN, { ending });
  }

  /** An error of the page itself. */
  static own({ message }) {
    return new Refusal(`This page failed: ${message}`, "Run again, or reload the page.");
  }

  static gone(message) {
    return new Refusal(message, GONE, { ending: "shutdown" });
  }
}

const ADVICE = {
  400: "Change the text or the settings, and run again.",
  401: "Enter the key below the settings, and run again.",
  413: "Shorten the text, and run again.",
  503: "Start the server again (softmask serve), then run again.",
  504: "Ask for fewer tokens or steps, or start the server with a longer --deadline.",
};
const AGAIN = "Run again; the server's log may say more.";
const GONE = "Start it again (softmask serve), then run again.";

/** A server's message as a sentence; the name of a field in front stays as it is. */
function sentence(text) {
  return /^[\w.]+:/.test(text) ? text : text?.replace(/^./, (first) => first.toUpperCase());
}

async function refusalOf(response) {
  const error = await response.json().then((body) => body.error, () => null);
  const message = sentence(error?.message) ?? `The server answered ${response.status}`;
  const wait = response.headers.get("retry-after");
  const advice = response.status === 429 && wait
    ? `Run again in ${plural(Number(wait), "second")}.`
    : (ADVICE[response.status] ?? AGAIN);
  return new Refusal(message, advice, { status: response.status });
}

function parseEvent(text) {
  const lines = text.split("\n");
  const lineOf = (name) => lines.find((line) => line.startsWith(`${name}: `));
  const field = (name) => lineOf(name).slice(name.length + 2);
  return { name: field("event"), data: JSON.parse(field("data")) };
}

async function* eventsOf(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const gone = (error) => {
    if (signal.aborted) throw error;
    return { done: true };
  };
  for (let pending = ""; ; ) {
    const { value, done } = await reader.read().catch(gone);
    if (done) return;
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    yield* parts.map(parseEvent);
  }
}

async function post(body, key, signal) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const request = { method: "POST", headers, body: JSON.stringify(body), signal };
  try {
    return await fetch("/v1/denoise", request);
  } catch (error) {
    if (signal.aborted) throw error;
    throw Refusal.gone(`No server answers at ${location.origin}`);
  }
}

/** Runs a request to its end and tells of each event: on.start, on.step, on.end. */
async function denoise(body, key, signal, on) {
  const response = await post(body, key, signal);
  if (!response.ok) throw await refusalOf(response);
  for await (const { name, data } of eventsOf(response, signal)) {
    if (name === "error") throw Refusal.inStream(data.error);
    on[name]?.(data);
    if (name === "end") return;
  }
  throw Refusal.gone("The server went away in mid-run; what had come stays below");
}
