// The collection, to start from one of its pictures.

import * as api from "./api.js";
import { $, make } from "./dom.js";
import { picture } from "./hits.js";
import { setPicture, state } from "./state.js";
import { fine, ready, showProblem } from "./status.js";

const LOOK_AGAIN_MS = 5000;
let after = null;
let filled = false;

/** Shows the first pictures, once. */
export async function browse() {
  if (filled) return;
  if (!state.info.collection.rows) return showEmpty();
  filled = true;
  await more();
}

async function more() {
  try {
    const page = await api.rows(after);
    after = page.after;
    fine();
    $("gallery").append(...page.ids.map(tile));
    $("more-rows").hidden = after == null;
  } catch (error) {
    showProblem(error, more);
  }
}

function tile(id) {
  const look = picture(id);
  look.setAttribute("aria-label", `Point in ${id}`);
  look.addEventListener("click", () => setPicture({ kind: "row", id }));
  const name = make("figcaption", { className: "caption" }, make("span", { className: "name", textContent: id, title: id }));
  return make("figure", { className: "card" }, look, name);
}

/** Says how to fill the collection, and looks again now and then. */
function showEmpty() {
  const { program, collection, milvus, model, encoder } = state.info.places;
  const where = `--milvus ${milvus} --collection ${collection} ${encoder ? `--encoder ${encoder}` : model ? `--model ${model}` : ""}`;
  $("gallery").replaceChildren();
  $("browse-title").textContent = "This collection is empty";
  $("or-collection").hidden = true;
  $("browse").querySelector(".nothing")?.remove();
  $("browse").append(
    make(
      "div", { className: "nothing" }, make("p", { textContent: "Put pictures into it; this page sees them when they are there:" }),
      make("pre", { textContent: `${program} ingest ~/Pictures ${where}`, tabIndex: 0 }),
      state.info.collection.lite ? make("p", { textContent: "Milvus Lite takes one process at a time: end this page's server first." }) : null,
    ),
  );
  setTimeout(async () => {
    await ready();
    fine();
    if (!state.info.collection.rows) return showEmpty();
    $("browse").querySelector(".nothing")?.remove();
    $("browse-title").textContent = "Pictures of the collection";
    $("or-collection").hidden = false;
    browse();
  }, LOOK_AGAIN_MS);
}

$("more-rows").addEventListener("click", more);
