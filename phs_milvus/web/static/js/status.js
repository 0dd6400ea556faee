// What is said to people when something is missing or wrong, and what is tried again.

import * as api from "./api.js";
import { $, make, plural } from "./dom.js";
import { state } from "./state.js";

const POLL_MS = 1500;
// Members of a request, and the control that sets them; the rest is about the picture or the prompt.
const CONTROLS = { min_score: "min_score", zooms: "zooms", zoom: "zooms", focus: "heads", heads: "heads", filter: "filter", limit: "limit", localize: "localize", candidates: "limit" };

let retrying;

export function note(text, bad = false) {
  const element = $("stage-note");
  element.textContent = text;
  element.classList.toggle("bad", bad);
  element.hidden = !text;
}

/** Says that all is well again. */
export const fine = () => banner("");

function banner(text) {
  $("banner").hidden = !text;
  $("banner").querySelector("p").textContent = text;
}

export function clearProblems() {
  clearTimeout(retrying);
  $("prompt-error").hidden = true;
  note("");
  for (const element of document.querySelectorAll("#settings .error")) {
    element.hidden = true;
    element.parentElement.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  }
}

/** Says what is wrong where it is wrong; what passes by itself is tried again by `again`. */
export function showProblem(problem, again) {
  clearTimeout(retrying);
  if (problem.passing) {
    banner(problem.message);
    retrying = setTimeout(async () => {
      await ready();
      again();
    }, POLL_MS);
    return;
  }
  const field = (problem.field ?? "").replace(/\[.*$/, "");
  const control = CONTROLS[field];
  if (control) {
    const place = $(`${control}-error`);
    $("settings").hidden = false;
    $("settings-button").setAttribute("aria-expanded", "true");
    $(control).setAttribute("aria-invalid", "true");
    place.textContent = problem.message;
    place.hidden = false;
  } else if (field === "prompt" || field === "mask") {
    $("prompt-error").textContent = problem.message;
    $("prompt-error").hidden = false;
  } else if (field === "picture") note("This link is to a picture that the server no longer holds. Drop it here again.", true);
  else if (field === "collection") note(problem.message, true);
  else if (field === "image" || field === "id") note(`This picture cannot be used: ${problem.message}`, true);
  else note(problem.message || "Something went wrong in this page.", true);
}

/** Waits until the model and the collection are there, and says what is waited for until `fine` is called. */
export async function ready() {
  for (;;) {
    const info = await api.info().catch((error) => ({ state: { name: "away", detail: error.message } }));
    const { name, missing, detail, seconds } = info.state;
    if (name === "ready") {
      about(info);
      return info;
    }
    const loading = missing === "encoder" ? "The model is being loaded" : "The collection is being opened";
    banner(name === "loading" ? `${loading} … ${Math.round(seconds)} s` : `${detail} It is tried again.`);
    await new Promise((done) => setTimeout(done, name === "loading" ? 500 : POLL_MS));
  }
}

function about(info) {
  state.info = info;
  const { model, collection } = info;
  const name = model.model_id.split("/").pop();
  $("about").replaceChildren(
    make("strong", { textContent: collection.name }),
    ` · ${plural(collection.rows, "picture")} · ${name}, ${model.heads} heads`,
  );
  document.title = `${collection.name}: point and search`;
}
