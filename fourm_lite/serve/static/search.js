// The tab "Search": words, a picture, a row, weights, not, filter; hits with scores.
import { ask, element, make, pictureOf, say, showPhoto } from "./server.js";

const MEANINGS = {
  "first hit": "that the first hit is right",
  relevance: "that one of the first ten hits shows what was asked for",
};
const state = { picture: null, like: null, running: null };

async function start() {
  try {
    const facts = await (await ask("/info")).json();
    element("rows").textContent = `${facts.rows.toLocaleString()} photos`;
    element("columns").textContent = facts.columns.length ? `Columns: ${facts.columns.join(", ")}` : "";
    element("k").max = facts.limits.k;
    element("rerank").max = facts.limits.rerank;
    document.dispatchEvent(new CustomEvent("facts", { detail: facts }));
  } catch (error) {
    say(element("status"), error.message, true);
  }
}

function body() {
  const asked = { k: Number(element("k").value) || 24 };
  const text = element("text").value.trim();
  if (text) asked.text = text;
  if (state.picture) asked.image = state.picture;
  if (state.like !== null) {
    asked.like = state.like;
    asked.k = Math.min(asked.k + 1, Number(element("k").max) || asked.k);
  }
  const not = element("not").value.trim();
  if (not) asked.not_text = not;
  const where = element("where").value.trim();
  if (where) asked.where = where;
  const rerank = Number(element("rerank").value);
  if (rerank > 0) asked.rerank = rerank;
  if (element("weigh").checked) asked.weights = weights(asked);
  return asked;
}

function weights(asked) {
  const found = {};
  if (asked.text) found.text = Number(element("weight-text").value);
  if (asked.image) found.image = Number(element("weight-image").value);
  if (asked.like !== undefined) found.like = Number(element("weight-image").value);
  return found;
}

async function search() {
  state.running?.abort();
  const mine = (state.running = new AbortController());
  const asked = body();
  if (!["text", "image", "like", "not_text"].some((name) => name in asked)) {
    say(element("status"), "Type some words, or give a picture.");
    return;
  }
  say(element("status"), "Searching …");
  const start = performance.now();
  try {
    const answer = await (await ask("/search", asked, mine.signal)).json();
    show(answer, performance.now() - start, asked.like);
  } catch (error) {
    if (error.name !== "AbortError") say(element("status"), error.message, true);
  }
}

function show(answer, milliseconds, like) {
  const hits = answer.hits.filter((hit) => hit.id !== like); // a photo is most like itself
  const count = hits.length;
  let told = count ? `${count} of ${answer.rows.toLocaleString()} in ${Math.round(milliseconds)} ms` : "Nothing found";
  if (answer.p_right !== null) {
    const meaning = MEANINGS[answer.p_means] || "of a right answer";
    told += `. ${answer.good_match === false ? "No good match; p" : "P"}robability ${meaning}: ${Math.round(100 * answer.p_right)} %`;
  } else if (answer.p_means === "short query") {
    told += ". No probability: for one or two words it would not hold; write a sentence";
  }
  say(element("status"), told, answer.good_match === false);
  element("hits").replaceChildren(...hits.map(card));
}

function card(hit, place) {
  const image = make("img", { alt: nameOf(hit), loading: "lazy" });
  showPhoto(image, hit.id).catch(() => {});
  image.addEventListener("error", () => { image.alt = `${nameOf(hit)} (no photo)`; });
  const score = hit.score === null ? "not reranked" : hit.score.toFixed(3);
  const meaning = hit.cosine === undefined ? "cosine: 1 is the same, 0 unrelated" : "the reranked score; the photos stand in its order";
  const cosine = hit.cosine === undefined ? "" : `, cosine ${hit.cosine.toFixed(3)}`;
  const bar = make("progress", { className: "bar", max: 1, value: Math.max(0, hit.cosine ?? hit.score ?? 0) });
  bar.setAttribute("aria-hidden", "true");
  const facts = make("span", { className: "facts" }, make("b", { textContent: `${place + 1}. ${score}`, title: meaning }), cosine, bar, nameOf(hit));
  if (hit.credit) facts.append(make("small", { textContent: hit.credit }));
  const button = make("button", { className: "hit", type: "button", title: "More like this" }, image, facts);
  button.dataset.id = hit.id;
  button.addEventListener("click", () => like(hit, image.src));
  return make("li", {}, button);
}

function nameOf(hit) {
  const known = hit.caption ?? hit.captions ?? hit.title;
  return String((Array.isArray(known) ? known[0] : known) ?? hit.id);
}

function like(hit, source) {
  state.like = hit.id;
  state.picture = null;
  element("text").value = "";
  given(`More like ${nameOf(hit)}`, source);
  search();
  window.scrollTo({ top: 0 });
}

async function take(file) {
  if (!file || !file.type.startsWith("image/")) {
    say(element("status"), "That is no picture.", true);
    return;
  }
  try {
    state.picture = await pictureOf(file);
  } catch {
    say(element("status"), "This picture cannot be opened.", true);
    return;
  }
  state.like = null;
  given(file.name || "The picture", state.picture);
  search();
}

function given(text, source) {
  const away = make("button", { type: "button", textContent: "Remove" });
  away.addEventListener("click", () => {
    state.picture = state.like = null;
    element("given").hidden = true;
    if (element("text").value.trim()) search();
  });
  element("given").replaceChildren(make("img", { src: source, alt: "" }), make("span", { textContent: text }), away);
  element("given").hidden = false;
}

function weighing() {
  for (const name of ["text", "image"]) {
    const slider = element(`weight-${name}`);
    slider.disabled = !element("weigh").checked;
    element(`weight-${name}-out`).textContent = slider.disabled ? "" : slider.value;
  }
}

const searching = () => !element("search").hidden;
element("query").addEventListener("submit", (event) => { event.preventDefault(); search(); });
element("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
for (const id of ["weigh", "weight-text", "weight-image"]) element(id).addEventListener("input", weighing);

let depth = 0;
const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => { if (carriesFile(event)) { depth += 1; element("drop").hidden = false; } });
addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); element("drop").hidden = depth === 0; });
addEventListener("dragover", (event) => event.preventDefault());
function hand(file) {
  if (searching()) take(file);
  else document.dispatchEvent(new CustomEvent("photo", { detail: file }));
}
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  element("drop").hidden = true;
  hand(event.dataTransfer?.files[0]);
});
addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) hand(file);
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName) && searching()) {
    event.preventDefault();
    element("text").focus();
  }
});

const tabs = { search: "tab-search", any: "tab-any" };
function turn(to) {
  for (const [panel, tab] of Object.entries(tabs)) {
    element(panel).hidden = panel !== to;
    element(tab).setAttribute("aria-selected", String(panel === to));
  }
}
for (const [panel, tab] of Object.entries(tabs)) element(tab).addEventListener("click", () => turn(panel));

document.addEventListener("token", start);
start();
