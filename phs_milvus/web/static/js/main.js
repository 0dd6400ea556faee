// Puts the parts together: what happens when the picture, the prompts or the settings change.

import * as api from "./api.js";
import { browse } from "./browse.js";
import { $, copyText } from "./dom.js";
import { showHeads } from "./heads.js";
import { refresh } from "./search.js";
import { makeSettings, showSettings } from "./settings.js";
import { canUndo, onChange, setPicture, state, undo } from "./state.js";
import { fine, note, ready, showProblem } from "./status.js";
import { address, readAddress } from "./url.js";
import { view } from "./view.js";
import { escape } from "./keyboard.js";
import "./exports.js";
import "./gestures.js";
import "./snippets.js";
import "./upload.js";

let restoring = false;

/** Shows the picture of the state, once its size is known. */
async function showPicture() {
  const { picture } = state;
  const has = Boolean(picture);
  for (const id of ["world", "tools", "bar", "results"]) $(id).hidden = !has;
  for (const id of ["welcome", "browse"]) $(id).hidden = has;
  $("stage").classList.toggle("empty", !has);
  showHeads(null);
  if (!has) return browse();
  $("results").replaceChildren();
  $("count").textContent = "";
  if (!picture.width) {
    try {
      const { width, height } = await api.row(picture.id);
      if (state.picture !== picture) return;
      Object.assign(picture, { width, height });
    } catch (error) {
      if (state.picture === picture) showProblem(error, showPicture);
      return;
    }
  }
  view.setSize(picture.width, picture.height);
  showPixels(1600);
  await refresh();
}

/** Shows the picture in a size that is enough for the zoom. */
function showPixels(size) {
  const { picture } = state;
  const image = $("picture");
  image.dataset.size = size;
  image.src = picture.kind === "row" ? api.imageOf(picture.id, size) : (picture.url ?? api.uploadOf(picture.digest, size));
}

const place = view.onchange;
view.onchange = () => {
  place();
  const { picture } = state;
  if (!picture?.width) return;
  const needed = view.scale * Math.max(picture.width, picture.height) * devicePixelRatio;
  if (needed > 2400 && Math.max(picture.width, picture.height) > 1600 && $("picture").dataset.size === "1600" && !picture.url) showPixels(4096);
};

onChange((what) => {
  $("undo").disabled = !canUndo();
  $("clear").disabled = !state.prompts.length;
  if (!restoring) {
    // Another picture is a step back in the browser's history, another prompt is not.
    if (what === "picture") history.pushState(null, "", address());
    else history.replaceState(null, "", address());
  }
  if (what === "settings") showSettings();
  if (what === "picture") showPicture();
  else refresh();
});

/** Makes the state what the address says. */
function restore() {
  restoring = true;
  const { id, upload, prompts, settings } = readAddress();
  Object.assign(state.settings, settings);
  showSettings();
  // A picture that was sent from here is still at hand.
  const same = upload && state.picture?.digest === upload.digest ? state.picture : upload;
  setPicture(id != null ? { kind: "row", id } : (same ?? null), prompts);
  restoring = false;
}

$("undo").addEventListener("click", undo);
$("clear").addEventListener("click", escape);
$("zoom-in").addEventListener("click", () => view.zoomBy(1.5));
$("zoom-out").addEventListener("click", () => view.zoomBy(1 / 1.5));
$("zoom-fit").addEventListener("click", () => view.fit());
$("link-button").addEventListener("click", () =>
  copyText(
    location.href,
    state.picture.kind === "row" ? "Link copied." : "Link copied. It works for as long as the server holds the picture.",
  ),
);
$("picture").addEventListener("error", () => note("This picture cannot be shown.", true));
addEventListener("popstate", restore);

$("stage").classList.add("empty");
const info = await ready();
fine();
$("logout").hidden = !info.login;
makeSettings();
restore();
