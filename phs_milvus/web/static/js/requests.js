// The state as bodies of requests.

import { isPointed, state } from "./state.js";

const round = (value) => Math.round(value * 100) / 100;

/** A prompt as the API has it, in pixels of the picture that was sent. */
export function asJson(prompt, scale = 1) {
  const at = (value) => round(value * scale);
  if (prompt.type === "box") return { box: [prompt.x0, prompt.y0, prompt.x1, prompt.y1].map(at) };
  if (prompt.type === "lasso") return { polygon: prompt.points.map(([x, y]) => [at(x), at(y)]) };
  return { point: [at(prompt.x), at(prompt.y)], ...(prompt.label === 0 ? { label: 0 } : {}) };
}

export function question(pointed = isPointed()) {
  const { picture, prompts } = state;
  const scale = picture.scale ?? 1;
  return {
    ...(picture.kind === "row" ? { id: picture.id } : { picture: picture.digest }),
    ...(pointed ? { prompt: prompts.map((prompt) => asJson(prompt, scale)) } : {}),
  };
}

export const zoomsOf = (text) => text.split(/[\s,;]+/).filter(Boolean).map(Number);

/** The body of a search; members that say what the default says are left out. */
export function searchBody(pointed = isPointed()) {
  const { settings: asked, picture } = state;
  const body = { ...question(pointed), limit: asked.limit };
  if (pointed) {
    if (asked.heads != null) body.heads = asked.heads;
    if (asked.shift !== 1) body.attention_shift = asked.shift;
    if (asked.zooms.trim() !== "0") body.zooms = zoomsOf(asked.zooms);
    if (asked.localize) body.localize = asked.localize;
  }
  if (!pointed || !asked.rerank) body.rerank = false;
  else if (asked.score !== "blend") body.score = asked.score;
  if (asked.min_score != null) body.min_score = asked.min_score;
  if (asked.filter.trim()) body.filter = asked.filter.trim();
  if (!asked.exclude) body.exclude_query = false;
  else if (picture.original) body.original = picture.original;
  return body;
}

export function explainBody() {
  const { heads, zooms } = state.settings;
  const zoom = isPointed() ? zoomsOf(zooms)[0] || 0 : 0;
  return { ...question(), ...(heads != null ? { heads } : {}), ...(zoom ? { zoom } : {}) };
}

export function locateBody(ids) {
  const { heads, shift } = state.settings;
  return { ...question(), ids, attention_shift: shift, ...(heads != null ? { heads } : {}) };
}
