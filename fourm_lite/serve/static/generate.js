// The tab "Any to any": one photo in, every modality out, a line of JSON a step.
import { ask, element, make, pictureOf, say } from "./server.js";

const state = { picture: null, running: null, titles: {} };

document.addEventListener("facts", ({ detail }) => {
  state.titles = detail.titles;
  const boxes = detail.makes.map((name) => {
    const box = make("input", { type: "checkbox", value: name, checked: true });
    return make("label", { title: name }, box, titleOf(name));
  });
  element("targets").replaceChildren(make("legend", { textContent: "What to make" }), ...boxes);
  element("tab-any").hidden = detail.makes.length === 0;
});

async function take(file) {
  if (!file?.type.startsWith("image/")) {
    say(element("any-status"), "That is no picture.", true);
    return;
  }
  try {
    state.picture = await pictureOf(file);
  } catch {
    say(element("any-status"), "This picture cannot be opened.", true);
    return;
  }
  element("made").replaceChildren(card("Given", { picture: state.picture }));
  element("any-go").disabled = false;
  say(element("any-status"), "Ready.");
}

const titleOf = (name) => state.titles[name] || name;

async function run() {
  state.running?.abort();
  const mine = (state.running = new AbortController());
  const targets = [...element("targets").querySelectorAll("input:checked")].map((box) => box.value);
  if (!targets.length) {
    say(element("any-status"), "Choose at least one modality.", true);
    return;
  }
  element("made").replaceChildren(card("Given", { picture: state.picture }));
  element("any-progress").removeAttribute("value");
  element("any-progress").hidden = false;
  say(element("any-status"), "Beginning …");
  try {
    const answer = await ask("/generate", { image: state.picture, targets, stream: true }, mine.signal);
    let last = {};
    for await (const line of lines(answer.body)) told((last = line));
    if (!last.done) throw new Error("The server stopped before it was done.");
  } catch (error) {
    if (error.name !== "AbortError") say(element("any-status"), error.message, true);
  } finally {
    if (state.running === mine) element("any-progress").hidden = true;
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

function told(line) {
  if (line.error) throw new Error(line.error);
  if (line.step) {
    element("any-progress").max = line.of;
    element("any-progress").value = line.step;
    say(element("any-status"), `Step ${line.step} of ${line.of}: ${titleOf(line.target)}`);
  } else if (line.output) {
    element("made").append(card(line.target, line.output));
  } else if (line.done) {
    say(element("any-status"), "Done.");
  }
}

function card(name, output) {
  const facts = make("span", { className: "facts" }, make("b", { textContent: output.title ?? name }));
  if (output.confidence !== undefined) facts.append(` mean probability of its tokens ${output.confidence.toFixed(2)}`);
  if (output.legend) facts.append(...output.legend.flatMap(keyLine));
  else if (output.text) facts.append(make("br"), output.text);
  if (output.reason) facts.append(make("br"), output.reason);
  const node = make("div", { className: "made" });
  if (output.picture) node.append(make("img", { src: output.picture, alt: name }));
  node.append(facts);
  return node;
}

function keyLine({ name, value, color }) {
  const swatch = make("i", { className: "swatch" });
  if (color) swatch.style.background = `rgb(${color})`;
  return [make("br"), ...(color ? [swatch] : []), `${name} ${value}`];
}

element("any-file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
document.addEventListener("photo", ({ detail }) => take(detail));
element("make").addEventListener("submit", (event) => { event.preventDefault(); run(); });
