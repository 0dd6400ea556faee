// Asks whenever something has changed, and shows the answers; old ones are dropped when the prompt has moved on.

import * as api from "./api.js";
import { $ } from "./dom.js";
import { showHeads } from "./heads.js";
import { countOf, hitList } from "./hits.js";
import { explainBody, locateBody, searchBody } from "./requests.js";
import { isPointed, setPicture, state } from "./state.js";
import { clearProblems, fine, showProblem } from "./status.js";
import { resend } from "./upload.js";

const FIRST_LOCATED = 6; // what is looked at first is boxed first
const LOCATED_AT_ONCE = 12;
const SLOW_MS = 200;

let asking = null; // AbortController of the questions in progress
let waiting;
export const latest = { pointed: null, whole: null, body: null };

/** Asks for everything that the page shows of the state. */
export async function refresh() {
  asking?.abort();
  clearTimeout(waiting);
  if (!state.picture) return;
  const mine = (asking = new AbortController());
  const { signal } = mine;
  waiting = setTimeout(() => busy(true), SLOW_MS);
  clearProblems();
  const view = isPointed() ? state.settings.view : "whole";
  const started = performance.now();
  try {
    const wanted = { fields: ["*"] };
    const [pointed, whole] = await Promise.all([
      view === "whole" ? null : api.search({ ...searchBody(true), ...wanted }, signal),
      view === "pointed" ? null : api.search({ ...searchBody(false), ...wanted }, signal),
      explain(signal),
    ]);
    if (signal.aborted) return;
    fine();
    Object.assign(latest, { pointed, whole, body: searchBody(view !== "whole") });
    show(view, pointed, whole, performance.now() - started, signal);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    if (error.status === 404 && error.field === "picture" && (await resend())) return refresh();
    showProblem(error, refresh);
  } finally {
    if (mine === asking) {
      clearTimeout(waiting);
      busy(false);
    }
  }
}

async function explain(signal) {
  const seen = await api.explain(explainBody(), signal);
  if (!signal.aborted) showHeads(seen);
}

function busy(on) {
  $("progress").hidden = !on;
  $("results").classList.toggle("stale", on);
}

function show(view, pointed, whole, ms, signal) {
  const results = $("results");
  $("count").textContent = countOf(pointed ?? whole, ms);
  const near = (hits) => state.settings.boxes && locate(hits, signal);
  const lists = [];
  if (pointed) lists.push(hitList(view === "both" ? "Pointed at" : "", pointed.hits, use, near));
  if (whole) lists.push(hitList(view === "both" ? "Whole picture" : "", whole.hits, use, () => {}));
  results.className = `results ${view}`;
  results.replaceChildren(...lists);
}

/** Finds the boxes of hits, a few at a time, best first. */
async function locate(hits, signal) {
  const left = hits.filter((hit) => !hit.boxes && !hit.error);
  try {
    while (left.length && !signal.aborted) {
      const some = left.splice(0, hits[0]?.rank === 1 && !hits[0].boxes ? FIRST_LOCATED : LOCATED_AT_ONCE);
      const found = await api.locate(locateBody(some.map((hit) => hit.id)), signal);
      if (signal.aborted) return;
      some.forEach((hit, index) => {
        Object.assign(hit, found.rows[index]);
        hit.show();
      });
    }
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) showProblem(error, refresh);
  }
}

/** A hit becomes the picture to point in; where it was located, its best box the prompt. */
async function use(hit) {
  let where = hit;
  if (!hit.boxes && !hit.error && isPointed())
    where = await api.locate(locateBody([hit.id])).then((found) => found.rows[0], () => hit);
  const [best] = isPointed() ? (where.boxes ?? []) : [];
  const prompts = best ? [{ type: "box", ...Object.fromEntries(["x0", "y0", "x1", "y1"].map((name, i) => [name, best.box[i]])) }] : [];
  const size = where.width ? { width: where.width, height: where.height } : {};
  setPicture({ kind: "row", id: hit.id, ...size }, prompts);
}
